"""Tell the kind of a question from its words."""

import numpy as np
import pandas as pd

from vqa_utils.prompts import LETTERS

YES_WORDS = ["yes", "예", "네"]
NO_WORDS = ["no", "아니요", "아니오"]
QUESTION_PATTERNS = {
    "counting": r"how many|몇|개수",
    "colour": r"\bcolou?r|색",
    "shape": r"\bshape|모양",
    "text": r"written|\btext\b|글자|적힌|적혀",
}  # of a question in lower case; the first one counts


def question_kinds(rows: pd.DataFrame) -> pd.Series:
    """Sort questions, English or Korean, into coarse kinds.

    Returns:
        yes/no, counting, colour, shape, text (in the image) or other, indexed as `rows`.
    """
    options = rows[list(LETTERS)].apply(lambda column: column.str.strip().str.lower())
    question = rows["question"].str.lower()
    has_yes = options.isin(YES_WORDS).any(axis=1)
    has_no = options.isin(NO_WORDS).any(axis=1)
    signs = [has_yes & has_no]
    for pattern in QUESTION_PATTERNS.values():
        signs.append(question.str.contains(pattern))
    kinds = np.select(signs, ["yes/no", *QUESTION_PATTERNS], "other")
    return pd.Series(kinds, rows.index)
