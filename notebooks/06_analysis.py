# %% [markdown]
# # 6 · Where is it wrong, and does it look at the picture?
#
# All numbers are out of fold: each row is judged by the model that did not train on it. Every
# accuracy has Wilson's 95 % interval.

# %%
import sys

sys.path[:0] = [".", ".."]  # the package, from the repository or from here
from vqa_utils.analysis import confidence, error_analysis, figures, suspect_labels
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
from vqa_utils.ensembling.combining import combine_members, describe_unanimity
from vqa_utils.ensembling.fold_table import fold_table
from vqa_utils.ensembling.members import describe_refit, pooled, read_members, rows_of, scored_folds
from vqa_utils.ensembling.temperature import (
    before_and_after,
    describe_calibration_effect,
    read_temperatures,
)
from vqa_utils.language import speak
from vqa_utils.metrics import correct, predictions

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/

# %%
paths, config = open_run(run_id)
speak(config.lang)
challenge = load_challenge(config, images=paths.images)
train, folds = challenge.train, read_folds(paths.folds, challenge.train)
scored, missing = scored_folds(paths, config)
probs = pooled(paths, config, folds, "oof")
print(f"{len(probs)} out-of-fold rows from folds {scored}; missing folds: {missing or 'none'}")

# %% [markdown]
# `rows` are the scored train rows; `right` says which were answered correctly. Each section also
# goes into the report.

# %%
rows = rows_of(probs, train)
right = correct(probs, rows["answer"])
report = Report(paths, challenge.folder)

# %% [markdown]
# ## How good are the folds, and do they agree?
#
# One model scores an out-of-fold row; all of them, and a refit, score a test row.

# %% tags=["nbval-ignore-output"]
scores = fold_table(paths, config, folds, train)
members = read_members(paths, config, challenge.test["id"])
words = f"{describe_unanimity(members)}\n{describe_refit(paths, config)}"
report.add("Folds", words, table=scores)

# %% [markdown]
# ## Against the baselines
#
# The base without fine-tuning says what the training added. Blank pictures, the most frequent
# letter, the longest option and a model of the text alone say how far one gets without looking. The
# p-value is McNemar's, on the same rows.

# %% tags=["nbval-ignore-output"]
blind = answers_without_images(train, folds, probs["id"], config.seed)
baselines = baseline_table(paths, config, folds, train, blind)
report.add("Baselines", describe_baselines(baselines), table=baselines)

# %% tags=["nbval-ignore-output"]
bars = baselines.assign(group=baselines["model"], rows=len(probs))
figure = figures.accuracy_by(bars, "Against the baselines")
report.add("Baselines", figure=figure)

# %% [markdown]
# ## Which letters are mixed up?

# %% tags=["nbval-ignore-output"]
words = error_analysis.describe_confusion(probs, rows["answer"])
table = error_analysis.confusion_table(probs, rows["answer"])
figure = figures.confusion(probs, rows["answer"])
report.add("Confusion", words, table, figure)

# %% [markdown]
# Does a letter come up more often in the answers to the test set than in those of train?

# %% tags=["nbval-ignore-output"]
test = combine_members(members, read_temperatures(paths), config.ensemble)
sets = {"right in train": train["answer"], "chosen in train": predictions(probs)}
letters = error_analysis.letter_table(sets | {"chosen in test": predictions(test)})
report.add("Letters", error_analysis.describe_letters(letters), table=letters)

# %% [markdown]
# ## Does an option win by its position?
#
# With `tta`, each row was scored in several orders of its options. An option's mean over the orders
# is its due; the excess at a position is position bias. With one order, only letters chosen and
# letters right can be compared.

# %%
bias = position_bias(pooled_orders(paths, config, folds, probs), probs, rows["answer"])
print(f"orders of the options: {bias.order_count}")

# %% tags=["nbval-ignore-output"]
report.add_tables(bias.tables)
figure = figures.position_bias(bias.positions, bias.orders, bias.title)
report.add("Positions", bias.describe(), figure=figure)

# %% [markdown]
# ## Which questions are hard?
#
# Rows are grouped by kind and wording, length of the right option, and picture size. Small groups
# look hard by chance, and among many groups one always looks hard: so only groups with enough rows
# are tested, by Fisher's exact test against all other rows, with Holm's correction for their
# number.

# %%
print("rows by kind:", question_kinds(rows).value_counts().sort_index().to_dict())

# %%
clusters = question_clusters(rows["question"], config.seed)
pixels = challenge.images_of(rows)[["width", "height"]].prod(axis=1).to_numpy()

# %% tags=["nbval-ignore-output"]
groups = error_analysis.group_table(right, question_groups(rows, pixels, clusters))
report.add("Groups", error_analysis.describe_groups(groups), table=groups)
is_cluster = groups["by"] == "cluster"

# %% [markdown]
# Clusters of questions (TF-IDF and k-means), named by the words that set them apart:

# %% tags=["nbval-ignore-output"]
groups[is_cluster].drop(columns="by")

# %% [markdown]
# The other groups, the hardest first:

# %% tags=["nbval-ignore-output"]
others = groups[~is_cluster].sort_values("accuracy")
print(error_analysis.describe_spread(others))
bars = others.assign(group=others["by"] + ": " + others["group"])
report.add("Groups", figure=figures.accuracy_by(bars, "Accuracy by group"))

# %% [markdown]
# ## Is its confidence worth anything?

# %% tags=["nbval-ignore-output"]
sets = before_and_after(paths, probs)
words = describe_calibration_effect(sets, rows["answer"])
table = confidence.reliability_table(sets, rows["answer"])
figure = figures.reliability_diagrams(sets, rows["answer"])
report.add("Reliability", words, table, figure)

# %% [markdown]
# Accuracy by confidence, before calibration:

# %% tags=["nbval-ignore-output"]
bands = confidence.confidence_table(probs, right)
report.add("Confidence", confidence.describe_confidence(bands), table=bands)

# %% [markdown]
# ## The worst mistakes
#
# The first eight; the report lists up to 50.

# %% tags=["nbval-ignore-output"]
more = {"cluster": clusters, "pixels": pixels}
mistakes = error_analysis.worst_mistakes(probs, train, count=50, more=more)
report.add("Worst mistakes", error_analysis.describe_mistakes(mistakes, right), table=mistakes)
gallery(mistakes.head(8), challenge.folder)

# %% [markdown]
# ## Do labels look wrong?
#
# Rows whose label the out-of-fold models reject with confidence, and those that contradict another
# row. The first eight; `report/suspect_labels.csv` lists all.

# %% tags=["nbval-ignore-output"]
pictures = challenge.images_of(train)["hash"]
suspects = suspect_labels.find_suspects(probs, train, pictures)
words = suspect_labels.describe_suspects(suspects, probs, rows["answer"])
report.add("Suspect labels", words, table=suspects if len(suspects) else None)
gallery(suspects.head(8), challenge.folder)

# %%
print("wrote", shown(report.write()))

# %% [markdown]
# **Recap.** `report/index.html` shows all of it on one page, to send to others. Each table is a CSV
# and each figure a PNG beside it; `report/worst_mistakes.csv` lists the rows to look at first.
