"""Find labels that look wrong: the out-of-fold models reject them, or an equal question has another.

Confident learning (Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068) takes a label for wrong if
another class has at least the probability that it has on average where it is the label. Letters are
no classes, as an option may stand at any of them, so that one average serves all four.
"""

import numpy as np
import pandas as pd

from vqa_utils.analysis.page.results import REJECTED
from vqa_utils.data.groups import same_words
from vqa_utils.ensembling.members import rows_of
from vqa_utils.language import said
from vqa_utils.metrics import at_letter, option_matrix, predictions
from vqa_utils.prompts import LETTERS


def find_suspects(probs: pd.DataFrame, train: pd.DataFrame, pictures: pd.Series) -> pd.DataFrame:
    """List the rows whose label looks wrong.

    Args:
        probs: `id`, `a` to `d`, and `fold` if known, out of fold.
        train: the train rows.
        pictures: the hash of each train row's picture, in their order.

    Returns:
        The row's columns, its `fold` if known, `chosen` letter, `p_answer` (of its label),
        `p_chosen`, and the `reason`: "rejected", or the ids of the rows that contradict it. The
        labels with the least probability beside the chosen option's come first.
    """
    rows = rows_of(probs, train).drop(columns="paraphrases", errors="ignore")
    if "fold" in probs:
        rows["fold"] = probs["fold"].to_numpy()
    matrix = option_matrix(probs)
    rows["chosen"] = predictions(probs).to_numpy()
    rows["p_answer"] = at_letter(matrix, rows["answer"])
    rows["p_chosen"] = at_letter(matrix, rows["chosen"])
    is_rejected = (rows["chosen"] != rows["answer"]) & (
        rows["p_chosen"] >= usual_confidence(probs, rows["answer"])
    )
    contradicting = _contradictions(train, pictures)
    rows["reason"] = rows["id"].map(contradicting).fillna("")
    rows.loc[(rows["reason"] == "") & is_rejected, "reason"] = REJECTED
    suspects = rows[rows["reason"] != ""]
    margin = suspects["p_answer"] - suspects["p_chosen"]
    return suspects.loc[margin.sort_values(kind="stable").index]


def usual_confidence(probs: pd.DataFrame, answers: pd.Series) -> float:
    """Return the mean probability of the labelled options."""
    return float(np.mean(at_letter(option_matrix(probs), answers)))


def _contradictions(train: pd.DataFrame, pictures: pd.Series) -> dict[str, str]:
    """Name, for each row, those that ask the same of the same picture and have another answer.

    The same options may stand in another order: their words count.
    """
    words = pd.DataFrame({letter: same_words(train[letter]) for letter in LETTERS})
    options = [" | ".join(sorted(row)) for row in words.to_numpy()]
    asked = pd.DataFrame({
        "id": train["id"].to_numpy(),
        "picture": pictures.to_numpy(),
        "question": same_words(train["question"]).to_numpy(),
        "options": options,
        "answer": [words.at[row, letter] for row, letter in train["answer"].items()],
    })  # fmt: skip
    contradicting = {}
    for _, alike in asked.groupby(["picture", "question", "options"], sort=False):
        if alike["answer"].nunique() < 2:
            continue
        for row in alike.to_dict("records"):
            others = alike["id"][alike["answer"] != row["answer"]]
            contradicting[row["id"]] = ", ".join(others)
    return contradicting


def describe_suspects(suspects: pd.DataFrame, probs: pd.DataFrame, answers: pd.Series) -> str:
    """Say how many labels look wrong, why, and how to train without them.

    Args:
        suspects: of `find_suspects`.
        probs: as of `find_suspects`.
        answers: the labels of the rows of `probs`.
    """
    if suspects.empty:
        return said("No label looks wrong.")
    rejected = int((suspects["reason"] == REJECTED).sum())
    return said(
        "{count} of {rows} labels look wrong: for {rejected}, another option has at least {level:.1%}, "
        "which labelled options have on average; {others} contradict an equal question. Some of them "
        "are hard, and not wrong; most are, where the models are often wrong. Look, and delete their "
        "lines from suspect_labels.csv. A new run with --drop and that file goes without the rest.",
        count=len(suspects),
        rows=len(probs),
        rejected=rejected,
        level=usual_confidence(probs, answers),
        others=len(suspects) - rejected,
    )
