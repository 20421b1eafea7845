"""The expected minutes of a run: what they add up, and what is told of them."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.forecasting import forecast as of_forecast
from vqa_utils.forecasting._work import work_of
from vqa_utils.forecasting.forecast import (
    ATTACH_SECONDS,
    NOTEBOOK_START_SECONDS,
    RowCounts,
    forecast,
)
from vqa_utils.planning.machine.gpus import T4, Gpu
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset
from vqa_utils.running import resolution as runs
from vqa_utils.running.auto_settings import rows_here
from vqa_utils.running.terminal.plan_table import print_forecast


def expected(name="safe", gpus=(T4, T4), rows=(1000, 1000), **changes):
    config = preset(name, **changes)
    return forecast(config, shape_of(config), list(gpus), RowCounts(*rows))


def test_a_fold_trains_the_other_rows_and_evaluates_its_own():
    found = expected(tta=1)  # which the evaluation within a training takes
    assert found.epoch_s == pytest.approx(
        1000 * (2 / 3 * found.training.wall + 1 / 3 * found.scoring.wall)
    )
    assert expected(rows=(2000, 1000), tta=1).epoch_s == pytest.approx(2 * found.epoch_s)
    alone = expected(use_kfold=False, holdout_fraction=0.25, tta=1)
    assert alone.epoch_s == pytest.approx(
        1000 * (0.75 * found.training.wall + 0.25 * found.scoring.wall)
    )


def test_a_run_is_its_folds_epochs_and_scoring():
    run = expected().run_s
    one, two = (expected(epochs=epochs) for epochs in (1, 2))
    assert two.run_s == run and two.run_s - one.run_s == pytest.approx(3 * one.epoch_s)
    # Two batches in flight, one on each GPU
    scored_row = one.scoring.wall / one.scoring.gain(2)
    more_test = expected(rows=(1000, 2000)).run_s - run
    assert more_test == pytest.approx(3 * 1000 * scored_row)
    assert expected(baselines=True).run_s - run == pytest.approx(3 * 2 * 1000 / 3 * scored_row)
    loading = run - 3 * (2 * one.epoch_s + (1000 / 3 + 1000) * scored_row)
    # The lender, what it reads, and the last scoring; other kernels start meanwhile
    started = 2 * NOTEBOOK_START_SECONDS + 5 * ATTACH_SECONDS
    assert loading == pytest.approx(started + 62e9 / 0.2e9, rel=0.01)


def test_one_fold_alone_reads_its_quantised_copy_where_one_is_kept():
    kept, not_kept = (expected(use_kfold=False, cache_dir=folder).run_s for folder in ("auto", ""))
    packed, published = 17.5e9, 62e9  # bytes
    assert not_kept - kept == pytest.approx((published - packed) / 0.2e9, rel=0.02)


def test_extra_rows_join_the_training_of_each_fold_and_of_the_refit():
    without, extra = (expected(rows=rows, refit=True) for rows in ((1000, 1000), (1000, 1000, 300)))
    assert extra.epoch_s - without.epoch_s == pytest.approx(300 * without.training.wall)
    assert extra.run_s - without.run_s == pytest.approx(4 * 2 * 300 * without.training.wall)


def test_folds_that_need_a_gpu_each_run_side_by_side():
    for name in ("single_gpu", "dense_8b"):
        one, two = (expected(name, gpus) for gpus in ([T4], [T4, T4]))
        assert (one.side_by_side, two.side_by_side) == (1, 2) and one.epoch_s == two.epoch_s
        assert 0.5 < two.run_s / one.run_s < 0.75  # three folds on two
    assert expected().side_by_side == 1
    assert expected("single_gpu", max_memory=("14GB", "14GB")).side_by_side == 1


def test_four_orders_cost_less_than_four_times_one():
    one, four = (expected(tta=orders, score_batch=8) for orders in (1, 4))
    assert 1.2 < four.scoring.wall / one.scoring.wall < 2.5 and four.training == one.training


def test_crops_cost_their_tokens():
    whole, parts = (
        expected(crops=crops, micro_batch=4, accumulation=4, score_batch=8) for crops in (0, 2)
    )
    assert 2 < parts.training.wall / whole.training.wall < 5
    assert 2 < parts.scoring.wall / whole.scoring.wall < 5


def test_a_closer_look_is_encoded_ahead_for_all_pictures():
    batch = {"micro_batch": 4, "accumulation": 4, "score_batch": 4}
    few = {"second_look": 1e-6, "tta": 1, "folds_at_once": 1, **batch}

    def added(crops, **settings):
        looks = expected(**few, **settings, second_look_crops=crops)
        return looks.run_s - expected(**few, **settings).run_s

    assert added(2, cache_features=True) > 60  # seconds, of 2,000 pictures with their quarters
    twice = 2 * added(2, cache_features=True)  # ten images each, not five
    assert added(3, cache_features=True) == pytest.approx(twice, rel=0.05)  # launches aside
    assert added(2, cache_features=False) < 1


def test_several_orders_alone_cost_a_whole_mask(monkeypatch):
    asked = []

    def spied(gpu, shape, config, one_pass, padding_worth):
        asked.append((one_pass.training, one_pass.batch.rows, one_pass.causal))
        return work_of(gpu, shape, config, one_pass, padding_worth)

    monkeypatch.setattr(of_forecast, "work_of", spied)
    expected(tta=4, micro_batch=16, score_batch=8)
    step, evaluation, scoring = (True, 16, True), (False, 8, True), (False, 8, False)
    assert set(asked) == {step, evaluation, scoring}


def test_without_rates_there_is_no_forecast():
    assert expected("dense_8b", [Gpu("Tesla V100", 32)]) is None
    assert expected("safe", [T4, Gpu("Tesla V100", 32)]) is None
    assert expected("dense_8b", [T4, Gpu("Tesla V100", 32)]) is None
    # Without folds, the first GPU alone is used
    assert expected("dense_8b", [T4, Gpu("Tesla V100", 32)], use_kfold=False) is not None


def said(name, gpus, rows, **changes):
    console = Console(width=200, record=True, file=io.StringIO())
    print_forecast(console, preset(name, **changes), gpus, rows and RowCounts(*rows))
    return console.export_text()


def test_the_plan_says_minutes_and_that_they_are_a_models():
    found, text = expected(rows=(3887, 3887)), said("safe", [T4, T4], (3887, 3887))
    minutes = re.findall(r"([\d.]+) (?:minutes|for the whole)", text)
    epoch, run = map(float, minutes)
    assert epoch == pytest.approx(found.epoch_s / 60, abs=0.06)
    assert run == pytest.approx(found.run_s / 60, abs=0.6)
    assert text.count("3,887") == 2 and f"bound by {found.training.bound}" in text
    assert "not a measurement" in text and "assumed" not in text


def test_the_plan_says_the_rows_and_the_adapters():
    assumed = said("safe", [T4, T4], None)
    assert assumed.count("1,000") == 2 and "assumed" in assumed and "refit" not in assumed
    counted = said("safe", [T4, T4], (100, 10, 50))
    assert all(rows in counted for rows in ("100 train", "50 extra", "10 test"))
    assert "refit" in said("safe", [T4, T4], None, refit=True)
    assert "2 at a time" in said("dense_8b", [T4, T4], None)
    unknown = said("dense_8b", [Gpu("Tesla V100", 32)], None)
    assert "Tesla V100" in unknown and "H100, T4" in unknown


def test_rows_are_counted_where_the_data_is(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "KAGGLE_INPUT", tmp_path)
    assert (
        rows_here(preset("safe")) is None and rows_here(preset("safe", data=str(tmp_path))) is None
    )
    data = tmp_path / "challenge"
    data.mkdir()
    (data / "train.csv").write_bytes(
        'id,question\n1,"two\nlines, 색?"\n2,b\n\n3,c\n'.encode("cp949")
    )
    assert rows_here(preset("safe", data=str(data))) is None  # there is no test.csv
    (data / "test.csv").write_text("id\n1\n2\n")
    assert rows_here(preset("safe", data=str(data))) == rows_here(preset("safe")) == (3, 2, 0)
    assert rows_here(preset("safe", data=str(data), limit=2)) == (2, 2, 0)
    (tmp_path / "more.csv").write_text("id\n1\n2\n3\n4\n")
    more = {"data": str(data), "extra_train": str(tmp_path / "more.csv")}
    assert rows_here(preset("safe", **more)) == (3, 2, 4) and rows_here(
        preset("safe", limit=2, **more)
    ) == (2, 2, 2)
    (tmp_path / "more.csv").unlink()
    assert rows_here(preset("safe", **more)) is None


@pytest.mark.slow
def test_the_command_counts_the_rows_and_says_nothing_of_what_does_not_fit(tmp_path):
    for name, rows in (("train", 400), ("test", 100)):
        (tmp_path / f"{name}.csv").write_text("id\n" + "1\n" * rows)
    words = ["run_all.py", "plan", "--preset", "safe", "--data", str(tmp_path), "--t4"]
    command = [sys.executable, *words]
    texts = [
        subprocess.run([*command, n], cwd=ROOT, capture_output=True, text=True, check=False).stdout
        for n in ("2", "1")
    ]
    assert "expected for 400 train and 100 test rows: " in texts[0] and "expected" not in texts[1]


def test_a_run_that_does_not_fit_has_no_forecast():
    assert expected(image_side=8192) is None
    assert expected() is not None
