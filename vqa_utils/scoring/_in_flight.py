"""Compute several batches at a time, on the GPUs of one model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from vqa_utils.model.hand_over import batches_in_flight, end_turn

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_flight(
    model: torch.nn.Module, compute: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield `compute(item)` for each item, in their order.

    Where a model is cut over GPUs, as many items as `batches_in_flight` says are at work, in a
    thread each: one on the first GPU while another is on the second.
    """
    with batches_in_flight(model) as count:
        if count == 1:
            yield from map(compute, items)
            return

        def compute_in_turns(item: Item) -> Result:
            try:
                return compute(item)
            finally:
                end_turn()  # after an error too: the others would wait for ever

        with ThreadPoolExecutor(count) as threads:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(threads.submit(compute_in_turns, item))
                if len(waiting) == count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
