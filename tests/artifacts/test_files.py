import csv
import io
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from vqa_utils.artifacts.files import (
    ArtifactError,
    hashes,
    read_json,
    sha256,
    write_atomically,
    write_csv,
    write_json,
    write_sheet,
    write_text,
)
from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT, RunPaths, runs_dir, shown
from vqa_utils.artifacts.probabilities import (
    read_orders,
    read_probabilities,
    write_orders,
    write_probabilities,
)
from vqa_utils.artifacts.provenance import provenance
from vqa_utils.ensembling.combining import submission

PROBS = pd.DataFrame(
    {
        "id": ["01", "None", "3"],
        "a": [0.7, 0.1, 0.25],
        "b": [0.1, 0.7, 0.25],
        "c": [0.1, 0.1, 0.25],
        "d": [0.1, 0.1, 0.25],
    }
)


def test_probabilities_come_back_in_the_order_asked_for(tmp_path):
    write_probabilities(tmp_path / "p.csv", PROBS)
    found = read_probabilities(tmp_path / "p.csv", ["3", "01", "None"])
    pd.testing.assert_frame_equal(
        found, PROBS.loc[[2, 0, 1]].reset_index(drop=True), check_exact=True
    )


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda p: p.assign(a=[0.7, 0.2, 0.25]), "sum to 1, .*'None'"),
        (lambda p: p.assign(a=[None, 0.1, 0.25]), "sum to 1, .*'01'"),
        (lambda p: p.assign(a=[1.7, 0.1, 0.25], b=[-0.9, 0.7, 0.25]), "sum to 1, .*'01'"),
        (lambda p: p.assign(id=["01", "01", "3"]), "once, .*'01'"),
        (lambda p: p.drop(columns="d"), r"columns .*'d'\], found .*'c'\]"),
        (lambda p: p.head(2), "lacks 1 .*'3'"),
        (lambda p: pd.concat([p, p.tail(1).assign(id="4")]), "has 1 .*'4'"),
    ],
)
def test_a_broken_contract_is_found_when_it_is_read(tmp_path, spoil, found):
    spoil(PROBS).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(ArtifactError, match=f"p.csv: .*{found}"):
        read_probabilities(tmp_path / "p.csv", PROBS["id"])


def test_a_broken_contract_is_found_before_it_is_written(tmp_path):
    with pytest.raises(ArtifactError, match=r"p.csv: .*'None'"):
        write_probabilities(tmp_path / "p.csv", PROBS.assign(a=[0.7, 0.2, 0.25]))
    assert not (tmp_path / "p.csv").exists()


ORDERS = pd.concat([PROBS.assign(order=order) for order in (0, 2)])


def test_orders_come_back_one_after_the_other_in_the_order_asked_for(tmp_path):
    write_orders(tmp_path / "v.csv", ORDERS.sample(frac=1, random_state=0))
    assert list(pd.read_csv(tmp_path / "v.csv")) == ["id", "order", "a", "b", "c", "d"]
    found = read_orders(tmp_path / "v.csv", ["3", "01", "None"])
    assert found["id"].tolist() == ["3", "01", "None"] * 2
    assert found["order"].tolist() == [0, 0, 0, 2, 2, 2]
    write_orders(tmp_path / "v.csv", ORDERS.head(3))
    assert not (tmp_path / "v.csv").exists(), (
        "one order is what the mean says already, and an older file would be taken for its own"
    )


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda v: v.iloc[1:], "lacks 1 .*'01'"),
        (lambda v: v.assign(order=0), "once, .*'01'"),
        (lambda v: v.assign(a=0.9), "sum to 1, .*'01'"),
        (lambda v: v.drop(columns="order"), "'order'"),
    ],
)
def test_an_order_that_is_not_whole_is_found_when_it_is_read(tmp_path, spoil, found):
    spoil(ORDERS).to_csv(tmp_path / "v.csv", index=False)
    with pytest.raises(ArtifactError, match=f"v.csv: .*{found}"):
        read_orders(tmp_path / "v.csv", PROBS["id"])


def test_a_missing_file_names_the_notebook_to_run(tmp_path):
    with pytest.raises(ArtifactError, match=r"p.csv: .*04_infer"):
        read_probabilities(tmp_path / "p.csv", [])


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def half(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"


def test_hashes_follow_contents_of_files_and_folders(tmp_path):
    write_text(tmp_path / "folder" / "a.txt", "1")
    before = sha256(tmp_path / "folder")
    write_text(tmp_path / "folder" / "a.txt", "2")
    assert sha256(tmp_path / "folder") != before
    found = hashes([tmp_path / "folder" / "a.txt", tmp_path / "none"], tmp_path)
    assert found == {"folder/a.txt": sha256(tmp_path / "folder" / "a.txt"), "none": "missing"}


def test_provenance_names_the_versions_that_matter():
    found = provenance()
    assert found["packages"]["transformers"] and found["packages"]["bitsandbytes"]


def test_tests_do_not_write_into_the_users_runs():
    assert "vqa-tests-" in str(runs_dir())
    assert (
        RunPaths("r").predicting("/data/hidden").folds == runs_dir() / "r/predict/hidden/folds.csv"
    )


def test_a_path_is_shown_as_it_can_be_opened_and_in_a_notebook_from_the_runs_on(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "large"))
    folds = RunPaths("r").folds
    monkeypatch.chdir(tmp_path)
    assert shown(folds) == "large/r/folds.csv"
    monkeypatch.chdir(ROOT)
    assert shown(folds) == str(tmp_path / "large/r/folds.csv")
    monkeypatch.chdir(NOTEBOOKS)
    assert shown(folds) == "runs/r/folds.csv"


def test_runs_go_to_the_working_directory_where_the_code_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.delenv("VQA_RUNS_DIR")
    monkeypatch.chdir(tmp_path)
    assert runs_dir() == ROOT / "runs"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert runs_dir() == tmp_path / "runs"


FORMULAS = ["=1+1", "+82-10-1234", "-a", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "='x'!A1", "'=1", "''@a",
            '=HYPERLINK("http://x","y")', "=cmd|' /C calc'!A0", "-1+1", "＝1+1", "+", "-", "=", "@"]  # fmt: skip
TEXTS = [
    "",
    "a=1",
    "1-2",
    "'quoted'",
    "O'Neill",
    " x",
    "-0.5",
    "+1",
    "-1e-5",
    "-1,5",
    "a\rb",
    '"',
    "1;2",
]


def test_a_spreadsheet_runs_no_text_of_a_table_for_people(tmp_path):
    frame = pd.DataFrame({"text": FORMULAS + TEXTS})
    write_sheet(
        tmp_path / "t.csv", frame.assign(number=-0.5, mixed=["all", *[0] * 30][: len(frame)])
    )
    text = (tmp_path / "t.csv").read_bytes().decode()
    cells = list(csv.reader(io.StringIO(text, newline="")))
    assert cells[0] == ["text", "number", "mixed"]
    shown = [line[0] for line in cells[1:]]
    assert shown == [f"'{text}" for text in FORMULAS] + TEXTS
    assert {line[1] for line in cells[1:]} == {"-0.5"}
    assert [line[2] for line in cells[1:3]] == ["all", "0"]
    # Without their first apostrophes, the formulas are whole
    assert [text[1:] for text in shown[: len(FORMULAS)]] == FORMULAS


def test_ids_that_look_like_formulas_stay_as_they_are_between_stages_and_for_kaggle(tmp_path):
    ids = [text for text in FORMULAS if text == text.strip()]
    probs = pd.DataFrame([[0.7, 0.1, 0.1, 0.1]] * len(ids), columns=list("abcd")).assign(id=ids)
    write_probabilities(tmp_path / "p.csv", probs)
    assert read_probabilities(tmp_path / "p.csv", ids)["id"].tolist() == ids
    write_csv(tmp_path / "s.csv", submission(pd.DataFrame({"id": ids}), probs))
    with (tmp_path / "s.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["id", "answer"], *([row_id, "a"] for row_id in ids)]


def test_threads_may_write_the_same_file_at_once(tmp_path):
    def write(number):
        for _ in range(40):
            write_json(tmp_path / "a.json", {"number": number})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert read_json(tmp_path / "a.json")["number"] in range(4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
