"""A layer's frozen mixture-of-experts weights as packed NF4: how they are packed, kept and made dense again."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import bitsandbytes.functional as bnb
import torch
from torch import nn

from vqa_utils.chunks import WORTH_ON_TURING, WORTH_SINCE_AMPERE
from vqa_utils.experts import frozen_experts
from vqa_utils.memory import BLOCK, EXPERTS_AT_ONCE, GROUP
from vqa_utils.streaming import ExpertStream

PROJECTIONS = ("gate_up_proj", "down_proj")


class NF4Experts(nn.Module):
    """A layer's frozen experts: `gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I] as packed NF4.

    Each expert is one bitsandbytes NF4 tensor, so the numbers are those of `bnb.functional.quantize_4bit(weight[e])`.
    """

    at_once = EXPERTS_AT_ONCE
    stream: ExpertStream | None = None
    host: dict[str, torch.Tensor] | None = None

    def __init__(
        self,
        experts: nn.Module,
        compute_dtype: torch.dtype,
        double_quant: bool,
        *,
        packed: bool = False,
        streamed: bool = False,
    ):
        """Takes the place of `experts`, whose weights are not there yet.

        Args:
            packed: the checkpoint has them in 4 bits already.
            streamed: what is loaded goes to host memory, and `stream` brings it back for each use.
        """
        super().__init__()
        self.num_experts, self.act_fn, self.compute_dtype = experts.num_experts, experts.act_fn, compute_dtype
        self.double_quant, self.shapes = double_quant, {}
        for name in PROJECTIONS:
            weight = getattr(experts, name)
            count, rows, columns = weight.shape
            if rows * columns % BLOCK:
                raise ValueError(f"{name}: expected experts of a multiple of {BLOCK} weights, found {rows} x {columns}")
            self.shapes[name] = (rows, columns)
            # The parameter keeps its 16-bit shape until it is quantised: the loader's transpose and device planner read it
            weight = torch.empty(count, rows * columns // 2, dtype=torch.uint8, device="meta") if packed else weight
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
            for prefix, (dtype, shape) in self._statistics(rows * columns // BLOCK).items():
                self.register_buffer(prefix + name, torch.empty(count, *shape, dtype=dtype, device="meta"))
        self.host = {} if streamed else None

    def __setattr__(self, name: str, value: Any) -> None:
        """Where this layer is streamed, a loaded tensor stays in host memory and leaves an empty one behind."""
        if self.host is not None and isinstance(value, torch.Tensor) and name.endswith(PROJECTIONS):
            self.host[name] = value.detach().cpu().pin_memory() if value.is_cuda else value.detach()
            empty = value.detach()[:0].clone()
            value = nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty
            value._is_hf_initialized = True
        super().__setattr__(name, value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The packed weights and their statistics by name, on the device that computes."""
        if self.host is not None:
            return self.stream.fetch(self.host)
        return {**self._parameters, **self._buffers}

    def _statistics(self, blocks: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of what is kept beside an expert's packed weights, by name prefix.

        (The loader takes each name that has `experts.gate_up_proj` in it for the weight, and would transpose it.)
        """
        if not self.double_quant:
            return {"absmax_": (torch.float32, (blocks,))}
        groups = math.ceil(blocks / GROUP)
        return {
            "absmax_": (torch.uint8, (groups, GROUP)),  # whole groups, so that all experts dequantise in one call
            "scale_": (torch.float32, (groups,)),
            "offset_": (torch.float32, (1,)),
        }

    @torch.no_grad()
    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """[E, rows, columns] -> the packed weights [E, rows * columns / 2] and their statistics, by name prefix."""
        parts: dict[str, list[torch.Tensor]] = {}
        for expert in weight:
            packed, state = bnb.quantize_4bit(
                expert.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=self.double_quant
            )
            found = {"": packed.flatten(), "absmax_": state.absmax}
            if self.double_quant:
                absmax = state.absmax.new_zeros(len(state.state2.absmax) * GROUP)
                absmax[: len(state.absmax)] = state.absmax
                found |= {"absmax_": absmax.view(-1, GROUP), "scale_": state.state2.absmax, "offset_": state.offset.view(1)}
            for prefix, tensor in found.items():
                parts.setdefault(prefix, []).append(tensor)
        return {prefix: torch.stack(tensors) for prefix, tensors in parts.items()}

    def dequantizer(self, order: torch.Tensor) -> Callable[[slice], tuple[torch.Tensor, torch.Tensor]]:
        """Puts the experts in `order` [n], still packed, and makes a run of them dense: [m, 2I, H] and [m, H, I], compute type.

        In order, both projections of an expert side by side, a run lies in one piece: one launch makes it dense.
        """
        tensors = self.tensors()
        packed = _rows_side_by_side([tensors[name].view(torch.int64) for name in PROJECTIONS], order).view(torch.uint8)
        absmax = _rows_side_by_side([tensors[f"absmax_{name}"].flatten(1) for name in PROJECTIONS], order)
        if self.double_quant:
            absmax = self._dense_scales(absmax, tensors, order)
        (gate_up, down), split = self.shapes.values(), math.prod(self.shapes["gate_up_proj"])

        def dense(experts: slice) -> tuple[torch.Tensor, torch.Tensor]:
            scales = absmax[experts]
            # The operator itself, as bnb.dequantize_4bit transposes a tensor whose first size is 1; in rows of one block, as
            # bitsandbytes' CPU kernel (0.50.2) starts its blocks anew at each row and is wrong where columns % 64 != 0
            weights = torch.ops.bitsandbytes.dequantize_4bit.default(
                packed[experts].flatten(), scales.flatten(), BLOCK, "nf4", (scales.numel(), BLOCK), self.compute_dtype
            ).view(len(scales), -1)
            return weights[:, :split].unflatten(1, gate_up), weights[:, split:].unflatten(1, down)

        return dense

    def dense(self) -> dict[str, torch.Tensor]:
        """All experts of a layer, by projection; in the compute type."""
        everything = self.dequantizer(torch.arange(self.num_experts, device=self.absmax_down_proj.device))(slice(None))
        return dict(zip(PROJECTIONS, everything, strict=True))

    def _dense_scales(self, absmax: torch.Tensor, tensors: dict[str, torch.Tensor], order: torch.Tensor) -> torch.Tensor:
        """[n, groups * GROUP] in 8 bits -> [n, blocks] in fp32, both projections side by side."""
        scales = _rows_side_by_side([tensors[f"scale_{name}"] for name in PROJECTIONS], order)
        dense = torch.ops.bitsandbytes.dequantize_blockwise.default(
            absmax, scales.flatten(), _dynamic_map(absmax.device), GROUP, torch.float32
        )
        parts = dense.split([tensors[f"absmax_{name}"][0].numel() for name in PROJECTIONS], dim=1)
        for part, name in zip(parts, PROJECTIONS, strict=True):
            part += tensors[f"offset_{name}"][order]
        blocks = [math.prod(shape) // BLOCK for shape in self.shapes.values()]
        if sum(blocks) == dense.shape[1]:
            return dense
        return torch.cat([part[:, :count] for part, count in zip(parts, blocks, strict=True)], 1)  # without unfilled groups

    @property
    def padding_worth(self) -> int:
        """Rows of padding that take as long as one more chunk."""
        return _padding_worth(self.absmax_down_proj.device)

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """hidden_states [T, H], the router's experts and weights [T, k] -> [T, H]."""
        x = hidden_states.to(self.compute_dtype)
        return frozen_experts(x, top_k_weights, top_k_index, self).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, shapes={self.shapes}, compute_dtype={self.compute_dtype}"


def _rows_side_by_side(parts: Sequence[torch.Tensor], order: torch.Tensor) -> torch.Tensor:
    """The rows `order` [n] of each part [E, columns], next to each other: [n, all columns]."""
    columns = [part.shape[1] for part in parts]
    joined = parts[0].new_empty(len(order), sum(columns))
    for part, place in zip(parts, joined.split(columns, dim=1), strict=True):
        torch.index_select(part, 0, order, out=place)
    return joined


@functools.cache
def _padding_worth(device: torch.device) -> int:
    """A CPU launches nothing."""
    if device.type != "cuda":
        return 16
    return WORTH_ON_TURING if torch.cuda.get_device_capability(device) < (8, 0) else WORTH_SINCE_AMPERE


@functools.cache
def _dynamic_map(device: torch.device) -> torch.Tensor:
    """The 8-bit code of the quantised scales. No buffer: the loader re-creates those that it finds in no checkpoint."""
    return bnb.create_dynamic_map().to(device)
