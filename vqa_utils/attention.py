"""The language model's attention with fewer launches: its rotary embedding is three kernels a tensor, forward and backward."""

import types
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vqa_utils.kernels import EIGHT
from vqa_utils.launch import is_ready, launch
from vqa_utils.lora import project


def use_lean_attention(model: nn.Module) -> None:
    """Give the attention of Qwen3-VL's language models, dense and mixture of experts, the forward below."""
    for module in model.modules():
        if type(module).__name__ in ("Qwen3VLTextAttention", "Qwen3VLMoeTextAttention"):
            module.forward = types.MethodType(_attention, module)


def _attention(
    self: nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: hidden_states [B, L, H], cosines and sines [B, L, d]; with a cache it is transformers' own."""
    if any(kwargs.get(name) is not None for name in ("cache", "past_key_values")):
        return type(self).forward(self, hidden_states, position_embeddings, attention_mask, **kwargs)
    heads = (*hidden_states.shape[:-1], -1, self.head_dim)
    projected = project((self.q_proj, self.k_proj, self.v_proj), hidden_states)
    query, key, value = (part.view(heads) for part in projected)
    query, key = (norm_rotate(part, norm, *position_embeddings) for norm, part in ((self.q_norm, query), (self.k_norm, key)))
    parts = (part.transpose(1, 2) for part in (query, key, value))
    attended, _ = sdpa_attention_forward(self, *parts, attention_mask, scaling=self.scaling)
    return self.o_proj(attended.flatten(2)), None


def norm_rotate(x: torch.Tensor, norm: nn.Module, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads [B, L, heads, d] after their norm and their rotary embedding; cosines and sines [B, L, d]."""
    if x.dtype == torch.float16 and x.shape[-1] in (64, 128, 256) and is_ready(x.device):
        return NormRotate.apply(x, norm.weight, norm.variance_epsilon, cos, sin)
    return Rotate.apply(norm(x), cos[:, :, None], sin[:, :, None], 1)


class Rotate(torch.autograd.Function):
    """x cos + (-x2, x1) sin, with x1 and x2 the halves of x: a rotation, whose backward is the one by the negative angle."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
        """For x [B, L, heads, d]; cos and sin [B, L, 1, d], with equal halves."""
        ctx.save_for_backward(cos, sin)
        ctx.sign, half = sign, x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return Rotate.apply(grad, *ctx.saved_tensors, -ctx.sign), None, None, None


class NormRotate(torch.autograd.Function):
    """Each head's RMS norm, then its rotary embedding: one kernel forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """For x [B, L, heads, d] in fp16; the norm's frozen weight [d]; cos and sin [B, L, d], with equal halves."""
        batch, length, heads, d = x.shape
        if x.stride() != (length * x.stride(1), x.stride(1), d, 1):  # rows may lie apart, as in a product with other heads
            x = x.contiguous()
        cos, sin, weight = cos.contiguous(), sin.contiguous(), weight.float()
        ctx.save_for_backward(x, cos, sin, weight)
        ctx.sizes = (batch * length * heads, heads, d // EIGHT, eps)
        y = x.new_empty(x.shape)
        launch("norm_rotate", x.device, x.numel() // EIGHT, x, x.stride(1), weight, cos, sin, y, *ctx.sizes)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, cos, sin, weight = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        grad_x, lies = x.new_empty(x.shape), (*grad.stride()[:3], grad.shape[1])
        args = (grad, *lies, x, x.stride(1), weight, cos, sin, grad_x, *ctx.sizes)
        launch("norm_rotate_backward", x.device, x.numel() // EIGHT, *args)
        return grad_x, None, None, None, None
