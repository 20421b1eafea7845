# %% [markdown]
# # 2 · Which rows validate which model?
#
# A model must not be judged on pictures that it was trained on. All rows of a picture go to one
# fold, and folds are stratified by answer.

# %%
import sys

sys.path[:0] = [".", ".."]  # the package, from the repository or from here
from vqa_utils.analysis import figures
from vqa_utils.artifacts.files import write_csv
from vqa_utils.artifacts.paths import shown
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.fold_rows import describe_extra_rows, extra_folds
from vqa_utils.data.folds import (
    check_leaks,
    copied_answers,
    describe_balance,
    describe_copied_answers,
    leaks,
    make_folds,
    plain_split,
)
from vqa_utils.data.groups import (
    HINT_BITS,
    describe_groups,
    describe_near_leaks,
    near_leaks,
    row_groups,
    same_words,
)

# %% tags=["parameters"]
run_id: str = "interactive"  # the run's folder below runs/

# %%
paths, config = open_run(run_id)
challenge = load_challenge(config, images=paths.images)
train = challenge.train
images = challenge.images_of(train)
print(f"{len(train)} rows show {images['hash'].nunique()} different pictures.")

# %% [markdown]
# ## What would a plain split do?
#
# A split stratified by answer alone puts one picture on both sides: the validation score is too
# good to be true.

# %%
plain = plain_split(train, list(images["hash"]), config)
leaked = len(leaks(plain))
share = leaked / len(train)
print(f"A split that ignores pictures would leak {leaked} of {len(train)} rows ({share:.1%}).")

# %%
copied = copied_answers(train, plain, same_words(train["question"]))
print(describe_copied_answers(train, copied))

# %% [markdown]
# ## Folds by picture
#
# Rows with equal files stay together. With `near_duplicates`, so do rows with nearly equal
# pictures, and with `group_questions`, rows with the same question.

# %%
groups = row_groups(challenge, config)
print(describe_groups(groups))

# %%
folds = make_folds(train, groups, config)
sizes = folds["fold"].value_counts().sort_index()
print("Rows per fold:", sizes.to_dict())

# %%
check_leaks(folds, "by group")
check_leaks(folds.assign(group=images["hash"]), "by the files' contents")
print(
    f"None of {len(folds)} rows has its picture, or another row of its group, in another fold."
)

# %% [markdown]
# A resized or recompressed copy is a different file, but its 64-bit perceptual hash is equal or
# nearly so.

# %%
bits = config.near_duplicates or HINT_BITS
near = near_leaks(folds, images["perceptual_hash"], bits)
print(describe_near_leaks(near, bits, config))

# %% [markdown]
# Each fold should have the same shares of right letters.

# %%
print(describe_balance(folds, train))

# %% tags=["nbval-ignore-output"]
figures.fold_balance(folds, train)

# %% [markdown]
# ## Extra rows
#
# The rows of `extra_train` join the training of every fold except those that hold out the same
# picture (or the same question, with `group_questions`).

# %%
left_out = extra_folds(challenge, folds, config)
print(describe_extra_rows(challenge, left_out))

# %%
write_csv(paths.folds, folds)
if len(left_out):
    write_csv(paths.extra_folds, left_out)
print("wrote", shown(paths.folds))

# %% [markdown]
# **Recap.** `folds.csv` has `id`, `group` (the hash of the group's first picture) and `fold` (the
# fold that holds the row out). [03_train_fold](03_train_fold.ipynb) reads it, once a fold; with
# extra rows it reads `folds_extra.csv` too.
