import pytest

from vqa_utils.artifacts.paths import NOTEBOOKS, FoldPaths
from vqa_utils.errors import RunError
from vqa_utils.running.stages import (
    ANALYSIS,
    PREDICTION,
    SCORING,
    STAGES,
    Stage,
    Step,
    built_on,
    due_steps,
    select_steps,
)


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


@pytest.mark.parametrize(
    ("anew", "due"),
    [
        ([], []),
        (["01_eda"], ["01_eda"]),
        (["04_infer-fold1"], ["04_infer-fold1", "05_ensemble", "06_analysis"]),
        (
            ["03_train_fold-fold1"],
            ["03_train_fold-fold1", "04_infer-fold1", "05_ensemble", "06_analysis"],
        ),
    ],
)
def test_steps_are_due_with_those_that_they_are_built_on(anew, due):
    steps = select_steps(STAGES, (0, 1, 2))
    found = due_steps(steps, lambda step: step.name not in anew)
    assert [step.name for step in found] == due


def test_all_is_due_with_other_folds():
    steps = select_steps(STAGES, (0, 1))
    assert due_steps(steps, lambda step: step.name != "02_folds") == steps[1:]


def test_folds_and_stages_that_do_not_exist_are_listed_together():
    with pytest.raises(RunError) as error:
        names(only="3_train", chosen=[7])
    fold, stage = str(error.value).splitlines()
    assert "--folds" in fold and "0, 1, 2" in fold and fold.endswith("7")
    assert "01_eda" in stage and "found '3_train'; did you mean 03_train_fold" in stage


@pytest.mark.parametrize(
    ("selected", "expected"),
    [
        ({}, []),
        ({"only": "01_eda"}, []),
        ({"only": "04_infer", "chosen": [1]}, ["03_train_fold-fold1"]),
        ({"chosen": [0]}, ["04_infer-fold2"]),
        ({"start": "05_ensemble"}, ["04_infer-fold0", "04_infer-fold2"]),
        ({"only": "06_analysis"}, ["04_infer-fold0", "04_infer-fold2", "05_ensemble"]),
    ],
)
def test_steps_build_on_the_earlier_ones_that_are_not_selected(selected, expected):
    steps = select_steps(STAGES, (0, 1, 2), **selected)
    assert [step.name for step in built_on(steps, scored=[0, 2])] == expected


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_probabilities_of_each_order_go_from_04_to_06(tmp_path):
    fold = FoldPaths(tmp_path / "fold1")
    orders = {fold.orders("oof"), fold.orders("test")}
    table = tmp_path / "report" / "orders.csv"
    touch(fold.probs("oof"), *orders, table)
    scoring, analysis = Step(SCORING, 1), Step(ANALYSIS)
    assert orders <= set(scoring.outputs(tmp_path)) & set(analysis.inputs(tmp_path))
    assert table in analysis.outputs(tmp_path), "it does not outlive the orders"


def test_patterns_name_the_folds_files(tmp_path):
    stage = Stage(
        "s",
        reads=("folds.csv",),
        writes=("fold{fold}/a.csv", "fold{fold}/probs_*.csv"),
        per_fold=True,
    )
    step = Step(stage, 1)
    assert step.inputs(tmp_path) == [tmp_path / "folds.csv"]
    assert step.outputs(tmp_path) == [tmp_path / "fold1/a.csv", tmp_path / "fold1/probs_*.csv"]
    there = [tmp_path / "fold1" / name for name in ("a.csv", "probs_oof.csv", "probs_test.csv")]
    touch(*there)
    assert step.outputs(tmp_path) == there


@pytest.mark.parametrize(
    ("step", "given"),
    [
        (Step(ANALYSIS), {}),
        (Step(SCORING, 1), {"fold": 1}),
        (Step(PREDICTION, 1, predict="/hidden"), {"fold": 1, "predict": "/hidden"}),
    ],
)
def test_a_step_passes_its_fold_and_its_test_set(step, given):
    assert step.parameters("r") == {"run_id": "r"} | given
