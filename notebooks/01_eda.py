# %% [markdown]
# # 1 · What is in the data?
#
# Four-choice questions about pictures. Before any model: are the letters balanced, how long are the
# texts, how large are the pictures, and does anything occur twice?

# %%
import sys

sys.path[:0] = [".", ".."]  # the package, from the repository or from here
from vqa_utils.analysis import figures
from vqa_utils.analysis.blind_answers import longest_option
from vqa_utils.analysis.gallery import gallery
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.duplicates import duplicate_table, image_sizes
from vqa_utils.data.pictures.notes import describe_notes
from vqa_utils.data.text_lengths import describe_texts, measure_texts
from vqa_utils.planning.source.check import source_of, tokenizer_of

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/

# %% [markdown]
# Loading checks every row and picture, and reports all problems in one error. Each picture is
# opened once: `images.csv` keeps its size and hashes.

# %%
paths, config = open_run(run_id)
challenge = load_challenge(config, images=paths.images)
train, test = challenge.train, challenge.test
to_submit = len(challenge.sample_submission)
print(f"{len(train)} train rows, {len(test)} test rows, {to_submit} to submit")

# %% tags=["nbval-ignore-output"]
train.head(3)

# %% [markdown]
# ## Are the letters balanced?

# %%
shares = train["answer"].value_counts(normalize=True)
common = shares.index[0]
print(f"Always answering {common} would be right in {shares[common]:.1%} of the train rows.")

# %% tags=["nbval-ignore-output"]
figures.answer_balance(train)

# %% [markdown]
# ## How long are the texts?
#
# Long texts cost memory and time; options that differ in length can give the answer away.

# %%
right = longest_option(train) == train["answer"]
print(f"The longest option is the answer in {right.mean():.1%} of the train rows (chance: 25 %).")

# %%
length = train["question"].str.len().median()
print(f"The median question has {length:.0f} characters.")

# %% [markdown]
# A row much longer than the others goes through the model in a pass of its own: in a batch, all
# rows would be padded to its length.

# %%
print(describe_texts(measure_texts(challenge.question_rows, tokenizer_of(source_of(config)))))

# %% tags=["nbval-ignore-output"]
figures.text_lengths(train, test)

# %% [markdown]
# ## How large are the pictures?
#
# Of a picture that is shown smaller than it is, a larger `image_side` shows more, and so do `crops`. Of
# the others, `crops` show no more and cost as much.

# %%
sizes = image_sizes(challenge)
pixels = sizes["width"] * sizes["height"]
most = config.image_side**2
print(
    f"Pixels: median {pixels.median():,.0f}, largest {pixels.max():,}; "
    f"the model gets at most {most:,}, so {(pixels > most).mean():.0%} of the pictures are shown "
    "smaller than they are."
)

# %% tags=["nbval-ignore-output"]
figures.image_sizes(sizes)

# %% [markdown]
# A picture of one colour answers nothing. Deeper samples become 8 bits of the same brightness, and
# of several frames the first is shown.

# %%
print(describe_notes(challenge))

# %% [markdown]
# ## Does anything occur twice?
#
# Equal pictures under different names, and equal questions. Rows that share a picture must not be
# split between training and validation: [02_folds](02_folds.ipynb) sees to that.

# %%
duplicates = duplicate_table(challenge)
duplicates

# %%
shared = duplicates.loc["pictures", "train rows"]
print(f"{shared} train rows share their picture with another train row.")

# %% [markdown]
# ## A look at some rows

# %% tags=["nbval-ignore-output"]
some = train.sample(min(8, len(train)), random_state=config.seed)
gallery(some, challenge.folder)

# %% [markdown]
# **Recap.** All rows and pictures are readable. [02_folds](02_folds.ipynb) reads the same files,
# and `images.csv` instead of the pictures.
