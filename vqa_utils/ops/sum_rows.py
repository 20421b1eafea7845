"""Sum each token's rows, one from each of its experts: out[t] = onto[t] + rows[index[t, 0]] + ...

The kernel sums in fp32, in the order of k. The fall-back is torch's `embedding_bag`, one kernel
without atomics.
"""

import torch
import torch.nn.functional as F

from vqa_utils.ops._launch import EIGHT, is_ready, launch


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
