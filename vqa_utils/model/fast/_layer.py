"""A decoder layer of Qwen3-VL's mixture of experts as one node of autograd.

transformers' layer is dozens of operations, each with a node, saved tensors and, under checkpointing, hooks: a host takes longer
to queue them than a GPU to compute them. Here the backward is written out: what it does not need is not kept, what it can take
from the forward (routing, dropout's seed) is not made again, and under checkpointing the first half alone is computed twice.
"""

import types
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vqa_utils.model.fast._attention import attend, has_cache
from vqa_utils.model.fast._lora import Projection, projection_of
from vqa_utils.model.nf4 import forward as experts
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.ops.heads import HeadNorms, split_heads, split_heads_backward
from vqa_utils.ops.norms import add_norm, norm_backward
from vqa_utils.ops.routing import Routing, choose_experts, choose_experts_backward

Angles = tuple[torch.Tensor, torch.Tensor]


def use_fast_layers(model: nn.Module) -> None:
    """Give the layers whose q, k, v and o have lean LoRA the forward below.

    Layers that were to be checkpointed are from now on computed again by it, and not by transformers.
    """
    for module in model.modules():
        if type(module).__name__ == "Qwen3VLMoeTextDecoderLayer" and _projections(module):
            module.is_checkpointed, module.gradient_checkpointing = (
                module.gradient_checkpointing,
                False,
            )
            module.forward = types.MethodType(_forward, module)


def _projections(layer: nn.Module) -> tuple[Projection, Projection] | None:
    """Of q, k and v, and of o."""
    attention = layer.self_attn
    if not isinstance(getattr(layer.mlp, "experts", None), NF4Experts):
        return None
    found = (
        projection_of((attention.q_proj, attention.k_proj, attention.v_proj)),
        projection_of((attention.o_proj,)),
    )
    return found if all(found) else None


def _forward(
    self: nn.Module,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_embeddings: Angles | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """As transformers calls it: hidden_states [B, L, H]; with a cache, or an adapter that was merged, it is transformers' own.

    It stands in the place of accelerate's hook too, which would copy mask and angles to another GPU once a layer.
    """
    device = self.input_layernorm.weight.device
    hidden_states, mask = hidden_states.to(device), _on(device, attention_mask)
    angles = tuple(_on(device, part) for part in position_embeddings)
    projections = _projections(self)
    if projections is None or has_cache(kwargs):
        return type(self).forward(
            self, hidden_states, attention_mask=mask, position_embeddings=angles, **kwargs
        )
    seeds, learns = [each.draw_seed() for each in projections], torch.is_grad_enabled()
    layer = Layer(self, *projections, mask, angles, seeds, learns)
    if learns:
        return _Compute.apply(hidden_states, layer, not self.is_checkpointed, *layer.weights)
    with torch.autocast(hidden_states.device.type, enabled=False):
        return layer.forward(hidden_states)[0]


def _on(device: torch.device, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """What all layers share, on a layer's device: one copy for all of them, kept with the tensor."""
    if tensor is None or tensor.device == device:
        return tensor
    if getattr(tensor, "elsewhere", None) is None or tensor.elsewhere.device != device:
        tensor.elsewhere = tensor.to(device)
    return tensor.elsewhere


@dataclass
class Attended:
    """What the attention's half leaves for the backward, [B, L, ...] but for what A makes, which is [T, R]."""

    projected: tuple[torch.Tensor, torch.Tensor]
    """q, k and v's LoRA input, and what A made of it"""
    qkv: torch.Tensor
    heads: tuple[torch.Tensor, ...]
    """q, k and v as autograd's leaves"""
    attended: torch.Tensor
    """with the graph from these"""
    out: tuple[torch.Tensor, torch.Tensor]
    """as `projected`, of o"""
    stream: torch.Tensor
    """the residual stream between the halves"""
    normed: torch.Tensor
    """what the experts get"""


@dataclass
class Routed:
    """Where the tokens went: [T, k] each, and the slots."""

    weights: torch.Tensor
    index: torch.Tensor
    routing: Routing


@dataclass
class Layer:
    """A decoder layer and what it is given beside the stream; autograd has a part in the attention alone."""

    module: nn.Module
    qkv: Projection
    out: Projection
    mask: torch.Tensor | None
    angles: Angles
    seeds: list[int | None]
    """of the dropout in front of each projection's A"""
    learns: bool
    """whether there will be a backward"""

    @property
    def weights(self) -> list[nn.Parameter]:
        """What learns."""
        return [*self.qkv.weights, *self.out.weights]

    def forward(
        self, x: torch.Tensor, *, keep: bool = False
    ) -> tuple[torch.Tensor, Attended | None, Routed]:
        """The stream [B, L, H] behind the layer."""
        kept, stream, normed, normed_wide = self.attention_half(x, keep=keep, wide=True)
        logits = F.linear(normed_wide.flatten(0, -2), self.module.mlp.gate.weight)
        del normed_wide
        weights, index = choose_experts(logits, self.module.mlp.gate.top_k)
        routed = Routed(weights, index, experts.routed(index, self.module.mlp.experts))
        rows = normed.flatten(0, -2)
        y = experts.compute(
            rows,
            routed.weights,
            routed.routing,
            self.module.mlp.experts,
            onto=stream.flatten(0, -2),
        )
        return y.view_as(x), kept, routed

    def attention_half(
        self, x: torch.Tensor, *, keep: bool, wide: bool = False
    ) -> tuple[Attended | None, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What the backward needs, where `keep`; the stream behind the attention; its norm, and where `wide` that in x's type."""
        dtype, norms = self.module.mlp.experts.compute_dtype, HeadNorms.of(self.module.self_attn)
        _, normed, _ = add_norm(x, None, self.module.input_layernorm, dtype)
        qkv, *projected = self.qkv.forward(normed, self.seeds[0], keep=keep, merge=not self.learns)
        del normed
        heads = split_heads(qkv, norms, *self.angles)
        qkv = qkv if keep else None  # here and below: what nothing reads any more makes room
        if keep:
            heads = tuple(part.requires_grad_() for part in heads)
        with torch.set_grad_enabled(keep):
            attended = attend(*heads, self.mask, self.module.self_attn.scaling).flatten(2)
        heads = heads if keep else None
        delta, *out = self.out.forward(
            attended.detach(), self.seeds[1], keep=keep, merge=not self.learns
        )
        attended = attended if keep else None
        stream, normed, normed_wide = add_norm(
            x, delta, self.module.post_attention_layernorm, dtype, wide=wide
        )
        kept = (
            Attended(tuple(projected), qkv, heads, attended, tuple(out), stream, normed)
            if keep
            else None
        )
        return kept, stream, normed, normed_wide

    def backward(
        self, grad: torch.Tensor, x: torch.Tensor, kept: Attended, routed: Routed, *, needs_x: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """The gradients of x and of what learns from that of `forward`'s stream [B, L, H]."""
        grad = grad.contiguous()
        grad_stream, narrow = self._backward_of_experts(grad, kept, routed)
        grad_attended, of_out = self.out.backward(narrow, *kept.out, self.seeds[1])
        grads = torch.autograd.grad(kept.attended, kept.heads, grad_attended)
        grad_qkv = split_heads_backward(
            grads, kept.qkv, HeadNorms.of(self.module.self_attn), *self.angles
        )
        grad_normed, of_qkv = self.qkv.backward(
            grad_qkv, *kept.projected, self.seeds[0], needs_x=needs_x
        )
        grad_x = (
            norm_backward(x, self.module.input_layernorm, grad_normed, grad_stream)[0]
            if needs_x
            else None
        )
        return grad_x, [*of_qkv, *of_out]

    def _backward_of_experts(
        self, grad: torch.Tensor, kept: Attended, routed: Routed
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the stream between the halves, and that in the matrices' type."""
        module = self.module.mlp
        rows = kept.normed.flatten(0, -2)
        grad_normed, grad_weights = experts.gradients(
            grad.flatten(0, -2), rows, routed.weights, routed.routing, module.experts
        )
        grad_logits = choose_experts_backward(
            grad_weights, routed.weights, routed.index, module.experts.num_experts
        )
        grad_normed = torch.addmm(
            grad_normed.to(module.gate.weight.dtype), grad_logits, module.gate.weight
        ).view_as(grad)
        return norm_backward(
            kept.stream, self.module.post_attention_layernorm, grad_normed, grad, rows.dtype
        )


class _Compute(torch.autograd.Function):
    """`Layer.forward` with its gradients; what is not kept is computed again, as far as the experts."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, keep: bool, *weights: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y, kept, routed = layer.forward(x, keep=keep and any(ctx.needs_input_grad))
        ctx.save_for_backward(x)
        ctx.layer, ctx.kept, ctx.routed = layer, kept, routed
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,), layer, needs_x = ctx.saved_tensors, ctx.layer, ctx.needs_input_grad[0]
        kept, routed, ctx.kept, ctx.routed = (
            ctx.kept,
            ctx.routed,
            None,
            None,
        )  # gone with this layer, not with the whole graph
        if routed is None:
            raise RuntimeError(
                "expected one backward through a layer, found a second: what it needs is dropped in the first"
            )
        with torch.autocast(x.device.type, enabled=False):
            kept = kept or layer.attention_half(x, keep=True)[0]
            grad_x, grads = layer.backward(grad, x, kept, routed, needs_x=needs_x)
        return grad_x, None, None, *grads
