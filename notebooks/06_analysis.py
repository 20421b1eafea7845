# %% [markdown]
# # 6 · Where is it wrong, and does it look at the picture?
#
# All numbers are out of fold: each row is judged by the model that did not train on it. Every accuracy has Wilson's 95 %
# interval.

# %%
import sys

sys.path.insert(0, "..")
from vqa_utils.analysis import error_analysis, figures
from vqa_utils.analysis.baselines import baseline_table, describe_baselines
from vqa_utils.analysis.blind_answers import answers_without_images
from vqa_utils.analysis.clusters import question_clusters
from vqa_utils.analysis.gallery import gallery
from vqa_utils.analysis.position_bias import pooled_orders, position_bias
from vqa_utils.analysis.question_groups import question_groups
from vqa_utils.analysis.report import Report
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
scored, missing = scored_folds(paths, config)
probs = pooled(paths, config, folds, "oof")
print(f"{len(probs)} out-of-fold rows from folds {scored}; missing folds: {missing or 'none'}")

# %% [markdown]
# The train rows of these probabilities, and whether each is answered right. Each section below adds itself to the run's
# report.

# %%
rows = rows_of(probs, train)
right = correct(probs, rows["answer"])
report = Report(paths, config, challenge.folder)

# %% [markdown]
# ## How good are the folds, and do they agree?
#
# An out-of-fold row has one judge; the test rows have all of them, and a refit where there is one.

# %% tags=["nbval-ignore-output"]
scores = fold_table(paths, config, folds, train)
scores.round(3)

# %% tags=["nbval-ignore-output"]
members = read_members(paths, config, challenge.test["id"])
words = f"{describe_unanimity(members)}\n{describe_refit(paths, config)}"
report.add("Folds", words, table=scores)
print(words)

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
words = describe_baselines(baselines)
bars = baselines.assign(group=baselines["model"], rows=len(probs))
figure = figures.accuracy_by(bars, "Against the baselines")
report.add("Baselines", words, table=baselines)
report.add("Accuracy against baselines", figure=figure)
print(words)
figure

# %% [markdown]
# ## Which letters are mixed up?

# %% tags=["nbval-ignore-output"]
words = error_analysis.describe_confusion(probs, rows["answer"])
figure = figures.confusion(probs, rows["answer"])
report.add("Confusion", words, figure=figure)
print(words)
figure

# %% [markdown]
# ## Does an option win by its place?
#
# With `tta`, each row was scored in several orders of its options. An option deserves its mean over them; what a place gets
# beyond that is the place's doing. With one order, only letters chosen and letters right are left to compare.

# %%
bias = position_bias(pooled_orders(paths, config, folds, probs), probs, rows["answer"])
print(f"orders of the options: {bias.order_count}")

# %% tags=["nbval-ignore-output"]
words = bias.describe()
figure = figures.position_bias(bias.places, bias.orders, bias.title)
report.add("Position bias", words, figure=figure)
for title, table in bias.tables.items():
    report.add(title, table=table)
print(words)
figure

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
groups = error_analysis.group_table(right, question_groups(rows, pixels, clusters))
words = error_analysis.describe_groups(groups)
report.add("Groups", words, table=groups)
print(words)

# %% [markdown]
# Clusters of questions (TF-IDF and k-means), named by the words that set them apart:

# %% tags=["nbval-ignore-output"]
is_cluster = groups["by"] == "cluster"
groups[is_cluster].drop(columns="by").round(3)

# %% [markdown]
# The other groups, the hardest first:

# %% tags=["nbval-ignore-output"]
others = groups[~is_cluster].sort_values("accuracy")
words = error_analysis.describe_spread(others)
bars = others.assign(group=others["by"] + ": " + others["group"])
figure = figures.accuracy_by(bars, "Accuracy by group")
report.add("Accuracy by group", words, figure=figure)
print(words)
figure

# %% [markdown]
# ## Is its confidence worth anything?

# %% tags=["nbval-ignore-output"]
sets = before_and_after(paths, probs)
words = describe_calibration_effect(sets, rows["answer"])
figure = figures.reliability_diagrams(sets, rows["answer"])
report.add("Reliability", words, figure=figure)
print(words)
figure

# %% [markdown]
# By confidence as scored:

# %% tags=["nbval-ignore-output"]
bands = error_analysis.confidence_table(probs, right)
words = error_analysis.describe_confidence(bands)
report.add("Confidence", words, table=bands)
print(words)
bands.round(3)

# %% [markdown]
# ## The worst mistakes
#
# The first eight here, all that are listed in the report.

# %% tags=["nbval-ignore-output"]
mistakes = error_analysis.worst_mistakes(probs, train, count=50)
mistakes = mistakes.assign(cluster=clusters[mistakes.index], pixels=pixels[mistakes.index])
words = error_analysis.describe_mistakes(mistakes, right)
report.add("Worst mistakes", words, table=mistakes)
print(words)
gallery(mistakes.head(8), challenge.folder)

# %%
print("wrote", shown(report.write()))

# %% [markdown]
# **Recap.** `report/index.html` shows these tables and figures on one page (a click on a column's head sorts its table). Each
# table is a CSV and each figure a PNG beside it; `report/worst_mistakes.csv` lists the rows to look at first.
