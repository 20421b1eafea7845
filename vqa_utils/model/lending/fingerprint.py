"""Tell whether bytes in memory have changed."""

import torch

CHUNK = 2**21  # words of 8 bytes: bounds the temporaries to 50 MiB
MODULUS = 2**64
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no chunk's sum is lost: 2^64 over the golden ratio


def fingerprint(data: torch.Tensor) -> int:
    """Sum a tensor's bytes, with weights by position, modulo 2^64.

    Weights are odd, and an odd number has an inverse modulo 2^64: a change of one word always
    changes the sum. It is no protection against a forger.

    Args:
        data: uint8 [n], n a multiple of 8.

    Returns:
        64 bits.
    """
    total = 0
    for words in data.view(torch.int64).split(CHUNK):
        weights = torch.arange(1, 2 * len(words), 2, device=data.device)  # odd
        chunk_sum = int((words * weights).sum())  # int64 wraps around
        total = (total * MULTIPLIER + chunk_sum) % MODULUS
    return total
