from dataclasses import replace

import pytest

from vqa_utils.config import NOT_OF_THE_ADAPTER
from vqa_utils.planning.ladder import LadderError, next_rung
from vqa_utils.planning.machine.gpus import T4, gpu_limits
from vqa_utils.planning.plan import make_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset
from vqa_utils.setting_types import size_in_bytes

GIB = 2**30
ONE_ROW = preset("safe", micro_batch=1, use_gradient_checkpointing=True, score_batch=8)


def planned_peak(gpu, phase):
    """The planned bytes of one of two T4 in a phase, by the settings."""
    shape = shape_of(preset("safe"))

    def peak(config):
        plan = make_plan(config, shape, gpu_limits(config, [T4, T4]))
        return plan.gpus[gpu].peaks.get(phase, 0)

    return peak


def climb(config, gpu=0, phase="training", trains=True, experts=True, peak=None):
    """All rungs to the ladder's end, and its last words."""
    rungs = []
    peak = peak or planned_peak(gpu, phase)
    while True:
        try:
            rung = next_rung(config, gpu, phase, peak, trains=trains, experts=experts)
        except LadderError as error:
            return rungs, str(error)
        rungs.append(rung)
        config = replace(config, **rung.after)


def test_the_order_is_the_fields_advice():
    rungs, end = climb(preset("safe", micro_batch=4, accumulation=4, score_batch=8))
    last = rungs.pop()
    assert [rung.after for rung in rungs] == [
        {"use_gradient_checkpointing": True},
        {"micro_batch": 2, "accumulation": 8},
        {"micro_batch": 1, "accumulation": 16},
        {"image_side": 320},
        {"lora_r": 4, "lora_alpha": 8},
        {"max_memory": ("12GB", "14GB")},
        {"use_cpu_offload": True},
    ]
    assert set(last.after) == {"offload_experts", "max_memory"} and last.after["offload_experts"]
    of_one_gpu, of_the_other = map(size_in_bytes, last.after["max_memory"])
    assert of_one_gpu < 12e9 and of_the_other == 14e9
    assert "GPU 0" in end and "training" in end and "single_gpu" in end


def test_crops_go_before_pixels():
    rungs, _ = climb(replace(ONE_ROW, crops=2), gpu=1)
    assert [rung.after for rung in rungs][:2] == [{"crops": 0}, {"image_side": 320}]


def test_nothing_gets_smaller_than_in_the_preset_low_memory():
    small = preset("low_memory")
    settings = replace(small, micro_batch=1, score_batch=1, use_gradient_checkpointing=True)
    with pytest.raises(LadderError, match="single_gpu"):
        next_rung(settings, 0, "training", lambda config: 1, trains=True, experts=False)


def test_a_rung_that_saves_nothing_there_is_passed_over_and_named():
    rung = next_rung(ONE_ROW, 0, "training", planned_peak(0, "training"), trains=True, experts=True)
    assert rung.after == {"image_side": 320}
    assert len(rung.passed_over) == 1 and "8 -> 4" in rung.passed_over[0]
    text = str(rung)
    assert rung.name in text and rung.passed_over[0] in text and f"{rung.saves_gib:.2f} GiB" in text


def test_scoring_shrinks_its_own_batch_first():
    rung = next_rung(ONE_ROW, 1, "scoring", planned_peak(1, "scoring"), trains=True, experts=True)
    assert rung.after == {"score_batch": 4} and rung.gpu == 1


def test_an_adapter_that_is_only_used_keeps_its_settings():
    rungs, _ = climb(ONE_ROW, phase="scoring", trains=False)
    assert rungs and all(set(rung.after) <= set(NOT_OF_THE_ADAPTER) for rung in rungs)


def test_each_rung_saves_its_number_and_keeps_the_rows_of_a_step():
    config = preset("balanced", micro_batch=6, accumulation=2, score_batch=8)
    peak = planned_peak(1, "training")
    for rung in climb(config, gpu=1)[0]:
        changed = replace(config, **rung.after)
        saved_gib = (peak(config) - peak(changed)) / GIB
        assert saved_gib == pytest.approx(rung.saves_gib) and saved_gib > 0
        assert {name: getattr(config, name) for name in rung.before} == rung.before
        assert changed.effective_batch == config.effective_batch
        config = changed


def test_a_micro_batch_becomes_the_next_divisor_of_a_steps_rows():
    config = replace(ONE_ROW, micro_batch=9, accumulation=2, image_side=320)  # 18 rows per step
    rungs, _ = climb(config, experts=False, peak=lambda config: config.micro_batch)
    assert [rung.after["micro_batch"] for rung in rungs] == [3, 1]


def test_the_experts_of_a_dense_model_are_not_offloaded():
    rungs, _ = climb(
        replace(ONE_ROW, max_memory=("14GB",)),
        experts=False,
        peak=lambda config: config.micro_batch + config.image_side,
    )
    assert [rung.after for rung in rungs] == [{"image_side": 320}]


def test_memory_that_runs_out_on_a_gpu_without_a_limit_takes_a_rung_too():
    config = preset("single_gpu", micro_batch=1, use_gradient_checkpointing=True, score_batch=1)
    rungs, _ = climb(config, gpu=1, peak=lambda config: 10**10 - config.offload_experts)
    assert [set(rung.after) for rung in rungs] == [{"offload_experts", "max_memory"}]
    assert rungs[0].after["max_memory"] == config.max_memory
