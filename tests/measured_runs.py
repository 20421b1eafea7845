"""Folders of runs with the times of their notebooks and trainings, as if measured."""

import time

import pandas as pd
from stand_in import clock

from vqa_utils.artifacts.files import write_csv, write_json
from vqa_utils.forecasting.forecast import RowCounts
from vqa_utils.presets import preset

ROWS = RowCounts(train=900, test=400)
SETTINGS = preset("demo", micro_batch=8, accumulation=2, tta=1, baselines=False, n_folds=3)


def log_steps(paths, fold, steps, seconds=2.0, max_steps=100, ended=None):
    """The log of a training that is at a step; its steps have ended just now, or when it is said."""
    log = pd.DataFrame({"step": range(1, steps + 1), "max_steps": max_steps})
    log = log.assign(seconds_per_step=seconds, ended=ended or time.time())
    write_csv(paths.fold(fold).train_log, log)


def archive(paths, name, seconds):
    write_json(paths.notebooks / f"{name}.ipynb", {"metadata": clock(0, seconds)})


def trained(paths, fold, *, whole=260.0, seconds=200.0, row=0.05):
    """A fold that is trained: its notebook took `whole` seconds, `seconds` of them with its model."""
    log_steps(paths, fold, 100)
    archive(paths, f"03_train_fold-fold{fold}", whole)
    write_json(paths.fold(fold).meta, {"seconds": seconds, "seconds_per_held_out_row": row})
