"""Small real inputs: a challenge in Korean with drawn pictures, the demo's settings on it, its base and its processor."""

import argparse
import dataclasses
import io
import random

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from rich.console import Console

from vqa_utils.artifacts.files import write_csv, write_json, write_text
from vqa_utils.artifacts.fold_settings import Rung, take_rung
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import to_dict
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import held_out_rows, make_folds
from vqa_utils.presets import preset
from vqa_utils.running.execution import NotebookError
from vqa_utils.tiny_base.scenes import draw_scene

COLOURS = {"red": "빨간색", "blue": "파란색", "green": "초록색", "yellow": "노란색", "black": "검은색", "gray": "회색",
           "teal": "청록색", "brown": "갈색", "orange": "주황색", "purple": "보라색", "pink": "분홍색", "white": "흰색"}  # fmt: skip


def pytest_collection_modifyitems(items):
    """nbval's cells are slow: each notebook starts a kernel and imports what it needs."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.slow)


def write_korean_challenge(folder, train=24, test=8):
    """Colour questions in Korean over drawn scenes; the letters of the answers go round."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(train + test):
        pixels, items = draw_scene(1_000_000 + i)
        split = "train" if i < train else "test"
        path = f"images/{split}_{i:04d}.png"
        Image.fromarray(pixels).save(folder / path)
        rng, answer = random.Random(i), "abcd"[i % 4]
        wrong = iter(
            rng.sample(
                [
                    word
                    for name, word in COLOURS.items()
                    if name not in {item.colour for item in items}
                ],
                3,
            )
        )
        options = {
            letter: COLOURS[items[0].colour] if letter == answer else next(wrong)
            for letter in "abcd"
        }
        rows.append({"id": f"{split}_{i:04d}", "path": path, "question": "이 그림에 있는 도형은 무슨 색인가요?", **options,
                     "answer": answer})  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.head(train).to_csv(folder / "train.csv", index=False)
    frame.tail(test).drop(columns="answer").to_csv(folder / "test.csv", index=False)
    frame.tail(test)[["id"]].assign(answer="a").to_csv(
        folder / "sample_submission.csv", index=False
    )
    return folder


@pytest.fixture(scope="session")
def korean_folder(tmp_path_factory):
    return write_korean_challenge(tmp_path_factory.mktemp("challenge") / "korean")


@pytest.fixture(scope="session")
def config(korean_folder):
    """The demo's settings on the Korean challenge, one epoch."""
    return dataclasses.replace(preset("demo"), data=str(korean_folder), epochs=1, micro_batch=4)


@pytest.fixture(scope="session")
def challenge(config):
    return load_challenge(config)


@pytest.fixture(scope="session")
def processor(config):
    from vqa_utils.model.loading import load_processor

    return load_processor(config)


@pytest.fixture(scope="session")
def encoder(config, challenge, processor):
    from vqa_utils.model.encoder import Encoder

    return Encoder(processor, challenge.folder, config.image_side)


@pytest.fixture(scope="session")
def base(config):
    """The tiny base in NF4; tests must leave it as it is."""
    from bases import base_of

    return base_of(config)


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
        "refit": None,
    }
    return argparse.Namespace(
        **{
            **nothing,
            **dict.fromkeys(("resume", "force", "dry_run"), False),
            **given,
        }
    )


KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of small notebooks in place of the series."""
    from vqa_utils.running import execution

    monkeypatch.setattr(execution, "NOTEBOOKS", tmp_path)

    def write(name, *sources):
        parameters = new_code_cell(
            'run_id: str = "interactive"  # the run', metadata={"tags": ["parameters"]}
        )
        cells = [parameters, *map(new_code_cell, sources)]
        nbformat.write(new_notebook(cells=cells, metadata=KERNEL), tmp_path / f"{name}.ipynb")

    return write


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def small_run(notebooks, console, tmp_path, monkeypatch):
    """A run of one notebook that counts its executions in a file."""
    from vqa_utils.running.runner import Runner

    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    config = preset("demo", data=str(write_korean_challenge(tmp_path / "data", train=4, test=2)))
    paths = RunPaths("small")
    paths.folder.mkdir(parents=True)
    (paths.folder / "in.txt").write_text("1")
    out = str(paths.folder / "out.txt")
    notebooks("writes", f"open({out!r}, 'a').write('x')")
    return (
        lambda **changes: Runner(
            paths, changes.get("config", config), console, reuse=changes.get("reuse", True)
        ),
        paths,
        config,
    )


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

    def execute(self, name, archived, parameters, process=None):
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
            write_text(paths.report / "index.html", "report")
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


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The series in a fresh folder of runs, without its notebooks."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    stand_in = StandIn()
    monkeypatch.setattr("vqa_utils.running.runner.execute", stand_in.execute)
    return stand_in
