"""Bring offloaded experts from host memory to the GPU, layer by layer.

The next layer is copied while this one computes.
"""

import contextlib
from collections.abc import Sequence

import torch

from vqa_utils.planning.placement import OFFLOAD_SLOTS

Tensors = dict[str, torch.Tensor]


class ExpertOffloader:
    """Buffers on a GPU, OFFLOAD_SLOTS of them (two), that the layers' packed experts pass through.

    Layer n takes buffer n % 2, so the next layer's copy never meets the layer that computes. The
    last step tells the next layer: up in the forward, down in the backward under checkpointing.

        compute     layer 0     layer 1     layer 2
        buffer 0    layer 0     copies 2    layer 2
        buffer 1    copies 1    layer 1     copies 3
    """

    def __init__(self, layers: Sequence[Tensors], device: torch.device):
        """Allocate the buffers.

        Args:
            layers: the packed tensors of each offloaded layer, in the order of the forward, in
                (pinned) host memory.
            device: of the buffers.
        """
        self.layers = layers
        self.device = device
        self.slots = [_empty_copy(layers[0], device) for _ in range(OFFLOAD_SLOTS)]
        self.holds: list[int | None] = [None] * OFFLOAD_SLOTS  # the layer in each buffer
        self.last = -1
        self.direction = 1
        self.copier = None  # a CUDA stream of its own
        self.copied: list[torch.cuda.Event] = []  # the end of each buffer's last copy
        if device.type == "cuda":
            self.copier = torch.cuda.Stream(device)
            self.copied = [torch.cuda.Event() for _ in self.slots]

    def fetch(self, layer: Tensors) -> Tensors:
        """Return the layer's tensors on the GPU.

        They are good for work that is queued on the current CUDA stream before the next call.
        """
        # By identity, as == would compare the tensors in the dicts
        number = next(i for i, known in enumerate(self.layers) if known is layer)
        # Routing and products of one layer both ask for it; by then its buffer has it
        if number != self.last:
            self.direction = 1 if number > self.last else -1
            self.last = number
            self._copy(number)
            self._copy(number + self.direction)
        slot = number % OFFLOAD_SLOTS
        if self.copier is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied[slot])
        return self.slots[slot]

    def _copy(self, number: int) -> None:
        """Copy a layer into its buffer, if there is such a layer and it is not there yet."""
        slot = number % OFFLOAD_SLOTS
        if not 0 <= number < len(self.layers) or self.holds[slot] == number:
            return
        self.holds[slot] = number
        if self.copier is not None:  # what was queued so far still reads the buffer
            self.copier.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copier) if self.copier else contextlib.nullcontext():
            for name, tensor in self.layers[number].items():
                self.slots[slot][name].copy_(tensor, non_blocking=True)
        if self.copier is not None:
            self.copied[slot].record(self.copier)


def _empty_copy(layer: Tensors, device: torch.device) -> Tensors:
    return {name: torch.empty_like(tensor, device=device) for name, tensor in layer.items()}
