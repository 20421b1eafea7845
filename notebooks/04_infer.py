# %% [markdown]
# # 4 · How probable is each option?
#
# The fold's adapter scores its held-out rows and the test set; a refit scores the test set only.
# The logits of a to d at the last position go through a softmax.

# %%
import sys

sys.path[:0] = [".", ".."]  # the package, from the repository or from here
from vqa_utils.analysis import confidence, figures
from vqa_utils.analysis.gallery import gallery
from vqa_utils.artifacts.paths import shown
from vqa_utils.artifacts.run import open_run
from vqa_utils.metrics import option_matrix
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.adapter import load_adapter
from vqa_utils.model.features.encoding import pictures_of
from vqa_utils.planning.plan import memory_plan
from vqa_utils.scoring.fold import questions_of_fold, score_fold, shown_grey

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/
fold: int = 0  # the fold whose adapter answers, or the number after the last for the refit
predict: str = ""  # a folder with another test.csv to answer; empty for the run's own rows

# %% tags=["nbval-ignore-output"]
paths, run_config = open_run(run_id, fold)
folder, questions = questions_of_fold(paths, run_config, fold, predict)

# %%
print({name: f"{len(rows)} rows" for name, rows in questions.items()})

# %% tags=["nbval-ignore-output"]
plan = memory_plan(run_config)
pictures = pictures_of(folder, questions.values(), grey=shown_grey(questions, run_config))
model, processor, config = load_adapter(paths.fold(fold).adapter, run_config, plan, pictures)

# %% [markdown]
# The right answers are dropped before anything is scored. With `baselines` on, the held-out rows
# are scored twice more: by the base without its adapter (`zero_shot`), and with grey pictures
# (`blank`). With `tta` above 1, a row is scored in several orders of its options, and averaged. With
# `second_look`, the least certain rows are scored again.

# %% tags=["nbval-ignore-output"]
out = paths.predicting(predict).fold(fold)
encoder = Encoder(processor, folder, config.image_side, config.prompt)
probs = score_fold(model, encoder, questions, config, paths.fold(fold), out)

# %%
for name, frame in probs.items():
    sums = option_matrix(frame).sum(axis=1)
    print(f"{name}: {len(frame)} rows, probabilities sum to {sums.mean():.3f}")

# %% tags=["nbval-ignore-output"]
confidences = confidence.confidences(probs)
mean = confidences.loc["test", "mean"]
print(f"The chosen option of a test row has probability {mean:.3f} on average.")
confidences

# %% tags=["nbval-ignore-output"]
figures.confidences(probs)

# %% [markdown]
# ## The least certain test rows

# %% tags=["nbval-ignore-output"]
least = confidence.least_certain(questions["test"], probs["test"], count=6)
gallery(least, folder)

# %%
for name in probs:
    print("wrote", *map(shown, out.scored(name)))

# %% [markdown]
# **Recap.** Each `probs_*.csv` has `id`, `a`, `b`, `c`, `d`; [05_ensemble](05_ensemble.ipynb)
# averages those of all folds. With several orders, `probs_*_orders.csv` has each order's
# probabilities, for [06_analysis](06_analysis.ipynb).
