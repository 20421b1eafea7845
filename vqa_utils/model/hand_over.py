"""Hold one GPU at a time while the other folds of a run hold the others.

A model that is cut over GPUs keeps one of them busy. Folds do not depend on each other, so a run
lets them take turns:

    GPU 0   fold A forward | fold B forward            | fold A backward | fold B backward
    GPU 1                  | fold A forward, backward  | fold B forward, backward | ...

A turn on the first GPU begins with the forward. It is handed over at the first decoder layer of
each further GPU, and back at the same places of the backward. What was queued is complete by then,
so the next fold has the GPU for itself.
"""

import functools
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from vqa_utils.planning.placement import Plan
from vqa_utils.sharing.client import give, take


class GpuTurns:
    """The turns of this process, which holds one GPU at most.

    Attributes:
        held: the GPU.
        gives_back: whether a turn ends without memory that is reserved and unused.
    """

    def __init__(self) -> None:
        self.held: int | None = None
        self.gives_back = False

    def move_to(self, gpu: int) -> None:
        """End the turn on another GPU; wait for one on this."""
        if self.held == gpu:
            return
        self.end()
        take(gpu)
        self.held = gpu

    def end(self) -> None:
        """End the turn, once what was queued on the GPU is complete."""
        if self.held is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize(self.held)
            if self.gives_back:
                torch.cuda.empty_cache()
        gpu, self.held = self.held, None
        give(gpu)


TURNS = GpuTurns()


def use_turns(model: PeftModel, plan: Plan) -> None:
    """Let a model's forward and backward take turns on the plan's GPUs.

    A forward without gradients ends its last turn itself. After a backward, call `end_turn`.
    """
    TURNS.gives_back = plan.gives_back
    model.register_forward_pre_hook(_begin)
    model.register_forward_hook(_end_without_gradients)
    base = model.get_base_model()
    for gpu in range(1, len(plan.gpus)):
        layers = plan.gpus[gpu].layers
        if layers:  # else the norm and the head alone, which take no time
            hand_over = functools.partial(_hand_over, gpu=gpu)
            base.get_submodule(layers[0]).register_forward_pre_hook(hand_over, with_kwargs=True)


def end_turn() -> None:
    """End this process's turn, if it has one."""
    TURNS.end()


def _begin(model: nn.Module, args: Any) -> None:
    TURNS.move_to(0)


def _end_without_gradients(model: nn.Module, args: Any, output: Any) -> None:
    if not torch.is_grad_enabled():
        TURNS.end()


def _hand_over(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, gpu: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move on to a layer's GPU before its forward."""
    hidden, *others = args
    return (_HandOver.apply(hidden, gpu), *others), kwargs


class _HandOver(torch.autograd.Function):
    """Pass the residual stream [B, L, H] on; go to the next GPU, and back in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, gpu: int) -> torch.Tensor:
        ctx.before = TURNS.held
        TURNS.move_to(gpu)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        TURNS.move_to(ctx.before)
        return grad, None
