"""Rotate heads by the angles of their positions (rotary embedding), and compute the positions.

y = x * cos + (-x2, x1) * sin, with x1 and x2 the halves of a head x
"""

import torch

from vqa_utils.ops.launch import EIGHT, is_ready, launch


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return the rotated heads.

    Args:
        x: [..., heads, d]
        cos: [..., 1, d], with equal halves.
        sin: [..., 1, d], with equal halves.
    """
    first, second = x.chunk(2, -1)  # [..., heads, d / 2] each
    return torch.addcmul(x * cos, torch.cat([-second, first], -1), sin)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate heads in place.

    Args:
        x: [patches, heads, d]; may be a part of rows that hold more.
        cos: [patches, d], with equal halves.
        sin: [patches, d], with equal halves.
    """
    patches, heads, d = x.shape
    has_types = x.dtype == torch.float16 and cos.dtype == torch.float32
    heads_are_dense = x.stride()[1:] == (d, 1)
    is_contiguous = heads_are_dense and cos.is_contiguous() and sin.is_contiguous()
    if has_types and d % EIGHT == 0 and is_contiguous and is_ready(x.device):
        # A thread takes four values and their partners in the other half
        launch("rotate", x.device, x.numel() // 8, x, x.stride(0), cos, sin, patches, heads, d)
    else:
        x.copy_(rotated(x, cos[:, None], sin[:, None]))  # cos and sin as [patches, 1, d]


def rope_positions(types: torch.Tensor, mask: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """Compute the multimodal rotary positions of rows whose images are of one size each.

    The same as the models' `get_rope_index`, which goes through the rows in Python on the GPU,
    with synchronisations; this function runs where batches are made.

    Text counts up in all three; an image's rows and columns count from its start; the text after
    it goes on from the longer side. Text stands between two images. For two tokens of padding, two
    of text, an image of 2 x 3 tokens, and text:

        token     .  .  T  T  I  I  I  I  I  I  T  T
        time      0  0  0  1  2  2  2  2  2  2  5  6
        row       0  0  0  1  2  2  2  3  3  3  5  6
        column    0  0  0  1  2  3  4  2  3  4  5  6

    Args:
        types: [B, L], 1 at image tokens.
        mask: [B, L], 0 at the padding on the left.
        grids: [B, 2], rows and columns of tokens of each of a row's images.

    Returns:
        [3, B, L]: time, row and column; 0 at padding.
    """
    is_token = mask.bool()  # [B, L], as are the next ones
    is_image = types.bool() & is_token
    is_text = is_token & ~is_image
    columns = grids[:, 1:]  # [B, 1]
    longer_side = grids.amax(1, keepdim=True)  # [B, 1]
    image_tokens = grids.prod(1, keepdim=True)  # [B, 1], of one image
    texts_before = is_text.cumsum(1) - is_text.long()
    seen = is_image.cumsum(1) - is_image.long()  # image tokens before this one
    images_before, place = seen // image_tokens, seen % image_tokens
    start = texts_before + images_before * longer_side
    # [3, B, L], of use at image tokens only
    image = torch.stack([start, start + place // columns, start + place % columns])
    return torch.where(is_image, image, start).masked_fill(mask == 0, 0)
