"""Compute what follows the attention in a decoder layer, in both directions and without autograd.

    middle -> norm -> router -> experts -> + middle = y     a mixture of experts
    middle -> norm -> gate, up -> down  -> + middle = y     one MLP, in 4 bits and without LoRA

The backward makes hidden values again from the norm; an MLP saves them in layers without activation
checkpointing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from bitsandbytes.functional import QuantState
from torch import nn

from vqa_utils.model.nf4 import forward as expert_math
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.nf4_format import GROUP
from vqa_utils.ops.choose_experts import choose_experts, choose_experts_backward
from vqa_utils.ops.dequantize import Packed, dequantize
from vqa_utils.ops.expert_slots import Routing
from vqa_utils.ops.gate import gate, gate_backward
from vqa_utils.ops.router_logits import router_logits, split_weight
from vqa_utils.planning.memory import chunks_of_rows

MATRICES = ("gate_proj", "up_proj", "down_proj")  # of an MLP


@dataclass
class SavedRouting:
    """The router's choice, saved for the backward."""

    weights: torch.Tensor
    """[T, k], of the chosen experts"""
    index: torch.Tensor
    """[T, k], the chosen experts"""
    routing: Routing


class SavedHidden(NamedTuple):
    """What an MLP saves for the backward."""

    hidden: list[torch.Tensor]
    """[T, 2w] of each chunk, gate and up side by side; [] if the backward makes them again"""


class SecondHalf(Protocol):
    """The second half of a layer; a class for each kind of it."""

    reads_rest: bool
    """True if it needs what the norm has lost in the type of the products"""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the products."""

    def begin(self, normed: torch.Tensor, rest: torch.Tensor | None) -> Any:
        """Choose the experts; return what the other methods take as `saved`.

        Args:
            normed: [B, L, H], the norm of `middle`, in the type of the products.
            rest: [B, L, H], what `normed` lacks of the norm.
        """

    def forward(
        self, normed: torch.Tensor, saved: Any, middle: torch.Tensor, *, save: bool
    ) -> torch.Tensor:
        """Compute the residual stream after the layer, [B, L, H].

        Args:
            normed: as of `begin`.
            saved: of `begin`.
            middle: [B, L, H], the residual stream between the halves.
            save: True to put more into `saved`, so that the backward need not make it again.
        """

    def gradient(self, grad: torch.Tensor, normed: torch.Tensor, saved: Any) -> torch.Tensor:
        """Compute the gradient of the norm [B, L, H] from that of the layer's output [B, L, H]."""


def second_half_of(mlp: nn.Module) -> SecondHalf | None:
    """Return the second half of a layer with this `mlp`; None if it is of another kind."""
    if isinstance(getattr(mlp, "experts", None), NF4Experts):
        return ExpertsHalf(mlp)
    if all(type(getattr(mlp, name, None)) is bnb.nn.Linear4bit for name in MATRICES):
        return MLPHalf(mlp)
    return None


class ExpertsHalf:
    """A router, and experts in NF4."""

    reads_rest = True

    def __init__(self, mlp: nn.Module):
        self.router = mlp.gate
        self.experts = mlp.experts

    @staticmethod
    def prepare(mlp: nn.Module) -> None:
        """Split the router's weight for its product."""
        # A plain attribute: no part of the state, and moved by nothing
        mlp.gate.split = split_weight(mlp.gate.weight)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the products."""
        return self.experts.compute_dtype

    def begin(self, normed: torch.Tensor, rest: torch.Tensor | None) -> SavedRouting:
        """Choose the experts, as of `SecondHalf`."""
        # The router reads fp32, as model/fp16.py has it
        logits = router_logits(normed, rest, self.router.weight, self.router.split)  # [T, E]
        weights, index = choose_experts(logits, self.router.top_k)  # [T, k] each
        return SavedRouting(weights, index, expert_math.routed(index, self.experts))

    def forward(
        self, normed: torch.Tensor, saved: SavedRouting, middle: torch.Tensor, *, save: bool
    ) -> torch.Tensor:
        """Compute y [B, L, H], as of `SecondHalf`; hidden values are made again in any case."""
        y = expert_math.compute(
            normed.flatten(0, -2),
            saved.weights,
            saved.routing,
            self.experts,
            onto=middle.flatten(0, -2),
        )  # [T, H]
        return y.view_as(middle)

    def gradient(
        self, grad: torch.Tensor, normed: torch.Tensor, saved: SavedRouting
    ) -> torch.Tensor:
        """Compute the norm's gradient [B, L, H], as of `SecondHalf`."""
        grad_normed, grad_weights = expert_math.gradients(
            grad.flatten(0, -2), normed.flatten(0, -2), saved.weights, saved.routing, self.experts
        )  # [T, H], [T, k]
        grad_logits = choose_experts_backward(
            grad_weights, saved.weights, saved.index, self.experts.num_experts
        )  # [T, E]
        # The norm feeds both: the experts and, through the logits, the router
        grad_normed = grad_normed.to(self.router.weight.dtype)
        return torch.addmm(grad_normed, grad_logits, self.router.weight).view_as(grad)


class PackedRows(NamedTuple):
    """A packed matrix in chunks of its rows."""

    packed: Packed
    """of each chunk"""
    chunks: list[torch.Tensor]
    """[1] each, a chunk's number"""
    rows: int
    """of a chunk"""

    @staticmethod
    def of(layer: bnb.nn.Linear4bit) -> "PackedRows":
        """Look at a layer's weights in chunks."""
        rows, columns = layer.out_features, layer.in_features
        count = chunks_of_rows(rows, columns)
        state: QuantState = layer.weight.quant_state
        weights = layer.weight.data.view(count, -1)
        if state.nested:
            scales = state.absmax
            missing = -len(scales) % GROUP
            if missing:  # the last group is not full, so there is one chunk; padding copies
                scales = F.pad(scales, (0, missing))
            packed = Packed(
                weights,
                scales.view(count, -1, GROUP),
                state.state2.absmax.view(count, -1),
                state.offset.repeat(count).view(count, 1),
            )
        else:
            packed = Packed(weights, state.absmax.view(count, -1))
        numbers = torch.arange(count, device=weights.device)
        return PackedRows(packed, list(numbers.split(1)), rows // count)

    def dense(self, chunk: int, dtype: torch.dtype) -> torch.Tensor:
        """Dequantise a chunk, [rows, in]."""
        (dense,) = dequantize([self.packed], self.chunks[chunk], dtype)
        return dense.view(self.rows, -1)


class MLPHalf:
    """One gated MLP of bitsandbytes' 4-bit layers.

    Its matrices are dense in chunks of 64 MiB at most; a whole one of Qwen3-VL-32B takes 250 MiB.
    """

    reads_rest = False

    def __init__(self, mlp: nn.Module):
        self.mlp = mlp
        self.width = mlp.gate_proj.out_features  # W

    @staticmethod
    def prepare(mlp: nn.Module) -> None:
        """Look at the packed matrices as `dequantize` takes them."""
        # A plain attribute, as of `ExpertsHalf`
        mlp.packed = {name: PackedRows.of(getattr(mlp, name)) for name in MATRICES}

    @property
    def dtype(self) -> torch.dtype:
        """The type of the products."""
        return self.mlp.gate_proj.compute_dtype

    def begin(self, normed: torch.Tensor, rest: torch.Tensor | None) -> SavedHidden:
        """Choose nothing, as of `SecondHalf`."""
        return SavedHidden([])

    def forward(
        self, normed: torch.Tensor, saved: SavedHidden, middle: torch.Tensor, *, save: bool
    ) -> torch.Tensor:
        """Compute y [B, L, H], as of `SecondHalf`."""
        rows = normed.flatten(0, -2)  # [T, H]
        h = rows.new_empty(len(rows), self.width)  # [T, W]
        for chunk, part in enumerate(self._parts("gate_proj", h)):  # [T, w]
            hidden = self._gate_and_up(rows, chunk)  # [T, 2w]
            if save:
                saved.hidden.append(hidden)
            part.copy_(gate(hidden, *_ones(hidden), self.mlp.act_fn))
            del hidden
        delta = torch.empty_like(rows)  # [T, H]
        for chunk, part in enumerate(self._parts("down_proj", delta)):
            torch.mm(h, self._dense("down_proj", chunk).T, out=part)
        return middle + delta.view_as(middle)

    def gradient(
        self, grad: torch.Tensor, normed: torch.Tensor, saved: SavedHidden
    ) -> torch.Tensor:
        """Compute the norm's gradient [B, L, H], as of `SecondHalf`."""
        rows = normed.flatten(0, -2)  # [T, H]
        grad_delta = grad.flatten(0, -2).to(self.dtype)  # [T, H]
        back = rows.new_empty(len(rows), self.width)  # [T, W]
        for chunk, part in enumerate(self._parts("down_proj", grad_delta)):
            _add_product(back, part, self._dense("down_proj", chunk), is_first=chunk == 0)
        del grad_delta
        saved.hidden.reverse()
        grad_normed = torch.empty_like(rows)  # [T, H]
        for chunk, part in enumerate(self._parts("gate_proj", back)):
            # Each is free once it is used
            hidden = saved.hidden.pop() if saved.hidden else self._gate_and_up(rows, chunk)
            of_no_use = hidden.new_empty(len(hidden), dtype=torch.float32)  # the ones' gradients
            hidden = gate_backward(
                hidden, part.contiguous(), *_ones(hidden), self.mlp.act_fn, of_no_use
            )  # [T, 2w]
            grad_gate, grad_up = hidden.chunk(2, dim=1)  # [T, w] each
            _add_product(
                grad_normed, grad_gate, self._dense("gate_proj", chunk), is_first=chunk == 0
            )
            _add_product(grad_normed, grad_up, self._dense("up_proj", chunk))
            del hidden, grad_gate, grad_up
        return grad_normed.view_as(normed)

    def _gate_and_up(self, rows: torch.Tensor, chunk: int) -> torch.Tensor:
        """Compute a chunk's hidden values [T, 2w] of rows [T, H]."""
        width = self.mlp.packed["gate_proj"].rows  # w
        hidden = rows.new_empty(len(rows), 2 * width)
        gate_part, up_part = hidden.chunk(2, dim=1)
        torch.mm(rows, self._dense("gate_proj", chunk).T, out=gate_part)
        torch.mm(rows, self._dense("up_proj", chunk).T, out=up_part)
        return hidden

    def _parts(self, name: str, of_rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Split the columns of a matrix's output [T, out] by its chunks."""
        return of_rows.split(self.mlp.packed[name].rows, dim=1)

    def _dense(self, name: str, chunk: int) -> torch.Tensor:
        return self.mlp.packed[name].dense(chunk, self.dtype)


def _ones(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights for `gate`, which are a mixture's: one for all rows of `hidden`."""
    one = torch.ones(1, dtype=torch.float32, device=hidden.device)
    return one, torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)


def _add_product(
    out: torch.Tensor, rows: torch.Tensor, matrix: torch.Tensor, *, is_first: bool = False
) -> None:
    """Add a product to `out`, or write the first one there."""
    if is_first:
        torch.mm(rows, matrix, out=out)
    else:
        out.addmm_(rows, matrix)
