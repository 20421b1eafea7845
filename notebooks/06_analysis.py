# %% [markdown]
# # 6 · Where is it wrong, and does it look at the picture?
#
# All numbers are out of fold: each row is judged by the model that did not train on it.

# %%
import sys

sys.path.insert(0, "..")
from vqa_utils import figures, report
from vqa_utils.data import load_challenge
from vqa_utils.ensemble import pooled, scored_folds
from vqa_utils.folds import read_folds
from vqa_utils.metrics import accuracy, expected_calibration_error
from vqa_utils.paths import shown
from vqa_utils.runs import open_run

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/

# %%
paths, config = open_run(run_id)
challenge = load_challenge(config)
train, folds = challenge.train, read_folds(paths.folds, challenge.train)
there, missing = scored_folds(paths, config)
probs = pooled(paths, config, folds, "oof")
answers = report.answers_of(probs, train)
print(f"{len(probs)} out-of-fold rows from folds {there}; missing folds: {missing or 'none'}")

# %% [markdown]
# ## Against the baselines
#
# The base without fine-tuning says what the training added; blank pictures say whether the model looks at all. The
# p-value is McNemar's, on the same rows.

# %% tags=["nbval-ignore-output"]
baselines = report.baseline_table(paths, config, folds, train)
baselines.style.format(precision=3, na_rep="").format("{:.1e}", subset="mcnemar_p", na_rep="").hide()

# %% tags=["nbval-ignore-output"]
print(report.read_baselines(baselines))

# %% [markdown]
# ## Which letters are mixed up?

# %% tags=["nbval-ignore-output"]
print(f"{accuracy(probs, answers):.1%} of the rows are right; they are on the diagonal.")
confusion = figures.confusion(probs, answers)
confusion

# %% [markdown]
# ## Which questions are hard?

# %%
kinds = report.kinds_of(probs, train)
print("rows by kind:", kinds.value_counts().sort_index().to_dict())

# %% tags=["nbval-ignore-output"]
by_kind = report.accuracy_table(probs, answers, kinds)
hardest = by_kind.loc[by_kind["accuracy"].idxmin()]
print(f"Hardest kind: {hardest['group']}, {hardest['accuracy']:.1%} right of {hardest['rows']} rows.")
kind_figure = figures.accuracy_by(by_kind, "Accuracy by kind of question")
kind_figure

# %% tags=["nbval-ignore-output"]
by_letter = report.accuracy_table(probs, answers, answers)
print(f"By right letter, accuracy lies between {by_letter['accuracy'].min():.1%} and {by_letter['accuracy'].max():.1%}.")
by_letter.round(3)

# %% [markdown]
# ## Is its confidence worth anything?

# %% tags=["nbval-ignore-output"]
print(f"Confidence is off by {expected_calibration_error(probs, answers):.1%} in the mean (expected calibration error).")
reliability = figures.reliability_diagram(probs, answers)
reliability

# %% [markdown]
# ## The worst mistakes
#
# Wrong rows whose right option (✓) looked least probable; the chosen one is bold.

# %% tags=["nbval-ignore-output"]
mistakes = report.worst_mistakes(probs, train, count=50)
print(f"{len(mistakes)} of the worst mistakes are listed in the report; the first eight:")
report.gallery(mistakes.head(8), challenge.folder)

# %%
tables = {"Folds": report.fold_table(paths, config, folds, train), "Baselines": baselines, "Kinds of question": by_kind,
          "Letters": by_letter, "Worst mistakes": mistakes}  # fmt: skip
plots = {"Confusion": confusion, "Accuracy by kind": kind_figure, "Reliability": reliability}
print("wrote", shown(report.write_report(paths, config, tables, plots)))

# %% [markdown]
# **Recap.** `report/index.html` shows these tables and figures on one page, `report/worst_mistakes.csv` lists the rows.
