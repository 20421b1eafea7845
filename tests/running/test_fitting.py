"""Every table that run_all.py prints fits a terminal of 80 columns, its words whole."""

import io
import re

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from run_all import STAGES
from vqa_utils.artifacts.fold_settings import Rung, take_rung
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities, write_probabilities
from vqa_utils.artifacts.timings import SPLIT, time_table
from vqa_utils.experiments.comparison import compare_runs
from vqa_utils.planning.machine.gpus import Gpu
from vqa_utils.presets import PRESETS, preset
from vqa_utils.running.resolution import start_run
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import select_steps
from vqa_utils.running.status import status_table
from vqa_utils.running.terminal.fitting import Column, fit
from vqa_utils.running.terminal.plan_table import print_plan
from vqa_utils.running.terminal.results import print_results
from vqa_utils.running.terminal.tables import print_presets, print_table

WIDTH = 80
RUN = "20261129-154659-demo"


@pytest.fixture
def narrow():
    return Console(file=io.StringIO(), width=WIDTH, soft_wrap=True, markup=False)


def table_lines(console):
    return [line for line in console.file.getvalue().splitlines() if line[:1] in tuple("┏┡│┃├└")]


def words_of(console):
    return set(re.split(r"[\s│┃]+", "\n".join(table_lines(console))))


def broken(console, *texts):
    """Return lines that are too long, and words of the texts that are not whole."""
    too_long = {line for line in table_lines(console) if cell_len(line) > WIDTH}
    return too_long | (set(" ".join(texts).split()) - words_of(console))


@pytest.fixture
def run(stand_in, korean_folder, narrow):
    """A finished run with baselines, and a fold that took a rung."""
    config = preset("demo", data=str(korean_folder), n_folds=2, baselines=True)
    paths = RunPaths(RUN)
    start_run(paths, config)
    runner = Runner(paths, config, narrow, reuse=True)
    steps = select_steps(STAGES, config.fold_numbers)
    runner.run(steps)
    for k in config.fold_numbers:
        ids = pd.read_csv(paths.fold(k).probs("oof"), dtype={"id": str})["id"]
        probs = read_probabilities(paths.fold(k).probs("oof"), ids)
        for split in ("zero_shot", "blank"):
            write_probabilities(paths.fold(k).probs(split), probs)
    changes = ({"lora_r": 4, "lora_alpha": 8}, {"lora_r": 8, "lora_alpha": 16})
    take_rung(paths.fold(1), config, Rung("LoRA r 8 to 4", *changes, 0, "training", 0.5, ()))
    return paths, config, runner, steps


@pytest.mark.slow
def test_scores_and_baselines(run, narrow):
    paths, config, *_ = run
    print_results(paths, config, narrow)
    heads = "fold rows accuracy low high log loss minutes GiB after out of memory"
    assert not broken(
        narrow, heads, "model without yes/no ECE p", "base, zero-shot fine-tuned, blank images"
    )
    assert "no room" not in narrow.file.getvalue()


@pytest.mark.slow
def test_times_states_and_the_comparison(run, narrow):
    paths, _, runner, steps = run
    times = time_table(paths.notebooks, [step.name for step in steps])
    elsewhere = times.assign(**{"executed in": RUN})
    print_table(narrow, "times", elsewhere, drop=SPLIT)
    print_table(narrow, "states", status_table(runner, steps), drop=["parameters"])
    compare_runs(narrow, [RUN])
    assert not broken(narrow, "notebook kernel start imports work total executed in", RUN)
    assert not broken(
        narrow, "parameters state a run would", f"run_id={RUN}", "accuracy log loss p"
    )


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_plan(narrow, count):
    print_plan(narrow, preset("safe", max_memory=()), [Gpu("NVIDIA RTX PRO 6000", 95.0)] * count)
    assert not broken(narrow, "GiB NVIDIA RTX PRO 6000", *(f"GPU {k}:" for k in range(count)))


def test_presets(narrow):
    print_presets(narrow)
    text = narrow.file.getvalue()
    assert max(map(cell_len, text.splitlines())) <= WIDTH
    for name in PRESETS:
        assert preset(name).model in text and PRESETS[name].for_what.split()[-1] in text


def test_lines_wrap_first_then_padding_goes_then_columns():
    columns = [Column("name", ["some words"]), Column("less", ["1.000"]), Column("least", ["12"])]
    assert fit(columns, 80).widths == [10, 5, 5]
    assert fit(columns, 26) == (columns, [6, 5, 5], 1)
    assert fit(columns, 20) == (columns, [6, 5, 5], 0)
    assert fit(columns, 18, ["least"]) == (columns[:2], [6, 5], 1)
    assert sum(fit(columns[:1], 7).widths) == 5, "too narrow for a word: it breaks"


def test_what_has_no_room_is_named(narrow):
    frame = pd.DataFrame({"run": ["r" * 60], "data": ["d" * 30], "p": [0.5]})
    print_table(narrow, "runs", frame, drop=["data"])
    assert "no room for data" in narrow.file.getvalue()
    assert not broken(narrow, "run p", "r" * 60)
