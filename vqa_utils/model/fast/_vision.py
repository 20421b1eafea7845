"""Run the vision tower for all images of a batch at once, and without autograd, as it is frozen.

transformers cuts a batch's patches by image (or window) and attends to each in Python, with a
synchronisation, in every layer. Here images become the rows of one padded batch; equal sizes, as
most windows have, need no padding.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from vqa_utils.model.fast._shared import one_forward, shared
from vqa_utils.ops.linear_gelu import linear_gelu
from vqa_utils.ops.norms import add_norm
from vqa_utils.ops.rotary import rotate

TANH_GELU = type(ACT2FN["gelu_pytorch_tanh"])  # Qwen3-VL's; Qwen2.5-VL's MLP has a gate
# Towers that take `position_ids` instead of making them image by image
TAKES_POSITIONS = ("Qwen3VLVisionModel", "Qwen3VLMoeVisionModel")


class Rows:
    """The places of patches, which lie one image after the other, in a batch [images, longest].

        patches     batch       index       back           mask
        0 1         0 1 .       0 1 2       0 1 3 4 5      1 1 0
        2 3 4       2 3 4       2 3 4                      1 1 1

    Attributes:
        index: [images * longest], the patch of each place; None where all images have the same
            length.
        back: [patches], the place of each patch; None as above.
        mask: [images, 1, 1, longest], True at patches; None as above.
    """

    def __init__(self, ends: torch.Tensor):
        """Find the places; this is the one synchronisation of a batch.

        Args:
            ends: [images + 1], the cumulative lengths from 0.
        """
        bounds = ends.tolist()
        lengths = [end - start for start, end in itertools.pairwise(bounds)]
        self.images = len(lengths)
        self.longest = max(lengths)
        self.index = self.back = self.mask = None
        if len(set(lengths)) == 1:
            return
        patches = bounds[-1]
        place = torch.arange(self.longest, device=ends.device)  # [longest]
        inside = place < ends.diff()[:, None]  # [images, longest]
        # Padding shows any patch: the mask hides it
        self.index = (ends[:-1, None] + place).clamp_(max=patches - 1).flatten()
        # A size known in advance saves a synchronisation
        self.back = inside.flatten().nonzero_static(size=patches).flatten()
        self.mask = inside[:, None, None]

    def batch(self, patches: torch.Tensor) -> torch.Tensor:
        """[patches, heads, d] -> [images, heads, longest, d]."""
        rows = patches if self.index is None else patches[self.index]
        return rows.view(self.images, self.longest, *patches.shape[1:]).transpose(1, 2)

    def flatten(self, rows: torch.Tensor) -> torch.Tensor:
        """[images, heads, longest, d] -> [patches, heads * d]."""
        # [images * longest, heads * d]
        patches = rows.transpose(1, 2).flatten(2).flatten(0, 1)
        return patches if self.back is None else patches[self.back]


def tower_forward(
    self: nn.Module, forward: Callable[..., Any], pixels: torch.Tensor, **kwargs: Any
) -> Any:
    """Wrap a vision tower's forward, which may already be accelerate's.

    Args:
        pixels: [patches, pixels of a patch], of all images.
        kwargs: transformers', with `grid_thw` [images, 3].
    """
    if type(self).__name__ in TAKES_POSITIONS:
        merge = self.spatial_merge_size
        kwargs["position_ids"] = patch_positions(kwargs["grid_thw"], merge, len(pixels))
    with one_forward():
        return forward(pixels, **kwargs)


def block_forward(
    self: nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Replace a block's forward: each norm is one kernel together with the sum in front of it.

    Args:
        hidden_states: [patches, width]
        args: the attention's.
        kwargs: the attention's.
    """
    device = hidden_states.device.type
    dtype = hidden_states.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    _, normed, _ = add_norm(hidden_states, None, self.norm1, dtype)
    # Without a name, the attention's output is gone before the MLP
    hidden_states, normed, _ = add_norm(
        hidden_states, self.attn(normed, *args, **kwargs), self.norm2, dtype
    )
    return hidden_states.add_(_mlp(self.mlp, normed))  # made above, without autograd: in place


def _mlp(mlp: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run a block's MLP on [patches, width]; if it is two products with GELU between, in two kernels."""
    first: Any = getattr(mlp, "linear_fc1", None)
    is_plain = type(first) is nn.Linear and first.weight.dtype == x.dtype
    if not is_plain or first.bias is None or not isinstance(mlp.act_fn, TANH_GELU):
        return mlp(x)
    return mlp.linear_fc2(linear_gelu(x, first.weight, first.bias))


def vision_attention_forward(
    self: nn.Module,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    """Replace the tower's attention: all images, or all windows, in one batch.

    Args:
        hidden_states: [patches, width]
        cu_seqlens: [images + 1], the cumulative lengths from 0; Qwen2.5-VL has another tensor for
            windows.
        position_embeddings: cosines and sines, [patches, d] each.
    """
    patches = len(hidden_states)
    qkv = self.qkv(hidden_states).view(patches, 3, self.num_heads, -1)  # [patches, 3, heads, d]
    rotate(qkv[:, :2].flatten(1, 2), *position_embeddings)  # q and k, where they are
    rows = shared(cu_seqlens, "rows", Rows)
    q, k, v = (rows.batch(part) for part in qkv.unbind(1))  # [images, heads, longest, d] each
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=rows.mask, scale=self.scaling)
    del q, k, v  # copies where images are padded: they make room for the projection
    return self.proj(rows.flatten(attended))


def patch_positions(grids: torch.Tensor, merge: int, patches: int) -> torch.Tensor:
    """Return each patch's row and column in its image, [patches, 2], for all images at once.

    The same as `transformers.vision_utils.get_vision_position_ids`. Patches lie in blocks of merge
    x merge; for two rows, four columns and a merge of 2 in this order:

        0 1 4 5
        2 3 6 7

    Args:
        grids: [images, 3], the frames, rows and columns of each.
        merge: rows and columns of a block.
        patches: of all images.
    """
    device = grids.device
    frames, rows, columns = grids.unbind(1)  # [images] each
    counts = frames * rows * columns  # patches of each; torch compiles `prod` at its first use
    numbers = torch.arange(len(grids), device=device)
    image = torch.repeat_interleave(numbers, counts, output_size=patches)  # [patches]
    rows, columns = rows[image], columns[image]  # [patches] each
    first = counts.cumsum(0) - counts  # [images], each one's first patch
    in_image = torch.arange(patches, device=device) - first[image]
    in_frame = in_image % (rows * columns)  # [patches]; frames have the same positions
    block = in_frame // merge**2
    within = in_frame % merge**2
    blocks_a_row = columns // merge
    row = block // blocks_a_row * merge + within // merge
    column = block % blocks_a_row * merge + within % merge
    return torch.stack([row, column], 1)


def embed_patches_forward(self: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Replace a convolution whose stride is its kernel by a product.

    Args:
        patches: [patches, pixels of a patch]

    Returns:
        [patches, width]
    """
    weight = self.proj.weight.flatten(1)  # [width, pixels of a patch]
    return F.linear(patches.to(weight.dtype).view(-1, weight.shape[1]), weight, self.proj.bias)
