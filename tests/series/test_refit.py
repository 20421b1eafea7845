"""One more adapter, trained on all rows: it joins the test answers, and changes nothing that is out of fold."""

import dataclasses
import statistics

import numpy as np
import pandas as pd
import pytest

import run_all
from vqa_utils.analysis import figures
from vqa_utils.artifacts.files import ids_hash, read_json, write_csv, write_json
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities, write_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import to_dict
from vqa_utils.data.fold_rows import extra_rows
from vqa_utils.data.folds import FoldError, held_out_rows, read_folds
from vqa_utils.ensembling.combining import combined
from vqa_utils.ensembling.ensemble_of_folds import of_folds
from vqa_utils.ensembling.fold_table import fold_table
from vqa_utils.ensembling.members import describe_refit, pooled, scored_folds
from vqa_utils.ensembling.other_runs import check_finished
from vqa_utils.ensembling.temperature import read_temperatures, scaled, temperature_of
from vqa_utils.errors import RunError
from vqa_utils.experiments.comparison import comparison, read_scored
from vqa_utils.forecasting.forecast import RowCounts, _last_end, forecast
from vqa_utils.planning.gpus import T4
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset

LETTERS = list("abcd")
REFIT = ["03_train_fold-fold2", "04_infer-fold2"]
COMBINED = ["05_ensemble", "06_analysis"]


@pytest.fixture
def command(stand_in, console, monkeypatch, korean_folder):
    """Runs `run_all.py` on the run `r` of two folds; returns which notebooks were executed, and keeps what was printed."""
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
    assert (
        on.hash_for("05_ensemble") != off.hash_for("05_ensemble")
        and on.training_hash == off.training_hash
    )
    assert on.hash_for("04_infer") == off.hash_for("04_infer")
    assert off.adapter_numbers == on.fold_numbers == (0, 1, 2) and on.adapter_numbers == (
        0,
        1,
        2,
        3,
    )
    assert [on.adapter_name(k) for k in (2, 3)] == ["fold 2", "refit (fold 3)"]
    assert preset("demo", refit=True, use_kfold=False).adapter_numbers == (0, 1)


def test_a_finished_run_gets_a_refit_and_keeps_its_folds(command):
    assert len(command(*command.new)) == 8
    paths = RunPaths("r")
    before = {
        file: file.read_bytes() for file in paths.folder.glob("fold[01]/**/*") if file.is_file()
    }
    command("--resume", "--refit", "--dry-run")
    assert (
        command.printed.count("reuse") == 6
        and command.printed.count("run again") == 2
        and "fold=2" in command.printed
    )
    assert command("--resume", "--refit") == [*REFIT, *COMBINED]
    assert {file: file.read_bytes() for file in before} == before
    assert (
        "refit (fold 2): trained on all rows" in command.printed
        and "folds without" not in command.printed
    )
    assert not paths.fold(2).probs("oof").exists() and paths.fold(2).probs("test").exists()
    assert command("--resume") == [], "the run's own settings say that it has one"
    assert command("status") == [] and command.printed.count("done") == 10
    assert command("--resume", "--set", "refit=false") == COMBINED
    assert command("--resume", "--set", "refit=true") == COMBINED, (
        "what was trained and scored before is whole"
    )


def test_another_way_to_combine_keeps_the_folds_probabilities(command):
    command(*command.new)
    assert command("--resume", "--set", "ensemble=vote") == COMBINED
    with pytest.raises(
        RunError, match="found others at 04_infer-fold0, 04_infer-fold1; without --from"
    ):
        command("--resume", "--from", "05_ensemble", "--set", "tta=2")
    with pytest.raises(RunError, match="found others at 04_infer-fold1; without"):
        command("--resume", "--folds", "0", "--set", "tta=2")
    for some in ("--from", "--only"):
        with pytest.raises(
            RunError,
            match="found others at 03_train_fold-fold0, 03_train_fold-fold1; without --from",
        ):
            command("--resume", some, "04_infer", "--set", "learning_rate=1e-4")
    assert command("--resume", "--only", "04_infer") == []
    with pytest.raises(RunError, match="found others at 05_ensemble; without"):
        command("--resume", "--only", "06_analysis", "--set", "calibrate=false")
    assert command("--resume", "--from", "05_ensemble", "--set", "ensemble=geometric") == COMBINED
    assert command("--resume", "--set", "tta=2") == ["04_infer-fold0", "04_infer-fold1", *COMBINED]


def test_a_refit_that_was_switched_off_again_counts_in_no_minutes(command):
    command(*command.new)
    plain = comparison([read_scored("r")]).loc[0, ["train_minutes", "notebook_minutes"]].tolist()
    command("--resume", "--refit")
    with_it = comparison([read_scored("r")]).loc[0, ["train_minutes", "notebook_minutes"]].tolist()
    assert with_it == [plain[0] + 3, plain[1] + 1]  # two more notebooks of half a minute
    command("--resume", "--set", "refit=false")
    assert (
        comparison([read_scored("r")]).loc[0, ["train_minutes", "notebook_minutes"]].tolist()
        == plain
    )


def test_another_test_set_is_answered_by_the_refit_too(
    command, stand_in, korean_folder, monkeypatch
):
    stand_in.calibrated["r"] = 0.6
    command(*command.new, "--refit")
    seen = []
    monkeypatch.setattr(
        "vqa_utils.running.prediction.combined",
        lambda frames, how: seen.extend(frames) or combined(frames, how),
    )
    command("predict", str(korean_folder))
    answers = read_probabilities(RunPaths("r").fold(2).probs("test"))
    assert len(seen) == 3
    pd.testing.assert_frame_equal(
        seen[2], scaled(answers, 1.5)
    )  # the geometric mean of the folds' temperatures


def test_folds_chooses_the_refit_by_its_number(command):
    assert command(*command.new, "--refit", "--folds", "0") == [
        "01_eda", "02_folds", "03_train_fold-fold0", "04_infer-fold0", *COMBINED
    ]  # fmt: skip
    paths, config = open_run("r")
    assert describe_refit(paths, config) == "refit (fold 2): not scored yet, and no member."
    with pytest.raises(RunError, match=r"not finished: without scores: fold 1, refit \(fold 2\)"):
        check_finished(paths, config)
    assert command("--resume", "--folds", "1,2") == [
        "03_train_fold-fold1",
        REFIT[0],
        "04_infer-fold1",
        REFIT[1],
        *COMBINED,
    ]
    check_finished(paths, config)
    with pytest.raises(RunError, match="--folds: expected some of 0, 1, found 2"):
        command("--resume", "--set", "refit=false", "--folds", "2")


def test_a_refit_starts_with_the_rungs_that_a_fold_needed(command, stand_in):
    stand_in.climbed.add("r")
    command(*command.new, "--refit")
    paths, config = open_run("r")
    assert read_json(paths.fold(2).rungs) == read_json(paths.fold(1).rungs)
    assert open_run("r", 2)[1].lora_r == config.lora_r // 2
    check_finished(paths, config)
    table = fold_table(paths, config, *folds_and_train(paths, config))
    assert table.set_index("fold")["after out of memory"].to_dict() == {
        0: "", 1: "LoRA r", "refit (fold 2)": "LoRA r", "all": "",
    }  # fmt: skip


def folds_and_train(paths, config):
    from vqa_utils.data.challenge import load_challenge

    train = load_challenge(config).train
    return read_folds(paths.folds, train), train


def test_a_refit_costs_but_has_no_score(command):
    command(*command.new)
    paths, config = open_run("r")
    without = fold_table(paths, config, *folds_and_train(paths, config)).set_index("fold")
    command("--resume", "--refit")
    config = open_run("r")[1]
    table = fold_table(paths, config, *folds_and_train(paths, config)).set_index("fold")
    assert list(table.index) == [0, 1, "refit (fold 2)", "all"]
    scores = ["rows", "accuracy", "low", "high", "log_loss"]
    pd.testing.assert_frame_equal(
        table.loc[[0, 1, "all"], scores], without[scores], check_exact=True
    )
    refit = table.loc["refit (fold 2)"]
    assert (
        refit["rows"] == 0
        and refit[scores[1:]].isna().all()
        and (refit["minutes"], refit["peak_gib"]) == (3, 4)
    )
    assert table["minutes"]["all"] == 6 and without["minutes"]["all"] == 3


@pytest.fixture
def scored_run(tmp_path, monkeypatch, korean_folder):
    """Writes the probabilities of two folds and a refit, those of the folds sharper than they should be."""
    from vqa_utils.data.challenge import load_challenge

    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))

    def write(run_id, **changes):
        paths, config = (
            RunPaths(run_id),
            preset("demo", **{"data": str(korean_folder), "n_folds": 2, **changes}),
        )
        challenge, rng = load_challenge(config), np.random.default_rng(0)
        number = np.arange(len(challenge.train))
        fold = number % 2 if config.use_kfold else np.where(number < 8, 0, -1)
        folds = pd.DataFrame(
            {"id": challenge.train["id"], "group": challenge.train["path"], "fold": fold}
        )
        write_json(paths.config, to_dict(config))
        write_csv(paths.folds, folds)
        refit = len(config.fold_numbers)
        for k in (*config.fold_numbers, refit):
            for rows, ids in (
                ("oof", folds["id"][folds["fold"] == k]),
                ("test", challenge.test["id"]),
            ):
                probs = pd.DataFrame(rng.dirichlet([0.3] * 4, len(ids)), columns=LETTERS).assign(
                    id=list(ids)
                )
                if len(ids):
                    write_probabilities(paths.fold(k).probs(rows), probs)
        return paths

    return write


@pytest.mark.parametrize("how", ["mean", "geometric", "vote"])
def test_the_test_answers_have_one_more_member_and_the_out_of_fold_rows_none(scored_run, how):
    paths = scored_run("off", ensemble=how, calibrate=True)
    scored_run("on", ensemble=how, calibrate=True, refit=True)
    off, on = of_folds("off"), of_folds("on")
    pd.testing.assert_frame_equal(on.outcome.oof, off.outcome.oof, check_exact=True)
    pd.testing.assert_frame_equal(on.scores.query("fold != 'refit (fold 2)'")[["rows", "accuracy", "log_loss"]],
                                  off.scores[["rows", "accuracy", "log_loss"]].set_index(pd.Index([0, 1, 3])), check_exact=True)  # fmt: skip
    pd.testing.assert_frame_equal(on.fit.table, off.fit.table, check_exact=True)
    assert list(on.members) == [*off.members, "refit (fold 2)"] == on.outcome.record["members"]
    temperatures = on.outcome.record["temperatures"]
    assert temperatures == off.outcome.record["temperatures"] | {
        2: pytest.approx((temperatures[0] * temperatures[1]) ** 0.5)
    }
    assert min(temperatures.values()) > 1.5, (
        "the folds are too sure, and so is taken to be the refit"
    )
    as_scored = [read_probabilities(paths.fold(k).probs("test")) for k in (0, 1, 2)]
    pd.testing.assert_frame_equal(
        on.outcome.test, combined([scaled(as_scored[k], temperatures[k]) for k in (0, 1, 2)], how)
    )
    assert (on.outcome.test[LETTERS] - off.outcome.test[LETTERS]).abs().to_numpy().max() > 0.01
    assert (
        "refit (fold 2): trained on all rows, a member for the test rows alone" in on.who
        and "No model is refitted" in off.who
    )
    assert f"refit (fold 2) {temperatures[2]:.2f}." in on.fit.decision


def test_a_refit_without_calibration_stays_as_it_is_scored(scored_run):
    paths = scored_run("on", calibrate=False, refit=True)
    on = of_folds("on")
    assert on.outcome.record["temperatures"] == {}
    pd.testing.assert_frame_equal(
        on.members["refit (fold 2)"], read_probabilities(paths.fold(2).probs("test"))
    )


def test_a_model_without_rows_of_its_own_gets_the_geometric_mean():
    assert temperature_of({0: 1.0, 1: 4.0, 2: 2.0}, 1) == 4 and temperature_of(
        {0: 1.0, 1: 4.0}, 2
    ) == pytest.approx(2)
    assert temperature_of({}, 2) == 1
    write_json(
        RunPaths("refit-temperatures").members, {"temperatures": {"0": 1.0, "1": 4.0, "2": 2.0}}
    )
    assert (
        read_temperatures(RunPaths("refit-temperatures"))[2]
        == 2
        == statistics.geometric_mean([1, 4])
    )


def test_a_single_split_has_a_refit_too(scored_run):
    scored_run("single", use_kfold=False, refit=True)
    single = of_folds("single")
    assert (
        list(single.members) == ["fold 0", "refit (fold 1)"]
        and single.outcome.submission_path.name == "submission_single.csv"
    )
    assert len(single.outcome.oof) == 8


def test_a_refit_alone_is_no_ensemble(scored_run):
    paths = scored_run("alone", refit=True)
    for k in (0, 1):
        paths.fold(k).probs("test").unlink()
    with pytest.raises(Exception, match=r"expected fold\*/probs_test.csv, found none"):
        of_folds("alone")


def test_probabilities_that_a_switched_off_refit_left_are_no_members(scored_run):
    paths = scored_run("off")
    config = open_run("off")[1]
    assert paths.fold(2).probs("test").exists() and scored_folds(paths, config) == ([0, 1], [])
    assert list(of_folds("off").members) == ["fold 0", "fold 1"]


def test_it_is_trained_on_all_rows_and_scores_the_test_set_alone(scored_run):
    from vqa_utils.scoring.options import questions_of_fold

    paths = scored_run("on", refit=True)
    config = open_run("on")[1]
    train = folds_and_train(paths, config)[1]
    assert [held_out_rows(paths.folds, train, config, k).sum() for k in (0, 1, 2)] == [12, 12, 0]
    write_json(paths.fold(2).meta, {"held_out_ids": ids_hash([])})
    assert {name: len(rows) for name, rows in questions_of_fold(paths, config, 2)[1].items()} == {
        "test": 8
    }
    write_json(paths.fold(2).meta, {"held_out_ids": ids_hash(train["id"][:8])})
    with pytest.raises(Exception, match="held out others"):
        questions_of_fold(paths, config, 2)
    write_json(paths.fold(1).meta, {"held_out_ids": ids_hash([])})
    with pytest.raises(Exception, match="held out others, and may have trained on these"):
        questions_of_fold(paths, config, 1)


def test_a_number_that_no_adapter_of_the_run_has_is_refused(scored_run):
    paths = scored_run("off")
    config = open_run("off")[1]
    train = folds_and_train(paths, config)[1]
    with pytest.raises(
        FoldError, match="fold: expected one of 0, 1, found 2; with refit=true, there is one more"
    ):
        held_out_rows(paths.folds, train, config, 2)
    other = dataclasses.replace(config, n_folds=3)
    with pytest.raises(
        FoldError,
        match=r"folds\.csv: expected rows in fold 2, found 0 rows; run notebook 02_folds again",
    ):
        held_out_rows(paths.folds, train, other, 2)
    fewer = dataclasses.replace(config, use_kfold=False, refit=True)
    with pytest.raises(FoldError, match=r"expected no row in fold 1, found 12 rows"):
        held_out_rows(paths.folds, train, fewer, 1)


def test_it_learns_from_every_extra_row(tmp_path):
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
        ]
    }
    said = train.describe_epochs(judged | {"best_epoch": 2})
    assert said == "Best epoch 2: held-out accuracy 0.600, log loss 0.800 nats."


def test_its_minutes_are_those_of_all_rows_and_of_the_test_set():
    def expected(name="safe", gpus=(T4, T4), **changes):
        config = preset(name, **changes)
        return forecast(config, shape_of(config), list(gpus), RowCounts(1000, 400))

    off, on = expected(), expected(refit=True)
    assert on.epoch_s == off.epoch_s
    one_more = on.run_s - off.run_s
    rest = 2 * 1000 * on.training.wall + 400 * on.scoring.wall
    loading = (off.run_s - 3 * (2 * off.epoch_s + (1000 / 3 + 400) * off.scoring.wall)) / 6
    assert rest < one_more < rest + 2 * loading
    assert expected("dense_8b", use_kfold=False, refit=True).side_by_side == 2, (
        "the fold and the refit"
    )


def test_steps_go_to_the_next_free_process():
    assert _last_end([10, 10, 10], [2, 2, 2], 1) == 36
    assert _last_end([10, 10, 10], [2, 2, 2], 2) == 22
    assert _last_end([10, 10, 10, 15], [2, 2, 2, 1], 2) == 26
    assert _last_end([10, 10, 10, 15], [2, 2, 2, 1], 4) == 16


def test_pooled_rows_are_the_folds(scored_run):
    paths = scored_run("on", refit=True)
    config = open_run("on")[1]
    assert set(pooled(paths, config, folds_and_train(paths, config)[0], "oof")["fold"]) == {0, 1}
