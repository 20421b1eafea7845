"""Compute a decoder layer of Qwen3-VL, a mixture or dense, as one node of autograd.

transformers' layer is dozens of operations, each with a node, saved tensors and, under activation
checkpointing, hooks: a host takes longer to queue them than a GPU to compute them. Here the
backward is written out. It saves only what it needs, takes from the forward what it can (routing,
dropout's seed), and under checkpointing recomputes only the attention half:

    x -> norm -> q, k, v -> heads -> attention -> o -> + x = middle      attention half:
                                                                         recomputed in the backward
    middle -> norm -> experts, or an MLP -> + middle = y                 second half: computed
                                                                         once (_second_half.py)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from vqa_utils.model.fast._attention import as_bias, attend, has_cache
from vqa_utils.model.fast._lora import projection_of
from vqa_utils.model.fast._projection import AdapterUse, Projection
from vqa_utils.model.fast._second_half import SecondHalf, second_half_of
from vqa_utils.model.fast._shared import shared
from vqa_utils.ops.heads import HeadNorms, split_heads, split_heads_backward
from vqa_utils.ops.norms import add_norm, norm_backward

Angles = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, [B, L, d] each


def has_fast_parts(layer: nn.Module) -> bool:
    """Tell whether a layer has fast LoRA on its q, k, v and o, and a second half in NF4."""
    return _projections(layer) is not None and second_half_of(layer.mlp) is not None


def _projections(layer: nn.Module) -> tuple[Projection, Projection] | None:
    """Return the product of q, k and v, and that of o; None if one of them is not fast."""
    attention = layer.self_attn
    qkv = projection_of((attention.q_proj, attention.k_proj, attention.v_proj))
    out = projection_of((attention.o_proj,))
    if qkv is None or out is None:
        return None
    return qkv, out


def prepare_layer(layer: nn.Module) -> None:
    """Take over activation checkpointing: the layer does its own recomputation."""
    layer.is_checkpointed = layer.gradient_checkpointing
    layer.gradient_checkpointing = False
    layer.second_half = second_half_of(layer.mlp)
    layer.second_half.prepare(layer.mlp)


def layer_forward(
    self: nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: Angles,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Replace a decoder layer's forward; with a cache or a merged adapter, call transformers' own.

    It replaces accelerate's hook too, which would copy mask and angles to another GPU once per
    layer.

    Args:
        hidden_states: [B, L, H], the residual stream.
        position_embeddings: cosines and sines, [B, L, d] each.
        attention_mask: [B, 1, L, L], or None for causal attention.

    Returns:
        [B, L, H], the residual stream after the layer.
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
        ProjectionUse(qkv, qkv.next_use()),
        ProjectionUse(out, out.next_use()),
        as_bias(mask, self.second_half.dtype),
        angles,
        needs_backward=torch.is_grad_enabled(),
    )
    if layer.needs_backward:
        return _Compute.apply(hidden_states, layer, not self.is_checkpointed, *layer.parameters)
    with torch.autocast(hidden_states.device.type, enabled=False):
        return layer.forward(hidden_states, save=False).y


def _on(device: torch.device, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return a tensor on a layer's device; all layers of a forward share one copy."""
    if tensor is None or tensor.device == device:
        return tensor
    return shared(tensor, device, lambda tensor: tensor.to(device))


class ProjectionUse(NamedTuple):
    """A projection, and its use in this forward."""

    projection: Projection
    use: AdapterUse


class AttentionOutput(NamedTuple):
    """The attention's output, and the tensors that its backward needs."""

    attended: torch.Tensor
    """[B, L, q_heads d], the output of autograd's graph if a backward follows"""
    heads: tuple[torch.Tensor, ...] = ()
    """q, k and v [B, L, q_heads, d], the graph's leaves"""
    qkv: torch.Tensor | None = None
    """[B, L, (q_heads + 2 kv_heads) d]"""
    dropped: torch.Tensor | None = None
    """[B, L, H], the input of q, k and v's A"""
    low: torch.Tensor | None = None
    """[T, R], A's output"""


@dataclass
class SavedAttentionHalf:
    """The attention half's tensors, saved for the backward."""

    attention: AttentionOutput
    out_dropped: torch.Tensor | None
    """[B, L, q_heads d], the input of o's A"""
    out_low: torch.Tensor | None
    """[T, r], A's output"""
    middle: torch.Tensor
    """[B, L, H], the residual stream between the halves"""
    normed: torch.Tensor
    """[B, L, H], the input of the experts"""


class AttentionHalfOutput(NamedTuple):
    """The attention half's output, and the tensors that its backward needs."""

    middle: torch.Tensor
    """[B, L, H], the residual stream after it"""
    normed: torch.Tensor
    """[B, L, H], its norm in the type of the products, for the experts"""
    rest: torch.Tensor | None
    """[B, L, H], what `normed` lacks of the norm, for the router"""
    saved: SavedAttentionHalf | None


class LayerOutput(NamedTuple):
    """A layer's output, and the tensors that its backward needs."""

    y: torch.Tensor
    """[B, L, H], the residual stream after the layer"""
    saved: SavedAttentionHalf | None
    saved_half: Any
    """Of the second half."""


@dataclass
class Layer:
    """One forward of a decoder layer: the module, and its inputs besides the residual stream.

    The arithmetic is written out for both directions; only the attention uses autograd.
    """

    module: nn.Module
    qkv: ProjectionUse
    out: ProjectionUse
    bias: torch.Tensor | None
    """[B, 1, L, L], added to the attention's scores; None for causal attention"""
    angles: Angles
    needs_backward: bool
    """True if a backward follows"""

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Return A and B of q, k and v, then those of o."""
        return (*self.qkv.use.parameters, *self.out.use.parameters)

    def forward(self, x: torch.Tensor, *, save: bool) -> LayerOutput:
        """Compute the residual stream after the layer from the one before it, x [B, L, H].

        Args:
            save: True to return the attention half's tensors for the backward too.
        """
        second_half = self._second_half
        middle, normed, rest, saved = self.attention_half(x, save=save, rest=second_half.reads_rest)
        saved_half = second_half.begin(normed, rest)
        del rest  # [B, L, H], which would lie beside dense weights
        y = second_half.forward(normed, saved_half, middle, save=save)
        return LayerOutput(y, saved, saved_half)

    def attention_half(self, x: torch.Tensor, *, save: bool, rest: bool) -> AttentionHalfOutput:
        """Compute the residual stream after the attention, and its norms.

        Args:
            x: [B, L, H], the residual stream before the layer.
            save: True to return the tensors for the backward too.
            rest: True to return what the norm for the router needs too.
        """
        attention = self._attention(x, save=save)
        delta, out_dropped, out_low = self.out.projection.forward(
            attention.attended.detach(), self.out.use, save=save, merge=not self.needs_backward
        )  # [B, L, H]
        if not save:
            del attention  # its memory is free for the norms
        norm = self.module.post_attention_layernorm
        middle, normed, lost = add_norm(x, delta, norm, self._dtype, rest=rest)
        saved = None
        if save:
            saved = SavedAttentionHalf(attention, out_dropped, out_low, middle, normed)
        return AttentionHalfOutput(middle, normed, lost, saved)

    def _attention(self, x: torch.Tensor, *, save: bool) -> AttentionOutput:
        """Norm x [B, L, H], make its heads, and attend.

        Each tensor is dropped after its last use, so that the next result can take its memory.
        """
        _, normed, _ = add_norm(x, None, self.module.input_layernorm, self._dtype)  # [B, L, H]
        qkv, dropped, low = self.qkv.projection.forward(
            normed, self.qkv.use, save=save, merge=not self.needs_backward
        )  # [B, L, (q_heads + 2 kv_heads) d]
        del normed
        q, k, v = split_heads(qkv, self._head_norms, *self.angles)  # [B, L, q_heads, d] each
        scaling = self.module.self_attn.scaling
        if not save:
            del qkv
            return AttentionOutput(attend(q, k, v, self.bias, scaling).flatten(2))
        q.requires_grad_()
        k.requires_grad_()
        v.requires_grad_()
        with torch.enable_grad():
            attended = attend(q, k, v, self.bias, scaling).flatten(2)  # [B, L, q_heads d]
        return AttentionOutput(attended, (q, k, v), qkv, dropped, low)

    def backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        saved: SavedAttentionHalf,
        saved_half: Any,
        *,
        needs_x: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Compute the gradients of x [B, L, H] and of `parameters` from that of y [B, L, H].

        Args:
            needs_x: otherwise the first result is None.
        """
        # [B, L, H] each: fp32 for the residual stream, fp16 for the product of o (on a GPU)
        grad_middle, grad_delta = self._backward_of_second_half(
            grad.contiguous(), saved, saved_half
        )
        grad_attended, grads_out = self.out.projection.backward(
            grad_delta, self.out.use, saved.out_dropped, saved.out_low
        )  # [B, L, q_heads d]
        attention = saved.attention
        # [B, L, q_heads, d] each
        grad_heads = torch.autograd.grad(attention.attended, attention.heads, grad_attended)
        assert attention.qkv is not None  # saved for the backward
        grad_qkv = split_heads_backward(grad_heads, attention.qkv, self._head_norms, *self.angles)
        grad_normed, grads_qkv = self.qkv.projection.backward(
            grad_qkv, self.qkv.use, attention.dropped, attention.low, needs_x=needs_x
        )  # [B, L, H]
        grads = [*grads_qkv, *grads_out]
        if not needs_x:
            return None, grads
        grad_x, _ = norm_backward(x, self.module.input_layernorm, grad_normed, grad_middle)
        return grad_x, grads

    def _backward_of_second_half(
        self, grad: torch.Tensor, saved: SavedAttentionHalf, saved_half: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradient of `middle`: in the residual stream's type, and in the products'."""
        grad_normed = self._second_half.gradient(grad, saved.normed, saved_half)
        norm = self.module.post_attention_layernorm
        # y = middle + half(norm(middle)), so grad itself goes on beside the norm's
        return norm_backward(saved.middle, norm, grad_normed, grad, self._dtype)

    @property
    def _second_half(self) -> SecondHalf:
        return self.module.second_half

    @property
    def _dtype(self) -> torch.dtype:
        """Return the type of the products."""
        return self._second_half.dtype

    @property
    def _head_norms(self) -> HeadNorms:
        return HeadNorms.of(self.module.self_attn)


class _Compute(torch.autograd.Function):
    """`Layer.forward` with its gradients; the backward recomputes what was not saved."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, save: bool, *parameters: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            output = layer.forward(x, save=save and any(ctx.needs_input_grad))
        ctx.save_for_backward(x)
        ctx.layer = layer
        ctx.saved = output.saved
        ctx.saved_half = output.saved_half
        return output.y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        layer, saved, saved_half = ctx.layer, ctx.saved, ctx.saved_half
        # Free the layer's tensors with this layer's backward, not with the complete graph
        ctx.layer = ctx.saved = ctx.saved_half = None
        if layer is None:
            raise RuntimeError(
                "expected one backward through a layer, found a second; "
                "a layer's saved tensors are dropped in its first backward"
            )
        needs_x = ctx.needs_input_grad[0]
        with torch.autocast(x.device.type, enabled=False):
            if saved is None:
                # The routing is kept, so the router's norm is not made again
                saved = layer.attention_half(x, save=True, rest=False).saved
            grad_x, grads = layer.backward(grad, x, saved, saved_half, needs_x=needs_x)
        return grad_x, None, None, *grads
