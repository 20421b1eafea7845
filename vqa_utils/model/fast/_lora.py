"""Compute LoRA beside 4-bit matrices in few launches and few bytes, on PEFT's own layers.

PEFT copies the base's output, then adds the scaled update as a tensor of its own: three passes
over the widest activation of the layer. Here the product that makes the update adds it into the
base's output; where nothing is dropped and nothing learns, it is added into the matrix itself.
Layers with the same input, such as q, k and v, are one product with one dropout mask. The 16-bit
copies of A and B are made once per optimizer step, not in each pass. The scales of adapted
matrices are kept dense (0.36 bits a weight more), as two of the three launches that dequantise a
matrix are for them.
"""

import operator
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from bitsandbytes.functional import QuantState
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from vqa_utils.nf4_format import BLOCK
from vqa_utils.ops.dequantize import Packed, dequantize
from vqa_utils.ops.dropout import draw_seed, dropout

_fast_layers: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # whose copies a step makes old


def has_plain_lora(module: nn.Module) -> bool:
    """Whether a module is a 4-bit layer with one active adapter of plain LoRA."""
    return (
        isinstance(module, LoraLinear4bit)
        and len(module.active_adapters) == 1
        and not module.lora_variant
    )


def prepare_lora_layer(layer: LoraLinear4bit) -> None:
    """Make a layer ready for `lora_forward`: dense scales, hooks that drop copies of A and B."""
    _make_scales_dense(layer.get_base_layer().weight.quant_state)
    layer.projections = {}  # the products that it takes part in, by their layers
    layer.register_load_state_dict_post_hook(_after_loading)
    _fast_layers.add(layer)


def lora_forward(self: LoraLinear4bit, x: torch.Tensor) -> torch.Tensor:
    """Replace the forward of PEFT's 4-bit layer; where `projection_of` has none, call PEFT's.

    Args:
        x: [..., in]

    Returns:
        [..., out]
    """
    projection = projection_of((self,))
    if projection is None:
        return type(self).forward(self, x)
    return _apply(projection, x)


def project(layers: tuple[nn.Module, ...], x: torch.Tensor) -> torch.Tensor:
    """Return the layers' outputs for the same x [..., in], side by side: [..., all out]."""
    projection = projection_of(layers)
    if projection is None:
        return torch.cat([layer(x) for layer in layers], -1)
    return _apply(projection, x)


def _apply(projection: "Projection", x: torch.Tensor) -> torch.Tensor:
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    use = projection.next_use()
    if torch.is_grad_enabled():
        return _Project.apply(x, projection, use, *use.parameters)
    return projection.forward(x, use, merge=True).y


def projection_of(layers: tuple[nn.Module, ...]) -> "Projection | None":
    """Return the product of these layers, made when it is first asked for.

    None where one layer has no fast LoRA or is merged, or where the layers differ in adapter or
    scaling. Asked twice a decoder layer and forward, so it reads plain attributes alone.
    """
    first = layers[0]
    adapter = _plain_adapter(first)
    if adapter is None:
        return None
    for layer in layers[1:]:
        is_alike = (
            _plain_adapter(layer) == adapter
            and layer.scaling[adapter] == first.scaling[adapter]
            and layer.disable_adapters == first.disable_adapters
        )
        if not is_alike:
            return None
    projection = first.projections.get(layers)
    if projection is None:
        projection = Projection(layers)
        for layer in layers:
            layer.projections[layers] = projection
    projection.follow_base()
    return projection


def _plain_adapter(layer: nn.Module) -> str | None:
    """Return the layer's one active, plain, unmerged adapter; None leaves it to PEFT's forward."""
    if not hasattr(layer, "projections") or layer.merged_adapters:
        return None
    active = layer.active_adapters
    if len(active) != 1 or active[0] not in layer.scaling or active[0] in layer.lora_variant:
        return None
    return active[0]


def forget_copies(layer: nn.Module) -> None:
    """Drop the copies of A and B in all products that a layer takes part in.

    To be called after anything that writes into A or B. Optimizers and `load_state_dict` (so
    PEFT's loading too) do so by the two hooks below; who writes in another way calls it.
    """
    for projection in layer.projections.values():
        projection.copies = None


def _after_loading(layer: nn.Module, keys: Any) -> None:
    forget_copies(layer)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for layer in list(_fast_layers):
        forget_copies(layer)


# On the steps of all optimizers, bitsandbytes' among them, which leave no trace in autograd's
# version counters: no training loop can forget to say that it stepped
register_optimizer_step_post_hook(_after_step)


def _make_scales_dense(state: QuantState) -> None:
    """Undo double quantisation: the same numbers in fp32, [blocks]."""
    if not state.nested:
        return
    state.absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    state.nested = False
    state.state2 = None
    state.offset = None


class Use(NamedTuple):
    """How one forward uses a projection, for its recomputation and its backward to do the same."""

    adapter: str | None
    """None where adapters are off"""
    parameters: tuple[nn.Parameter, ...] = ()
    """each A [r, in], then each B [out, r]; none where adapters are off"""
    dropout: float = 0.0
    """the probability to drop a value in front of A"""
    seed: int | None = None
    """of the dropout's mask; None where nothing is dropped"""


class Projected(NamedTuple):
    """What `Projection.forward` computes."""

    y: torch.Tensor
    """[..., all out]"""
    dropped: torch.Tensor | None = None
    """[..., in], the input of A after dropout"""
    low: torch.Tensor | None = None
    """[T, R], what A made of it"""


class Copies(NamedTuple):
    """A and B of one adapter in the type of the products, made from fp32 parameters."""

    a: torch.Tensor
    """[R, in]"""
    b: torch.Tensor
    """[all out, R], scaled"""
    scaling: torch.Tensor
    """[1] in fp32, on the parameters' device"""
    made_from: tuple[nn.Parameter, ...]
    dtype: torch.dtype
    """of a and b"""
    factor: float
    """the scaling"""

    def are_of(self, use: Use, dtype: torch.dtype, factor: float) -> bool:
        """Whether these are copies of these parameters; their values are not compared."""
        if self.dtype != dtype or self.factor != factor:
            return False
        has_as_many = len(self.made_from) == len(use.parameters)
        return has_as_many and all(map(operator.is_, self.made_from, use.parameters))


class Projection:
    """Layers with the same input, computed as one product: y = x W^T + bias + dropout(x) A^T B^T.

    W [all out, in] are their frozen matrices, one below the other, and A [R, in] their LoRA
    matrices A, with R the sum of their ranks r. B [all out, R] has their LoRA matrices B times the
    scaling on its diagonal and zeros elsewhere; for q, k and v:

                 r     r     r
              +-----+-----+-----+
        out q | B_q |  0  |  0  |
              +-----+-----+-----+
        out k |  0  | B_k |  0  |
              +-----+-----+-----+
        out v |  0  |  0  | B_v |
              +-----+-----+-----+

    Two things here are copies, and each has its owner:
      - packed is W; the base layers' own weights become views of it, so nothing is kept twice.
        Merging an adapter puts new parameters in their places; `follow_base` sees this and packs
        anew.
      - copies are A and B in the type of the products. Whatever writes into A or B drops them, by
        `forget_copies`. Another adapter, replaced parameters, another scaling and another type are
        seen when copies are asked for.
    """

    def __init__(self, layers: Sequence[LoraLinear4bit]):
        """Lay the layers' frozen weights side by side; their own weights become views of this."""
        self.layers = tuple(layers)
        self.bases = [layer.get_base_layer() for layer in layers]
        self.widths = [base.out_features for base in self.bases]
        self.shape = (sum(self.widths), self.bases[0].in_features)  # of W
        self.copies: Copies | None = None
        self._pack()

    def follow_base(self) -> None:
        """Pack anew where a base layer has another parameter than when it was packed."""
        for base, weight in zip(self.bases, self.weights, strict=True):
            if base.weight is not weight:
                self._pack()
                return

    def _pack(self) -> None:
        self.weights = [base.weight for base in self.bases]  # packed, two weights a byte
        states = [weight.quant_state for weight in self.weights]
        for state in states:
            _make_scales_dense(state)  # a merged weight is double-quantised again
        packed = _joined([weight.data for weight in self.weights])  # [all out * in / 2]
        absmax = _joined([state.absmax for state in states])  # [all out * in / BLOCK]
        self.packed = Packed(packed[None], absmax[None])
        columns = self.shape[1]
        parts = packed.split([width * columns // 2 for width in self.widths])
        scales = absmax.split([width * columns // BLOCK for width in self.widths])
        for number, weight in enumerate(self.weights):
            weight.data = parts[number].view(weight.shape)
            states[number].absmax = scales[number]
        self.bias = None  # or [all out]
        if self.bases[0].bias is not None:
            self.bias = torch.cat([base.bias for base in self.bases])

    def next_use(self) -> Use:
        """Decide how the next forward uses the layers: its adapter and its dropout mask."""
        first = self.layers[0]
        if first.disable_adapters:
            return Use(None)
        (adapter,) = first.active_adapters
        a = [layer.lora_A[adapter].weight for layer in self.layers]
        b = [layer.lora_B[adapter].weight for layer in self.layers]
        module = first.lora_dropout[adapter]
        if isinstance(module, nn.Dropout) and module.p and first.training:
            return Use(adapter, (*a, *b), module.p, draw_seed())
        return Use(adapter, (*a, *b))

    def forward(
        self, x: torch.Tensor, use: Use, *, keep: bool = False, merge: bool = False
    ) -> Projected:
        """Compute the product for x [..., in], without autograd.

        Args:
            x: in the type of the products.
            use: of this forward.
            keep: whether the result has what the backward needs beside y.
            merge: where nothing is dropped, the update may be added into W, which is less work for
                many rows.
        """
        dense = self._dense(x.dtype)  # [all out, in]
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if use.adapter is None:
            return Projected(F.linear(x, dense, bias))
        copies = self._copies(use, x.dtype)
        in_width = copies.a.shape[1]
        # With more rows in x than columns in W, adding to W is less work than adding to y
        has_more_rows_than_columns = x.numel() > in_width**2
        if merge and use.seed is None and has_more_rows_than_columns:
            return Projected(F.linear(x, dense.addmm_(copies.b, copies.a), bias))
        dropped = x if use.seed is None else dropout(x, use.dropout, use.seed)  # [..., in]
        low = dropped.flatten(0, -2) @ copies.a.T  # [T, R]
        y = F.linear(x, dense, bias)  # [..., all out]
        y.view(-1, y.shape[-1]).addmm_(low, copies.b.T)
        return Projected(y, dropped, low) if keep else Projected(y)

    def backward(
        self,
        grad: torch.Tensor,
        use: Use,
        dropped: torch.Tensor | None,
        low: torch.Tensor | None,
        *,
        needs_x: bool = True,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Compute the gradients of x [..., in] and of the parameters (in fp32) from that of y.

        Args:
            grad: [..., all out]
            use: of the forward.
            dropped: as the forward kept it.
            low: as the forward kept it.
            needs_x: otherwise the first result is None.
        """
        if use.adapter is None or dropped is None or low is None:
            return grad @ self._dense(grad.dtype), []
        copies = self._copies(use, low.dtype)
        grad = grad.flatten(0, -2)  # [T, all out]
        grad_low = grad @ copies.b  # [T, R]
        ranks = [layer.r[use.adapter] for layer in self.layers]
        grads_a = (grad_low.T @ dropped.flatten(0, -2)).float().split(ranks)  # [r, in] each
        # The fp32 scaling makes the result fp32
        grad_b = (grad.T @ low) * copies.scaling  # [all out, R]
        grads_b = []
        for layer, rows in enumerate(grad_b.split(self.widths)):
            grads_b.append(rows.split(ranks, dim=1)[layer])  # [out, r], a block of the diagonal
        grads = [*grads_a, *grads_b]
        if not needs_x:
            return None, grads
        grad_x = grad @ self._dense(low.dtype)  # [T, in]
        if use.seed is None:
            return grad_x.addmm_(grad_low, copies.a).view_as(dropped), grads
        grad_dropped = grad_low @ copies.a  # [T, in]
        grad_x = dropout(grad_dropped, use.dropout, use.seed, onto=grad_x)
        return grad_x.view_as(dropped), grads

    def _dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Dequantise W, [all out, in]."""
        (dense,) = dequantize([self.packed], None, dtype)
        return dense.view(self.shape)

    def _copies(self, use: Use, dtype: torch.dtype) -> Copies:
        """Return the used A and B in `dtype`, made anew where they were dropped."""
        factor = self.layers[0].scaling[use.adapter]
        if self.copies is not None and self.copies.are_of(use, dtype, factor):
            return self.copies
        held = [parameter.detach() for parameter in use.parameters]
        a = held[: len(self.layers)]
        b = held[len(self.layers) :]
        self.copies = Copies(
            torch.cat(a).to(dtype),
            (torch.block_diag(*b) * factor).to(dtype),
            a[0].new_tensor([factor]),
            use.parameters,
            dtype,
            factor,
        )
        return self.copies


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One after the other, flat; a single tensor is not copied."""
    if len(tensors) == 1:
        return tensors[0].flatten()
    return torch.cat([tensor.flatten() for tensor in tensors])


class _Project(torch.autograd.Function):
    """`Projection.forward` with its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, projection: Projection, use: Use, *parameters: torch.Tensor
    ) -> torch.Tensor:
        y, dropped, low = projection.forward(x, use, keep=True)
        ctx.save_for_backward(dropped, low)
        ctx.projection = projection
        ctx.use = use
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dropped, low = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        grad_x, grads = ctx.projection.backward(grad, ctx.use, dropped, low, needs_x=needs_x)
        return grad_x, None, None, *grads
