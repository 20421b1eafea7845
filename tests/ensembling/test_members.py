import pandas as pd
import pytest

from vqa_utils.artifacts.files import ArtifactError, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.config import to_dict
from vqa_utils.ensembling.members import (
    has_split,
    pooled,
    read_members,
    rows_of,
    scored_adapters,
    scored_folds,
)
from vqa_utils.presets import preset


def certain_of_a(*ids):
    return pd.DataFrame({"id": ids, "a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0})


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    return RunPaths("members")


def test_scored_folds_are_used_and_the_missing_named(paths):
    config = preset("demo")
    folds = pd.DataFrame({"id": ["p", "q", "r"], "fold": [0, 1, 2]})
    with pytest.raises(ArtifactError, match="03_train_fold and 04_infer"):
        scored_folds(paths, config)
    for k, row_id in ((0, "p"), (2, "r")):
        write_probabilities(paths.fold(k).probs("oof"), certain_of_a(row_id))
        write_probabilities(paths.fold(k).probs("test"), certain_of_a("x", "y"))
    assert scored_folds(paths, config) == ([0, 2], [1])
    assert [member.number for member in read_members(paths, config, ["x", "y"])] == [0, 2]
    oof = pooled(paths, config, folds, "oof")
    assert oof[["id", "fold"]].to_numpy().tolist() == [["p", 0], ["r", 2]]


def test_a_split_is_there_if_all_scored_folds_have_it(paths):
    config = preset("demo")
    folds = pd.DataFrame({"id": ["p", "q"], "fold": [0, 1]})
    for k in (0, 1):
        write_probabilities(paths.fold(k).probs("test"), certain_of_a("x"))
    write_probabilities(paths.fold(0).probs("blank"), certain_of_a("p"))
    assert not has_split(paths, config, "blank")
    with pytest.raises(ArtifactError, match=r"fold1/probs_blank\.csv"):
        pooled(paths, config, folds, "blank")
    write_probabilities(paths.fold(1).probs("blank"), certain_of_a("q"))
    assert has_split(paths, config, "blank")


def test_a_member_must_have_scored_the_test_rows(paths):
    write_probabilities(paths.fold(0).probs("test"), certain_of_a("x", "y"))
    with pytest.raises(ArtifactError, match=r"fold0/probs_test\.csv"):
        read_members(paths, preset("demo"), ["x", "z"])


def test_a_fold_of_other_settings_is_no_member(paths):
    config = preset("demo")
    for k in (0, 1, 2):
        write_probabilities(paths.fold(k).probs("test"), certain_of_a("x"))
        trained_with = preset("demo", score_batch=k + 1)  # no setting of an adapter
        write_json(paths.fold(k).adapter_config, to_dict(trained_with))
    write_json(paths.fold(1).adapter_config, to_dict(preset("demo", lora_r=4)))
    assert scored_folds(paths, config) == ([0, 2], [1])


def test_a_refit_is_a_scored_adapter_but_no_fold(paths):
    config = preset("demo", refit=True)
    for k in (0, 3):
        write_probabilities(paths.fold(k).probs("test"), certain_of_a("x"))
    assert scored_adapters(paths, config) == [0, 3]
    assert scored_folds(paths, config) == ([0], [1, 2])


def test_rows_come_in_the_order_of_the_probabilities():
    train = pd.DataFrame({"id": ["p", "q", "r"], "answer": ["a", "b", "c"]})
    assert rows_of(certain_of_a("r", "p"), train)["answer"].tolist() == ["c", "a"]
