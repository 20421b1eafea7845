import pytest

from run_all import STAGES
from vqa_utils.artifacts.paths import NOTEBOOKS, FoldPaths
from vqa_utils.errors import RunError
from vqa_utils.running.stages import Stage, Step, select_steps


def names(**options):
    return [step.name for step in select_steps(STAGES, (0, 1, 2), **options)]


def test_the_stages_are_the_notebooks():
    assert [stage.name for stage in STAGES] == [
        path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    ]


def test_a_run_trains_every_fold_before_it_scores():
    assert names() == [
        "01_eda", "02_folds", "03_train_fold-fold0", "03_train_fold-fold1", "03_train_fold-fold2",
        "04_infer-fold0", "04_infer-fold1", "04_infer-fold2", "05_ensemble", "06_analysis",
    ]  # fmt: skip


def test_parts_of_a_run():
    assert names(only="03_train_fold", chosen=[2, 0]) == [
        "03_train_fold-fold2",
        "03_train_fold-fold0",
    ]
    assert names(start="04_infer", chosen=[1]) == ["04_infer-fold1", "05_ensemble", "06_analysis"]


def test_what_does_not_exist_is_listed_together():
    with pytest.raises(
        RunError,
        match=r"(?s)--folds: expected some of 0, 1, 2, found 7.*stage: expected one of 01_eda.*found 3_train",
    ):
        names(only="3_train", chosen=[7])


def test_what_each_order_said_goes_with_the_probabilities_from_04_to_06(tmp_path):
    fold = FoldPaths(tmp_path / "fold1")
    fold.folder.mkdir()
    for path in (fold.probs("oof"), fold.orders("oof"), fold.orders("test")):
        path.touch()
    writes, reads = (
        step
        for step in select_steps(STAGES, (1,))
        if step.name in ("04_infer-fold1", "06_analysis")
    )
    assert {fold.orders("oof"), fold.orders("test")} <= set(writes.outputs(tmp_path)) & set(
        reads.inputs(tmp_path)
    )
    table = tmp_path / "report" / "orders.csv"
    table.parent.mkdir()
    table.touch()
    assert table in reads.outputs(tmp_path)  # and so it does not outlive the orders


def test_patterns_name_the_folds_files(tmp_path):
    step = Step(
        Stage(
            "s",
            reads=("folds.csv",),
            writes=("fold{fold}/a.csv", "fold{fold}/probs_*.csv"),
            per_fold=True,
        ),
        1,
    )
    assert step.parameters("r") == {"run_id": "r", "fold": 1}
    assert step.inputs(tmp_path) == [tmp_path / "folds.csv"]
    assert step.outputs(tmp_path) == [tmp_path / "fold1/a.csv", tmp_path / "fold1/probs_*.csv"]
    for name in ("a.csv", "probs_oof.csv", "probs_test.csv"):
        (tmp_path / "fold1").mkdir(exist_ok=True)
        (tmp_path / "fold1" / name).touch()
    assert [path.name for path in step.outputs(tmp_path)] == [
        "a.csv",
        "probs_oof.csv",
        "probs_test.csv",
    ]
