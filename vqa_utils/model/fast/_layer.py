"""Compute a decoder layer of Qwen3-VL's mixture of experts as one node of autograd.

transformers' layer is dozens of operations, each with a node, saved tensors and, under activation
checkpointing, hooks: a host takes longer to queue them than a GPU to compute them. Here the
backward is written out. It keeps only what it needs, takes from the forward what it can (routing,
dropout's seed), and under checkpointing recomputes the attention's half alone:

    x -> norm -> q, k, v -> heads -> attention -> o -> + x = middle      the attention's half:
                                                                         recomputed in the backward
    middle -> norm -> router -> experts -> + middle = y                  the experts' half:
                                                                         computed once
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vqa_utils.model.fast._attention import as_bias, attend, has_cache
from vqa_utils.model.fast._lora import projection_of
from vqa_utils.model.fast._projection import Projection, Use
from vqa_utils.model.fast._shared import shared
from vqa_utils.model.nf4 import forward as experts
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.ops.choose_experts import choose_experts, choose_experts_backward
from vqa_utils.ops.expert_slots import Routing
from vqa_utils.ops.heads import HeadNorms, split_heads, split_heads_backward
from vqa_utils.ops.norms import add_norm, norm_backward

Angles = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, [B, L, d] each


def has_fast_parts(layer: nn.Module) -> bool:
    """Whether a layer has experts in NF4, and fast LoRA on its q, k, v and o."""
    return _projections(layer) is not None


def _projections(layer: nn.Module) -> tuple[Projection, Projection] | None:
    """Return the product of q, k and v, and that of o; None where one of them is not fast."""
    attention = layer.self_attn
    if not isinstance(getattr(layer.mlp, "experts", None), NF4Experts):
        return None
    qkv = projection_of((attention.q_proj, attention.k_proj, attention.v_proj))
    out = projection_of((attention.o_proj,))
    if qkv is None or out is None:
        return None
    return qkv, out


def prepare_layer(layer: nn.Module) -> None:
    """Take over activation checkpointing: the layer does its own recomputation."""
    layer.is_checkpointed = layer.gradient_checkpointing
    layer.gradient_checkpointing = False


def layer_forward(
    self: nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: Angles,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Replace a decoder layer's forward; with a cache or a merged adapter, call transformers' own.

    It replaces accelerate's hook too, which would copy mask and angles to another GPU once a layer.

    Args:
        hidden_states: [B, L, H], the residual stream.
        position_embeddings: cosines and sines, [B, L, d] each.
        attention_mask: [B, 1, L, L], or None for causal attention.

    Returns:
        [B, L, H], the residual stream behind the layer.
    """
    device = self.input_layernorm.weight.device
    hidden_states = hidden_states.to(device)
    mask = _on(device, attention_mask)
    cos, sin = position_embeddings
    angles = (_on(device, cos), _on(device, sin))
    projections = _projections(self)
    if projections is None or has_cache(kwargs):
        return type(self).forward(
            self, hidden_states, attention_mask=mask, position_embeddings=angles, **kwargs
        )
    qkv, out = projections
    layer = Layer(
        self,
        Used(qkv, qkv.next_use()),
        Used(out, out.next_use()),
        as_bias(mask, self.mlp.experts.compute_dtype),
        angles,
        learns=torch.is_grad_enabled(),
    )
    if layer.learns:
        return _Compute.apply(hidden_states, layer, not self.is_checkpointed, *layer.parameters)
    with torch.autocast(hidden_states.device.type, enabled=False):
        return layer.forward(hidden_states, keep=False).y


def _on(device: torch.device, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return a tensor on a layer's device; all layers of a forward share one copy."""
    if tensor is None or tensor.device == device:
        return tensor
    return shared(tensor, device, lambda tensor: tensor.to(device))


class Used(NamedTuple):
    """A projection, and how this forward uses it."""

    projection: Projection
    use: Use


class Attention(NamedTuple):
    """What the attention computes, and what its backward needs."""

    attended: torch.Tensor
    """[B, L, q_heads d], the output of autograd's graph where there will be a backward"""
    heads: tuple[torch.Tensor, ...] = ()
    """q, k and v [B, L, q_heads, d], the graph's leaves"""
    qkv: torch.Tensor | None = None
    """[B, L, (q_heads + 2 kv_heads) d]"""
    dropped: torch.Tensor | None = None
    """[B, L, H], the input of q, k and v's A"""
    low: torch.Tensor | None = None
    """[T, R], what A made of it"""


@dataclass
class Attended:
    """What the backward needs of the attention's half."""

    attention: Attention
    out_dropped: torch.Tensor | None
    """[B, L, q_heads d], the input of o's A"""
    out_low: torch.Tensor | None
    """[T, r], what A made of it"""
    middle: torch.Tensor
    """[B, L, H], the residual stream between the halves"""
    normed: torch.Tensor
    """[B, L, H], the input of the experts"""


class AttentionHalf(NamedTuple):
    """What the attention's half computes."""

    middle: torch.Tensor
    """[B, L, H], the residual stream behind it"""
    normed: torch.Tensor
    """[B, L, H], its norm in the type of the products, for the experts"""
    normed_wide: torch.Tensor | None
    """[B, L, H], its norm in the type of the residual stream, for the router"""
    kept: Attended | None


@dataclass
class Routed:
    """Where the tokens went."""

    weights: torch.Tensor
    """[T, k], the router's"""
    index: torch.Tensor
    """[T, k], the chosen experts"""
    routing: Routing


class LayerOutput(NamedTuple):
    """What a layer computes, and what its backward needs."""

    y: torch.Tensor
    """[B, L, H], the residual stream behind the layer"""
    kept: Attended | None
    routed: Routed


@dataclass
class Layer:
    """One forward of a decoder layer: the module with its inputs beside the residual stream.

    The arithmetic is written out for both directions; autograd has a part in the attention alone.
    """

    module: nn.Module
    qkv: Used
    out: Used
    bias: torch.Tensor | None
    """[B, 1, L, L], added to the attention's scores; None for causal attention"""
    angles: Angles
    learns: bool
    """whether there will be a backward"""

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """A and B of q, k and v, then those of o."""
        return (*self.qkv.use.parameters, *self.out.use.parameters)

    def forward(self, x: torch.Tensor, *, keep: bool) -> LayerOutput:
        """Compute the residual stream behind the layer from the one in front of it, x [B, L, H].

        Args:
            keep: whether the result has what the backward needs of the attention's half.
        """
        mlp = self.module.mlp
        middle, normed, normed_wide, kept = self.attention_half(x, keep=keep, wide=True)
        assert normed_wide is not None  # asked for
        # The router reads fp32, as model/fp16.py has it
        logits = F.linear(normed_wide.flatten(0, -2), mlp.gate.weight)  # [T, E]
        del normed_wide  # fp32 [B, L, H], which would lie beside the experts' dense weights
        weights, index = choose_experts(logits, mlp.gate.top_k)  # [T, k] each
        routing = experts.routed(index, mlp.experts)
        y = experts.compute(
            normed.flatten(0, -2), weights, routing, mlp.experts, onto=middle.flatten(0, -2)
        )  # [T, H]
        return LayerOutput(y.view_as(x), kept, Routed(weights, index, routing))

    def attention_half(self, x: torch.Tensor, *, keep: bool, wide: bool) -> AttentionHalf:
        """Compute the residual stream behind the attention, and its norms.

        Args:
            x: [B, L, H], the residual stream in front of the layer.
            keep: whether the result has what the backward needs.
            wide: whether the router's norm is made too.
        """
        attention = self._attention(x, keep=keep)
        delta, out_dropped, out_low = self.out.projection.forward(
            attention.attended.detach(), self.out.use, keep=keep, merge=not self.learns
        )  # [B, L, H]
        if not keep:
            del attention  # makes room for the norms
        norm = self.module.post_attention_layernorm
        middle, normed, normed_wide = add_norm(x, delta, norm, self._dtype, wide=wide)
        kept = None
        if keep:
            kept = Attended(attention, out_dropped, out_low, middle, normed)
        return AttentionHalf(middle, normed, normed_wide, kept)

    def _attention(self, x: torch.Tensor, *, keep: bool) -> Attention:
        """Norm x [B, L, H], make its heads, and attend.

        What nothing reads any more is dropped at once, so that the next line's result takes its
        place in memory.
        """
        _, normed, _ = add_norm(x, None, self.module.input_layernorm, self._dtype)  # [B, L, H]
        qkv, dropped, low = self.qkv.projection.forward(
            normed, self.qkv.use, keep=keep, merge=not self.learns
        )  # [B, L, (q_heads + 2 kv_heads) d]
        del normed
        q, k, v = split_heads(qkv, self._head_norms, *self.angles)  # [B, L, q_heads, d] each
        scaling = self.module.self_attn.scaling
        if not keep:
            del qkv
            return Attention(attend(q, k, v, self.bias, scaling).flatten(2))
        q.requires_grad_()
        k.requires_grad_()
        v.requires_grad_()
        with torch.enable_grad():
            attended = attend(q, k, v, self.bias, scaling).flatten(2)  # [B, L, q_heads d]
        return Attention(attended, (q, k, v), qkv, dropped, low)

    def backward(
        self, grad: torch.Tensor, x: torch.Tensor, kept: Attended, routed: Routed, *, needs_x: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Compute the gradients of x [B, L, H] and of `parameters` from that of y [B, L, H].

        Args:
            needs_x: otherwise the first result is None.
        """
        grad_middle, grad_delta = self._backward_of_experts(grad.contiguous(), kept, routed)
        grad_attended, grads_out = self.out.projection.backward(
            grad_delta, self.out.use, kept.out_dropped, kept.out_low
        )  # [B, L, q_heads d]
        attention = kept.attention
        grad_heads = torch.autograd.grad(attention.attended, attention.heads, grad_attended)
        assert attention.qkv is not None  # kept for the backward
        grad_qkv = split_heads_backward(grad_heads, attention.qkv, self._head_norms, *self.angles)
        grad_normed, grads_qkv = self.qkv.projection.backward(
            grad_qkv, self.qkv.use, attention.dropped, attention.low, needs_x=needs_x
        )  # [B, L, H]
        grads = [*grads_qkv, *grads_out]
        if not needs_x:
            return None, grads
        grad_x, _ = norm_backward(x, self.module.input_layernorm, grad_normed, grad_middle)
        return grad_x, grads

    def _backward_of_experts(
        self, grad: torch.Tensor, kept: Attended, routed: Routed
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradient of `middle`: in the residual stream's type, and in the products'."""
        mlp = self.module.mlp
        normed = kept.normed.flatten(0, -2)  # [T, H]
        grad_normed, grad_weights = experts.gradients(
            grad.flatten(0, -2), normed, routed.weights, routed.routing, mlp.experts
        )  # [T, H], [T, k]
        grad_logits = choose_experts_backward(
            grad_weights, routed.weights, routed.index, mlp.experts.num_experts
        )  # [T, E]
        # The norm feeds both: the experts and, through the logits, the router
        grad_normed = grad_normed.to(mlp.gate.weight.dtype)
        grad_normed = torch.addmm(grad_normed, grad_logits, mlp.gate.weight).view_as(grad)
        norm = self.module.post_attention_layernorm
        return norm_backward(kept.middle, norm, grad_normed, grad, normed.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """Of the products."""
        return self.module.mlp.experts.compute_dtype

    @property
    def _head_norms(self) -> HeadNorms:
        return HeadNorms.of(self.module.self_attn)


class _Compute(torch.autograd.Function):
    """`Layer.forward` with its gradients; the backward recomputes what was not kept."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, keep: bool, *parameters: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            output = layer.forward(x, keep=keep and any(ctx.needs_input_grad))
        ctx.save_for_backward(x)
        ctx.layer = layer
        ctx.kept = output.kept
        ctx.routed = output.routed
        return output.y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        kept, routed = ctx.kept, ctx.routed
        # What the layer kept goes with this layer's backward, not with the whole graph
        ctx.kept = ctx.routed = None
        if routed is None:
            raise RuntimeError(
                "expected one backward through a layer, found a second; "
                "what a layer kept is dropped in its first backward"
            )
        needs_x = ctx.needs_input_grad[0]
        with torch.autocast(x.device.type, enabled=False):
            if kept is None:
                kept = ctx.layer.attention_half(x, keep=True, wide=False).kept
            grad_x, grads = ctx.layer.backward(grad, x, kept, routed, needs_x=needs_x)
        return grad_x, None, None, *grads
