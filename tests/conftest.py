"""Small real inputs: a challenge in Korean with drawn pictures, the demo's settings on it, its base and its processor."""

import dataclasses
import io

import nbformat
import pytest
from joblib import cpu_count
from korean_challenge import write_korean_challenge
from nbformat.v4 import new_code_cell, new_notebook
from rich.console import Console
from stand_in import KERNEL, StandIn

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.data.challenge import load_challenge
from vqa_utils.presets import preset

pytest_plugins = ("tests.isolated_runs",)  # before any kernel starts
LONGEST = ("series", "exporting", "gpu")  # rooms with files of a minute and more


def pytest_xdist_auto_num_workers():
    """A process more than cores: a third of the time, tests wait for other processes."""
    return cpu_count() + 1


def pytest_collection_modifyitems(items):
    """Mark nbval's cells as slow; keep theirs and those of `in_order` in their order.

    Rooms with the longest files come first, so that no process is left with one at the end. In
    random order, the files are shuffled by pytest-randomly before.
    """
    cells = [item for item in items if item.path.suffix == ".ipynb"]
    for cell in cells:
        cell.add_marker(pytest.mark.slow)  # each notebook starts a kernel and imports
    cells.sort(key=lambda cell: (cell.path, cell.cell_num))
    others = [item for item in items if item.path.suffix != ".ipynb"]
    others.sort(key=lambda item: item.path.parent.name not in LONGEST)
    items[:] = cells + others
    places = [place for place, item in enumerate(items) if item.get_closest_marker("in_order")]
    in_order = sorted((items[place] for place in places), key=_written)
    for place, item in zip(places, in_order, strict=True):
        items[place] = item


def _written(item):
    """Where a test is written, and which of its parameters it has."""
    indices = item.callspec.indices if hasattr(item, "callspec") else {}
    return item.path, item.location[1], sorted(indices.items())


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


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of small notebooks in place of the series."""
    from vqa_utils.running.notebooks import execution

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


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The series in a fresh folder of runs, without its notebooks."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    stand_in = StandIn()
    monkeypatch.setattr("vqa_utils.running.notebooks.attempts.execute", stand_in.execute)
    return stand_in
