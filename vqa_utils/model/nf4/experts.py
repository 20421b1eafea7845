"""Keep a layer's frozen mixture-of-experts weights as packed NF4.

They are packed, kept on the GPU or offloaded, and made dense for each use.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
STATISTICS = ("absmax_", "scale_", "offset_")  # beside the packed weights, by name prefix
WORTH_ON_A_CPU = 16  # padding slots: a CPU has no launches
AMPERE = (8, 0)  # compute capability


class DenseExperts(NamedTuple):
    """m experts' weights in the compute type."""

    gate_up: torch.Tensor
    """[m, 2I, H]"""
    down: torch.Tensor
    """[m, H, I]"""


class NF4Experts(nn.Module):
    """A layer's frozen experts: `gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I] as packed NF4.

    Each expert is one bitsandbytes NF4 tensor, so the numbers are those of
    `bnb.functional.quantize_4bit(weight[e])`.

    Attributes:
        host: the packed tensors in host memory, where the layer is offloaded; else None.
        offloader: brings them to the GPU for each use.
        at_once: experts whose weights may be dense at the same time.
    """

    at_once = EXPERTS_AT_ONCE
    offloader: ExpertOffloader | None = None
    host: dict[str, torch.Tensor] | None = None

    def __init__(
        self,
        experts: nn.Module,
        compute_dtype: torch.dtype,
        double_quant: bool,
        *,
        packed: bool = False,
        offloaded: bool = False,
    ):
        """Take the place of `experts`, whose weights are not there yet.

        Args:
            experts: transformers' module.
            compute_dtype: of the products.
            double_quant: whether the scales are quantised too.
            packed: the checkpoint has them in 4 bits already.
            offloaded: what is loaded goes to host memory.

        Raises:
            ValueError: experts without whole NF4 blocks.
        """
        super().__init__()
        self.num_experts = experts.num_experts
        self.act_fn = experts.act_fn
        self.compute_dtype = compute_dtype
        self.double_quant = double_quant
        self.shapes: dict[str, tuple[int, int]] = {}  # rows and columns of an expert
        for name in PROJECTIONS:
            self._add_projection(name, getattr(experts, name), packed=packed)
        self.host = {} if offloaded else None  # from here on, __setattr__ moves tensors

    def _add_projection(self, name: str, weight: torch.Tensor, *, packed: bool) -> None:
        """Add a place for the packed weights and one for each statistic; the loader fills them."""
        count, rows, columns = weight.shape
        if rows * columns % BLOCK:
            raise ValueError(
                f"{name}: expected experts of a multiple of {BLOCK} weights, "
                f"found {rows} x {columns}"
            )
        self.shapes[name] = (rows, columns)
        # A parameter has its 16-bit shape until it is quantised: the loader's transpose and device
        # planner read it
        if packed:
            two_a_byte = (count, rows * columns // 2)
            weight = torch.empty(two_a_byte, dtype=torch.uint8, device="meta")
        self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        for prefix, (dtype, shape) in self._statistics(rows * columns // BLOCK).items():
            statistic = torch.empty(count, *shape, dtype=dtype, device="meta")
            self.register_buffer(prefix + name, statistic)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; an offloaded layer keeps a loaded tensor in host memory instead.

        An empty tensor is left in its place.
        """
        is_loaded = isinstance(value, torch.Tensor) and name.endswith(PROJECTIONS)
        if self.host is not None and is_loaded:
            tensor = value.detach()
            # Pinned, so that the offloader's copies run beside the computation
            self.host[name] = tensor.cpu().pin_memory() if tensor.is_cuda else tensor
            is_parameter = isinstance(value, nn.Parameter)
            # Keeps the device, on which the layer computes; a view would keep the memory too
            value = tensor[:0].clone()
            if is_parameter:
                value = nn.Parameter(value, requires_grad=False)
            value._is_hf_initialized = True  # so that transformers does not fill it
        super().__setattr__(name, value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the packed weights and their statistics by name, on the device that computes."""
        if self.host is not None:
            assert self.offloader is not None  # since the end of loading
            return self.offloader.fetch(self.host)
        # Not by named_parameters: this is asked twice per layer and step
        return {**self._parameters, **self._buffers}

    def _statistics(self, blocks: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the type and the shape of an expert's statistics, by name prefix.

        Not by suffix: the loader takes each name with `experts.gate_up_proj` in it for the weight,
        and would transpose it.
        """
        if not self.double_quant:
            return {"absmax_": (torch.float32, (blocks,))}
        groups = math.ceil(blocks / GROUP)
        return {
            "absmax_": (torch.uint8, (groups, GROUP)),  # whole groups: one call for all experts
            "scale_": (torch.float32, (groups,)),
            "offset_": (torch.float32, (1,)),
        }

    @torch.no_grad()
    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pack all experts of a projection.

        Args:
            weight: [E, rows, columns]

        Returns:
            By name prefix: "" the packed weights [E, rows * columns / 2], and their statistics.
        """
        parts: dict[str, list[torch.Tensor]] = {}
        for expert in weight:
            for prefix, tensor in self._quantize_one(expert).items():
                parts.setdefault(prefix, []).append(tensor)
        return {prefix: torch.stack(tensors) for prefix, tensors in parts.items()}

    def _quantize_one(self, expert: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pack one expert [rows, columns]; a double-quantised absmax comes in whole groups."""
        packed, state = bnb.quantize_4bit(
            expert.contiguous(),
            blocksize=BLOCK,
            quant_type="nf4",
            compress_statistics=self.double_quant,
        )
        if not self.double_quant:
            return {"": packed.flatten(), "absmax_": state.absmax}
        groups = len(state.state2.absmax)
        absmax = state.absmax.new_zeros(groups * GROUP)
        absmax[: len(state.absmax)] = state.absmax
        return {
            "": packed.flatten(),
            "absmax_": absmax.view(groups, GROUP),
            "scale_": state.state2.absmax,
            "offset_": state.offset.view(1),
        }

    def dequantizer(self, order: torch.Tensor) -> Callable[[slice], DenseExperts]:
        """Return a function that makes experts dense: those at a slice of `order` [n]."""
        tensors = self.tensors()
        parts = []
        for name in PROJECTIONS:
            statistics = [tensors.get(prefix + name) for prefix in STATISTICS]
            parts.append(Packed(tensors[name], *statistics))
        gate_up_shape, down_shape = (self.shapes[name] for name in PROJECTIONS)

        def dense(experts: slice) -> DenseExperts:
            gate_up, down = dequantize(parts, order[experts], self.compute_dtype)
            return DenseExperts(gate_up.unflatten(1, gate_up_shape), down.unflatten(1, down_shape))

        return dense

    @property
    def padding_worth(self) -> int:
        """Padding slots that take as long as one more chunk."""
        return _padding_worth(self.absmax_down_proj.device)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Compute the experts' sum, as transformers calls it.

        Args:
            hidden_states: [T, H]
            top_k_index: [T, k], the router's experts.
            top_k_weights: [T, k], the router's.

        Returns:
            [T, H]
        """
        return frozen_experts(hidden_states, top_k_weights, top_k_index, self)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, shapes={self.shapes}, "
            f"compute_dtype={self.compute_dtype}"
        )


@functools.cache
def _padding_worth(device: torch.device) -> int:
    if device.type != "cuda":
        return WORTH_ON_A_CPU
    is_older = torch.cuda.get_device_capability(device) < AMPERE
    return WORTH_ON_TURING if is_older else WORTH_SINCE_AMPERE
