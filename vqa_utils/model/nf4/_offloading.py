"""Experts that wait in host memory: copied to the GPU layer by layer, the next while this one computes."""

import contextlib
from collections.abc import Sequence

import torch

from vqa_utils.planning.placement import OFFLOAD_SLOTS

Tensors = dict[str, torch.Tensor]


class ExpertOffloader:
    """Two slots on a GPU through which the layers' packed experts pass, forward and back again.

    Layers take the slots in turn, so the next layer's copy never meets the one that computes. Which layer is next
    follows from the last step: up in the forward, down in the backward under checkpointing.
    """

    def __init__(self, layers: Sequence[Tensors], device: torch.device):
        """`layers`: the packed tensors of each streamed layer in the order of the forward, in (pinned) host memory."""
        self.layers, self.device = layers, device
        self.slots = [
            {name: torch.empty_like(t, device=device) for name, t in layers[0].items()}
            for _ in range(OFFLOAD_SLOTS)
        ]
        self.holds: list[int | None] = [None] * OFFLOAD_SLOTS
        self.last, self.direction = -1, 1
        self.copier = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copied = [torch.cuda.Event() if self.copier else None for _ in self.slots]

    def fetch(self, layer: Tensors) -> Tensors:
        """The layer's tensors on the GPU, for work that is queued on the current stream before the next call."""
        number = next(i for i, known in enumerate(self.layers) if known is layer)
        if number != self.last:
            self.direction = 1 if number > self.last else -1
            self.last = number
            self._copy(number)
            self._copy(number + self.direction)
        slot = number % OFFLOAD_SLOTS
        if self.copier:
            torch.cuda.current_stream(self.device).wait_event(self.copied[slot])
        return self.slots[slot]

    def _copy(self, number: int) -> None:
        slot = number % OFFLOAD_SLOTS
        if not 0 <= number < len(self.layers) or self.holds[slot] == number:
            return
        self.holds[slot] = number
        if self.copier:  # what was queued so far still reads the slot
            self.copier.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copier) if self.copier else contextlib.nullcontext():
            for name, tensor in self.layers[number].items():
                self.slots[slot][name].copy_(tensor, non_blocking=True)
        if self.copier:
            self.copied[slot].record(self.copier)
