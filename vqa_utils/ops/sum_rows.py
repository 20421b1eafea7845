"""The sum of each token's rows, one of each expert that it went to."""

import torch
import torch.nn.functional as F

from vqa_utils.ops._launch import EIGHT, is_ready, launch


def sum_rows(
    rows: torch.Tensor, index: torch.Tensor, onto: torch.Tensor | None = None
) -> torch.Tensor:
    """[n, H] -> [T, H]: the sum of the k rows that index [T, k] names, in fp32; from fp16 on a GPU the result is fp32 too.

    Args:
        onto: [T, H], to which the sum is added, in a tensor of its own.
    """
    tokens, width = len(index), rows.shape[1]
    is_wide = onto is None or (onto.dtype == torch.float32 and onto.is_contiguous())
    if rows.dtype == torch.float16 and width % EIGHT == 0 and is_wide and is_ready(rows.device):
        out = rows.new_empty(tokens, width, dtype=torch.float32)
        launch(
            "sum_rows",
            rows.device,
            out.numel() // EIGHT,
            rows,
            index,
            onto,
            out,
            tokens,
            index.shape[1],
            width,
        )
        return out
    total = F.embedding_bag(
        index, rows, mode="sum"
    )  # one kernel without atomics, which sums in fp32
    return total if onto is None else onto + total
