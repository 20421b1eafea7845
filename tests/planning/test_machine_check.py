"""What a machine is refused for, and the run that starts with a number for each batch."""

import pytest

import run_all
from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import to_dict
from vqa_utils.planning.machine.check import (
    check_host,
    check_longest_test,
    check_machine,
    check_run,
    check_targets,
)
from vqa_utils.planning.machine.gpus import T4, Gpu, MachineError
from vqa_utils.planning.plan import memory_plan, plan_for, resolve_for_machine
from vqa_utils.planning.shapes import ShapeError
from vqa_utils.planning.source.check import SourceError
from vqa_utils.presets import PRESETS, preset

GIB = 2**30


@pytest.fixture(autouse=True)
def kaggles_memory(monkeypatch):
    """The machine's own memory is Kaggle's, whatever these tests run on."""
    monkeypatch.setattr("vqa_utils.planning.machine.check.free_memory", lambda: 31 * GIB)
    monkeypatch.setattr("vqa_utils.planning.machine.check.memory_of_children", lambda: 0)


@pytest.mark.parametrize("name", ["safe", "balanced", "low_memory"])
@pytest.mark.slow
def test_two_t4_hold_the_30b_and_one_does_not(name):
    check_machine(preset(name), [T4, T4])
    with pytest.raises(MachineError) as error:
        check_machine(preset(name), [T4])
    (lacking,) = plan_for(preset(name), [T4]).gpus
    message = str(error.value)
    assert f"{lacking.total / GIB:.1f} GiB" in message and "Tesla T4 with 14.7 GiB" in message
    assert "single_gpu, dense_8b, demo" in message and "offload_experts=true" in message
    check_machine(preset(name, offload_experts=True), [T4])


@pytest.mark.parametrize(
    ("settings", "gpus", "free", "hints"),
    [
        ({}, [T4, T4], 31, None),  # Kaggle
        ({"folds_at_once": 2}, [T4, T4], 31, None),
        ({"folds_at_once": 2}, [T4, T4], 12, ["folds_at_once=1", "num_workers=0"]),
        ({"folds_at_once": 1}, [T4, T4], 12, None),
        ({"num_workers": 8}, [T4, T4], 12, ["num_workers=0"]),
        ({"offload_experts": True}, [T4], 31, None),
        ({"offload_experts": True, "num_workers": 0}, [T4], 12, ["offload"]),
        ({"folds_at_once": 2}, [], 1, None),  # nothing is planned
        ({"preset": "dense_8b", "n_folds": 2}, [T4] * 8, 20, None),  # two folds, whatever GPUs
        ({"preset": "dense_8b", "n_folds": 3}, [T4] * 3, 12, ["num_workers=0"]),
    ],
)
def test_a_run_needs_memory_of_the_machine_itself(monkeypatch, settings, gpus, free, hints):
    monkeypatch.setattr("vqa_utils.planning.machine.check.free_memory", lambda: free * GIB)
    config = preset(**{"name": settings.pop("preset", "safe"), **settings})
    if hints is None:
        check_host(config, gpus)
        return
    with pytest.raises(MachineError) as error:
        check_host(config, gpus)
    assert f"found {free}.0" in str(error.value)
    for hint in hints:
        assert hint in str(error.value)


def test_what_a_lender_holds_already_is_part_of_the_need(monkeypatch):
    config = preset("safe", folds_at_once=2)
    monkeypatch.setattr("vqa_utils.planning.machine.check.free_memory", lambda: int(14.5 * GIB))
    with pytest.raises(MachineError, match=r"expected 15\.0 GiB"):
        check_host(config, [T4, T4])
    monkeypatch.setattr("vqa_utils.planning.machine.check.memory_of_children", lambda: GIB)
    check_host(config, [T4, T4])


def test_another_test_sets_longest_row_has_to_fit_beside_the_runs_own_placement():
    row = "test.csv, id q17"
    config = resolve_for_machine(preset("safe", text_tokens=150, cache_features=True), [T4, T4])
    for tokens in (100, 16_000):
        check_longest_test(config, [T4, T4], tokens, row)
    with pytest.raises(MachineError, match=rf"{row}: .* 40,000, .* of the 13.0 GiB of GPU 0"):
        check_longest_test(config, [T4, T4], 40_000, row)
    check_longest_test(config, [], 40_000, row)  # nothing is planned
    measured = resolve_for_machine(preset("safe", longest_test=40_000), [Gpu("H200", 139.8)])
    check_longest_test(measured, [Gpu("H200", 139.8)], 40_000, row)
    alone = resolve_for_machine(preset("dense_8b", text_tokens=150), [T4] * 3)  # a fold on each
    check_longest_test(alone, [T4] * 3, 4_000, row)
    with pytest.raises(MachineError, match="GPU 0"):
        check_longest_test(alone, [T4] * 3, 100_000, row)


@pytest.mark.slow
def test_the_plan_that_refuses_is_the_plan_that_loads():
    plan = memory_plan(preset("safe"), [T4, T4])
    assert plan == plan_for(preset("safe"), [T4, T4]) and plan.fits
    with pytest.raises(MachineError) as refused:
        memory_plan(preset("safe"), [T4])
    with pytest.raises(MachineError) as checked:
        check_machine(preset("safe"), [T4])
    assert str(refused.value) == str(checked.value)


def test_a_cpu_and_accelerates_placement_have_no_plan(monkeypatch):
    assert memory_plan(preset("safe"), []) is None
    assert memory_plan(preset("safe", device_map="auto"), [T4]) is None
    monkeypatch.setattr("vqa_utils.planning.plan.find_gpus", lambda: [T4, T4])
    assert memory_plan(preset("safe")) == memory_plan(preset("safe"), [T4, T4])


def test_the_demo_is_planned_and_never_refused():
    assert memory_plan(preset("demo"), [T4]).fits
    assert not memory_plan(preset("demo"), [Gpu("K20", 0.51)]).fits


def test_the_slow_torch_is_refused_for_all_but_the_demo(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.1")
    for config in (preset("safe"), preset("safe", device_map="auto")):
        with pytest.raises(MachineError, match=r"2\.9\.1"):
            memory_plan(config, [T4, T4])
    assert memory_plan(preset("demo"), [T4]) is not None


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "demo"])
def test_without_a_gpu_only_the_demo_works(name):
    check_machine(preset("demo"), [])
    with pytest.raises(MachineError, match=r"no GPU.*: demo \(--preset demo\)"):
        check_machine(preset(name), [])


def test_a_large_card_needs_its_limit_raised():
    h100 = Gpu("H100", 79.6)
    with pytest.raises(MachineError, match="max_memory=14GB,14GB"):
        check_machine(preset("safe"), [h100])
    check_machine(preset("safe", max_memory=("40GB",)), [h100])


def test_problems_of_machine_and_model_come_together(tmp_path):
    with pytest.raises(MachineError, match=r"config\.json"):
        check_run(preset("safe", model=str(tmp_path)), [])
    unpublished = "Qwen/Qwen2.5-VL-30B-A3B-Instruct"
    with pytest.raises(MachineError) as error:
        check_run(preset("safe", model=unpublished), [])
    of_machine, of_model = str(error.value).splitlines()
    assert "no GPU" in of_machine and of_model.startswith(unpublished)


def test_a_family_without_a_plan_is_left_to_accelerate(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ShapeError, match=r"'llava'.*device_map=auto"):
        check_machine(preset("safe", model=str(tmp_path)), [T4])
    check_machine(preset("safe", model=str(tmp_path), device_map="auto"), [T4])


def test_auto_is_resolved_by_the_gpus_or_by_t4s():
    on_two = resolve_for_machine(preset("safe"), [T4, T4])
    assert on_two == preset("safe", score_batch=32).with_micro_batch(16)
    assert resolve_for_machine(preset("safe"), []) == on_two
    assert resolve_for_machine(preset("safe"), [T4]).micro_batch == 1  # refused by check_machine
    assert resolve_for_machine(preset("demo"), []) == preset("demo")


@pytest.mark.parametrize("without_plan", [{"device_map": "auto"}, {"model": "nobody/has-this"}])
def test_auto_is_one_row_without_a_plan(without_plan):
    found = resolve_for_machine(preset("safe", **without_plan), [T4, T4])
    assert (found.micro_batch, found.score_batch) == (1, 8)
    chosen = resolve_for_machine(preset("safe", score_batch=3, **without_plan), [T4, T4])
    assert chosen.score_batch == 3


def configs_of_runs(monkeypatch, *arguments, problem=""):
    """The settings that `run_all.py` would run with on two T4; `problem` keeps them from sharing."""
    seen = []
    monkeypatch.setattr("vqa_utils.running.auto_settings.sharing_problem", lambda gpus: problem)
    monkeypatch.setattr("vqa_utils.planning.machine.gpus.find_gpus", lambda: [T4, T4])
    monkeypatch.setattr("vqa_utils.running.auto_settings.free_memory", lambda: 29 * GIB)
    monkeypatch.setattr("vqa_utils.running.auto_settings.has_room", lambda *args: True)
    monkeypatch.setattr(
        run_all, "run_steps", lambda args, paths, config, console, cluster=None: seen.append(config)
    )
    monkeypatch.setattr("sys.argv", ["run_all.py", *arguments])
    run_all.main()
    return seen


@pytest.mark.slow
def test_a_run_starts_with_a_number(monkeypatch):
    seen = configs_of_runs(monkeypatch, "--preset", "safe", "--dry-run")
    config = preset("safe", folds_at_once=3, cache_features=True)
    assert seen == [resolve_for_machine(config, [T4, T4])]
    assert (seen[0].micro_batch, seen[0].accumulation) == (16, 1)


@pytest.mark.slow
def test_a_machine_that_cannot_share_memory_takes_one_fold_at_a_time(monkeypatch, capsys):
    arguments = ("--preset", "safe", "--dry-run")
    seen = configs_of_runs(monkeypatch, *arguments, problem="CUDA refuses")
    config = preset("safe", folds_at_once=1, cache_features=True)
    assert seen == [resolve_for_machine(config, [T4, T4])]
    assert "CUDA refuses" in capsys.readouterr().out
    asked = configs_of_runs(
        monkeypatch, *arguments, "--set", "folds_at_once=2", problem="CUDA refuses"
    )
    assert asked[0].folds_at_once == 2, "what was asked for is not replaced"


@pytest.mark.parametrize("name", ["safe", "balanced", "low_memory"])
def test_a_run_that_goes_on_with_its_preset_keeps_its_rows_a_step(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    saved = resolve_for_machine(preset(name, folds_at_once=3, cache_features=True), [T4, T4])
    write_json(RunPaths("small").config, to_dict(saved))
    assert configs_of_runs(monkeypatch, "--preset", name, "--run-id", "small", "--resume") == [
        saved
    ]


def test_folds_that_cannot_share_a_base_go_one_at_a_time_and_the_reason_is_told(
    monkeypatch, capsys
):
    """A GPU of its own for each fold, or a base that is not packed."""
    for arguments in (
        ("--preset", "dense_8b"),
        ("--preset", "safe", "--set", "quantization=none"),
        ("--preset", "safe", "--set", "use_kfold=false"),
    ):
        asked = (*arguments, "--set", "folds_at_once=2", "--dry-run")
        (config,) = configs_of_runs(monkeypatch, *asked)
        assert config.folds_at_once == 1
        assert "folds_at_once=2" in capsys.readouterr().out


def test_another_preset_for_a_run_chooses_its_folds_at_a_time_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    saved = resolve_for_machine(preset("safe", folds_at_once=1), [T4, T4])
    write_json(RunPaths("small").config, to_dict(saved))
    resumed = ("--run-id", "small", "--resume", "--dry-run")
    (same,) = configs_of_runs(monkeypatch, *resumed)
    (config,) = configs_of_runs(monkeypatch, "--preset", "balanced", *resumed)
    assert (same.folds_at_once, config.folds_at_once) == (1, 2)


def test_too_many_folds_at_a_time_are_told_as_the_reason():
    crowded = preset("safe", folds_at_once=4, micro_batch=16, accumulation=1, score_batch=16)
    with pytest.raises(MachineError, match="folds_at_once=1"):
        check_machine(crowded, [T4, T4])
    with pytest.raises(MachineError) as alone:
        check_machine(preset("safe"), [T4])
    assert "folds_at_once" not in str(alone.value)


def test_a_run_is_refused_with_what_its_gpus_and_its_own_memory_lack(monkeypatch):
    monkeypatch.setattr("vqa_utils.planning.machine.check.free_memory", lambda: 2 * GIB)
    monkeypatch.setattr("vqa_utils.planning.machine.check.check_source", lambda model: None)
    with pytest.raises(MachineError) as error:
        check_run(preset("safe"), [Gpu("Tesla T4", 8.0), Gpu("Tesla T4", 8.0)])
    message = str(error.value)
    assert "of GPU memory" in message and "found 2.0" in message


@pytest.mark.parametrize("name", ["safe", "single_gpu", "demo"])
def test_layers_that_the_model_has_not_are_refused_before_it_is_loaded(name):
    check_targets(preset(name))
    wrong = preset(name, target_modules=("q_proj", "qkv", "proj"))
    with pytest.raises(SourceError, match=r"target_modules: .*q_proj, k_proj.* found qkv, proj$"):
        check_targets(wrong)
    with pytest.raises(MachineError, match="target_modules"):
        check_run(wrong, [T4, T4])
    check_targets(preset(name, target_modules=("qkv",), device_map="auto"))  # it has no shape here


def test_a_row_too_long_for_the_gpus_is_told_as_the_reason():
    long = preset("safe", text_tokens=128, longest_text=60_000, longest_test=128)
    with pytest.raises(MachineError, match="the longest row alone takes 60,000 tokens") as error:
        check_machine(long, [T4, T4])
    assert "(--preset demo)" in str(error.value), "no preset has room for it"
    check_machine(preset("safe", text_tokens=128, longest_text=2000), [T4, T4])
    scored = preset("safe", text_tokens=128, longest_text=128, longest_test=12_000)
    check_machine(scored, [T4, T4])  # it is not trained on
