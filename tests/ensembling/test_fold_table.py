import numpy as np
import pandas as pd
import pytest

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.ensembling.fold_table import fold_table
from vqa_utils.metrics import accuracy_interval
from vqa_utils.presets import preset

TRAIN = pd.DataFrame({"id": ["p", "q", "r", "s"], "answer": ["a", "b", "a", "d"]})
FOLDS = pd.DataFrame({"id": TRAIN["id"], "fold": [0, 1, 0, 1]})
FOR_A, FOR_C = (0.7, 0.1, 0.1, 0.1), (0.05, 0.05, 0.85, 0.05)


def probabilities(ids, *rows):
    return pd.DataFrame(rows, columns=list("abcd")).assign(id=ids)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two scored folds, right on p and wrong on the other rows."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    paths, config = RunPaths("table"), preset("demo", n_folds=2)
    for k, ids in ((0, ["p", "r"]), (1, ["q", "s"])):
        write_probabilities(paths.fold(k).probs("oof"), probabilities(ids, FOR_A, FOR_C))
        write_probabilities(paths.fold(k).probs("test"), probabilities(["t"], FOR_A))
        write_json(paths.fold(k).meta, {"seconds": 60 * (k + 1), "peak_memory_gib": [1.5, 2.0 + k]})
    return paths, config


def test_each_fold_has_a_line_and_all_of_them_one(run):
    table = fold_table(*run, FOLDS, TRAIN)
    assert table["fold"].tolist() == [0, 1, "all"]
    assert table["rows"].tolist() == [2, 2, 4]
    assert table["accuracy"].tolist() == [0.5, 0.0, 0.25]
    assert table["log_loss"][0] == pytest.approx(-(np.log(0.7) + np.log(0.05)) / 2)
    rights = [[True, False], [False, False], [True, False, False, False]]
    intervals = [accuracy_interval(np.array(right)) for right in rights]
    assert list(zip(table["low"], table["high"], strict=True)) == intervals


def test_minutes_are_summed_and_the_highest_peak_kept(run):
    table = fold_table(*run, FOLDS, TRAIN)
    assert table["minutes"].tolist() == [1, 2, 3]
    assert table["peak_gib"].tolist() == [2, 3, 3]
    run[0].fold(1).meta.unlink()
    table = fold_table(*run, FOLDS, TRAIN)
    assert table["minutes"].isna().tolist() == [False, True, False]
    assert table["minutes"].iloc[-1] == 1 and table["peak_gib"].iloc[-1] == 2
