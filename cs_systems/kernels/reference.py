"""Each operation as a formula in plain PyTorch: what its kernel must compute, and what eager costs.

Nothing here chooses a precision: in fp64 these are the oracle, in a low precision they show what rounding
alone costs. Autograd differentiates them.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def weighted_sum(
    x: Float[Tensor, "*rows columns"], weight: Float[Tensor, " columns"]
) -> Float[Tensor, "*rows"]:
    """sum_j x_j weight_j of each row."""
    return (x * weight).sum(-1)


def softmax(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """exp(x_i - max) / sum_j exp(x_j - max); 0 where every x_j is -inf, unlike torch's nan."""
    largest = x.amax(dim, keepdim=True)
    largest = torch.where(largest == -torch.inf, 0, largest)
    exponentials = (x - largest).exp()
    sums = exponentials.sum(dim, keepdim=True)
    return exponentials / torch.where(sums == 0, 1, sums)
