"""Give rows other words to train in (`paraphrase`): their paraphrases, or other instructions."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.data._checks import UNKNOWN_ROW
from vqa_utils.data._csv_files import row_problems
from vqa_utils.prompts import INSTRUCTION

PARAPHRASES = "paraphrases.csv"
PARAPHRASE_COLUMNS = ("id", "question")
NO_WORDS = "question: expected a value, found none (id {id!r})"
ENGLISH = (
    INSTRUCTION,
    "Answer the question about the image with the letter of the correct option.",
    "Look at the picture, then give the letter of the correct option.",
    "Choose the option that is right for this image and reply with its letter.",
    "Study the image and reply with the letter of the right answer.",
)
KOREAN = (
    INSTRUCTION,
    "이미지를 보고 알맞은 보기의 알파벳으로 답하세요.",
    "이미지를 보고 정답인 보기의 알파벳을 쓰세요.",
    "그림을 잘 보고 질문에 맞는 답의 알파벳을 고르세요.",
    "다음 이미지를 보고 올바른 선택지의 알파벳으로 답해 주세요.",
)
HANGUL = re.compile("[가-힣ᄀ-ᇿㄱ-ㆎ]")  # syllables, and the letters that they are made of
WORD = re.compile(r"[^\W\d_]+")


def paraphrase_problems(folder: Path, paraphrases: pd.DataFrame, ids: Iterable[str]) -> list[str]:
    """Describe the wrong rows of paraphrases.csv.

    Args:
        ids: of the rows to train on.
    """
    is_unknown = ~paraphrases["id"].isin(list(ids))
    is_empty = paraphrases["question"].str.strip() == ""
    problems = row_problems(folder, PARAPHRASES, paraphrases, is_unknown, UNKNOWN_ROW)
    return problems + row_problems(folder, PARAPHRASES, paraphrases, is_empty, NO_WORDS)


def with_paraphrases(rows: pd.DataFrame, paraphrases: pd.DataFrame | None) -> pd.DataFrame:
    """Add a column `paraphrases`: a tuple of the row's other questions, empty if it has none."""
    if paraphrases is None:
        return rows.assign(paraphrases=[()] * len(rows))
    questions = paraphrases.groupby("id")["question"].agg(tuple).to_dict()
    return rows.assign(paraphrases=[questions.get(row_id, ()) for row_id in rows["id"]])


def is_korean(question: str) -> bool:
    """Tell if at least half of the words have Hangul: foreign names get Korean endings too."""
    words = WORD.findall(question)
    korean = [word for word in words if HANGUL.search(word)]
    return len(words) > 0 and 2 * len(korean) >= len(words)


def wordings_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List a row of `with_paraphrases` in all its wordings, its own first.

    With paraphrases, the question differs and the instruction is the usual one; without, the other
    way round.
    """
    if row["paraphrases"]:
        questions = dict.fromkeys([row["question"], *row["paraphrases"]])
        return [{**row, "question": question} for question in questions]
    instructions = KOREAN if is_korean(row["question"]) else ENGLISH
    return [{**row, "instruction": instruction} for instruction in instructions]


def describe_wordings(train: pd.DataFrame) -> str:
    """Say how many rows are asked in paraphrases, and how many after other instructions."""
    if "paraphrases" not in train:
        return "Each epoch asks every row in the same words."
    has_none = train["paraphrases"].map(len) == 0
    without = train[has_none]
    paraphrased = len(train) - len(without)
    korean = without["question"].map(is_korean).sum()
    lines = []
    if paraphrased:
        lines.append(
            f"{paraphrased} of {len(train)} rows have paraphrases: each epoch draws one of them or "
            "the row's own question."
        )
    if len(without):
        lines.append(
            f"{len(without)} of {len(train)} rows have none, {korean} of these in Korean: each "
            "epoch draws the wording of the instruction."
        )
    return "\n".join(lines)
