"""Gate the experts' hidden values, in one pass over memory forward and one backward.

    forward   h = act(gate) * up * w
    backward  d gate = d h * up * w * act'(gate)
              d up   = d h * act(gate) * w
              d w    = <d h, act(gate) * up>, over a row

gate and up lie side by side in gate_up [rows, 2 * width]; w is the router's weight of a row.
"""

# If the bytes change, change `forecasting/_kernels.py` (expert slots) and `planning/activations.py`
# (experts' temporaries) too

import torch
from torch import nn

from vqa_utils.ops.launch import EIGHT, WARP, is_ready, launch


def gate(
    gate_up: torch.Tensor, weights: torch.Tensor, pair: torch.Tensor, act_fn: nn.Module
) -> torch.Tensor:
    """Compute h [rows, width].

    Args:
        gate_up: [rows, 2 * width]
        weights: [T, k], the router's.
        pair: [rows], the flat place of a row's weight in `weights`.
        act_fn: the activation; the kernel knows SiLU.
    """
    rows, two_widths = gate_up.shape
    width = two_widths // 2
    if _has_kernel(gate_up, weights, act_fn):
        h = gate_up.new_empty(rows, width)
        launch("gate", h.device, h.numel() // EIGHT, gate_up, weights, pair, h, rows, width)
        return h
    gate, up = gate_up.chunk(2, dim=-1)
    # The weights as [rows, 1]; in place, fp32 weights leave the result in gate_up's type
    return act_fn(gate).mul_(up).mul_(weights.flatten()[pair, None])


def gate_backward(
    gate_up: torch.Tensor,
    back: torch.Tensor,
    weights: torch.Tensor,
    pair: torch.Tensor,
    act_fn: nn.Module,
    dots: torch.Tensor,
) -> torch.Tensor:
    """Compute the gradient of gate_up, [rows, 2 * width].

    Args:
        gate_up: [rows, 2 * width]; may be overwritten.
        back: [rows, width], the gradient of h; may be overwritten.
        weights: as of `gate`.
        pair: as of `gate`.
        act_fn: as of `gate`.
        dots: [rows] fp32, gets the gradient of each row's weight.
    """
    rows, width = back.shape
    if _has_kernel(gate_up, weights, act_fn):
        args = (gate_up, back, weights, pair, dots, rows, width)
        launch("gate_backward", back.device, rows * WARP, *args)
        return gate_up
    gate, up = gate_up.chunk(2, dim=-1)
    # Autograd differentiates the activation alone, whichever it is
    with torch.enable_grad():
        activated = act_fn(gate.requires_grad_())
    # Before the next line overwrites back: the weight's gradient is without the weight
    torch.sum(back.float() * (activated.detach() * up), -1, out=dots)
    back = back.mul_(weights.flatten()[pair, None])
    (grad_gate,) = torch.autograd.grad(activated, gate, back * up)
    grad_up = back.mul_(activated.detach())
    return torch.cat([grad_gate, grad_up], -1)


def _has_kernel(gate_up: torch.Tensor, weights: torch.Tensor, act_fn: nn.Module) -> bool:
    is_silu = type(act_fn).__name__ in ("SiLU", "SiLUActivation")
    has_types = gate_up.dtype == torch.float16 and weights.dtype == torch.float32
    has_eights = gate_up.shape[1] % (2 * EIGHT) == 0
    return is_silu and has_types and has_eights and is_ready(gate_up.device)
