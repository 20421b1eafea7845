# %% [markdown]
# # 3 · Train one fold
#
# A 4-bit base with LoRA on the language model's attention trains on the rows of all other folds.
# How well does it answer the held-out rows? A refit trains on all rows, so it has no held-out
# score.

# %%
import sys

sys.path[:0] = [".", ".."]  # the package, from the repository or from here
import pandas as pd

from vqa_utils.analysis import figures
from vqa_utils.artifacts.paths import shown
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.fold_rows import rows_of_fold
from vqa_utils.data.paraphrases import describe_wordings
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.adapter import add_lora
from vqa_utils.model.features.encoding import pictures_of
from vqa_utils.model.loading import load_base, load_processor
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
print(f"{config.adapter_name(fold)}: {rows.describe()}")
print(describe_wordings(train))

# %% [markdown]
# ## An example to learn from
#
# The chat ends with the right letter, and only that token has a label: the loss is about the answer
# alone.

# %%
encoder = Encoder(load_processor(config), challenge.folder, config.image_side, config.prompt)
tokens, is_label = encoder.example_tokens(train.iloc[0].to_dict())
print(f"{sum(is_label)} of {len(tokens)} tokens has a label: {tokens[is_label.index(True)]!r}")

# %% tags=["nbval-ignore-output"]
figures.label_mask(tokens, is_label)

# %% [markdown]
# ## The base
#
# The memory plan assigns each layer to a GPU; a CPU needs none. The table compares what was loaded,
# and where, with the plan. With `cache_features`, the vision tower has encoded the pictures and gone
# by then.

# %%
plan = memory_plan(config)

# %% tags=["nbval-ignore-output"]
base = load_base(config, plan, pictures_of(challenge.folder, [train, held_out]))
loaded_weights(base, config)

# %% [markdown]
# ## Training
#
# Each step adds a line to `train_log.csv`. Held-out rows are scored after each epoch, or with
# `eval_every` more often, and the best adapter is kept; without such rows, the last.

# %% tags=["nbval-ignore-output"]
model = add_lora(base, config, plan)
files = paths.fold(fold)
result = train_fold(model, config, encoder, train, held_out, files)

# %%
print(f"{result['trainable_parameters']:,} trainable parameters, {result['steps']} steps")

# %% tags=["nbval-ignore-output"]
print(describe_epochs(result))
memory = result["peak_memory_gib"]
print(f"{result['seconds']:.0f} s, peak memory {memory} GiB (per GPU, or of the process on a CPU).")

# %% tags=["nbval-ignore-output"]
log, epochs = pd.read_csv(files.train_log), pd.DataFrame(result["epochs"])
figures.training_curves(log, epochs)

# %%
print("wrote", shown(files.adapter), shown(files.train_log), shown(files.meta))

# %% [markdown]
# **Recap.** `adapter/` holds the LoRA weights with the settings beside them;
# [04_infer](04_infer.ipynb) reads both.
