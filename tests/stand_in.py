"""Stands in for the notebooks' execution and for a command line: for tests of what drives them."""

import argparse
import shutil

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_notebook

from vqa_utils.artifacts.files import write_csv, write_json, write_text
from vqa_utils.artifacts.fold_settings import Rung, take_rung
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import to_dict
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import held_out_rows, make_folds, read_folds
from vqa_utils.running.notebooks.execution import NotebookError


def arguments(**given):
    nothing = {
        "data": None,
        "command": "run",
        "model": None,
        "limit": None,
        "set": [],
        "run_id": None,
        "preset": None,
        "cache_dir": None,
        "extra_train": None,
        "drop": None,
        "report_to": None,
        "lang": None,
        "refit": None,
        "resume_from": None,
    }
    return argparse.Namespace(
        **{
            **nothing,
            **dict.fromkeys(("resume", "force", "dry_run"), False),
            **given,
        }
    )


def folds_and_train(paths, config):
    train = load_challenge(config).train
    return read_folds(paths.folds, train), train


KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


class StandIn:
    """Takes the place of the notebooks' execution: writes what each one does, with answers that a test decides.

    `right` says of a run how many of each four rows it gets right, `certainty` what it gives its letter; runs in `climbed`
    took a rung in fold 1, and those in `broken` fail in 03_train_fold. `calibrated` says of a run that calibration is on, and what its
    letter gets then.
    """

    def __init__(self):
        self.right, self.certainty, self.calibrated, self.climbed, self.broken, self.executed = (
            {},
            {},
            {},
            set(),
            set(),
            [],
        )

    def execute(self, name, archived, parameters, process=None, cell_timeout=None, following=""):
        paths, config = open_run(parameters["run_id"])
        self.executed.append(f"{paths.run_id} {archived.stem}")
        challenge = load_challenge(config)
        if name == "02_folds":
            pictures = [f"picture {i}" for i in range(len(challenge.train))]
            write_csv(paths.folds, make_folds(challenge.train, pictures, config))
        if name == "03_train_fold":
            self.train(paths, config, parameters["fold"])
        if name == "04_infer" and "predict" in parameters:
            out = paths.predicting(parameters["predict"]).fold(parameters["fold"])
            write_probabilities(
                out.probs("test"), self.answers(paths.run_id, challenge.test.assign(answer="a"))
            )
        elif name == "04_infer":
            fold = parameters["fold"]
            held_out = held_out_rows(paths.folds, challenge.train, config, fold)
            if held_out.any():
                write_probabilities(
                    paths.fold(fold).probs("oof"),
                    self.answers(paths.run_id, challenge.train[held_out]),
                )
            write_probabilities(
                paths.fold(fold).probs("test"),
                self.answers(paths.run_id, challenge.test.assign(answer="a")),
            )
        if name == "05_ensemble":
            for file in ("ensemble/probs_test.csv", "submission_ensemble.csv"):
                write_csv(paths.folder / file, challenge.sample_submission)
            p = self.calibrated.get(paths.run_id)
            write_probabilities(
                paths.ensemble / "probs_oof.csv", self.answers(paths.run_id, challenge.train, p)
            )
            write_json(
                paths.members,
                {
                    "temperatures": {}
                    if p is None
                    else dict.fromkeys(map(str, config.fold_numbers), 1.5)
                },
            )
        if name == "06_analysis":
            write_json(paths.results, [])
        self.archive(archived, parameters)

    def train(self, paths, config, fold):
        if paths.run_id in self.broken:
            raise NotebookError("03_train_fold failed: ValueError: broken")
        if paths.run_id in self.climbed and fold == 1:
            less, more = (
                {"lora_r": r, "lora_alpha": 2 * r} for r in (config.lora_r // 2, config.lora_r)
            )
            rung = Rung("LoRA r", more, less, 0, "training", 0.5, ())
            take_rung(paths.fold(fold), config, rung)
        write_json(paths.fold(fold).adapter_config, to_dict(open_run(paths.run_id, fold)[1]))
        write_text(paths.fold(fold).train_log, "step\n")
        write_json(
            paths.fold(fold).meta,
            {"seconds": 60 * (fold + 1), "peak_memory_gib": [1.5, 2.0 + fold]},
        )
        shutil.rmtree(paths.fold(fold).checkpoints, ignore_errors=True)

    def answers(self, run_id, rows, p=None):
        right, p = self.right.get(run_id, 3), p or self.certainty.get(run_id, 0.7)
        chosen = [
            "abcd"[("abcd".index(row.answer) + (row.Index % 4 >= right)) % 4]
            for row in rows.itertuples()
        ]
        values = [[p if letter == its else (1 - p) / 3 for letter in "abcd"] for its in chosen]
        return pd.DataFrame(values, columns=list("abcd")).assign(id=rows["id"].to_numpy())

    def archive(self, archived, parameters):
        cells = [new_code_cell(metadata={"tags": ["parameters"], **clock(1, 1.0)})]
        archived.parent.mkdir(exist_ok=True)
        nbformat.write(
            new_notebook(cells=cells, metadata=clock(0, 30.0, parameters=parameters)), archived
        )


def clock(second, duration, **others):
    """Papermill's metadata."""
    return {
        "papermill": {
            "start_time": f"2026-11-24T12:00:{second:09.6f}",
            "duration": duration,
            **others,
        }
    }
