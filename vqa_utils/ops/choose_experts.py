"""Choose each token's experts: the router's k largest logits, and the softmax w over these.

    forward   w = softmax(logits[chosen])
    backward  d logits[chosen] = w * (g - <w, g>), 0 elsewhere, for the gradient g of w

transformers takes the softmax over all experts and divides by its sum over the chosen, which is
the same.
"""

import torch

from vqa_utils.ops.launch import WARP, is_ready, launch
from vqa_utils.ops.router_logits import Logits

# Of the kernels: a lane of a token's warp holds up to 8 logits, and one chosen expert
MOST_EXPERTS = 256
MOST_CHOSEN = 32
MOST_PARTS = 3  # of the logits


def choose_experts(logits: Logits, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose k experts per token.

    Args:
        logits: [T, E], of `router_logits`.

    Returns:
        The weights, which sum to 1, and the experts: [T, k] each, by descending logit.
    """
    parts, scale = logits
    first = parts[0]
    tokens, experts = first.shape
    device = first.device
    has_kernel = (
        first.dtype == torch.float32
        and all(part.stride(1) == 1 for part in parts)
        and k <= experts <= MOST_EXPERTS
        and k <= MOST_CHOSEN
        and is_ready(device)
    )
    if not has_kernel:
        values, index = (sum(parts[1:], start=first) * scale).topk(k)
        return values.softmax(-1), index
    weights = first.new_empty(tokens, k)
    index = first.new_empty(tokens, k, dtype=torch.long)
    of_parts: list[torch.Tensor | int | None] = []
    for part in parts:
        of_parts += [part, part.stride(0)]
    of_parts += [None, 0] * (MOST_PARTS - len(parts))
    # One warp per token
    args = (*of_parts, scale, weights, index, tokens, experts, k)
    launch("route", device, WARP * tokens, *args)
    return weights, index


def choose_experts_backward(
    grad: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, experts: int
) -> torch.Tensor:
    """Compute the gradient of the logits [T, E].

    Args:
        grad: [T, k], of the weights.
        weights: [T, k], of the forward.
        index: [T, k], of the forward.
        experts: E.
    """
    tokens, k = weights.shape
    device = weights.device
    is_fp32 = weights.dtype == grad.dtype == torch.float32
    if is_fp32 and k <= MOST_CHOSEN and is_ready(device):
        out = weights.new_empty(tokens, experts)
        args = (grad, weights, index, out, tokens, experts, k)
        launch("route_backward", device, WARP * tokens, *args)
        return out
    mean = (weights * grad).sum(-1, keepdim=True)  # [T, 1]
    of_chosen = (weights * (grad - mean)).to(weights.dtype)  # [T, k]
    return weights.new_zeros(tokens, experts).scatter_(1, index, of_chosen)
