"""Build the base of a fold from what the run's server lends."""

import functools
import math
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from vqa_utils.errors import RunError
from vqa_utils.model.features.stand_in import StoredFeatures
from vqa_utils.model.features.store import FeatureStore
from vqa_utils.model.lending.blocks import mapped
from vqa_utils.model.lending.fingerprint import fingerprint
from vqa_utils.model.nf4.quantizer import borrowing
from vqa_utils.sharing.client import lent_base
from vqa_utils.sharing.lent import LentBase, LentTensor


class MappedBase(NamedTuple):
    """A lent base, in this process's address space."""

    description: LentBase
    blocks: list[torch.Tensor]
    """uint8 [size] each, read-only"""


def attached(
    key: str, options: dict[str, Any], name: str, store: FeatureStore | None = None
) -> PreTrainedModel | None:
    """Build a base around the weights that the run's server lends, without a copy.

    Args:
        key: of the base that is needed, as the lender has it.
        options: of `from_pretrained`.
        name: of the model, for its adapters.
        store: of the features of pictures, if the base is lent without its vision tower.

    Returns:
        None without a server, or if it lends no such base.

    Raises:
        RunError: the lent bytes have changed, or the server is gone.
    """
    base = _mapped_base(key)
    if base is None:
        return None
    check_unchanged(base)
    state = {}
    for tensor_name, place in base.description.tensors.items():
        state[tensor_name] = view_of(base.blocks[place.block], place)
    content = base.description.model_config
    model_class = getattr(transformers, content["architectures"][0])
    config = model_class.config_class.from_dict(content)
    # The configuration has the packing's
    options = {option: options[option] for option in options if option != "quantization_config"}
    merge = content["vision_config"]["spatial_merge_size"]
    tower = None if store is None else StoredFeatures(store, options["dtype"], merge)
    with borrowing(tower):
        model = model_class.from_pretrained(None, config=config, state_dict=state, **options)
    model.name_or_path = name
    return model


def borrowed_bytes(gpu: int) -> int:
    """Count the bytes on a GPU that this process maps, which its allocator does not know of."""
    size = 0
    for base in _mapped:
        size += sum(block.size for block in base.description.blocks if block.gpu == gpu)
    return size


def check_lent_base() -> None:
    """Compare the lent base of this process, if it has one, with its fingerprints.

    Before results are written: what they were computed with is what was lent.

    Raises:
        RunError: naming the blocks that have changed.
    """
    for base in _mapped:
        check_unchanged(base)


def check_unchanged(base: MappedBase) -> None:
    """Compare a lent base with its fingerprints.

    Raises:
        RunError: naming the blocks that have changed.
    """
    changed = []
    for number, (block, data) in enumerate(zip(base.description.blocks, base.blocks, strict=True)):
        if fingerprint(data) != block.fingerprint:
            tensors = base.description.tensors.items()
            name = next(name for name, place in tensors if place.block == number)
            changed.append(f"the block of {name}")
    if changed:
        raise RunError(
            "the base that the folds share: expected the bytes that were lent, found others in "
            f"{', '.join(changed)}; python run_all.py --resume loads it again"
        )


def view_of(block: torch.Tensor, place: LentTensor) -> torch.Tensor:
    """Return a tensor in a block [bytes]; it shares the block's memory."""
    dtype = getattr(torch, place.dtype)
    size = math.prod(place.shape) * dtype.itemsize
    return block[place.offset : place.offset + size].view(dtype).view(place.shape)


_mapped: list[MappedBase] = []  # one at most; mappings stay until this process ends


@functools.cache
def _mapped_base(key: str) -> MappedBase | None:
    """Map the base of this key, if the server lends it."""
    lent = lent_base(key)
    if lent is None:
        return None
    description, descriptors = lent
    blocks = []
    for block, descriptor in zip(description.blocks, descriptors, strict=True):
        blocks.append(mapped(descriptor, block.size, block.gpu))
    _mapped.append(MappedBase(description, blocks))
    return _mapped[-1]
