import pytest

import run_all
from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import to_dict
from vqa_utils.planning.gpus import T4, Gpu, find_gpus, gpu_limits
from vqa_utils.planning.machine_check import MachineError, check_machine, check_run, check_torch
from vqa_utils.planning.plan import resolve_for_machine
from vqa_utils.planning.shapes import ShapeError
from vqa_utils.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "needed"), [("safe", "17.5"), ("balanced", "17.5"), ("low_memory", "17.8")]
)
def test_two_t4_hold_the_30b_and_one_does_not(name, needed):
    check_machine(preset(name), [T4, T4])
    with pytest.raises(
        MachineError,
        match=r"Tesla T4 with 14\.7 GiB; presets that work here: single_gpu, dense_8b, demo",
    ) as error:
        check_machine(preset(name), [T4])
    assert f"expected {needed} GiB" in str(error.value) and "--set offload_experts=true" in str(
        error.value
    )
    check_machine(preset(name, offload_experts=True), [T4])


def test_without_a_gpu_only_the_demo_works():
    check_machine(preset("demo"), [])
    for name in PRESETS:
        if name != "demo":
            with pytest.raises(
                MachineError, match=r"found no GPU; presets that work here: demo \(--preset demo\)"
            ):
                check_machine(preset(name), [])


def test_limits_count_and_a_large_card_needs_its_limit_raised():
    h100 = Gpu("H100", 79.6)
    assert gpu_limits(preset("safe"), [h100]) == [14 * 10**9]
    assert gpu_limits(preset("safe", max_memory=("12GB", "15GiB")), [h100, T4]) == [
        12 * 10**9,
        int(14.24 * 2**30),
    ]
    assert gpu_limits(preset("safe", max_memory=()), [T4]) == [
        int(14.24 * 2**30)
    ]  # without CUDA's own
    with pytest.raises(MachineError, match="within max_memory=14GB,14GB"):
        check_machine(preset("safe"), [h100])
    check_machine(preset("safe", max_memory=("40GB",)), [h100])


def test_problems_of_machine_and_model_come_together(tmp_path):
    with pytest.raises(MachineError) as error:
        check_run(preset("safe", model=str(tmp_path)), [])
    assert "expected config.json, found no such file" in str(error.value)
    with pytest.raises(MachineError, match=r"(?s)found no GPU.*does not exist"):
        check_run(preset("safe", model="Qwen/Qwen2.5-VL-30B-A3B-Instruct"), [])


def test_the_torch_with_the_slow_tower_is_refused():
    check_torch("2.10.0+cu128")
    with pytest.raises(MachineError, match=r"torch 2\.9\.1\+cu126: expected any other than 2\.9"):
        check_torch("2.9.1+cu126")


def test_visible_gpus_are_those_that_count(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 15095'\necho 'NVIDIA H100, 81559'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_gpus() == [Gpu("Tesla T4", 15095 / 1024), Gpu("NVIDIA H100", 81559 / 1024)]
    for visible, names in {
        "1": ["NVIDIA H100"],
        "1,0": ["NVIDIA H100", "Tesla T4"],
        "": [],
        "-1": [],
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [gpu.name for gpu in find_gpus()] == names


def test_a_family_without_a_plan_is_left_to_accelerate(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(
        ShapeError, match=r"found 'llava'; --set device_map=auto leaves it to accelerate"
    ):
        check_machine(preset("safe", model=str(tmp_path)), [T4])
    check_machine(preset("safe", model=str(tmp_path), device_map="auto"), [T4])


def test_auto_is_settled_by_the_gpus_or_by_t4s_and_is_one_row_without_a_plan():
    on_two = preset("safe", score_batch=32).with_micro_batch(16)
    assert (
        resolve_for_machine(preset("safe"), [])
        == resolve_for_machine(preset("safe"), [T4, T4])
        == on_two
    )
    assert resolve_for_machine(preset("safe"), [T4]).micro_batch == 1  # refused by check_machine
    for without_plan in ({"device_map": "auto"}, {"model": "nobody/has-this"}):
        found = resolve_for_machine(preset("safe", **without_plan), [T4, T4])
        assert (found.micro_batch, found.score_batch) == (1, 8)
        assert (
            resolve_for_machine(preset("safe", score_batch=3, **without_plan), [T4, T4]).score_batch
            == 3
        )
    assert resolve_for_machine(preset("demo"), []) == preset("demo")


def test_a_run_starts_with_a_number(monkeypatch):
    seen = []
    monkeypatch.setattr("vqa_utils.planning.gpus.find_gpus", lambda: [T4, T4])
    monkeypatch.setattr(
        run_all, "run_steps", lambda args, paths, config, console: seen.append(config)
    )
    monkeypatch.setattr("sys.argv", ["run_all.py", "--preset", "safe", "--dry-run"])
    run_all.main()
    assert seen == [preset("safe", score_batch=32).with_micro_batch(16)]


@pytest.mark.parametrize("name", ["safe", "balanced", "low_memory"])
def test_a_run_that_goes_on_with_its_preset_keeps_its_rows_a_step(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr("vqa_utils.planning.gpus.find_gpus", lambda: [T4, T4])
    saved = resolve_for_machine(preset(name), [T4, T4])
    write_json(RunPaths("small").config, to_dict(saved))
    seen = []
    monkeypatch.setattr(
        run_all, "run_steps", lambda args, paths, config, console: seen.append(config)
    )
    monkeypatch.setattr(
        "sys.argv", ["run_all.py", "--preset", name, "--run-id", "small", "--resume"]
    )
    run_all.main()
    assert seen == [saved]
