"""What trackers are told is read back from their files, without a network."""

import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqa_utils.artifacts.files import settings_to_json
from vqa_utils.errors import RunError
from vqa_utils.presets import preset
from vqa_utils.tracking import trackers
from vqa_utils.tracking.trackers import Tracked, Trackers, check_trackers

LOSSES = [2.0, 1.0, 0.5]


@pytest.fixture
def figure():
    figure, ax = plt.subplots(figsize=(2, 1), dpi=100)
    ax.plot(LOSSES)
    plt.close(figure)
    return figure


def report(folder, figure, *names, part="fold0", step=0, losses=LOSSES):
    config = preset("demo", report_to=names, image_side=96)
    told = Trackers(config, Tracked(folder, part, settings_to_json(config), step))
    for number, loss in enumerate(losses, start=step + 1):
        told.log({"training/loss": loss}, number)
    told.draw("curves", figure)
    told.close()


def test_tensorboard_has_settings_steps_and_figures(tmp_path, figure):
    report(tmp_path / "r", figure, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "r" / "fold0")).Reload()
    assert [event.value for event in events.Scalars("training/loss")] == LOSSES
    assert (events.Images("curves")[0].width, events.Images("curves")[0].height) == (200, 100)
    (settings,) = events.Tensors("settings/text_summary")
    assert "| image_side | 96 |" in settings.tensor_proto.string_val[0].decode()


def test_a_runs_folder_stays_free_of_trackers_files(tmp_path, figure):
    """They name the host."""
    (tmp_path / "r").mkdir()
    report(tmp_path / "r", figure, "tensorboard")
    assert list((tmp_path / "r").iterdir()) == []


def test_a_training_that_goes_on_replaces_its_later_steps(tmp_path, figure):
    report(tmp_path / "r", figure, "tensorboard")
    report(tmp_path / "r", figure, "tensorboard", step=1, losses=[3.0])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "r" / "fold0")).Reload()
    assert [event.value for event in events.Scalars("training/loss")] == [2.0, 3.0]


def test_trackio_has_a_run_a_fold_in_one_group(tmp_path, figure, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", "")  # put back after the test
    monkeypatch.delenv("TRACKIO_DIR")
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads the variable as it is imported
    for part in ("fold0", "fold1"):
        report(tmp_path / "r", figure, "trackio", part=part)
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = {run.name: run for run in trackio.Api().runs(trackers.PROJECT)}
    assert set(runs) == {"r-fold0", "r-fold1"}
    for name, run in runs.items():
        assert run.config["image_side"] == 96 and run.config["_Group"] == "r"
        points = SQLiteStorage.get_metric_values(trackers.PROJECT, name, "training/loss")
        assert [(point["step"], point["value"]) for point in points] == [
            (1, 2.0),
            (2, 1.0),
            (3, 0.5),
        ]
        assert (
            len(list((tmp_path / "trackio" / "media" / trackers.PROJECT / name).rglob("*.png")))
            == 1
        )


@pytest.mark.parametrize("fails_at", ["init", "log", "finish"])
def test_a_tracker_that_fails_costs_no_run(tmp_path, figure, monkeypatch, capsys, fails_at):
    def fail(*arguments, **named):
        raise ConnectionError("no network")

    wandb = SimpleNamespace(
        init=lambda **named: SimpleNamespace(
            log=fail if fails_at == "log" else lambda *arguments, **named: None,
            finish=fail if fails_at == "finish" else lambda: None,
        ),
        Image=lambda pixels: pixels,
    )
    if fails_at == "init":
        wandb.init = fail
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    report(tmp_path / "r", figure, "wandb", "tensorboard")
    printed = capsys.readouterr().out
    assert printed.count("wandb is told no more: ConnectionError: no network") == 1
    events = EventAccumulator(str(tmp_path / "tensorboard" / "r" / "fold0")).Reload()
    assert len(events.Scalars("training/loss")) == 3


def test_trackers_that_are_not_installed_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in ("wandb", "mlflow") else name
    )
    check_trackers(preset("demo", report_to=("tensorboard",)))
    with pytest.raises(RunError, match="pip install wandb mlflow"):
        check_trackers(preset("demo", report_to=("wandb", "tensorboard", "mlflow")))
