from types import SimpleNamespace

import pandas as pd
import pytest
from transformers import TrainerState

from vqa_utils.artifacts.stop import STEP
from vqa_utils.training._callbacks import LOG_COLUMNS, NonFiniteGuard, TrainingError, TrainLog

NAN, INFINITE = float("nan"), float("inf")


def state(step):
    return SimpleNamespace(global_step=step, max_steps=10)


def test_steps_with_nan_or_infinite_gradients_are_counted_and_end_the_training():
    guard = NonFiniteGuard(most_in_a_row=3)
    for norm in (INFINITE, NAN, 1.0, NAN, NAN):
        guard.on_log(None, state(7), None, logs={"loss": 0.5, "grad_norm": norm})
    assert guard.skipped == 4
    with pytest.raises(TrainingError, match=r"step 7\b.*\b3 steps.*\bloss nan\b"):
        guard.on_log(None, state(7), None, logs={"loss": NAN, "grad_norm": NAN})


def test_a_resumed_log_keeps_the_lines_up_to_its_checkpoint(tmp_path):
    file = tmp_path / "fold0" / "train_log.csv"
    log = TrainLog(file)
    log.on_train_begin(None, state(0), None)
    assert list(pd.read_csv(file)) == LOG_COLUMNS
    for step in (1, 2, 3):
        log.on_log(None, state(step), None, logs={"loss": step / 2, "epoch": step})
    log.on_log(None, state(3), None, logs={"eval_log_loss": 1.0})  # no step's

    resumed = TrainLog(file)
    resumed.on_train_begin(None, state(2), None)
    resumed.on_log(None, state(3), None, logs={"loss": 9.0})
    found = pd.read_csv(file)
    assert found["step"].tolist() == [1, 2, 3]
    assert found["loss"].tolist() == [0.5, 1.0, 9.0]


def test_a_training_that_starts_anew_starts_a_new_log(tmp_path):
    file = tmp_path / "train_log.csv"
    file.write_text(",".join(LOG_COLUMNS) + "\n1,10,,,,,,\n")
    TrainLog(file).on_train_begin(None, state(0), None)
    assert pd.read_csv(file).empty


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_training_by_hand_shows_a_tenth_of_its_steps(tmp_path, capsys, monkeypatch, by_hand):
    if by_hand:
        monkeypatch.delenv(STEP, raising=False)
    else:
        monkeypatch.setenv(STEP, "03_train_fold-fold0")
    log = TrainLog(tmp_path / "train_log.csv")
    log.on_train_begin(None, TrainerState(), None)
    for step in range(1, 26):
        log.on_log(None, TrainerState(global_step=step, max_steps=25), None, {"loss": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (12 if by_hand else 0)
    assert not by_hand or lines[0] == "loss 0.500, step 2/25"
