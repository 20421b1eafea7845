"""Other words to train a row in (`paraphrase`): its question's, from paraphrases.csv, and without them its instruction's."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.data._csv_files import row_problems
from vqa_utils.prompts import INSTRUCTION

PARAPHRASES = "paraphrases.csv"
PARAPHRASE_COLUMNS = ("id", "question")
UNKNOWN_ROW = "id {id!r}: expected an id of train.csv or of extra_train, found none there"
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
    """What is wrong with the rows of paraphrases.csv; `ids` are those of the rows to train on."""
    problems = row_problems(
        folder, PARAPHRASES, paraphrases, ~paraphrases["id"].isin(ids), UNKNOWN_ROW
    )
    empty = paraphrases["question"].str.strip() == ""
    return problems + row_problems(
        folder,
        PARAPHRASES,
        paraphrases,
        empty,
        "question: expected a value, found none (id {id!r})",
    )


def with_paraphrases(rows: pd.DataFrame, paraphrases: pd.DataFrame | None) -> pd.DataFrame:
    """The rows with a column `paraphrases`: other wordings of the question, a tuple that is empty where there are none."""
    known = (
        {} if paraphrases is None else paraphrases.groupby("id")["question"].agg(tuple).to_dict()
    )
    return rows.assign(paraphrases=[known.get(row_id, ()) for row_id in rows["id"]])


def is_korean(question: str) -> bool:
    """Whether at least half of the words have Hangul: Korean puts its endings on foreign names too."""
    words = WORD.findall(question)
    return 2 * sum(HANGUL.search(word) is not None for word in words) >= len(words) > 0


def wordings_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of `with_paraphrases` in all its wordings, as it stands first.

    With paraphrases, the question differs and the instruction is the usual one; without, the other way round.
    """
    if row["paraphrases"]:
        return [
            {**row, "question": question}
            for question in dict.fromkeys([row["question"], *row["paraphrases"]])
        ]
    return [
        {**row, "instruction": text} for text in (KOREAN if is_korean(row["question"]) else ENGLISH)
    ]


def describe_wordings(train: pd.DataFrame) -> str:
    """What a training draws its rows' wordings from, in words."""
    if "paraphrases" not in train:
        return "Each epoch asks every row in the same words."
    own = train[train["paraphrases"].map(len) == 0]
    korean = sum(map(is_korean, own["question"]))
    lines = [
        f"{len(train) - len(own)} of {len(train)} rows have paraphrases: each epoch draws one of them or the row's own question."
    ] * (len(own) < len(train))
    lines += [
        f"{len(own)} of {len(train)} rows have none, {korean} of these in Korean: each epoch draws the wording of the instruction."
    ] * (len(own) > 0)
    return "\n".join(lines)
