"""A layer's frozen mixture-of-experts weights as packed NF4: how they are packed, kept and made dense again."""

import functools
import math
from collections.abc import Callable
from typing import Any

import bitsandbytes.functional as bnb
import torch
from torch import nn

from vqa_utils.model.nf4._offloading import ExpertOffloader
from vqa_utils.model.nf4.forward import frozen_experts
from vqa_utils.nf4_format import BLOCK, GROUP
from vqa_utils.ops.dequantize import Packed, dequantize
from vqa_utils.planning.expert_chunks import WORTH_ON_TURING, WORTH_SINCE_AMPERE
from vqa_utils.planning.memory import EXPERTS_AT_ONCE

PROJECTIONS = ("gate_up_proj", "down_proj")
STATISTICS = ("absmax_", "scale_", "offset_")  # of the packed weights, by name prefix


class NF4Experts(nn.Module):
    """A layer's frozen experts: `gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I] as packed NF4.

    Each expert is one bitsandbytes NF4 tensor, so the numbers are those of `bnb.functional.quantize_4bit(weight[e])`.
    """

    at_once = EXPERTS_AT_ONCE
    stream: ExpertOffloader | None = None
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
        self.num_experts, self.act_fn, self.compute_dtype = (
            experts.num_experts,
            experts.act_fn,
            compute_dtype,
        )
        self.double_quant, self.shapes = double_quant, {}
        for name in PROJECTIONS:
            weight = getattr(experts, name)
            count, rows, columns = weight.shape
            if rows * columns % BLOCK:
                raise ValueError(
                    f"{name}: expected experts of a multiple of {BLOCK} weights, found {rows} x {columns}"
                )
            self.shapes[name] = (rows, columns)
            # The parameter keeps its 16-bit shape until it is quantised: the loader's transpose and device planner read it
            weight = (
                torch.empty(count, rows * columns // 2, dtype=torch.uint8, device="meta")
                if packed
                else weight
            )
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
            for prefix, (dtype, shape) in self._statistics(rows * columns // BLOCK).items():
                self.register_buffer(
                    prefix + name, torch.empty(count, *shape, dtype=dtype, device="meta")
                )
        self.host = {} if streamed else None

    def __setattr__(self, name: str, value: Any) -> None:
        """Where this layer is streamed, a loaded tensor stays in host memory and leaves an empty one behind."""
        if self.host is not None and isinstance(value, torch.Tensor) and name.endswith(PROJECTIONS):
            self.host[name] = value.detach().cpu().pin_memory() if value.is_cuda else value.detach()
            empty = value.detach()[:0].clone()
            value = (
                nn.Parameter(empty, requires_grad=False)
                if isinstance(value, nn.Parameter)
                else empty
            )
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
            "absmax_": (
                torch.uint8,
                (groups, GROUP),
            ),  # whole groups, so that all experts dequantise in one call
            "scale_": (torch.float32, (groups,)),
            "offset_": (torch.float32, (1,)),
        }

    @torch.no_grad()
    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """[E, rows, columns] -> the packed weights [E, rows * columns / 2] and their statistics, by name prefix."""
        parts: dict[str, list[torch.Tensor]] = {}
        for expert in weight:
            packed, state = bnb.quantize_4bit(
                expert.contiguous(),
                blocksize=BLOCK,
                quant_type="nf4",
                compress_statistics=self.double_quant,
            )
            found = {"": packed.flatten(), "absmax_": state.absmax}
            if self.double_quant:
                absmax = state.absmax.new_zeros(len(state.state2.absmax) * GROUP)
                absmax[: len(state.absmax)] = state.absmax
                found |= {
                    "absmax_": absmax.view(-1, GROUP),
                    "scale_": state.state2.absmax,
                    "offset_": state.offset.view(1),
                }
            for prefix, tensor in found.items():
                parts.setdefault(prefix, []).append(tensor)
        return {prefix: torch.stack(tensors) for prefix, tensors in parts.items()}

    def dequantizer(
        self, order: torch.Tensor
    ) -> Callable[[slice], tuple[torch.Tensor, torch.Tensor]]:
        """Makes m experts in a row of `order` [n] dense: [m, 2I, H] and [m, H, I] in the compute type."""
        tensors = self.tensors()
        parts = [
            Packed(tensors[n], *(tensors.get(prefix + n) for prefix in STATISTICS))
            for n in PROJECTIONS
        ]

        def dense(experts: slice) -> tuple[torch.Tensor, torch.Tensor]:
            found = dequantize(parts, order[experts], self.compute_dtype)
            return tuple(
                part.unflatten(1, shape)
                for part, shape in zip(found, self.shapes.values(), strict=True)
            )

        return dense

    def dense(self) -> dict[str, torch.Tensor]:
        """All experts of a layer, by projection; in the compute type."""
        everything = self.dequantizer(
            torch.arange(self.num_experts, device=self.absmax_down_proj.device)
        )(slice(None))
        return dict(zip(PROJECTIONS, everything, strict=True))

    @property
    def padding_worth(self) -> int:
        """Rows of padding that take as long as one more chunk."""
        return _padding_worth(self.absmax_down_proj.device)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [T, H], the router's experts and weights [T, k] -> [T, H]."""
        return frozen_experts(hidden_states, top_k_weights, top_k_index, self)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, shapes={self.shapes}, compute_dtype={self.compute_dtype}"


@functools.cache
def _padding_worth(device: torch.device) -> int:
    if device.type != "cuda":
        return 16  # a CPU has no launches
    return (
        WORTH_ON_TURING if torch.cuda.get_device_capability(device) < (8, 0) else WORTH_SINCE_AMPERE
    )
