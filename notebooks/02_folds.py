# %% [markdown]
# # 2 · Which rows validate which model?
#
# A model must not be judged on pictures that it was trained on. Rows are folded by picture and stratified by answer.

# %%
import sys

sys.path.insert(0, "..")
from vqa_utils import figures
from vqa_utils.artifacts import write_csv
from vqa_utils.data import load_challenge
from vqa_utils.folds import leaks, make_folds, plain_split_leaks
from vqa_utils.images import image_hashes
from vqa_utils.paths import shown
from vqa_utils.runs import open_run

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/

# %%
paths, config = open_run(run_id)
challenge = load_challenge(config)
train = challenge.train
groups = image_hashes(challenge.folder, train["path"])
print(f"{len(train)} rows show {len(set(groups))} different pictures.")

# %% [markdown]
# ## What would a plain split do?
#
# Stratified by answer alone, pictures end up on both sides, and the validation score is too good to be true.

# %%
leaked = plain_split_leaks(train, groups, config)
print(f"A split that ignores pictures would leak {leaked} of {len(train)} rows ({leaked / len(train):.1%}).")

# %% [markdown]
# ## Folds by picture

# %%
folds = make_folds(train, groups, config)
sizes = folds["fold"].value_counts().sort_index()
print("Rows a fold:", sizes.to_dict())

# %%
leaking = leaks(folds)
assert leaking.empty, f"pictures in several folds: {list(leaking)}"
print(f"Rows whose picture stands in more than one fold: {len(leaking)}")

# %% [markdown]
# Each fold should have the same mix of right letters as the others.

# %%
mix = folds.merge(train[["id", "answer"]]).groupby("fold")["answer"].value_counts(normalize=True).unstack(fill_value=0)
print(f"The share of a letter differs by at most {(mix.max() - mix.min()).max():.1%} between folds.")

# %% tags=["nbval-ignore-output"]
figures.fold_balance(folds, train)

# %%
write_csv(paths.folds, folds)
print("wrote", shown(paths.folds))

# %% [markdown]
# **Recap.** `folds.csv` has `id`, `group` (the picture's hash) and `fold` (the fold that holds the row out).
# [03_train_fold](03_train_fold.ipynb) reads it, once a fold.
