"""The experts' gate: act_fn(gate) * up * the router's weight, forward and backward, in one pass over memory each."""

import torch
from torch import nn

from vqa_utils.ops._launch import EIGHT, is_ready, launch


def gate(
    gate_up: torch.Tensor, weights: torch.Tensor, pair: torch.Tensor, act_fn: nn.Module
) -> torch.Tensor:
    """Gated rows, act_fn(gate) * up * weight: [rows, width].

    Args:
        gate_up: [rows, 2 * width]
        weights: the router's; row r has the flat place pair[r] there.
    """
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    if _gates(gate_up, weights, act_fn):
        h = gate_up.new_empty(rows, width)
        launch("gate", h.device, h.numel() // EIGHT, gate_up, weights, pair, h, rows, width)
        return h
    gate, up = gate_up.chunk(2, dim=-1)
    return act_fn(gate).mul_(up).mul_(weights.flatten()[pair, None])


def gate_backward(
    gate_up: torch.Tensor,
    back: torch.Tensor,
    weights: torch.Tensor,
    pair: torch.Tensor,
    act_fn: nn.Module,
    dots: torch.Tensor,
) -> torch.Tensor:
    """The gradient of gate_up for h's gradient `back` [rows, width]; both may be overwritten.

    Args:
        dots: [rows] fp32, gets the gradient of each row's weight: <back, act_fn(gate) * up>.
    """
    rows, width = back.shape
    if _gates(gate_up, weights, act_fn):
        launch(
            "gate_backward", back.device, rows * 32, gate_up, back, weights, pair, dots, rows, width
        )
        return gate_up
    gate, up = gate_up.chunk(2, dim=-1)
    with torch.enable_grad():
        activated = act_fn(gate.requires_grad_())
    torch.sum(back.float() * (activated.detach() * up), -1, out=dots)
    back = back.mul_(weights.flatten()[pair, None])
    (grad_gate,) = torch.autograd.grad(activated, gate, back * up)
    return torch.cat([grad_gate, back.mul_(activated.detach())], -1)


def _gates(gate_up: torch.Tensor, weights: torch.Tensor, act_fn: nn.Module) -> bool:
    is_silu = type(act_fn).__name__ in ("SiLU", "SiLUActivation")
    fits = (
        gate_up.dtype == torch.float16
        and weights.dtype == torch.float32
        and gate_up.shape[1] % (2 * EIGHT) == 0
    )
    return is_silu and fits and is_ready(gate_up.device)
