# %% [markdown]
# # 1 · What is in the data?
#
# Four-choice questions about pictures. Before any model: are the letters balanced, how long are the texts, how large
# are the pictures, and does anything stand there twice?

# %%
import sys

sys.path.insert(0, "..")
from vqa_utils.analysis import figures
from vqa_utils.analysis.gallery import gallery
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.duplicates import duplicate_table, image_sizes

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/

# %% [markdown]
# Everything is checked here, each picture included. What is wrong is listed at once, with file and line.

# %%
paths, config = open_run(run_id)
challenge = load_challenge(config, images=paths.images)
train, test = challenge.train, challenge.test
print(f"{len(train)} train rows, {len(test)} test rows, {len(challenge.sample_submission)} to submit")

# %% tags=["nbval-ignore-output"]
train.head(3)

# %% [markdown]
# ## Are the letters balanced?

# %%
shares = train["answer"].value_counts(normalize=True)
print(f"Always answering {shares.index[0]} would be right in {shares.iloc[0]:.1%} of the train rows.")

# %% tags=["nbval-ignore-output"]
figures.answer_balance(train)

# %% [markdown]
# ## How long are the texts?
#
# Long texts cost memory and time; options that differ in length can give the answer away.

# %%
longest = train[["a", "b", "c", "d"]].map(len).idxmax(axis=1)
print(f"The longest option is the answer in {(longest == train['answer']).mean():.1%} of the train rows (chance: 25 %).")
print(f"Questions have {train['question'].str.len().median():.0f} characters in the median.")

# %% tags=["nbval-ignore-output"]
figures.text_lengths(train, test)

# %% [markdown]
# ## How large are the pictures?

# %%
sizes = image_sizes(challenge)
pixels = sizes["width"] * sizes["height"]
print(f"Pixels: median {pixels.median():,.0f}, largest {pixels.max():,}; the model gets at most {config.image_side**2:,}.")

# %% tags=["nbval-ignore-output"]
figures.image_sizes(sizes)

# %% [markdown]
# ## Does anything stand there twice?
#
# Equal pictures under different names, and equal questions. Rows that share a picture must not be split between training
# and validation: [02_folds](02_folds.ipynb) sees to that.

# %%
duplicates = duplicate_table(challenge)
duplicates

# %%
print(f"{duplicates.loc['pictures', 'train rows']} train rows share their picture with another train row.")

# %% [markdown]
# ## A look at some rows

# %% tags=["nbval-ignore-output"]
gallery(train.sample(min(8, len(train)), random_state=config.seed), challenge.folder)

# %% [markdown]
# **Recap.** The data is whole and readable. This notebook writes nothing; [02_folds](02_folds.ipynb) reads the same files.
