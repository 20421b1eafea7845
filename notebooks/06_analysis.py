# %% [markdown]
# # 6 · Where is it wrong, and does it look at the picture?
#
# All numbers are out of fold: each row is judged by the model that did not train on it. Every accuracy has its 95 %
# bootstrap interval.

# %%
import sys

sys.path.insert(0, "..")
from vqa_utils.analysis import error_analysis, figures, report
from vqa_utils.analysis.baselines import answers_without_images, baseline_table, describe_baselines
from vqa_utils.analysis.clusters import question_clusters
from vqa_utils.analysis.gallery import gallery
from vqa_utils.analysis.position_bias import pooled_orders, position_bias
from vqa_utils.artifacts.paths import shown
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import read_folds
from vqa_utils.data.question_kinds import question_kinds
from vqa_utils.ensembling.combining import describe_unanimity
from vqa_utils.ensembling.fold_table import fold_table
from vqa_utils.ensembling.members import describe_refit, pooled, read_members, rows_of, scored_folds
from vqa_utils.ensembling.temperature import before_and_after, describe_calibration_effect
from vqa_utils.metrics import correct

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/

# %%
paths, config = open_run(run_id)
challenge = load_challenge(config, images=paths.images)
train, folds = challenge.train, read_folds(paths.folds, challenge.train)
there, missing = scored_folds(paths, config)
probs = pooled(paths, config, folds, "oof")
rows = rows_of(probs, train)
right = correct(probs, rows["answer"])
print(f"{len(probs)} out-of-fold rows from folds {there}; missing folds: {missing or 'none'}")
print(describe_refit(paths, config))

# %% [markdown]
# ## Against the baselines
#
# The base without fine-tuning says what the training added. Blank pictures, the most frequent letter, the longest option
# and a model of the text alone say how far one gets without looking. The p-value is McNemar's, on the same rows.

# %% tags=["nbval-ignore-output"]
blind = answers_without_images(train, folds, probs["id"], config.seed)
baselines = baseline_table(paths, config, folds, train, blind)
baselines.style.format(precision=3, na_rep="").format("{:.1e}", subset="mcnemar_p", na_rep="").hide()

# %% tags=["nbval-ignore-output"]
words = {"Baselines": describe_baselines(baselines)}
print(words["Baselines"])
baseline_figure = figures.accuracy_by(baselines.assign(group=baselines["model"], rows=len(probs)), "Against the baselines")
baseline_figure

# %% [markdown]
# ## Which letters are mixed up?

# %% tags=["nbval-ignore-output"]
words["Confusion"] = error_analysis.describe_confusion(probs, rows["answer"])
print(words["Confusion"])
confusion = figures.confusion(probs, rows["answer"])
confusion

# %% [markdown]
# ## Does an option win by its place?
#
# With `tta`, each row was scored in several orders of its options. An option deserves its mean over them; what a place gets
# beyond that is the place's doing. With one order, only letters chosen and letters right are left to compare.

# %% tags=["nbval-ignore-output"]
bias = position_bias(pooled_orders(paths, config, folds, probs), probs, rows["answer"])
words["Position bias"] = bias.describe()
print(words["Position bias"])
bias_figure = figures.position_bias(bias.places, bias.orders, bias.title)
bias_figure

# %% [markdown]
# ## Which questions are hard?
#
# Groups of rows, by what the question asks and how, by the length of the right option, by the size of the picture. Small
# groups look hard by chance, and among many groups one always looks hard: so only groups with enough rows are tested, by
# Fisher's exact test against all other rows, with Holm's correction for their number.

# %%
print("rows by kind:", question_kinds(rows).value_counts().sort_index().to_dict())

# %% tags=["nbval-ignore-output"]
clusters = question_clusters(rows["question"], config.seed)
pixels = challenge.images_of(rows)[["width", "height"]].prod(axis=1).to_numpy()
groups = error_analysis.group_table(right, error_analysis.question_groups(rows, pixels, clusters))
words["Groups"] = error_analysis.describe_groups(groups)
print(words["Groups"])

# %% [markdown]
# Clusters of questions (TF-IDF and k-means), named by the words that set them apart:

# %% tags=["nbval-ignore-output"]
groups[groups["by"] == "cluster"].drop(columns="by").round(3)

# %% [markdown]
# The other groups, the hardest first:

# %% tags=["nbval-ignore-output"]
others = groups[groups["by"] != "cluster"].sort_values("accuracy")
words["Accuracy by group"] = error_analysis.describe_spread(others)
print(words["Accuracy by group"])
group_figure = figures.accuracy_by(others.assign(group=others["by"] + ": " + others["group"]), "Accuracy by group")
group_figure

# %% [markdown]
# ## Is its confidence worth anything?

# %% tags=["nbval-ignore-output"]
sets = before_and_after(paths, probs)
words["Reliability"] = describe_calibration_effect(sets, rows["answer"])
print(words["Reliability"])
reliability = figures.reliability_diagrams(sets, rows["answer"])
reliability

# %% [markdown]
# By confidence as scored:

# %% tags=["nbval-ignore-output"]
bands = error_analysis.confidence_table(probs, right)
words["Confidence"] = error_analysis.describe_confidence(bands)
print(words["Confidence"])
bands.round(3)

# %% [markdown]
# ## Do the folds agree?
#
# An out-of-fold row has one judge; the test rows have all of them, and a refit where there is one.

# %% tags=["nbval-ignore-output"]
members = read_members(paths, config, challenge.test["id"])
words["Folds"] = f"{describe_unanimity(members)}\n{describe_refit(paths, config)}"
print(words["Folds"])

# %% [markdown]
# ## The worst mistakes
#
# The first eight here, all that are listed in the report.

# %% tags=["nbval-ignore-output"]
mistakes = error_analysis.worst_mistakes(probs, train, count=50)
mistakes = mistakes.assign(cluster=clusters[mistakes.index], pixels=pixels[mistakes.index])
words["Worst mistakes"] = error_analysis.describe_mistakes(mistakes, right)
print(words["Worst mistakes"])
gallery(mistakes.head(8), challenge.folder)

# %%
tables = {"Folds": fold_table(paths, config, folds, train), "Baselines": baselines, "Groups": groups,
          "Confidence": bands, **bias.tables, "Worst mistakes": mistakes}  # fmt: skip
plots = {"Accuracy against baselines": baseline_figure, "Confusion": confusion, "Position bias": bias_figure,
         "Accuracy by group": group_figure, "Reliability": reliability}  # fmt: skip
print("wrote", shown(report.write_report(paths, config, tables, plots, words, challenge.folder)))

# %% [markdown]
# **Recap.** `report/index.html` shows these tables and figures on one page (a click on a column's head sorts its table),
# `report/worst_mistakes.csv` lists the rows.
