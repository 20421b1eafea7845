"""Dropout whose mask is drawn again from a seed, so that none is kept for the backward."""

import torch

from vqa_utils.ops._launch import EIGHT, is_ready, launch


def draw_seed() -> int:
    """From torch's generator on the host, which `set_seed` sets and a checkpoint keeps."""
    return int(torch.randint(2**31 - 1, ()))


def dropout(x: torch.Tensor, p: float, seed: int, onto: torch.Tensor | None = None) -> torch.Tensor:
    """X / (1 - p) where the seed's mask keeps a value, 0 elsewhere; no autograd: a gradient goes through the same function.

    Args:
        x: contiguous.
        onto: of x's shape; the result is added to it, in place.
    """
    if x.dtype == torch.float16 and x.numel() % EIGHT == 0 and is_ready(x.device):
        y = torch.empty_like(x) if onto is None else onto
        args = (x, y, int(onto is not None), seed, int(p * 2**31), 1 / (1 - p), x.numel() // EIGHT)
        launch("dropout", x.device, x.numel() // EIGHT, *args)
        return y
    mask = (
        torch.empty_like(x)
        .bernoulli_(1 - p, generator=torch.Generator(x.device).manual_seed(seed))
        .div_(1 - p)
    )
    return x * mask if onto is None else onto.addcmul_(x, mask)
