from dataclasses import replace

import pytest

from vqa_utils.artifacts.fold_settings import (
    climbed,
    read_rungs,
    resumable,
    rungs_behind,
    write_rungs,
)
from vqa_utils.config import NOT_OF_THE_ADAPTER
from vqa_utils.planning.ladder import LadderError, next_rung
from vqa_utils.planning.plan import make_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset
from vqa_utils.running.execution import OutOfMemory, where_memory_ran_out

GIB = 2**30
ONE_ROW = preset("safe", micro_batch=1, use_gradient_checkpointing=True, score_batch=8)


def planned_peak(gpu, phase, limits=(14e9, 14e9)):
    shape = shape_of(preset("safe"))

    def peak(config):
        return make_plan(config, shape, [min(int(limit), int(float(size[:-2]) * 1e9))
                                         for limit, size in zip(limits, config.max_memory, strict=True)]).gpus[gpu].peaks.get(phase, 0)  # fmt: skip

    return peak


def climb(config, gpu=0, phase="training", trains=True, experts=True, peak=None):
    """All rungs to the ladder's end, and what it says there."""
    rungs, peak = [], peak or planned_peak(gpu, phase)
    while True:
        try:
            rungs.append(
                next_rung(climbed(config, rungs), gpu, phase, peak, trains=trains, experts=experts)
            )
        except LadderError as error:
            return rungs, str(error)


def test_the_order_is_the_fields_advice():
    rungs, end = climb(preset("safe", micro_batch=4, accumulation=4, score_batch=8))
    assert [rung.name for rung in rungs] == [
        "every layer computed again in the backward",
        "micro-batch 4 -> 2",
        "micro-batch 2 -> 1",
        "image side 384 -> 320",
        "LoRA r 8 -> 4",
        "max memory of GPU 0 14GB -> 12GB",
        "optimizer state in host memory",
        "experts streamed from host memory",
    ]
    assert rungs[-1].after["offload_experts"] and rungs[-1].after["max_memory"][1] == "14GB"
    assert (
        "GPU 0 ran out of memory in training, and nothing is left" in end
        and "--preset single_gpu" in end
    )


def test_a_rung_that_saves_nothing_there_is_passed_over_and_said_so():
    rung = next_rung(ONE_ROW, 0, "training", planned_peak(0, "training"), trains=True, experts=True)
    assert rung.name == "image side 384 -> 320" and rung.passed_over == ("scored batch 8 -> 4",)
    assert str(rung).startswith("GPU 0, training: image side 384 -> 320 (saves 0.0")
    assert str(rung).endswith("passed over, as they save nothing there: scored batch 8 -> 4)")


def test_scoring_shrinks_its_own_batch_first():
    rung = next_rung(ONE_ROW, 1, "scoring", planned_peak(1, "scoring"), trains=True, experts=True)
    assert rung.name == "scored batch 8 -> 4" and rung.gpu == 1


def test_an_adapter_that_is_only_used_keeps_its_settings():
    rungs, _ = climb(ONE_ROW, phase="scoring", trains=False)
    assert rungs and all(set(rung.after) <= set(NOT_OF_THE_ADAPTER) for rung in rungs)


def test_each_rung_saves_what_it_says_and_the_effective_batch_stays():
    config, peak = (
        preset("balanced", micro_batch=6, accumulation=2, score_batch=8),
        planned_peak(1, "training"),
    )
    for rung in climb(config, gpu=1)[0]:
        changed = climbed(config, [rung])
        assert (
            peak(config) - peak(changed) == pytest.approx(rung.saves_gib * GIB)
            and rung.saves_gib > 0
        )
        assert {key: getattr(config, key) for key in rung.before} == rung.before
        assert (
            changed.micro_batch * changed.accumulation == config.micro_batch * config.accumulation
        )
        config = changed


def test_a_dense_model_streams_no_experts():
    rungs, _ = climb(
        replace(ONE_ROW, max_memory=("14GB",)),
        experts=False,
        peak=lambda config: config.micro_batch + config.image_side,
    )
    assert [rung.name for rung in rungs] == ["image side 384 -> 320"]


def test_rungs_come_back_as_they_were_and_only_for_their_settings(tmp_path):
    config = preset("safe", micro_batch=4, accumulation=4, score_batch=8)
    rungs, _ = climb(config)
    write_rungs(tmp_path / "rungs.json", config, rungs)
    assert read_rungs(tmp_path / "rungs.json", config) == rungs
    assert rungs_behind(tmp_path / "rungs.json", climbed(config, rungs)) == rungs
    assert read_rungs(tmp_path / "rungs.json", replace(config, epochs=5)) == []
    assert (
        read_rungs(tmp_path / "rungs.json", replace(config, cache_dir="/else", score_batch=2))
        == rungs
    )  # as is the adapter
    assert (
        rungs_behind(tmp_path / "rungs.json", config) == []
        and read_rungs(tmp_path / "none.json", config) == []
    )


def test_checkpoints_are_gone_on_with_unless_the_adapter_has_another_shape():
    config = preset("safe", micro_batch=4, accumulation=4, score_batch=8)
    rungs, _ = climb(config)
    before_rank = rungs[: [rung.name for rung in rungs].index("LoRA r 8 -> 4")]
    assert resumable(climbed(config, before_rank), before_rank) == config
    assert resumable(climbed(config, rungs), rungs) == replace(config, lora_r=4, lora_alpha=8)


def test_where_memory_ran_out():
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 14.74 GiB of which 1.2 GiB is free."
    assert where_memory_ran_out("OutOfMemoryError", said, ["in training_step"]) == OutOfMemory(
        1, "training"
    )
    assert where_memory_ran_out(
        "OutOfMemoryError", said, ["a", "in evaluation_loop", "c"]
    ) == OutOfMemory(1, "scoring")
    assert where_memory_ran_out("OutOfMemoryError", "", ["in score_orders(model"]) == OutOfMemory(
        0, "scoring"
    )
    assert where_memory_ran_out(
        "OutOfMemoryError", said, ["model_class.from_pretrained("]
    ) == OutOfMemory(1, "loading")
    assert where_memory_ran_out(
        "RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED", []
    ) == OutOfMemory(0, "training")
    assert (
        where_memory_ran_out(
            "ValueError", "step 3: expected finite gradients", ["in training_step"]
        )
        is None
    )
