"""Hold one GPU at a time while others hold the others: folds of a run, or batches of a fold alone.

A model that is cut over GPUs keeps one of them busy. Folds do not depend on each other, so a run
lets them take turns:

    GPU 0   fold A forward | fold B forward            | fold A backward | fold B backward
    GPU 1                  | fold A forward, backward  | fold B forward, backward | ...

A turn on the first GPU begins with the forward. It is handed over at the first decoder layer of
each further GPU, and back at the same places of the backward. What was queued is complete by then,
so the next fold has the GPU for itself. In scoring, a fold alone has two batches in flight, which
take turns in the same way.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from vqa_utils.planning.gpu_plan import Plan
from vqa_utils.sharing.client import give, take
from vqa_utils.sharing.turns import Turns


class GpuTurns:
    """The turns of this process, which holds one GPU at most.

    Attributes:
        held: the GPU.
        gives_back: whether a turn ends without memory that is reserved and unused.
    """

    def __init__(
        self, take: Callable[[int], None], give: Callable[[int], None], *, gives_back: bool = False
    ):
        """Take turns with others.

        Args:
            take: waits for a GPU.
            give: lets the next one have it.
            gives_back: of the plan.
        """
        self._take = take
        self._give = give
        self.gives_back = gives_back
        self.held: int | None = None

    def move_to(self, gpu: int) -> None:
        """End the turn on another GPU; wait for one on this."""
        if self.held == gpu:
            return
        self.end()
        self._take(gpu)
        self.held = gpu

    def end(self) -> None:
        """End the turn, once what was queued on the GPU is complete."""
        gpu, self.held = self.held, None
        if gpu is None:
            return
        try:
            if torch.cuda.is_available():
                torch.cuda.synchronize(gpu)
                if self.gives_back:
                    torch.cuda.empty_cache()
        finally:  # a failed kernel shows here: the next one has to see it too, not to wait
            self._give(gpu)


class TurnsOfThreads(threading.local, GpuTurns):
    """The turns of this process's threads, each of which holds one GPU at most.

    Only without a backward, which autograd runs in threads of its own.
    """


# Of this process; None while nobody waits for its GPUs
TURNS: GpuTurns | None = None


def use_turns(model: PeftModel, plan: Plan, *, with_folds: bool) -> None:
    """Let a model's forward and backward take turns on the plan's GPUs.

    A forward without gradients ends its last turn itself. After a backward, call `end_turn`.

    Args:
        model: of this process.
        plan: the model's.
        with_folds: with other processes of the run, from now on. Else the model is prepared for
            `batches_in_flight`.
    """
    global TURNS
    if with_folds:
        TURNS = GpuTurns(take, give, gives_back=plan.gives_back)
    model.batches_in_flight = plan.batches_in_flight
    model.register_forward_pre_hook(_begin)
    model.register_forward_hook(_end_without_gradients)
    base = model.get_base_model()
    for gpu in range(1, len(plan.gpus)):
        layers = plan.gpus[gpu].layers
        if layers:  # else the norm and the head alone, which take no time
            hand_over = functools.partial(_hand_over, gpu=gpu)
            base.get_submodule(layers[0]).register_forward_pre_hook(hand_over, with_kwargs=True)


@contextlib.contextmanager
def batches_in_flight(model: nn.Module) -> Iterator[int]:
    """Let threads of this process take turns on the model's GPUs, each with a batch to score.

    Yields:
        The number of batches to have in flight, of the plan; one if another fold is at work while
        this one waits.
    """
    global TURNS
    count = getattr(model, "batches_in_flight", 1)  # no attribute: on one GPU, or on a CPU
    if TURNS is not None or count == 1:
        yield 1
        return
    queue = Turns(lambda *stall: None)

    def me() -> str:
        return str(threading.get_ident())

    TURNS = TurnsOfThreads(
        lambda gpu: queue.take(gpu, me()),
        lambda gpu: queue.give(gpu, me()),
    )
    try:
        yield count
    finally:
        TURNS = None


def end_turn() -> None:
    """End this process's turn, or this thread's, if it has one."""
    if TURNS is not None:
        TURNS.end()


def _begin(model: nn.Module, args: Any) -> None:
    if TURNS is not None:
        TURNS.move_to(0)


def _end_without_gradients(model: nn.Module, args: Any, output: Any) -> None:
    if not torch.is_grad_enabled():
        end_turn()


def _hand_over(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, gpu: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move on to a layer's GPU before its forward."""
    if TURNS is None:
        return args, kwargs
    hidden, *others = args
    return (_HandOver.apply(hidden, gpu, TURNS), *others), kwargs


class _HandOver(torch.autograd.Function):
    """Pass the residual stream [B, L, H] on; go to the next GPU, and back in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, gpu: int, turns: GpuTurns) -> torch.Tensor:
        ctx.before = turns.held
        ctx.turns = turns
        turns.move_to(gpu)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ctx.turns.move_to(ctx.before)
        return grad, None, None
