"""Multiply, add a bias and apply GELU in one kernel: gelu(x W^T + b), in its tanh form.

cuBLAS can apply both to a product before it writes it. On their own, they read and write the widest
activations of the vision tower once more.
"""

import torch
import torch.nn.functional as F


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return [rows, out], without autograd.

    Args:
        x: [rows, in]
        weight: [out, in]
        bias: [out]
    """
    if x.is_cuda:
        # torch's encoder layers use it in inference; on a CPU it applies GELU's exact form
        return torch._addmm_activation(bias, x, weight.T, use_gelu=True)
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")
