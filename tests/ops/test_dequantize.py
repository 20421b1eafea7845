import bitsandbytes.functional as bnb
import pytest
import torch

from vqa_utils.ops.dequantize import Packed, dequantize, dequantize_joined

SHAPES = ((96, 128), (128, 48))
EXPERTS = 5


def packed_expert(weight, double_quant, dtype):
    """An expert's tensors as `Packed` has them, and its dense weights by bitsandbytes, flat."""
    data, state = bnb.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=double_quant
    )
    tensors = [data.flatten(), state.absmax]
    scales = state.absmax
    if double_quant:
        whole_groups = state.absmax.new_zeros(len(state.state2.absmax), 256)
        whole_groups.flatten()[: len(state.absmax)] = state.absmax
        tensors = [data.flatten(), whole_groups, state.state2.absmax, state.offset.view(1)]
        scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    dense = torch.ops.bitsandbytes.dequantize_4bit(
        data.flatten(), scales, 64, "nf4", (scales.numel(), 64), dtype
    )
    return tensors, dense.flatten()


def packed_experts(double_quant, device, dtype):
    """Experts of two shapes, and each shape's dense weights by bitsandbytes [EXPERTS, n]."""
    torch.manual_seed(0)
    parts, dense = [], []
    for rows, columns in SHAPES:
        experts = [
            packed_expert(torch.randn(rows, columns, device=device), double_quant, dtype)
            for _ in range(EXPERTS)
        ]
        tensors = zip(*(tensors for tensors, _ in experts), strict=True)
        parts.append(Packed(*map(torch.stack, tensors)))
        dense.append(torch.stack([weights for _, weights in experts]))
    return parts, dense


@pytest.mark.parametrize("double_quant", [True, False])
def test_dense_weights_are_bitsandbytes_own_bit_by_bit(device, dtype, double_quant):
    parts, dense = packed_experts(double_quant, device, dtype)
    order = torch.tensor([3, 0, 4], device=device)
    for found, whole in zip(dequantize(parts, order, dtype), dense, strict=True):
        torch.testing.assert_close(found, whole[order], rtol=0, atol=0)
    (found,) = dequantize(parts[1:], None, dtype)
    torch.testing.assert_close(found, dense[1], rtol=0, atol=0)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("order", [[0], [1, 0], [1, 0, 1]])
def test_parts_side_by_side(device, dtype, double_quant, order):
    parts, dense = packed_experts(double_quant, device, dtype)
    found = dequantize_joined([parts[number] for number in order], dtype)
    wanted = torch.cat([dense[number] for number in order], dim=1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
