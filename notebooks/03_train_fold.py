# %% [markdown]
# # 3 · Train one fold
#
# A fresh base in 4 bits, LoRA on the attention of its language model, and the rows of all other folds. How well does it
# answer the rows it has not seen? A refit learns from all rows: nothing is held out, so its accuracy stays unknown.

# %%
import sys

sys.path.insert(0, "..")
import pandas as pd

from vqa_utils.analysis import figures
from vqa_utils.artifacts.paths import shown
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.fold_rows import rows_of_fold
from vqa_utils.data.paraphrases import describe_wordings
from vqa_utils.model.encoder import IGNORED, Encoder
from vqa_utils.model.loading import add_lora, load_base, load_processor
from vqa_utils.model.loading_check import loaded_weights
from vqa_utils.planning.plan import memory_plan
from vqa_utils.training.fold import describe_epochs, train_fold

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/
fold: int = 0  # the fold to hold out, or the number after the last for the refit

# %%
paths, config = open_run(run_id, fold)
challenge = load_challenge(config)
rows = rows_of_fold(paths, config, challenge, fold)
train, held_out = rows.train, rows.held_out
print(f"{config.adapter_name(fold)}: {len(train)} rows to train on, {len(held_out)} held out")
print(f"{len(rows.extra)} of these are extra rows; {len(challenge.extra) - len(rows.extra)} more would show or ask what is held out.")
print(describe_wordings(train))

# %% [markdown]
# ## An example to learn from
#
# The chat ends with the right letter, and only that token has a label: the loss is about the answer alone.

# %%
encoder = Encoder(load_processor(config), challenge.folder, config.image_side)
example = encoder.examples(train.head(1).to_dict("records"))
tokens = [encoder.processor.tokenizer.decode(token) for token in example["input_ids"][0]]
is_label = (example["labels"][0] != IGNORED).tolist()
print(f"{sum(is_label)} of {len(tokens)} tokens has a label: {tokens[is_label.index(True)]!r}")

# %% tags=["nbval-ignore-output"]
figures.label_mask(tokens, is_label)

# %% [markdown]
# ## The base
#
# The memory plan says which layer goes to which GPU; on a CPU there is none. Then what was loaded, and where to, against it.

# %%
plan = memory_plan(config)

# %% tags=["nbval-ignore-output"]
base = load_base(config, plan)
loaded_weights(base, config)

# %% [markdown]
# ## Training
#
# Each step adds a line to `train_log.csv`. The adapter of the best epoch is kept; without held-out rows, that of the last.

# %% tags=["nbval-ignore-output"]
result = train_fold(add_lora(base, config, plan), config, encoder, train, held_out, paths.fold(fold))

# %%
print(f"{result['trainable_parameters']:,} trainable parameters, {result['steps']} steps")

# %% tags=["nbval-ignore-output"]
print(describe_epochs(result))
print(f"{result['seconds']:.0f} s, peak memory {result['peak_memory_gib']} GiB (a GPU each, or the process on a CPU).")

# %% tags=["nbval-ignore-output"]
figures.training_curves(pd.read_csv(paths.fold(fold).train_log), pd.DataFrame(result["epochs"]))

# %%
files = paths.fold(fold)
print("wrote", shown(files.adapter), shown(files.train_log), shown(files.meta))

# %% [markdown]
# **Recap.** `adapter/` holds the LoRA weights with the settings beside them; [04_infer](04_infer.ipynb) reads both.
