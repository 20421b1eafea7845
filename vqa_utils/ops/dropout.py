"""Drop values by a mask that is drawn again from its seed, so that none is kept for the backward.

    y = x / (1 - p) where the mask keeps a value, 0 elsewhere

The mask of the kernel is a hash of the seed and of a value's place; the fall-back draws one from a
generator. The two drop different values, each with probability p.
"""

import torch

from vqa_utils.ops.launch import EIGHT, is_ready, launch


def draw_seed() -> int:
    """Draw a mask's seed from torch's generator on the host; checkpoints keep its state."""
    return int(torch.randint(2**31 - 1, ()))  # fits the kernel's 32-bit int


def dropout(x: torch.Tensor, p: float, seed: int, onto: torch.Tensor | None = None) -> torch.Tensor:
    """Apply dropout, without autograd: a gradient goes through the same function.

    Args:
        x: [...], contiguous.
        p: the probability to drop a value.
        seed: of the mask.
        onto: of x's shape; the result is added to it, in place.

    Returns:
        [...], `onto` where it is given.
    """
    eights = x.numel() // EIGHT
    if x.dtype == torch.float16 and x.numel() % EIGHT == 0 and is_ready(x.device):
        y = torch.empty_like(x) if onto is None else onto
        least = int(p * 2**31)  # the kernel keeps a value whose 31 random bits are at least this
        args = (x, y, int(onto is not None), seed, least, 1 / (1 - p), eights)
        launch("dropout", x.device, eights, *args)
        return y
    generator = torch.Generator(x.device).manual_seed(seed)
    mask = torch.empty_like(x).bernoulli_(1 - p, generator=generator).div_(1 - p)
    return x * mask if onto is None else onto.addcmul_(x, mask)
