# %% [markdown]
# # 5 · Which option answers each row?
#
# Each fold's model has its own opinion of the test rows. How good is each, how far do they agree,
# how much is their confidence worth, and what do they say together? With `members`, the members are
# runs instead of folds.

# %%
import sys

sys.path[:0] = [".", ".."]  # the package, from the repository or from here
from vqa_utils.analysis import figures
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.ensembling.combining import agreement, describe_agreement
from vqa_utils.ensembling.ensemble_of_folds import of_folds
from vqa_utils.ensembling.ensemble_of_runs import of_runs

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/
members: str = ""  # runs to blend, separated by commas; empty takes the folds of this run

# %%
ensemble = of_runs(run_id, members) if members else of_folds(run_id)
print(ensemble.who)

# %% [markdown]
# ## How good is each member?
#
# Each train row is scored by a model that did not train on it. The last line pools all members. A
# refit has no score: it trained on all rows.

# %% tags=["nbval-ignore-output"]
print(ensemble.describe_scores())
ensemble.scores

# %% [markdown]
# ## How far do they agree?
#
# An ensemble gains from members that disagree; identical ones add nothing.

# %% tags=["nbval-ignore-output"]
agree = agreement(ensemble.members)
print(describe_agreement(agree))
figures.agreement(agree)

# %% [markdown]
# ## What is fitted, and is it used?
#
# Each fold gets a temperature that matches confidence to accuracy; runs get weights. Both are
# fitted on out-of-fold rows, tested on rows outside the fit and, by default, used only if they
# help. A refit gets the geometric mean of the folds' temperatures.

# %% tags=["nbval-ignore-output"]
fit = ensemble.fit
print(fit.decision)
fit.table

# %% [markdown]
# On the dashed line, a probability means what it says: of the rows with 80 % confidence, 80 % are
# right.

# %% tags=["nbval-ignore-output"]
print(fit.describe_calibration())
figures.reliability_diagrams(fit.compared, fit.answers)

# %% [markdown]
# ## The answers

# %%
outcome = ensemble.outcome
members_text = f"{len(ensemble.members)} member(s)"
print(f"{members_text}, {len(outcome.submission)} answers in the order of sample_submission.csv")
print(outcome.describe_ties())

# %% tags=["nbval-ignore-output"]
outcome.submission["answer"].value_counts().sort_index()

# %%
print("wrote", *map(shown, outcome.write(RunPaths(run_id))))

# %% [markdown]
# **Recap.** The submission is ready to upload; `ensemble/` has the probabilities behind it, and the
# temperatures or weights in use. [06_analysis](06_analysis.ipynb) looks at where the model is
# wrong.
