# %% [markdown]
# # 4 · How probable is each option?
#
# The fold's adapter scores the rows it has not seen: those held out, and the test set; a refit's the test set alone. A batch
# takes one forward pass: the logits of the letters a to d at the last position, and a softmax over the four.

# %%
import sys

sys.path.insert(0, "..")
import pandas as pd

from vqa_utils.analysis import figures
from vqa_utils.analysis.gallery import gallery
from vqa_utils.artifacts.paths import shown
from vqa_utils.artifacts.run import open_run
from vqa_utils.metrics import option_matrix, predictions
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.loading import load_adapter
from vqa_utils.planning.plan import memory_plan
from vqa_utils.scoring.options import questions_of_fold, score_fold

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/
fold: int = 0  # the fold whose adapter answers, or the number after the last for the refit
predict: str = ""  # a folder with another test.csv to answer; empty for the run's own rows

# %% tags=["nbval-ignore-output"]
paths, run_config = open_run(run_id, fold)
model, processor, config = load_adapter(paths.fold(fold).adapter, run_config, memory_plan(run_config))

# %%
folder, questions = questions_of_fold(paths, config, fold, predict)
print({name: f"{len(rows)} rows" for name, rows in questions.items()})

# %% [markdown]
# The right answers are dropped before anything is scored. With `baselines` on, the held-out rows are scored twice more: by the
# base without its adapter (`zero_shot`), and with grey pictures (`blank`). With `tta` above 1, a row is scored in several
# orders of its options, and averaged.

# %% tags=["nbval-ignore-output"]
out = paths.predicting(predict).fold(fold)
encoder = Encoder(processor, folder, config.image_side)
probs = score_fold(model, encoder, questions, config, out)

# %%
for name, frame in probs.items():
    sums = option_matrix(frame).sum(axis=1)
    print(f"{name}: {len(frame)} rows, probabilities sum to {sums.mean():.3f}")

# %% tags=["nbval-ignore-output"]
confidence = {name: pd.Series(option_matrix(frame).max(axis=1)) for name, frame in probs.items()}
summary = pd.DataFrame({name: values.describe() for name, values in confidence.items()}).T
print(f"The chosen option of a test row has probability {summary.loc['test', 'mean']:.3f} on average.")
summary[["count", "mean", "min", "50%"]]

# %% tags=["nbval-ignore-output"]
figures.confidences(probs)

# %% [markdown]
# ## The least certain test rows

# %% tags=["nbval-ignore-output"]
least = confidence["test"].nsmallest(6)
rows = questions["test"].reset_index(drop=True).loc[least.index]
gallery(rows.assign(chosen=predictions(probs["test"])[least.index], p_chosen=least), folder)

# %%
for name in probs:
    print("wrote", *map(shown, out.scored(name)))

# %% [markdown]
# **Recap.** Each `probs_*.csv` has `id`, `a`, `b`, `c`, `d`; [05_ensemble](05_ensemble.ipynb) averages those of all folds. With
# several orders, `probs_*_orders.csv` has each order's probabilities, for [06_analysis](06_analysis.ipynb).
