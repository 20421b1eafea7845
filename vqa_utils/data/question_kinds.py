"""What a question asks for, told from its words."""

import numpy as np
import pandas as pd

from vqa_utils.prompts import LETTERS

QUESTION_PATTERNS = {
    "counting": r"how many|몇|개수",
    "colour": r"\bcolou?r|색",
    "shape": r"\bshape|모양",
    "text": r"written|\btext\b|글자|적힌|적혀",
}  # of a question in lower case


def question_kinds(rows: pd.DataFrame) -> pd.Series:
    """A coarse kind of each row's question, in English or Korean: yes/no, counting, colour, shape, text (in the image), other."""
    options = rows[list(LETTERS)].apply(lambda column: column.str.strip().str.lower())
    yes, no = (
        options.isin(words).any(axis=1)
        for words in (["yes", "예", "네"], ["no", "아니요", "아니오"])
    )
    question = rows["question"].str.lower()
    signs = [yes & no, *(question.str.contains(pattern) for pattern in QUESTION_PATTERNS.values())]
    return pd.Series(np.select(signs, ["yes/no", *QUESTION_PATTERNS], "other"), rows.index)
