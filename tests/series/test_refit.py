"""One more adapter, trained on all rows: it joins the test answers and no out-of-fold score."""

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
from stand_in import folds_and_train

import run_all
from vqa_utils.analysis import figures
from vqa_utils.artifacts.files import ids_hash, read_json, write_csv
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.fold_rows import extra_rows
from vqa_utils.ensembling.fold_table import fold_table
from vqa_utils.ensembling.members import scored_adapters
from vqa_utils.ensembling.other_runs import check_finished
from vqa_utils.errors import RunError
from vqa_utils.experiments.comparison import comparison, read_scored
from vqa_utils.forecasting.forecast import RowCounts, _finish_time, forecast
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset
from vqa_utils.running.checking import _problems_of_refit
from vqa_utils.running.stages import TRAINING, Step

pytestmark = pytest.mark.slow

REFIT = ["03_train_fold-fold2", "04_infer-fold2"]
COMBINED = ["05_ensemble", "06_analysis"]


@pytest.fixture
def command(stand_in, console, monkeypatch, korean_folder):
    """Runs `run_all.py` on the run `r` of two folds, and keeps what was printed.

    It returns the names of the notebooks that were executed.
    """
    monkeypatch.setattr("vqa_utils.running.runner.fold_environments", lambda config, folds: [])

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["run_all.py", *arguments, "--run-id", "r"])
        stand_in.executed.clear()
        before = len(console.file.getvalue())
        run_all.run(run_all.parse_arguments(), console)
        run.printed = console.file.getvalue()[before:]
        return [name.removeprefix("r ") for name in stand_in.executed]

    run.new = ("--data", str(korean_folder), "--set", "n_folds=2")
    return run


def test_the_refit_is_one_more_number_that_no_adapter_depends_on():
    off, on = preset("demo"), preset("demo", refit=True)
    assert on.hash_for("05_ensemble") != off.hash_for("05_ensemble")
    assert on.hash_for("04_infer") == off.hash_for("04_infer")
    assert on.training_hash == off.training_hash
    assert off.adapter_numbers == on.fold_numbers == (0, 1, 2)
    assert on.adapter_numbers == (0, 1, 2, 3)
    assert [on.adapter_name(k) for k in (2, 3)] == ["fold 2", "refit (fold 3)"]
    assert preset("demo", refit=True, use_kfold=False).adapter_numbers == (0, 1)


def contents(folder, pattern):
    return {file: file.read_bytes() for file in folder.glob(pattern) if file.is_file()}


def test_a_finished_run_gets_a_refit_and_keeps_its_folds(command):
    assert len(command(*command.new)) == 8
    paths = RunPaths("r")
    before = contents(paths.folder, "fold[01]/**/*")
    command("--resume", "--refit", "--dry-run")
    assert command.printed.count("reuse") == 6 and command.printed.count("run again") == 2
    assert command("--resume", "--refit") == [*REFIT, *COMBINED]
    assert contents(paths.folder, "fold[01]/**/*") == before
    assert not paths.fold(2).probs("oof").exists() and paths.fold(2).probs("test").exists()
    assert scored_adapters(*open_run("r")) == [0, 1, 2]
    assert command("--resume") == [], "the run's own settings say that it has one"
    assert command("status") == [] and command.printed.count("done") == 10


def test_a_refit_that_comes_back_is_not_trained_again(command):
    command(*command.new, "--refit")
    assert command("--resume", "--set", "refit=false") == COMBINED
    assert command("--resume", "--set", "refit=true") == COMBINED


def refused(command, *arguments):
    """The error of a command that would build on files of other settings."""
    with pytest.raises(RunError) as error:
        command("--resume", *arguments)
    return str(error.value)


def test_another_way_to_combine_keeps_the_folds_probabilities(command):
    command(*command.new)
    assert command("--resume", "--set", "ensemble=vote") == COMBINED
    assert command("--resume", "--only", "04_infer") == []
    assert command("--resume", "--from", "05_ensemble", "--set", "ensemble=geometric") == COMBINED
    assert command("--resume", "--set", "tta=2") == ["04_infer-fold0", "04_infer-fold1", *COMBINED]


def test_steps_of_other_settings_are_not_built_on(command):
    command(*command.new)
    error = refused(command, "--from", "05_ensemble", "--set", "tta=2")
    assert "04_infer-fold0, 04_infer-fold1" in error
    error = refused(command, "--folds", "0", "--set", "tta=2")
    assert "04_infer-fold1" in error and "04_infer-fold0" not in error
    for some in ("--from", "--only"):
        error = refused(command, some, "04_infer", "--set", "learning_rate=1e-4")
        assert "03_train_fold-fold0, 03_train_fold-fold1" in error
    error = refused(command, "--only", "06_analysis", "--set", "calibrate=false")
    assert "05_ensemble" in error


def test_a_refit_that_was_switched_off_again_counts_in_no_minutes(command):
    def minutes():
        table = comparison([read_scored("r")])
        return table.loc[0, ["train_minutes", "notebook_minutes"]].tolist()

    command(*command.new)
    train, notebooks = minutes()
    command("--resume", "--refit")
    assert minutes() == [train + 3, notebooks + 1]  # two more notebooks of half a minute
    command("--resume", "--set", "refit=false")
    assert minutes() == [train, notebooks]


def test_folds_chooses_the_refit_by_its_number(command):
    first = ["01_eda", "02_folds", "03_train_fold-fold0", "04_infer-fold0", *COMBINED]
    assert command(*command.new, "--refit", "--folds", "0") == first
    paths, config = open_run("r")
    assert scored_adapters(paths, config) == [0]
    with pytest.raises(RunError, match=r"fold 1, refit \(fold 2\)"):
        check_finished(paths, config)
    assert command("--resume", "--folds", "1,2") == [
        "03_train_fold-fold1",
        REFIT[0],
        "04_infer-fold1",
        REFIT[1],
        *COMBINED,
    ]
    check_finished(paths, config)
    with pytest.raises(RunError, match=r"--folds: .*0, 1, found 2"):
        command("--resume", "--set", "refit=false", "--folds", "2")


def test_a_refit_of_the_folds_best_steps_is_refused_without_them(command):
    new = (*command.new, "--set", "patience=2")
    with pytest.raises(RunError, match="expected all to be trained, found no fold 1"):
        command(*new, "--refit", "--folds", "0,2")
    command(*new, "--folds", "0,1")
    assert command("--resume", "--refit", "--folds", "2") == [*REFIT, *COMBINED]


def test_a_refit_of_the_folds_best_steps_is_refused_on_a_cluster():
    refit = [Step(TRAINING, 2)]
    for changes, is_refused in (({"patience": 2}, True), ({"eval_every": 0.5}, True), ({}, False)):
        config = preset("demo", n_folds=2, refit=True, **changes)
        runner = SimpleNamespace(config=config, cluster=object(), paths=RunPaths("r"))
        problems = _problems_of_refit(runner, refit)
        assert bool(problems) == is_refused
        assert all("nodes of a cluster do not see" in problem for problem in problems)
        assert not _problems_of_refit(runner, refit[:0])


def test_a_refit_starts_with_the_rungs_that_a_fold_needed(command, stand_in):
    stand_in.climbed.add("r")
    command(*command.new, "--refit")
    paths, config = open_run("r")
    assert read_json(paths.fold(2).rungs) == read_json(paths.fold(1).rungs)
    assert open_run("r", 2)[1].lora_r == config.lora_r // 2
    check_finished(paths, config)
    table = fold_table(paths, config, *folds_and_train(paths, config))
    assert table.set_index("fold")["after out of memory"].to_dict() == {
        0: "",
        1: "LoRA r",
        "refit (fold 2)": "LoRA r",
        "all": "",
    }


def test_a_refit_costs_but_has_no_score(command):
    command(*command.new)
    paths, config = open_run("r")
    without = fold_table(paths, config, *folds_and_train(paths, config)).set_index("fold")
    command("--resume", "--refit")
    config = open_run("r")[1]
    table = fold_table(paths, config, *folds_and_train(paths, config)).set_index("fold")
    assert list(table.index) == [0, 1, "refit (fold 2)", "all"]
    scores = ["rows", "accuracy", "low", "high", "log_loss"]
    of_folds = table.loc[[0, 1, "all"], scores]
    pd.testing.assert_frame_equal(of_folds, without[scores], check_exact=True)
    refit = table.loc["refit (fold 2)"]
    assert refit["rows"] == 0 and refit[scores[1:]].isna().all()
    assert (refit["minutes"], refit["peak_gib"]) == (3, 4)
    assert table["minutes"]["all"] == 6 and without["minutes"]["all"] == 3


def test_a_refit_learns_from_every_extra_row(tmp_path):
    extra = pd.DataFrame({"id": ["x", "y", "z"]})
    write_csv(tmp_path / "folds_extra.csv", extra.assign(left_out_of=["0", "0 1", ""]))
    assert [list(extra_rows(tmp_path / "folds_extra.csv", extra, k)["id"]) for k in (0, 1, 2)] == [
        ["z"],
        ["x", "z"],
        list("xyz"),
    ]


def test_without_held_out_rows_the_last_epochs_adapter_is_kept(
    config, encoder, challenge, tmp_path, monkeypatch
):
    import torch
    from bases import base_with_lora
    from safetensors.torch import load_file
    from transformers import TrainerCallback

    from vqa_utils.training import fold as train

    config = dataclasses.replace(config, epochs=2, learning_rate=3e-2)
    last, original = {}, train.make_trainer

    class KeepsLast(TrainerCallback):
        def on_train_end(self, args, state, control, model, **kwargs):
            last.update(
                {
                    name.replace(".default", ""): p.detach().clone()
                    for name, p in model.named_parameters()
                    if "lora_" in name
                }
            )

    def watched(*given):
        trainer = original(*given)
        trainer.add_callback(KeepsLast())
        return trainer

    monkeypatch.setattr(train, "make_trainer", watched)
    paths, rows = FoldPaths(tmp_path / "fold3"), challenge.train.head(8)
    meta = train.train_fold(base_with_lora(config), config, encoder, rows, rows.head(0), paths)
    assert (meta["train_rows"], meta["held_out_rows"], meta["held_out_ids"]) == (8, 0, ids_hash([]))
    assert (
        meta["epochs"] == []
        and meta["best_epoch"] is None
        and meta["steps"] == 4
        and read_json(paths.meta) == meta
    )
    assert train.describe_epochs(meta).endswith("the adapter is the last one's.")
    kept = load_file(paths.adapter / "adapter_model.safetensors")
    assert set(kept) == set(last) and all(torch.equal(kept[name], last[name]) for name in kept)
    log = pd.read_csv(paths.train_log)
    assert len(figures.training_curves(log, pd.DataFrame(meta["epochs"])).axes) == 1
    judged = {
        "epochs": [
            {"epoch": 1, "accuracy": 0.5, "log_loss": 1.0},
            {"epoch": 2, "accuracy": 0.6, "log_loss": 0.8},
        ],
        "steps": 4,
        "planned_steps": 4,
    }
    said = train.describe_epochs(judged | {"best_epoch": 2})
    assert said == "Best epoch 2: held-out accuracy 0.600, log loss 0.800 nats."


def test_the_minutes_of_a_refit_are_those_of_all_rows_and_of_the_test_set():
    def expected(name="safe", gpus=(T4, T4), **changes):
        config = preset(name, **changes)
        return forecast(config, shape_of(config), list(gpus), RowCounts(1000, 400))

    off, on = expected(), expected(refit=True)
    assert on.epoch_s == off.epoch_s
    one_more = on.run_s - off.run_s
    scored_row = on.scoring.wall / on.scoring.gain(2)  # two batches in flight
    rest = 2 * 1000 * on.training.wall + 400 * scored_row
    loading = (off.run_s - 3 * (2 * off.epoch_s + (1000 / 3 + 400) * scored_row)) / 6
    assert rest < one_more < rest + 2 * loading
    assert expected("dense_8b", use_kfold=False, refit=True).side_by_side == 2, (
        "the fold and the refit"
    )


def test_steps_go_to_the_next_free_process():
    assert _finish_time([10, 10, 10], [2, 2, 2], 1) == 36
    assert _finish_time([10, 10, 10], [2, 2, 2], 2) == 22
    assert _finish_time([10, 10, 10, 15], [2, 2, 2, 1], 2) == 26
    assert _finish_time([10, 10, 10, 15], [2, 2, 2, 1], 4) == 16
