"""Share tensors between the layers of one forward: made when first asked for, dropped at its end.

All layers of a language model get the same mask and angles, and all blocks of a vision tower the
same lengths. The forwards of fast/ derive tensors from these once per forward. Nothing is kept on
the tensors themselves or between two forwards, so a batch cannot meet what another batch left
behind.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class _Derived(NamedTuple):
    """Something derived from a tensor of this forward."""

    source: torch.Tensor  # held, so that `is` cannot meet another tensor at the same address
    kind: Hashable
    made: Any


# A context variable, as each thread runs forwards of its own. A forward has a handful of these: a
# list is quick enough
_of_this_forward: ContextVar[list[_Derived] | None] = ContextVar("shared tensors", default=None)


@contextmanager
def one_forward() -> Iterator[None]:
    """Enclose a forward of a language model or a vision tower, for `shared` to know its end."""
    token = _of_this_forward.set([])
    try:
        yield
    finally:
        _of_this_forward.reset(token)


def shared(source: torch.Tensor, kind: Hashable, make: Callable[[torch.Tensor], T]) -> T:
    """Return `make(source)`: for a source and a kind, the same object in all of a forward.

    Outside `one_forward`, as in a layer called on its own, nothing is kept.
    """
    known = _of_this_forward.get()
    if known is None:
        return make(source)
    for derived in known:
        if derived.source is source and derived.kind == kind:
            return derived.made
    made = make(source)
    known.append(_Derived(source, kind, made))
    return made
