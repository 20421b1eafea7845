# %% [markdown]
# # 5 · One answer a row
#
# Each fold's model has its own opinion of the test rows. How good are they one by one, how far do they agree, how much is
# their confidence worth, and what do they say together? With `members`, the members are runs instead of folds.

# %%
import sys

sys.path.insert(0, "..")
from vqa_utils.analysis import figures
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.ensembling.combining import agreement, describe_agreement
from vqa_utils.ensembling.ensemble_of_folds import of_folds
from vqa_utils.ensembling.ensemble_of_runs import of_runs

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/
members: str = ""  # runs to blend into this one, separated by commas; empty takes the folds of this run

# %%
ensemble = of_runs(run_id, members) if members else of_folds(run_id)
print(ensemble.who)

# %% [markdown]
# ## How good is each member?
#
# A train row is judged by models that did not see it, so these are honest estimates. The last line is of all together. No score
# is of a refit, which has seen all rows.

# %% tags=["nbval-ignore-output"]
print(ensemble.describe_scores())
ensemble.scores.round(3)

# %% [markdown]
# ## How far do they agree?
#
# Members that disagree are what an ensemble lives on; members that agree everywhere add nothing to each other.

# %% tags=["nbval-ignore-output"]
agree = agreement(ensemble.members)
print(describe_agreement(agree))
figures.agreement(agree)

# %% [markdown]
# ## What is fitted, and is it used?
#
# For folds: a temperature each, so that a model's confidence is as high as its accuracy. For runs: their weights. Both are
# fitted on out-of-fold rows, judged on others that the fit did not see, and used only where that shows a gain. A refit has no
# such rows: it gets the geometric mean of the folds' temperatures.

# %% tags=["nbval-ignore-output"]
fit = ensemble.fit
print(fit.decision)
fit.table.round(4)

# %% [markdown]
# On the dashed line, a probability means what it says: of the rows with 80 % confidence, 80 % are right.

# %% tags=["nbval-ignore-output"]
print(fit.describe_calibration())
figures.reliability_diagrams(fit.compared, fit.answers)

# %% [markdown]
# ## One answer a row

# %%
outcome = ensemble.outcome
print(f"{len(ensemble.members)} member(s), {len(outcome.submission)} answers in the order of sample_submission.csv")
print(outcome.describe_ties())

# %% tags=["nbval-ignore-output"]
outcome.submission["answer"].value_counts().sort_index()

# %%
print("wrote", *map(shown, outcome.write(RunPaths(run_id))))

# %% [markdown]
# **Recap.** The submission is ready to upload; `ensemble/` has the probabilities behind it, and the temperatures or weights in
# use. [06_analysis](06_analysis.ipynb) looks at where the model is wrong.
