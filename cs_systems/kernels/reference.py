"""Each operation as a formula in plain PyTorch: what its kernel must compute, and what eager costs.

Nothing here chooses a precision: in fp64 these are the oracle, in a low precision they show what rounding
alone costs. Autograd differentiates them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
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


def rmsnorm(
    x: Float[Tensor, "*rows columns"],
    weight: Float[Tensor, " columns"],
    eps: float,
    residual: Float[Tensor, "*rows columns"] | None = None,
) -> Float[Tensor, "*rows columns"] | tuple[Float[Tensor, "*rows columns"], Float[Tensor, "*rows columns"]]:
    """x / sqrt(mean(x^2) + eps) * weight; with a residual, of x + residual, and that sum."""
    total = x if residual is None else x + residual
    y = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * weight
    return y if residual is None else (y, total)


def rope(
    q: Float[Tensor, "batch heads seq d_head"],
    k: Float[Tensor, "batch kv_heads seq d_head"],
    cos: Float[Tensor, "*#batch seq pairs"],
    sin: Float[Tensor, "*#batch seq pairs"],
) -> tuple[Float[Tensor, "batch heads seq d_head"], Float[Tensor, "batch kv_heads seq d_head"]]:
    """Channels (2i, 2i + 1) of the leading 2 * pairs, turned: (a cos - b sin, a sin + b cos)."""

    def turn(x: Tensor) -> Tensor:
        leading, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
        a, b = leading[..., 0::2], leading[..., 1::2]
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        return torch.cat((turned, rest), dim=-1)

    return turn(q), turn(k)


def swiglu(gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """gate * sigmoid(gate) * up."""
    return F.silu(gate) * up


def cross_entropy(logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Mean over tokens of log(sum_j exp(logits_j)) - logits_target."""
    shifted = logits - logits.amax(-1, keepdim=True)
    chosen = shifted.gather(-1, targets.long()[..., None])[..., 0]
    return (shifted.exp().sum(-1).log() - chosen).mean()


def linear_cross_entropy(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "vocab d"],
    targets: Int[Tensor, "*batch"],
    bias: Float[Tensor, " vocab"] | None = None,
) -> Float[Tensor, ""]:
    """`cross_entropy` of hidden @ weight.T + bias."""
    logits = hidden @ weight.T
    return cross_entropy(logits if bias is None else logits + bias, targets)


def attention(
    q: Float[Tensor, "batch *heads queries d_head"],
    k: Float[Tensor, "batch *kv_heads keys d_head"],
    v: Float[Tensor, "batch *kv_heads keys d_head"],
    *,
    is_causal: bool = True,
    alibi_slopes: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch *heads queries d_head"]:
    """softmax(q k^T / sqrt(d_head)) v of each head; query heads share key heads in equal groups.

    Causal hides key j from query i < j, whatever the lengths. ALiBi adds slope * (j - i) to the scores.
    """
    if q.ndim == 4 and k.shape[1] != q.shape[1]:
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    distance = (
        torch.arange(k.shape[-2], device=q.device) - torch.arange(q.shape[-2], device=q.device)[:, None]
    )
    if alibi_slopes is not None:
        scores = scores + alibi_slopes.to(q.dtype)[:, None, None] * distance
    if is_causal:
        scores = scores.masked_fill(distance > 0, -torch.inf)
    return scores.softmax(-1) @ v
