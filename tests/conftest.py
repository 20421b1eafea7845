"""Small real inputs: a challenge in Korean with drawn pictures, the demo's settings on it, its base and its processor."""

import dataclasses
import io
import random

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from rich.console import Console

from vqa_utils.demo.scenes import draw_scene
from vqa_utils.paths import RunPaths
from vqa_utils.presets import preset

COLOURS = {"red": "빨간색", "blue": "파란색", "green": "초록색", "yellow": "노란색", "black": "검은색", "gray": "회색",
           "teal": "청록색", "brown": "갈색", "orange": "주황색", "purple": "보라색", "pink": "분홍색", "white": "흰색"}  # fmt: skip


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
        wrong = iter(rng.sample([word for name, word in COLOURS.items() if name not in {item.colour for item in items}], 3))
        options = {letter: COLOURS[items[0].colour] if letter == answer else next(wrong) for letter in "abcd"}
        rows.append({"id": f"{split}_{i:04d}", "path": path, "question": "이 그림에 있는 도형은 무슨 색인가요?", **options,
                     "answer": answer})  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.head(train).to_csv(folder / "train.csv", index=False)
    frame.tail(test).drop(columns="answer").to_csv(folder / "test.csv", index=False)
    frame.tail(test)[["id"]].assign(answer="a").to_csv(folder / "sample_submission.csv", index=False)
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
    from vqa_utils.data import load_challenge

    return load_challenge(config)


@pytest.fixture(scope="session")
def processor(config):
    from vqa_utils.model import load_processor

    return load_processor(config)


@pytest.fixture(scope="session")
def encoder(config, challenge, processor):
    from vqa_utils.encode import Encoder

    return Encoder(processor, challenge.folder, config.image_side)


@pytest.fixture(scope="session")
def base(config):
    """The tiny base in NF4; tests must leave it as it is."""
    from vqa_utils.model import load_base

    return load_base(config)


KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of small notebooks in place of the series."""
    from vqa_utils import execution

    monkeypatch.setattr(execution, "NOTEBOOKS", tmp_path)

    def write(name, *sources):
        parameters = new_code_cell('run_id: str = "interactive"  # the run', metadata={"tags": ["parameters"]})
        cells = [parameters, *map(new_code_cell, sources)]
        nbformat.write(new_notebook(cells=cells, metadata=KERNEL), tmp_path / f"{name}.ipynb")

    return write


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def small_run(notebooks, console, tmp_path, monkeypatch):
    """A run of one notebook that counts its executions in a file."""
    from vqa_utils.runner import Runner

    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    config = preset("demo", data=str(write_korean_challenge(tmp_path / "data", train=4, test=2)))
    paths = RunPaths("small")
    paths.folder.mkdir(parents=True)
    (paths.folder / "in.txt").write_text("1")
    out = str(paths.folder / "out.txt")
    notebooks("writes", f"open({out!r}, 'a').write('x')")
    return (
        lambda **changes: Runner(paths, changes.get("config", config), console, reuse=changes.get("reuse", True)),
        paths,
        config,
    )
