"""Other words to train in: read and checked with the other files, chosen by script, known to the run's markers."""

import dataclasses
import re
import unicodedata

import pandas as pd
import pytest
from korean_challenge import write_korean_challenge
from test_challenge import has_line, problems_of

from run_all import STAGES
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.data.challenge import DataError, load_challenge
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.data.paraphrases import (
    ENGLISH,
    KOREAN,
    describe_wordings,
    is_korean,
    with_paraphrases,
    wordings_of,
)
from vqa_utils.planning.batches import LONGER_INSTRUCTION
from vqa_utils.presets import preset
from vqa_utils.prompts import INSTRUCTION, chat
from vqa_utils.running.resolution import start_run
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import select_steps
from vqa_utils.training._checkpoints import training_key

OWN = "이 그림에 있는 도형은 무슨 색인가요?"
# Tokens of each instruction in the vocabulary that Qwen2.5-VL's and Qwen3-VL's tokenizers share
TOKENS = {
    INSTRUCTION: 14,
    "Answer the question about the image with the letter of the correct option.": 14,
    "Look at the picture, then give the letter of the correct option.": 14,
    "Choose the option that is right for this image and reply with its letter.": 15,
    "Study the image and reply with the letter of the right answer.": 13,
    "이미지를 보고 알맞은 보기의 알파벳으로 답하세요.": 17,
    "이미지를 보고 정답인 보기의 알파벳을 쓰세요.": 19,
    "그림을 잘 보고 질문에 맞는 답의 알파벳을 고르세요.": 20,
    "다음 이미지를 보고 올바른 선택지의 알파벳으로 답해 주세요.": 22,
}


@pytest.fixture
def folder(tmp_path):
    return write_korean_challenge(tmp_path / "data", train=6, test=3)


def write(folder, *lines, encoding="utf-8"):
    (folder / "paraphrases.csv").write_text("\n".join(lines) + "\n", encoding=encoding)


def settings(folder, **changes):
    return preset("demo", data=str(folder), paraphrase=True, **changes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_a_row_has_all_its_lines(folder, encoding):
    write(
        folder,
        "id,question",
        "train_0001,색은?",
        "train_0003,무슨 색?",
        'train_0001,"도형, 무슨 색?"',
        encoding=encoding,
    )
    found = load_challenge(settings(folder))
    assert found.train["paraphrases"].tolist() == [
        (),
        ("색은?", "도형, 무슨 색?"),
        (),
        ("무슨 색?",),
        (),
        (),
    ]
    assert found.train["question"].eq(OWN).all() and "paraphrases" not in found.test
    assert found.paraphrase_file in found.files
    limited = load_challenge(
        settings(folder, limit=2)
    )  # the lines of rows past the limit are no error
    assert limited.train["paraphrases"].tolist() == [(), ("색은?", "도형, 무슨 색?")]


def test_without_the_switch_or_the_file_there_are_none(folder):
    assert load_challenge(settings(folder)).train["paraphrases"].tolist() == [()] * 6
    assert load_challenge(settings(folder)).paraphrase_file is None
    (folder / "paraphrases.csv").write_bytes(b"\xff\xff nothing to read")
    off = load_challenge(preset("demo", data=str(folder)))
    assert "paraphrases" not in off.train and off.paraphrase_file is None


def test_extra_rows_have_paraphrases_too(folder, tmp_path):
    extra = pd.read_csv(folder / "train.csv", dtype=str).head(1).assign(id="e0")
    extra.to_csv(tmp_path / "more.csv", index=False)
    write(folder, "id,question", "e0,색은?", "train_0000,무슨 색?")
    found = load_challenge(settings(folder, extra_train=str(tmp_path / "more.csv")))
    assert found.extra["paraphrases"].tolist() == [("색은?",)] and found.train["paraphrases"][
        0
    ] == ("무슨 색?",)
    with pytest.raises(DataError, match=r"paraphrases\.csv line 2: .*'e0'"):
        load_challenge(settings(folder))


def test_all_problems_come_at_once_with_those_of_the_other_files(folder):
    write(
        folder,
        "id,question",
        "train_0001,색은?",
        "train_9999,색은?",
        "train_0002, ",
        "test_0006,색은?",
    )
    train = pd.read_csv(folder / "train.csv", dtype=str)
    train.assign(answer=["z", *train["answer"][1:]]).to_csv(folder / "train.csv", index=False)
    lines = problems_of(folder, paraphrase=True)
    assert len(lines) == 4
    assert has_line(lines, "train.csv line 2", "answer", "'z'")
    assert has_line(lines, "paraphrases.csv line 3", "'train_9999'")
    assert has_line(lines, "paraphrases.csv line 4", "question: ", "'train_0002'")
    assert has_line(lines, "paraphrases.csv line 5", "'test_0006'")


@pytest.mark.parametrize(
    ("content", "datum"),
    [
        ("id,text\ntrain_0001,색은?\n".encode(), "lacks question"),
        (b"id,question\n", "rows"),
        (b"id,question\ntrain_0001,Which colour, please?\n", "line 2: expected 2 cells"),
        (b"id,question\ntrain_0001,\xff\xff\n", "CP949"),
        (b"", "id, question"),
    ],
)
def test_a_file_that_is_no_table_of_questions_is_an_error(
    folder, content, datum, tmp_path, monkeypatch
):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    (folder / "paraphrases.csv").write_bytes(content)
    (folder / "sample_submission.csv").unlink()
    with pytest.raises(DataError) as error:
        start_run(RunPaths("r"), settings(folder))  # before any notebook
    lines = str(error.value).splitlines()
    assert has_line(lines, "paraphrases.csv", datum) and has_line(lines, "sample_submission.csv")
    assert not RunPaths("r").config.exists()


@pytest.mark.parametrize(
    ("question", "korean"),
    [
        ("이 도형은 무슨 색인가요?", True),
        ("what colour is the shape?", False),
        ("STARBUCKS COFFEE는 몇 층에 있나요?", True),  # foreign names in a Korean sentence
        ("What does 안녕하세요 on the sign mean?", False),  # and the reverse
        ("EXIT 표시는?", True),
        (unicodedata.normalize("NFD", "무슨 색?"), True),  # as macOS writes it
        ("3 + 4 = ?", False),
        ("", False),
        ("何色ですか", False),
    ],
)
def test_the_script_decides_about_the_language(question, korean):
    assert is_korean(question) is korean


def rows(*questions, paraphrases=()):
    frame = pd.DataFrame({"id": [str(i) for i in range(len(questions))], "question": questions})
    more = pd.DataFrame(paraphrases, columns=["id", "question"]) if paraphrases else None
    return with_paraphrases(frame, more)


def test_a_row_has_other_questions_or_other_instructions():
    paraphrased, korean, english = rows(
        "red?", "색은?", "blue?", paraphrases=[("0", "Is it red?"), ("0", "red?")]
    ).to_dict("records")
    assert [row["question"] for row in wordings_of(paraphrased)] == ["red?", "Is it red?"]
    assert all("instruction" not in row for row in wordings_of(paraphrased))
    for row, instructions in ((korean, KOREAN), (english, ENGLISH)):
        assert tuple(version["instruction"] for version in wordings_of(row)) == instructions
        assert {version["question"] for version in wordings_of(row)} == {row["question"]}
    assert KOREAN[0] == ENGLISH[0] == INSTRUCTION and len({*ENGLISH, *KOREAN}) == 9
    options = dict.fromkeys("abcd", "x")
    said = [chat({**version, **options})[0] for version in wordings_of(korean)]
    assert said == [{"role": "system", "content": text} for text in KOREAN]


def test_the_plan_counts_the_longest_instruction():
    assert set(TOKENS) == {*ENGLISH, *KOREAN}, (
        "count the tokens of a new instruction with a Qwen tokenizer"
    )
    assert max(TOKENS.values()) - TOKENS[INSTRUCTION] == LONGER_INSTRUCTION


def test_the_sentence_counts_the_rows():
    def numbers(train):
        return [re.findall(r"\d+", line) for line in describe_wordings(train).splitlines()]

    paraphrases = [("0", "Is it red?"), ("0", "Red?")]
    mixed = rows("red?", "색은?", "blue?", "green?", paraphrases=paraphrases)
    assert numbers(mixed) == [["1", "4"], ["3", "4", "1"]]  # paraphrased; without, in Korean
    assert numbers(rows("red?", paraphrases=[("0", "Red?")])) == [["1", "1"]]
    assert numbers(rows("색은?")) == [["1", "1", "1"]]
    assert numbers(pd.DataFrame({"question": ["red?"]})) == [[]]


def test_a_run_notices_another_file(folder, tmp_path, monkeypatch, console):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    config, off = settings(folder), preset("demo", data=str(folder))
    hashes, before = [data_hash(config)], data_hash(off)
    write(folder, "id,question", "train_0001,색은?")
    hashes.append(data_hash(config))
    start_run(RunPaths("r"), config)
    assert "paraphrases.csv" in RunPaths("r").provenance.read_text()
    write(folder, "id,question", "train_0001,무슨 색?")
    hashes.append(data_hash(config))
    assert len(set(hashes)) == 3
    assert data_hash(off) == before == hashes[0]


def test_another_file_trains_again(folder, stand_in, console):
    config = settings(folder, n_folds=2)
    write(folder, "id,question", "train_0001,색은?")
    paths, steps = RunPaths("r"), select_steps(STAGES, config.fold_numbers)

    def executed():
        start_run(paths, config)
        stand_in.executed.clear()
        Runner(paths, config, console, reuse=True).run(steps)
        return [name for name in stand_in.executed if "03_train_fold" in name]

    assert len(executed()) == 2 and executed() == []
    write(folder, "id,question", "train_0001,무슨 색?")
    assert len(executed()) == 2


def test_a_checkpoint_is_known_by_its_words(folder):
    config, keys = settings(folder), []
    for question in ("색은?", "무슨 색?"):
        write(folder, "id,question", f"train_0001,{question}")
        keys.append(training_key(config, load_challenge(config).train))
    off = dataclasses.replace(config, paraphrase=False)
    assert len({*keys, training_key(off, load_challenge(off).train)}) == 3
    assert off.training_hash != config.training_hash and Config().paraphrase is False
