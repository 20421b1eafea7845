"""The vision tower for all images of a batch at once, and without autograd, as it is frozen.

transformers cuts the patches of a batch by image (or window) and attends to each in Python, with a synchronisation, in every
layer. Here the images become rows of one padded batch; where they have one size, as the windows mostly do, nothing is padded.
"""

import itertools
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vqa_utils.ops.norms import add_norm
from vqa_utils.ops.rotary import rotate


class Rows:
    """Where the patches of images that lie one after the other go in a batch [images, longest].

    Attributes:
        index: [images * longest], the patch of each place; None where all have the same length.
        back: [patches], the place of each patch.
        mask: [images, 1, 1, longest], True at patches.
    """

    def __init__(self, ends: torch.Tensor):
        """`ends`: [images + 1], the cumulative lengths from 0; the one synchronisation."""
        self.ends, bounds = ends, ends.tolist()
        lengths = [end - start for start, end in itertools.pairwise(bounds)]
        self.images, self.longest = len(lengths), max(lengths)
        self.index = self.back = self.mask = None
        if len(set(lengths)) > 1:
            place = torch.arange(self.longest, device=ends.device)
            inside = place < ends.diff()[:, None]
            self.index = (ends[:-1, None] + place).clamp_(max=bounds[-1] - 1).flatten()
            self.back = inside.flatten().nonzero_static(size=bounds[-1]).flatten()
            self.mask = inside[:, None, None]

    def batch(self, patches: torch.Tensor) -> torch.Tensor:
        """[patches, heads, d] -> [images, heads, longest, d]."""
        rows = patches if self.index is None else patches[self.index]
        return rows.view(self.images, self.longest, *patches.shape[1:]).transpose(1, 2)

    def flatten(self, rows: torch.Tensor) -> torch.Tensor:
        """[images, heads, longest, d] -> [patches, heads * d]."""
        patches = rows.transpose(1, 2).flatten(2).flatten(0, 1)
        return patches if self.back is None else patches[self.back]


def batch_images(model: nn.Module) -> None:
    """Give the vision tower's blocks, attention and patch embedding the forwards below, where they have the usual parts."""
    known: dict[int, Rows] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ("Qwen3VLVisionModel", "Qwen3VLMoeVisionModel"):
            module.register_forward_pre_hook(_give_positions, with_kwargs=True)
        if "visual" in name and all(
            hasattr(module, part) for part in ("norm1", "norm2", "attn", "mlp")
        ):
            module.forward = types.MethodType(_block, module)
        if "visual" in name and all(
            hasattr(module, part) for part in ("qkv", "proj", "num_heads", "scaling")
        ):
            module.rows = known
            module.forward = types.MethodType(_attention, module)
        if name.endswith("visual.patch_embed") and isinstance(
            getattr(module, "proj", None), nn.Conv3d
        ):
            module.forward = types.MethodType(_embed_patches, module)


def _block(self: nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """hidden_states [patches, width]; the rest is the attention's."""
    device = hidden_states.device.type
    dtype = (
        torch.get_autocast_dtype(device)
        if torch.is_autocast_enabled(device)
        else hidden_states.dtype
    )
    _, normed, _ = add_norm(hidden_states, None, self.norm1, dtype)
    hidden_states, normed, _ = add_norm(
        hidden_states, self.attn(normed, *args, **kwargs), self.norm2, dtype
    )
    return hidden_states.add_(self.mlp(normed))


def _attention(
    self: nn.Module,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    """hidden_states [patches, width], as transformers calls it."""
    qkv = self.qkv(hidden_states).view(len(hidden_states), 3, self.num_heads, -1)
    rotate(qkv[:, :2].flatten(1, 2), *position_embeddings)
    rows = _rows_of(self.rows, cu_seqlens)
    batch = (rows.batch(qkv[:, part]) for part in range(3))
    attended = F.scaled_dot_product_attention(*batch, attn_mask=rows.mask, scale=self.scaling)
    return self.proj(rows.flatten(attended))


def _give_positions(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Makes what transformers otherwise makes image by image."""
    merge, grids = module.spatial_merge_size, kwargs["grid_thw"]
    return args, {**kwargs, "position_ids": patch_positions(grids, merge, len(args[0]))}


def patch_positions(grids: torch.Tensor, merge: int, patches: int) -> torch.Tensor:
    """Row and column of each patch in its image [patches, 2], as `transformers.vision_utils.get_vision_position_ids` has them.

    Args:
        grids: [images, 3], the frames, rows and columns of each.
        merge: patches lie in blocks of so many rows and columns.
        patches: of all images.
    """
    counts = grids.prod(1)
    image = torch.repeat_interleave(
        torch.arange(len(grids), device=grids.device), counts, output_size=patches
    )
    _, rows, columns = grids[image].unbind(1)
    place = (torch.arange(patches, device=grids.device) - (counts.cumsum(0) - counts)[image]) % (
        rows * columns
    )
    block, within = place // merge**2, place % merge**2
    row, column = block // (columns // merge), block % (columns // merge)
    return torch.stack([row * merge + within // merge, column * merge + within % merge], 1)


def _embed_patches(self: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """A convolution whose stride is its kernel is a product: [patches, pixels] -> [patches, width]."""
    weight = self.proj.weight.flatten(1)
    return F.linear(patches.to(weight.dtype).view(-1, weight.shape[1]), weight, self.proj.bias)


def _rows_of(known: dict[int, Rows], ends: torch.Tensor) -> Rows:
    """The same for all layers that get the same tensor: made once a batch (Qwen2.5-VL has one for windows too)."""
    found = known.get(id(ends))
    if found is None or found.ends is not ends:
        if len(known) > 1:
            known.clear()
        found = known[id(ends)] = Rows(ends)
    return found
