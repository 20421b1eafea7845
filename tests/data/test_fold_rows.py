"""The rows of a fold; extra rows are checked like train.csv, never held out, and left out if they leak."""

import dataclasses
import re
import shutil

import pandas as pd
import pytest
from korean_challenge import write_korean_challenge
from PIL import Image
from stand_in import arguments
from test_challenge import has_line, problems_of
from test_groups import photos, run_02  # noqa: F401

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import to_dict
from vqa_utils.data.challenge import DataError, load_challenge
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.data.fold_rows import (
    describe_extra_rows,
    extra_folds,
    extra_rows,
    rows_of_fold,
)
from vqa_utils.data.folds import ALWAYS_TRAIN, FoldError
from vqa_utils.presets import preset
from vqa_utils.running.resolution import resolve_run, start_run


@pytest.fixture
def folder(tmp_path):
    return write_korean_challenge(tmp_path / "data", train=12, test=4)


@pytest.fixture
def extra(tmp_path, folder):
    """Six rows: beside the CSV, in the data folder, by an absolute path; a train picture's copy, a test picture's copy."""
    other = write_korean_challenge(tmp_path / "other", train=30, test=1)
    rows = (
        pd.read_csv(other / "train.csv", dtype=str)
        .tail(6)
        .assign(id=[f"e{i}" for i in range(6)])
        .reset_index(drop=True)
    )
    shutil.copy(folder / "images/train_0003.png", other / "images/copy.png")
    shutil.copy(folder / "images/test_0012.png", other / "images/of_test.png")
    rows.loc[0, "path"] = str(other / rows["path"][0])
    rows.loc[1, "path"] = "images/train_0005.png"  # in both folders: the one beside the CSV counts
    rows.loc[2, "path"] = "images/copy.png"
    rows.loc[3, "path"] = "images/of_test.png"
    shutil.copy(folder / "images/train_0004.png", folder / "images/only_here.png")
    rows.loc[4, "path"] = "images/only_here.png"
    rows.to_csv(other / "more.csv", index=False)
    return other / "more.csv"


def settings(folder, extra, **changes):
    return preset("demo", data=str(folder), extra_train=str(extra), **changes)


def folds_of_train(challenge):
    return pd.DataFrame(
        {"id": challenge.train["id"], "fold": [i % 3 for i in range(len(challenge.train))]}
    )


def test_paths_are_found_beside_the_csv_then_in_the_data_folder(folder, extra):
    found = load_challenge(settings(folder, extra), images=folder.parent / "images.csv")
    expected = [extra.parent / "images" / f"train_00{n}.png" for n in (24, "05")]
    expected += [
        extra.parent / "images/copy.png",
        extra.parent / "images/of_test.png",
        folder / "images/only_here.png",
    ]
    assert found.extra["path"].tolist()[:5] == list(map(str, expected))
    assert list(found.extra.columns) == list(found.train.columns) and len(found.train) == 12
    limited = load_challenge(settings(folder, extra, limit=2))
    assert len(limited.extra) == len(limited.train) == 2
    without = load_challenge(preset("demo", data=str(folder)))
    assert without.extra.empty and without.extra_file is None


def test_all_problems_of_the_file_come_at_once_with_those_of_the_others(folder, extra):
    rows = pd.read_csv(extra, dtype=str)
    rows["id"] = ["train_0001", "test_0012", "e2", "e2", "e4", "e5"]
    rows.loc[2, "answer"], rows.loc[4, "path"], rows.loc[5, "question"] = "x", "images/none.png", ""
    rows.to_csv(extra, index=False)
    train = pd.read_csv(folder / "train.csv", dtype=str)
    train.assign(answer=["z", *train["answer"][1:]]).to_csv(folder / "train.csv", index=False)
    lines = problems_of(folder, extra_train=str(extra))
    assert len(lines) == 7
    assert has_line(lines, "train.csv line 2", "answer", "'z'")
    assert has_line(lines, f"{extra} line 2", "'train_0001'", "train.csv")
    assert has_line(lines, f"{extra} line 3", "'test_0012'", "test.csv")
    assert has_line(lines, f"{extra} line 4", "answer", "'x'")
    assert has_line(lines, f"{extra} line 5", "'e2'")
    assert has_line(lines, f"{extra} line 6", "images/none.png")
    assert has_line(lines, f"{extra} line 7", "question: ")


def test_a_missing_file_or_column_is_an_error(folder, extra, tmp_path):
    with pytest.raises(DataError, match=r"none\.csv"):
        load_challenge(settings(folder, tmp_path / "none.csv"))
    pd.read_csv(extra, dtype=str).drop(columns="answer").to_csv(extra, index=False)
    with pytest.raises(DataError, match=r"more\.csv.* lacks answer"):
        load_challenge(settings(folder, extra))


def test_a_row_is_left_out_where_its_picture_is_held_out(folder, extra):
    config = settings(folder, extra)
    challenge = load_challenge(config, images=folder.parent / "images.csv")
    left_out = extra_folds(challenge, folds_of_train(challenge), config)
    # The pictures of rows 5, 3 and 4
    assert left_out["left_out_of"].tolist() == ["", "2", "0", "", "1", ""]
    numbers = [
        int(number) for number in re.findall(r"\d+", describe_extra_rows(challenge, left_out))
    ]
    assert numbers == [6, 3, 1]  # extra rows, left out, with a test picture
    always = folds_of_train(challenge).assign(fold=ALWAYS_TRAIN)
    assert set(extra_folds(challenge, always, config)["left_out_of"]) == {""}


def test_an_extra_row_whose_paraphrase_is_held_out_is_left_out(folder, extra):
    train = pd.read_csv(folder / "train.csv", dtype=str)
    train.assign(question=[str(i) for i in range(12)]).to_csv(folder / "train.csv", index=False)
    words = {"e0": "4?", "e3": "what else?", "train_0007": "What else"}
    pd.DataFrame(words.items(), columns=["id", "question"]).to_csv(
        folder / "paraphrases.csv", index=False
    )
    found = {}
    for paraphrase in (True, False):
        config = settings(folder, extra, group_questions=True, paraphrase=paraphrase)
        challenge = load_challenge(config, images=folder.parent / "images.csv")
        found[paraphrase] = extra_folds(challenge, folds_of_train(challenge), config)[
            "left_out_of"
        ].tolist()
    assert found == {True: ["1", "2", "0", "1", "1", ""], False: ["", "2", "0", "", "1", ""]}


def test_near_copies_and_equal_questions_are_left_out_where_they_are_grouped(folder, extra):
    with Image.open(folder / "images/train_0005.png") as image:
        image.resize((200, 200)).save(extra.parent / "images/large.png")
    rows = (
        pd.read_csv(extra, dtype=str)
        .tail(1)
        .assign(path="images/large.png", question="그림은 무슨 색인가요?")
    )
    rows.to_csv(extra, index=False)
    train = pd.read_csv(folder / "train.csv", dtype=str)
    train.assign(question=[f"{i}?" for i in range(11)] + ["그림은 무슨  색인가요"]).to_csv(
        folder / "train.csv", index=False
    )
    challenge = load_challenge(settings(folder, extra), images=folder.parent / "images.csv")
    folds = folds_of_train(challenge).assign(fold=[0] * 5 + [2] + [0] * 5 + [1])

    def found(**changes):
        return extra_folds(challenge, folds, settings(folder, extra, **changes))[
            "left_out_of"
        ].item()

    assert found() == "" and "2" in found(near_duplicates=4).split()
    assert found(group_questions=True) == "1"
    assert {"1", "2"} <= set(found(near_duplicates=4, group_questions=True).split())


def test_a_fold_leaves_out_the_extra_rows_that_name_it(folder, extra, tmp_path):
    rows = load_challenge(settings(folder, extra)).extra
    path = tmp_path / "folds_extra.csv"
    with pytest.raises(FoldError, match="02_folds"):
        extra_rows(path, rows, 0)
    left_out = {"id": rows["id"], "left_out_of": ["", "0 10", "", "1", "10", ""]}
    pd.DataFrame(left_out).to_csv(path, index=False)
    assert list(extra_rows(path, rows, 0)["id"]) == ["e0", "e2", "e3", "e4", "e5"]
    assert list(extra_rows(path, rows, 1)["id"]) == ["e0", "e1", "e2", "e4", "e5"]
    assert list(extra_rows(path, rows, 10)["id"]) == ["e0", "e2", "e3", "e5"]
    with pytest.raises(FoldError, match="3 rows"):
        extra_rows(path, rows.head(3), 0)
    assert extra_rows(tmp_path / "none.csv", rows.head(0), 0).empty


def test_the_rows_of_a_fold_are_all_others_and_its_extra_rows(folder, extra, tmp_path, monkeypatch):
    config = settings(folder, extra, refit=True)
    folds = run_02(folder, tmp_path, monkeypatch, extra_train=str(extra), refit=True)
    challenge = load_challenge(config)
    left_out = pd.read_csv(RunPaths("interactive").extra_folds, keep_default_na=False, dtype=str)
    for fold in range(3):
        rows = rows_of_fold(RunPaths("interactive"), config, challenge, fold)
        extra_ids = list(left_out["id"][left_out["left_out_of"] != str(fold)])
        assert list(rows.held_out["id"]) == list(folds["id"][folds["fold"] == fold])
        assert list(rows.extra["id"]) == extra_ids
        assert list(rows.train["id"]) == [*folds["id"][folds["fold"] != fold], *extra_ids]
        assert list(rows.train.index) == list(range(len(rows.train)))
    refit = rows_of_fold(RunPaths("interactive"), config, challenge, 3)
    assert (len(refit.train), len(refit.held_out), len(refit.extra)) == (18, 0, 6)


def test_the_rows_of_a_fold_are_counted_in_words(folder, extra, tmp_path, monkeypatch):
    config = settings(folder, extra)
    run_02(folder, tmp_path, monkeypatch, extra_train=str(extra))
    rows = rows_of_fold(RunPaths("interactive"), config, load_challenge(config), 0)
    counts = (len(rows.train), len(rows.held_out), len(rows.extra), 6 - len(rows.extra))
    assert tuple(map(int, re.findall(r"\d+", rows.describe()))) == counts
    only_own = dataclasses.replace(rows, extra=rows.extra.head(0), extra_left_out=0)
    assert list(map(int, re.findall(r"\d+", only_own.describe()))) == list(counts[:2])


def test_notebook_02_writes_what_is_left_out_and_no_extra_row_is_held_out(
    folder, extra, tmp_path, monkeypatch, capsys
):
    folds = run_02(folder, tmp_path, monkeypatch, extra_train=str(extra))
    assert list(folds["id"]) == list(pd.read_csv(folder / "train.csv")["id"])
    left_out = pd.read_csv(RunPaths("interactive").extra_folds, dtype=str, keep_default_na=False)
    assert left_out["left_out_of"].tolist()[2] == str(folds["fold"][3])
    assert "6 extra rows" in capsys.readouterr().out


def test_a_run_notices_another_extra_file(folder, extra, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    config = settings(folder, extra)
    hashes = [data_hash(dataclasses.replace(config, extra_train="")), data_hash(config)]
    start_run(RunPaths("r"), config)
    assert str(extra) in (RunPaths("r").provenance).read_text()
    Image.new("RGB", (64, 64)).save(extra.parent / "images/copy.png")
    hashes.append(data_hash(config))
    pd.read_csv(extra, dtype=str).assign(answer="a").to_csv(extra, index=False)
    hashes.append(data_hash(config))
    assert len(set(hashes)) == 4


def test_the_command_takes_it_from_any_folder(extra, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(extra.parent)
    assert resolve_run(arguments(extra_train="more.csv"), "now")[1].extra_train == str(extra)
    assert resolve_run(arguments(set=["extra_train=more.csv"]), "now")[1].extra_train == str(extra)
    assert to_dict(resolve_run(arguments(extra_train=""), "now")[1])["extra_train"] == ""
