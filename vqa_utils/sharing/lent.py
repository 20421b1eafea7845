"""Describe a base in memory that other processes map: its blocks, its tensors."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Block:
    """A stretch of memory behind a file descriptor."""

    gpu: int | None
    """None for host memory."""
    size: int
    """Bytes."""
    fingerprint: int
    """Of its bytes, as they were lent."""


@dataclass(frozen=True)
class LentTensor:
    """A tensor's place in a block."""

    block: int
    """The block's number."""
    offset: int
    """Bytes."""
    dtype: str
    """torch's name, such as "uint8"."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LentBase:
    """A packed base that a process has loaded for all folds of a run."""

    key: str
    """Changes with all that the weights depend on; a fold that needs another base loads it."""
    model_config: dict[str, Any]
    """config.json of the packed model."""
    blocks: tuple[Block, ...]
    tensors: dict[str, LentTensor]
    """By name in the model's state dict."""
    seconds: float = 0.0
    """The time that loading and packing took."""

    def to_json(self) -> str:
        """Write the description as JSON text: no pickle crosses a socket."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LentBase":
        """Read what `to_json` wrote."""
        content = json.loads(text)
        blocks = tuple(Block(**block) for block in content["blocks"])
        tensors = {}
        for name, tensor in content["tensors"].items():
            tensors[name] = LentTensor(**{**tensor, "shape": tuple(tensor["shape"])})
        return cls(content["key"], content["model_config"], blocks, tensors, content["seconds"])
