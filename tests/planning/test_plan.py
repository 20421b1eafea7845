"""Batches that become numbers, presets that fit, and the plan as the command prints it."""

import io
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.planning import shapes
from vqa_utils.planning.gpu_plan import RESERVE
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.planning.plan import largest_micro_batch, make_plan, plan_for, resolve_batches
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import PRESETS, preset
from vqa_utils.running.terminal.plan_table import print_plan
from vqa_utils.setting_types import size_in_bytes

GIB = 2**30
SHAPE = shape_of(preset("safe"))
TWO_OF_11 = [int(11.2e9)] * 2


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "demo"])
def test_every_preset_fits_its_machine(name):
    config = preset(name)
    limits = [size_in_bytes(size) for size in config.max_memory]
    assert make_plan(config, shape_of(config), limits).fits


@pytest.mark.parametrize("micro_batch", ["auto", 1, 12])
def test_the_largest_micro_batch_divides_the_effective_one_and_leaves_a_reserve(micro_batch):
    accumulation = 1 if micro_batch == 12 else 12
    config = preset("balanced", micro_batch=micro_batch, accumulation=accumulation)
    largest = largest_micro_batch(config, SHAPE, TWO_OF_11)
    assert 1 < largest < 12 and 12 % largest == 0

    def left(rows):
        plan = make_plan(config.with_micro_batch(rows), SHAPE, TWO_OF_11)
        return min(gpu.left for gpu in plan.gpus)

    following = next(rows for rows in range(largest + 1, 13) if 12 % rows == 0)
    assert left(largest) >= RESERVE * 11.2e9 > left(following)


def test_no_micro_batch_fits_a_gpu_that_is_too_small():
    too_small = [int(5e9)]
    assert largest_micro_batch(preset("balanced"), SHAPE, too_small) == 0
    assert resolve_batches(preset("balanced"), SHAPE, too_small).micro_batch == 1


def test_auto_takes_the_largest_at_the_same_rows_a_step():
    config = preset("balanced", tta=1)
    auto = resolve_batches(config, SHAPE, TWO_OF_11)
    assert auto.micro_batch == largest_micro_batch(preset("balanced"), SHAPE, TWO_OF_11)
    assert auto.effective_batch == 12
    assert make_plan(config, SHAPE, TWO_OF_11) == make_plan(auto, SHAPE, TWO_OF_11)


def test_batches_that_are_numbers_stay():
    chosen = preset("balanced", micro_batch=1, score_batch=3)
    assert resolve_batches(chosen, SHAPE, TWO_OF_11) == chosen
    assert resolve_batches(preset("safe", score_batch=5), SHAPE, TWO_OF_11).score_batch == 5


@pytest.mark.parametrize(
    ("name", "limits"), [("safe", [14e9, 14e9]), ("balanced", [11.2e9, 11.2e9]), ("safe", [80e9])]
)
def test_as_many_rows_are_scored_as_training_has_memory_for(name, limits):
    limits = [int(limit) for limit in limits]
    config = resolve_batches(preset(name), SHAPE, limits)
    plan = make_plan(config, SHAPE, limits)
    assert all(gpu.before_scoring == gpu.total for gpu in plan.gpus)
    if config.score_batch < 128:
        double = replace(config, score_batch=2 * config.score_batch)
        more = make_plan(double, SHAPE, limits)
        assert any(gpu.before_scoring < gpu.total for gpu in more.gpus)


def test_little_memory_scores_fewer_rows():
    assert resolve_batches(preset("balanced"), SHAPE, TWO_OF_11).score_batch < 64


@pytest.mark.parametrize("size", [5e9, 11e9, 12e9, 12.5e9])
def test_offloading_keeps_the_rows_of_a_pass(size):
    config = resolve_batches(preset("safe", offload_experts=True), SHAPE, [int(size)] * 2)
    assert config.micro_batch == 16


def test_a_shape_is_built_once_for_a_config_file(tmp_path, monkeypatch):
    built = []

    def counted(config):
        built.append(config["model_type"])
        return read_shape(config)

    read_shape = shapes.read_shape
    monkeypatch.setattr(shapes, "read_shape", counted)
    shapes._shape_of_content.cache_clear()
    demo = (ROOT / "vqa_utils" / "tiny_base" / "model" / "config.json").read_text()
    (tmp_path / "config.json").write_text(demo)
    local = preset("demo", model=str(tmp_path))
    plan_for(local, [T4])
    plan_for(preset("demo"), [T4])
    assert built == ["qwen3_vl_moe"]
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(shapes.ShapeError, match="llava"):
        plan_for(local, [T4])


def test_the_table_says_what_the_plan_says():
    console = Console(width=120, record=True, file=io.StringIO())
    plan = print_plan(console, preset("safe"), [T4])
    text = console.export_text()
    (gpu,) = plan.gpus
    rows = re.findall(r"^│ ([\w ',]+?) +│ +(-?[\d.]+) │$", text, re.MULTILINE)
    sizes = {name: float(size) for name, size in rows}
    assert sizes["peak"] == pytest.approx(gpu.total / GIB, abs=0.006) and sizes["left"] < 0
    for name, size in {**gpu.weights, **gpu.training}.items():
        if not size:
            continue  # a row of zeros is left out
        assert sizes[name] == pytest.approx(size / GIB, abs=0.006)
    assert "mlp" not in sizes
    assert "safe does not fit on 1 x Tesla T4" in text and "offload_experts=true" in text


def test_the_table_hints_at_offloading_only_if_it_is_off():
    console = Console(width=120, record=True, file=io.StringIO())
    print_plan(console, preset("safe", offload_experts=True, max_memory=("2GB",)), [T4])
    assert "offload_experts" not in console.export_text()


def plan_command(*arguments):
    command = [sys.executable, "run_all.py", "plan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_command_plans_for_two_t4_without_a_gpu():
    text = plan_command("--preset", "balanced", "--t4", "2")
    assert "balanced fits on 2 x Tesla T4" in text and "GPU 1" in text


@pytest.mark.slow
def test_a_local_model_is_planned_from_its_own_config():
    text = plan_command("--t4", "1", "--model", "vqa_utils/tiny_base/model")
    assert "demo fits on 1 x Tesla T4" in text and "GPU 0: 4 decoder layers" in text


@pytest.mark.parametrize(
    "huge", [{"image_side": 8192}, {"micro_batch": 100_000, "accumulation": 1}]
)
def test_what_lacks_many_times_the_weights_is_planned_too(console, huge):
    plan = plan_for(preset("safe", **huge), [T4, T4])
    assert not plan.fits and sum(len(gpu.layers) for gpu in plan.gpus) == 48
    print_plan(console, preset("safe", **huge), [T4, T4])
    assert "safe does not fit on 2 x Tesla T4" in console.file.getvalue()
