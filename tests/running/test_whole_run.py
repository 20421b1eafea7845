"""The line of the whole run: in a live terminal alone, with GPUs where there are some."""

import io
import re
import time

import pytest
from rich.console import Console

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.presets import preset
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.stages import STAGES, Step
from vqa_utils.running.terminal import whole_run
from vqa_utils.running.terminal.live import follow, progress_lines
from vqa_utils.running.terminal.whole_run import WholeRun


@pytest.fixture
def clock(console):
    clock = RunClock(RunPaths("r"), preset("demo"), console)
    clock.through.add(Step(STAGES[0]))
    return clock


def drawn(console, whole):
    """Return what a terminal shows while a notebook is at work, and all that it was sent."""
    with progress_lines(console, whole.text) as progress, follow(progress, console, "02", None):
        progress.refresh()
        during = console.file.getvalue()
    return during, console.file.getvalue()


def test_a_live_terminal_has_a_line_of_the_whole_run_that_goes_with_its_end(clock):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    during, whole = drawn(console, WholeRun(clock, 9, console))
    assert "1 of 9 notebooks" in during
    assert "1 of 9 notebooks" not in whole[len(during) :]


def test_plain_output_has_none(clock, console):
    _, whole = drawn(console, WholeRun(clock, 9, console))
    assert "02" in whole and "notebooks" not in whole


def test_time_left_and_memory_stand_beside_the_notebooks(clock, console, monkeypatch):
    samples = iter([[9.0, 1.0], [7.0, 2.0]])
    monkeypatch.setattr(whole_run, "used_memory", lambda: next(samples))
    monkeypatch.setattr(clock, "expected_end", lambda now: time.time() + 300)
    whole = WholeRun(clock, 9, console)
    whole.look()
    assert whole.text() == "  1 of 9 notebooks, 5 min left", "no GPU was found"
    whole._has_gpus = True
    whole.look()
    whole.look()
    assert re.findall(r"GPU \d: [^,]*", whole.text()) == [
        "GPU 0: 7.0 GiB (peak 9.0)",
        "GPU 1: 2.0 GiB (peak 2.0)",
    ]


@pytest.mark.parametrize("is_live", [True, False])
def test_only_a_live_terminal_asks_for_memory(clock, monkeypatch, is_live):
    asked = []
    monkeypatch.setattr(whole_run, "find_gpus", lambda: [T4])
    monkeypatch.setattr(whole_run, "used_memory", lambda: asked.append(1) or [1.0])
    console = Console(file=io.StringIO(), force_terminal=is_live)
    with WholeRun(clock, 9, console) as whole:
        for _ in range(100):
            if whole._memory:
                break
            time.sleep(0.01)
    assert bool(asked) == is_live
