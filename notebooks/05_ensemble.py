# %% [markdown]
# # 5 · One answer a row
#
# Each fold's model has its own opinion of the test rows. How good are they one by one, how far do they agree, and what
# does their mean say?

# %%
import sys

sys.path.insert(0, "..")
from vqa_utils import figures
from vqa_utils.artifacts import write_csv, write_probabilities
from vqa_utils.data import load_challenge
from vqa_utils.ensemble import agreement, mean_probabilities, pooled, read_members, scored_folds, submission
from vqa_utils.folds import read_folds
from vqa_utils.paths import shown
from vqa_utils.report import fold_table, read_agreement
from vqa_utils.runs import open_run

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/

# %%
paths, config = open_run(run_id)
challenge = load_challenge(config)
folds = read_folds(paths.folds, challenge.train)
there, missing = scored_folds(paths, config)
print(f"folds scored: {there}, missing: {missing or 'none'}")

# %% [markdown]
# ## How good is each fold?
#
# Every train row is judged by the one model that did not see it, so the line `all` is an honest estimate.

# %% tags=["nbval-ignore-output"]
table = fold_table(paths, config, folds, challenge.train)
overall = table.iloc[-1]
print(f"Out of fold: accuracy {overall['accuracy']:.3f}, log loss {overall['log_loss']:.3f} over {overall['rows']} rows.")
table.round(3)

# %% [markdown]
# ## How far do they agree?
#
# Members that disagree are what an ensemble lives on; members that agree everywhere add nothing to each other.

# %% tags=["nbval-ignore-output"]
members = read_members(paths, config, folds, challenge.test["id"])
agree = agreement(members)
print(read_agreement(agree))
figures.agreement(agree)

# %% [markdown]
# ## The mean of the members

# %%
test_probs = mean_probabilities([member.test for member in members])
answers = submission(challenge.sample_submission, test_probs)
print(f"{len(members)} member(s), {len(answers)} answers in the order of sample_submission.csv")

# %% tags=["nbval-ignore-output"]
answers["answer"].value_counts().sort_index()

# %%
write_probabilities(paths.ensemble / "probs_test.csv", test_probs)
write_probabilities(paths.ensemble / "probs_oof.csv", pooled(paths, config, folds, "oof"))
write_csv(paths.submission(config.use_kfold), answers)
print("wrote", shown(paths.ensemble), shown(paths.submission(config.use_kfold)))

# %% [markdown]
# **Recap.** The submission is ready to upload. [06_analysis](06_analysis.ipynb) looks at where the model is wrong.
