"""Copy tokens to the slots of their experts, and sum what the experts made of each.

    spread   out[index[t, 0]] = out[index[t, 1]] = ... = x[t]
    sum      out[t] = onto[t] + rows[index[t, 0]] + rows[index[t, 1]] + ...

To spread, the kernel reads a token's row once; to gather a row for each slot would read it k times.
To sum, it adds in fp32, in the order of k; the fall-back is torch's `embedding_bag`, one kernel
without atomics.
"""

import torch
import torch.nn.functional as F

from vqa_utils.ops.launch import EIGHT, is_ready, launch


def spread_rows(x: torch.Tensor, index: torch.Tensor, slots: int) -> torch.Tensor:
    """Copy the row of each token to its slots; return the rows of all slots [slots, H].

    Rows of padding slots, which are no token's, may hold anything.

    Args:
        x: [T, H]
        index: [T, k], the slots of each token, each of them once.
        slots: their number.
    """
    tokens, k = index.shape
    width = x.shape[1]
    if x.dtype == torch.float16 and width % EIGHT == 0 and is_ready(x.device):
        out = x.new_empty(slots, width)
        args = (x.contiguous(), index.contiguous(), out, tokens, k, width)
        launch("spread_rows", x.device, x.numel() // EIGHT, *args)
        return out
    out = x.new_zeros(slots, width)  # not empty: products with NaN are slow on some machines
    out[index] = x[:, None]
    return out


def sum_rows(
    rows: torch.Tensor, index: torch.Tensor, onto: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the sums [T, H]; from fp16 on a GPU they are fp32.

    Args:
        rows: [n, H]
        index: [T, k], the rows of each token.
        onto: [T, H], to which the sums are added, in a tensor of its own.
    """
    tokens, k = index.shape
    width = rows.shape[1]
    is_wide = onto is None or (onto.dtype == torch.float32 and onto.is_contiguous())
    if rows.dtype == torch.float16 and width % EIGHT == 0 and is_wide and is_ready(rows.device):
        out = rows.new_empty(tokens, width, dtype=torch.float32)
        args = (rows, index, onto, out, tokens, k, width)
        launch("sum_rows", rows.device, out.numel() // EIGHT, *args)
        return out
    total = F.embedding_bag(index, rows, mode="sum")
    return total if onto is None else onto + total
