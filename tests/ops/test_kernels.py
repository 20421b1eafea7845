"""Each kernel against torch's own operations: those are tested on a CPU, the kernels on a GPU (`pytest -m gpu`)."""

import importlib.util

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import nn

from vqa_utils.ops import _launch as launch
from vqa_utils.ops.choose_experts import choose_experts, choose_experts_backward
from vqa_utils.ops.dequantize import Packed, dequantize
from vqa_utils.ops.dropout import dropout
from vqa_utils.ops.expert_slots import count_loads, order_loads, place_pairs
from vqa_utils.ops.gate import gate, gate_backward
from vqa_utils.ops.heads import HeadNorms, split_heads, split_heads_backward
from vqa_utils.ops.norms import add_norm, norm_backward
from vqa_utils.ops.rotary import rotate, rotated
from vqa_utils.ops.sum_rows import sum_rows

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ON_GPU = pytest.param("cuda", marks=NEEDS_GPU)
each_device = pytest.mark.parametrize("device", ["cpu", ON_GPU])


def packed(double_quant, device, shapes=((96, 128), (128, 48)), count=5):
    """Experts of two shapes in NF4, and the same by bitsandbytes."""
    torch.manual_seed(0)
    parts, dense = [], []
    for rows, columns in shapes:
        tensors = []
        for _ in range(count):
            weight = torch.randn(rows, columns, device=device)
            data, state = bnb.quantize_4bit(
                weight, blocksize=64, quant_type="nf4", compress_statistics=double_quant
            )
            absmax, rest = state.absmax, ()
            if double_quant:
                absmax = absmax.new_zeros(len(state.state2.absmax), 256)
                absmax.flatten()[: len(state.absmax)] = state.absmax
                rest = (state.state2.absmax, state.offset.view(1))
            scales = (
                bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
                if double_quant
                else absmax
            )
            args = (
                data.flatten(),
                scales,
                64,
                "nf4",
                (scales.numel(), 64),
                torch.float16 if device == "cuda" else torch.float32,
            )
            dense.append(torch.ops.bitsandbytes.dequantize_4bit(*args).flatten())
            tensors.append((data.flatten(), absmax, *rest))
        parts.append(Packed(*map(torch.stack, zip(*tensors, strict=True))))
    return parts, [torch.stack(dense[:count]), torch.stack(dense[count:])]


@each_device
@pytest.mark.parametrize("double_quant", [True, False])
def test_dense_weights_are_bitsandbytes_own_bit_by_bit(device, double_quant):
    parts, dense = packed(double_quant, device)
    order = torch.tensor([3, 0, 4], device=device)
    for found, whole in zip(dequantize(parts, order, dense[0].dtype), dense, strict=True):
        torch.testing.assert_close(found, whole[order], rtol=0, atol=0)
    (found,) = dequantize(parts[1:], None, dense[0].dtype)
    torch.testing.assert_close(found, dense[1], rtol=0, atol=0)


@each_device
def test_gates_with_their_gradients(device):
    dtype, tolerance = (torch.float16, 2e-3) if device == "cuda" else (torch.float32, 1e-5)
    torch.manual_seed(0)
    gate_up, back = (
        torch.randn(70, 2 * 48, device=device).to(dtype),
        torch.randn(70, 48, device=device).to(dtype),
    )
    weights, pair = torch.rand(40, 8, device=device), torch.randint(320, (70,), device=device)
    inputs = [tensor.double().requires_grad_() for tensor in (gate_up, weights)]
    first, second = inputs[0].chunk(2, dim=-1)
    weight = inputs[1].flatten()[pair, None].detach().requires_grad_()
    expected = nn.functional.silu(first) * second * weight
    grads = torch.autograd.grad(expected, (inputs[0], weight), back.double())
    torch.testing.assert_close(
        gate(gate_up, weights, pair, nn.SiLU()).double(), expected, rtol=tolerance, atol=tolerance
    )
    dots = torch.empty(70, device=device)
    found = gate_backward(gate_up, back, weights, pair, nn.SiLU(), dots)
    torch.testing.assert_close(found.double(), grads[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(dots.double(), grads[1].flatten(), rtol=tolerance, atol=tolerance)


@each_device
def test_a_large_gate_does_not_overflow(device):
    dtype = torch.float16 if device == "cuda" else torch.float32
    gate_up = torch.tensor([[6e4] * 8 + [1.0] * 8, [-6e4] * 8 + [1.0] * 8], device=device).to(dtype)
    weights, pair = torch.ones(2, 1, device=device), torch.arange(2, device=device)
    h = gate(gate_up, weights, pair, nn.SiLU())
    assert (
        h[0].tolist() == [6e4 if dtype == torch.float32 else float(torch.tensor(6e4).half())] * 8
        and h[1].abs().max() == 0
    )
    found = gate_backward(
        gate_up, torch.ones_like(h), weights, pair, nn.SiLU(), torch.empty(2, device=device)
    )
    assert found.isfinite().all()


@each_device
def test_the_rows_of_each_token_are_added(device):
    torch.manual_seed(0)
    rows = torch.randn(
        50, 24, device=device, dtype=torch.float16 if device == "cuda" else torch.float32
    )
    index = torch.randint(50, (9, 4), device=device)
    torch.testing.assert_close(
        sum_rows(rows, index).float(), rows.float()[index].sum(1), rtol=1e-5, atol=1e-5
    )


@each_device
def test_rows_are_added_onto_a_stream(device):
    torch.manual_seed(0)
    rows, stream = torch.randn(50, 24, device=device), torch.randn(9, 24, device=device)
    rows, index = (
        rows.half() if device == "cuda" else rows,
        torch.randint(50, (9, 4), device=device),
    )
    before = stream.clone()
    found = sum_rows(rows, index, onto=stream)
    torch.testing.assert_close(found, stream + rows.float()[index].sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(stream, before)


def exact_heads(qkv, norms, cos, sin):
    """In fp64, with autograd."""
    q, k, v = qkv.unflatten(-1, (-1, cos.shape[-1])).split(
        [norms.q_heads, norms.kv_heads, norms.kv_heads], -2
    )
    cos, sin = cos.double()[:, :, None], sin.double()[:, :, None]
    q, k = (
        rotated(nn.functional.rms_norm(x, x.shape[-1:], w.double(), norms.eps), cos, sin)
        for x, w in ((q, norms.q), (k, norms.k))
    )
    return q, *(part.repeat_interleave(norms.q_heads // norms.kv_heads, -2) for part in (k, v))


@each_device
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize(("q_heads", "kv_heads"), [(6, 2), (3, 3)])
def test_heads_with_their_gradient(device, d, heads_first, q_heads, kv_heads):
    dtype, tolerance = (torch.float16, 2e-3) if device == "cuda" else (torch.float32, 1e-5)
    torch.manual_seed(0)
    qkv = torch.randn(2, 7, (q_heads + 2 * kv_heads) * d, device=device).to(dtype)
    grads = [torch.randn(2, 7, q_heads, d, device=device).to(dtype) for _ in range(3)]
    if heads_first:  # as sdpa's gradients lie
        grads = [grad.transpose(1, 2).contiguous().transpose(1, 2) for grad in grads]
    q_norm, k_norm = torch.rand(2, d, device=device) + 0.5
    angle = torch.rand(2, 7, d // 2, device=device).repeat(1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    norms, exact = HeadNorms(q_norm, k_norm, 1e-6, q_heads, kv_heads), qkv.double().requires_grad_()
    expected = exact_heads(exact, norms, cos, sin)
    (wanted,) = torch.autograd.grad(expected, exact, [grad.double() for grad in grads])
    for found, part in zip(split_heads(qkv, norms, cos, sin), expected, strict=True):
        torch.testing.assert_close(found.double(), part, rtol=tolerance, atol=tolerance)
    found = split_heads_backward(grads, qkv, norms, cos, sin)
    torch.testing.assert_close(found.double(), wanted, rtol=2 * tolerance, atol=2 * tolerance)


@each_device
def test_heads_of_the_vision_tower_turn_where_they_are(device):
    torch.manual_seed(0)
    qkv = torch.randn(11, 3, 4, 72, device=device).to(
        torch.float16 if device == "cuda" else torch.float32
    )
    angle = torch.rand(11, 36, device=device).repeat(1, 2)
    before, cos, sin = qkv.double(), angle.cos(), angle.sin()
    rotate(qkv[:, :2].flatten(1, 2), cos, sin)
    expected = rotated(before[:, :2], cos.double()[:, None, None], sin.double()[:, None, None])
    torch.testing.assert_close(qkv[:, :2].double(), expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(qkv[:, 2].double(), before[:, 2])


class Norm(nn.Module):
    """As transformers' RMS norms are."""

    def __init__(self, width, device):
        super().__init__()
        self.weight, self.variance_epsilon = (
            nn.Parameter(torch.rand(width, device=device) + 0.5),
            1e-6,
        )


@each_device
@pytest.mark.parametrize("width", [40, 2048, 8192])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("added", [True, False])
def test_a_sum_and_its_norm(device, width, kind, added):
    dtype, tolerance = (torch.float16, 2e-3) if device == "cuda" else (torch.float32, 1e-5)
    torch.manual_seed(0)
    x, delta = (
        torch.randn(2, 5, width, device=device) * 3,
        torch.randn(2, 5, width, device=device).to(dtype),
    )
    if kind == "rms":
        norm = Norm(width, device)
    else:
        norm = nn.LayerNorm(width, device=device)
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    before = x.clone()
    with torch.no_grad():
        total, narrow, normed = add_norm(x, delta if added else None, norm, dtype, wide=True)
        expected = x.double() + delta.double() if added else x.double()
        of_norm = (
            nn.functional.rms_norm(expected, (width,), norm.weight.double(), 1e-6)
            if kind == "rms"
            else nn.functional.layer_norm(
                expected, (width,), norm.weight.double(), norm.bias.double(), norm.eps
            )
        )
        assert torch.equal(x, before) and narrow.dtype == dtype
        torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(normed.double(), of_norm, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(narrow.double(), of_norm, rtol=tolerance, atol=tolerance)
        assert add_norm(x, delta, norm, dtype)[2] is None


@each_device
@pytest.mark.parametrize("width", [40, 2048, 8192])
@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("narrow", [torch.float16, torch.float32])
def test_the_gradient_of_a_norm_joins_the_streams(device, width, is_wide, narrow):
    torch.manual_seed(0)
    x, residual, norm = (
        torch.randn(2, 5, width, device=device),
        torch.randn(2, 5, width, device=device),
        Norm(width, device),
    )
    grad = torch.randn(2, 5, width, device=device).to(torch.float32 if is_wide else narrow)
    exact = x.double().requires_grad_()
    normed = nn.functional.rms_norm(exact, (width,), norm.weight.double(), 1e-6)
    (expected,) = torch.autograd.grad(normed, exact, grad.double())
    with torch.no_grad():
        found, in_narrow = norm_backward(x, norm, grad, residual, narrow)
        torch.testing.assert_close(
            found.double(), residual.double() + expected, rtol=1e-5, atol=1e-5
        )
        assert (
            torch.equal(in_narrow, found.to(narrow))
            and norm_backward(x, norm, grad, residual)[1] is None
        )


@each_device
def test_a_seeds_mask_is_the_same_for_the_gradient(device):
    dtype = torch.float16 if device == "cuda" else torch.float32
    ones = torch.ones(64, 4096, device=device, dtype=dtype)
    first, again, other = (dropout(ones, 0.25, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again) and set(first.unique().tolist()) == {
        0.0,
        torch.tensor(1 / 0.75, dtype=dtype).item(),
    }
    kept, of_other = first > 0, other > 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.005)
    assert (kept & of_other).float().mean().item() == pytest.approx(
        0.75**2, abs=0.005
    )  # of another seed: independent
    for shift in (1, 8, 4096):  # and so are neighbours
        pairs = kept.flatten()[shift:] & kept.flatten()[:-shift]
        assert pairs.float().mean().item() == pytest.approx(0.75**2, abs=0.005)
    onto = torch.full_like(ones, 2.0)
    assert dropout(ones, 0.25, 5, onto=onto) is onto
    torch.testing.assert_close(onto, first + 2)
    assert torch.equal(dropout(ones, 0.0, 5), ones)


@each_device
@pytest.mark.parametrize("experts", [8, 128, 200])
def test_the_chosen_experts_with_their_gradient(device, experts):
    torch.manual_seed(0)
    logits, grad, k = (
        torch.randn(37, experts, device=device) * 4,
        torch.randn(37, 6, device=device),
        6,
    )
    exact = logits.double().requires_grad_()
    values, places = exact.softmax(-1).topk(k)  # as transformers has it
    expected = values / values.sum(-1, keepdim=True)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    weights, index = choose_experts(logits, k)
    assert torch.equal(index, places)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)
    found = choose_experts_backward(grad, weights, index, experts)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@each_device
@pytest.mark.parametrize(
    ("tokens", "experts", "k"), [(1, 8, 2), (3, 8, 1), (37, 128, 8), (4000, 300, 8)]
)
def test_pairs_are_counted_experts_ordered_and_each_pair_has_a_slot_of_its_experts(
    device, tokens, experts, k
):
    torch.manual_seed(0)
    index = torch.rand(tokens, experts, device=device).pow(3).topk(k).indices
    load = count_loads(index, experts)
    wanted = index.flatten().bincount(minlength=experts)
    assert torch.equal(load.long(), wanted)
    assert torch.equal(
        order_loads(load), wanted.cpu().argsort(descending=True, stable=True).to(device)
    )
    ends = (wanted + 2).cumsum(0)  # two slots of padding each
    first, slots = ends - wanted - 2, int(ends[-1])
    slot_of_pair, pair, token = place_pairs(index, first, load, slots)
    places = slot_of_pair.flatten()
    assert len(places.unique()) == tokens * k  # none has another's
    assert ((places >= first[index.flatten()]) & (places < (ends - 2)[index.flatten()])).all()
    assert torch.equal(pair[places], torch.arange(tokens * k, device=device)) and torch.equal(
        token, pair // k
    )
    padding = torch.ones(slots, dtype=torch.bool, device=device)
    padding[places] = False
    assert not pair[padding].any()


@each_device
def test_equal_logits_choose_different_experts_and_no_number_is_seen(device):
    logits = torch.zeros(3, 128, device=device)
    weights, index = choose_experts(logits, 8)
    assert all(len(set(row)) == 8 for row in index.tolist())
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 8))
    logits[1, 77] = float("nan")
    weights, index = choose_experts(logits, 8)
    assert weights[1].isnan().all() and not weights[[0, 2]].isnan().any() and index.max() < 128


@pytest.mark.skipif(
    not importlib.util.find_spec("cuda"), reason="torch before 2.10 comes without CUDA's bindings"
)
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_the_kernels_compile(architecture):
    assert launch.compiled(architecture).startswith(b"\x7fELF")


@pytest.mark.skipif(
    not importlib.util.find_spec("cuda"), reason="torch before 2.10 comes without CUDA's bindings"
)
def test_a_kernel_that_does_not_compile_says_where(monkeypatch, tmp_path):
    (tmp_path / "fp16_vectors.cu").write_text("#define TWO 2\n")
    (tmp_path / "broken.cu").write_text('extern "C" __global__ void gate() {\nnonsense; }')
    monkeypatch.setattr(launch, "SOURCES", tmp_path)
    with pytest.raises(
        RuntimeError, match=r"expected code for sm_75.*broken\.cu\(2\): error: .*nonsense"
    ):
        launch.compiled("sm_75")


def test_a_cpu_has_no_kernels():
    assert not launch.is_ready(torch.device("cpu"))
