"""Bytes of weights, against measured and published sizes."""

from dataclasses import replace
from math import prod

import pytest

from vqa_utils.planning.memory import (
    LORA,
    chunks_of_rows,
    nf4_bytes,
    weight_bytes,
    weights_by_module,
)
from vqa_utils.planning.shapes import group_of, shape_of
from vqa_utils.presets import preset

GIB = 2**30
SAFE = preset("safe")
SHAPE = shape_of(SAFE)
MEASURED_GIB = 16.57  # Qwen3-VL-30B-A3B as loaded: tests/bench/README.md
PARAMETERS = 31.07e9


def total(config):
    return sum(weight_bytes(name, shape, config) for name, shape in SHAPE.parameters.items())


def test_the_30b_is_as_large_as_measured():
    assert total(SAFE) / GIB == pytest.approx(MEASURED_GIB, abs=0.01)


def test_unpacked_weights_take_two_bytes_each():
    assert total(replace(SAFE, quantization="none")) == pytest.approx(2 * PARAMETERS, rel=1e-3)


def test_a_packed_weight_takes_four_bits_and_its_share_of_the_scales():
    count = 0
    packed = 0
    for name, shape in SHAPE.parameters.items():
        if group_of(name) == "experts":
            count += prod(shape)
            packed += nf4_bytes(prod(shape), double_quant=True)
    assert 8 * packed / count == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)
    assert 8 * nf4_bytes(6400, double_quant=False) / 6400 == 4 + 32 / 64


def test_lora_takes_less_with_its_optimizer_in_host_memory():
    def lora(config):
        return sum(groups.get(LORA, 0) for groups in weights_by_module(SHAPE, config).values())

    usual = replace(SAFE, use_double_quant=False)
    count = lora(usual) // 18  # bytes of a LoRA weight
    # 48 layers; q, k, v and o of a width: rank 8 times inputs and outputs
    assert count == 48 * 8 * ((2048 + 4096) + 2 * (2048 + 512) + (4096 + 2048))
    assert lora(replace(usual, use_cpu_offload=True)) == 10 * count
    assert lora(SAFE) > lora(usual)  # the scales of q, k, v and o stay unpacked


def test_modules_have_all_weights_once():
    modules = weights_by_module(SHAPE, SAFE)
    without_lora = 0
    for groups in modules.values():
        without_lora += sum(size for group, size in groups.items() if group != LORA)
    routers = 48 * 128 * 2048  # weights; each is there in two fp16 parts too
    assert without_lora == total(SAFE) + 2 * 2 * routers
    assert len([module for module in modules if ".layers." in module]) == 48


@pytest.mark.parametrize(
    ("rows", "columns", "chunks"),
    [
        (25600, 5120, 4),  # the 32B's gate and up: 131 million weights
        (5120, 25600, 4),  # its down
        (12288, 4096, 2),
        (1024, 1024, 1),
        (99991, 4096, 1),  # a prime number of rows
    ],
)
def test_a_fused_mlps_matrix_is_dense_in_chunks_of_whole_groups(rows, columns, chunks):
    assert chunks_of_rows(rows, columns) == chunks
    assert chunks == 1 or rows // chunks * columns % (64 * 256) == 0
