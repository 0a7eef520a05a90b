"""Softmax, cross-entropy, RMSNorm and position encodings as plain functions of tensors."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def softmax(x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """exp(x_i - m) / sum_j exp(x_j - m) along `dim`, with m the largest entry, so that exp cannot overflow.

    m is detached: softmax does not change when a constant is added to a row, so its gradient through m is
    zero and autograd need not keep anything for it. A row that is all -inf has no softmax and gives nan.
    """
    # BEGIN SOLUTION softmax
    exponentials = (x - x.detach().amax(dim, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim, keepdim=True)
    # END SOLUTION


def cross_entropy(logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Mean over tokens of log(sum_j exp(logits_j)) - logits_target, in nats.

    Computed in fp32 (in fp64 for fp64 logits): at a vocabulary of 10,000 the sum has too many terms for bf16.
    """
    # BEGIN SOLUTION cross_entropy
    wide = logits if logits.dtype == torch.float64 else logits.float()
    wide = rearrange(wide, "... vocab -> (...) vocab")
    shifted = wide - wide.detach().amax(-1, keepdim=True)
    log_sum_exp = shifted.exp().sum(-1).log()
    rows, ids = torch.arange(targets.numel(), device=targets.device), targets.flatten()
    ids = ids.where(ids >= 0, wide.shape[-1])  # a negative index would count from the end: refused
    chosen = shifted[rows, ids]  # `gather` would keep all of `shifted` for backward
    return (log_sum_exp - chosen).mean()
    # END SOLUTION


def rms_norm(
    x: Float[Tensor, "*batch d_model"], weight: Float[Tensor, " d_model"], eps: float
) -> Float[Tensor, "*batch d_model"]:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019), in fp32, returned in x's dtype."""
    # BEGIN SOLUTION rmsnorm
    wide = x.float() if x.dtype != torch.float64 else x
    inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse_rms * weight).to(x.dtype)
    # END SOLUTION


def rope_tables(
    length: int, rotary_dim: int, theta: float
) -> tuple[Float[Tensor, "length pairs"], Float[Tensor, "length pairs"]]:
    """cos and sin of the angle position / theta**(2 i / rotary_dim) of channel pair i (RoFormer, Su 2021)."""
    # BEGIN SOLUTION rope
    frequencies = theta ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()
    # END SOLUTION


def apply_rope(
    x: Float[Tensor, "*batch seq d_head"],
    cos: Float[Tensor, "*#batch seq pairs"],
    sin: Float[Tensor, "*#batch seq pairs"],
) -> Float[Tensor, "*batch seq d_head"]:
    """Rotate channel pairs (2i, 2i+1) of the leading 2 * pairs channels; the others pass through.

    A pair is a complex number, and to turn it by an angle is to multiply it by cos + i sin: one pass over
    memory, where the real formula takes seven and skips every second number in them. The rotation is computed
    in fp32 (fp64 for fp64) and returned in the dtype of `x`, so that attention receives queries, keys and
    values in one dtype whatever autocast did before.
    """
    # BEGIN SOLUTION rope
    rotary_dim = 2 * cos.shape[-1]
    rotated, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    wide = rotated if x.dtype == torch.float64 else rotated.float()
    cos, sin = cos.to(wide.dtype), sin.to(wide.dtype)
    # torch.compile has no complex arithmetic of its own, but makes one pass of the real formula.
    rotate = _rotate_pairs if torch.compiler.is_compiling() else _rotate_complex
    rotated = rotate(wide, cos, sin).to(x.dtype)
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated
    # END SOLUTION


def rotate(
    q: Float[Tensor, "batch heads seq d_head"],
    k: Float[Tensor, "batch kv_heads seq d_head"],
    cos: Float[Tensor, "*#batch seq pairs"],
    sin: Float[Tensor, "*#batch seq pairs"],
) -> tuple[Float[Tensor, "batch heads seq d_head"], Float[Tensor, "batch kv_heads seq d_head"]]:
    """`apply_rope` to queries and keys."""
    return apply_rope(q, cos, sin), apply_rope(k, cos, sin)


# BEGIN SOLUTION rope
def _rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _rotate_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if x.stride(-1) != 1 or any(step % 2 for step in (x.storage_offset(), *x.stride()[:-1])):
        x = x.clone(memory_format=torch.contiguous_format)  # in a head of odd size, pairs start at odd places
    numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(numbers * torch.complex(cos, sin)).flatten(-2)


# END SOLUTION


def alibi_slopes(num_heads: int) -> Float[Tensor, " num_heads"]:
    """One slope per head: 2**(-8 i / n) for the largest power of two n, then every other slope of 2 n.

    Press et al. 2022, "Train short, test long", section 3 and its reference code for other head counts.
    """
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    slopes += [2.0 ** (-4.0 * i / power) for i in range(1, 2 * (num_heads - power) + 1, 2)]
    return torch.tensor(slopes, dtype=torch.float32)


def alibi_bias(slopes: Float[Tensor, " num_heads"], seq: int) -> Float[Tensor, "num_heads seq seq"]:
    """Causal ALiBi: slope * (key - query) for keys up to the query, -inf for later keys."""
    position = torch.arange(seq, device=slopes.device)
    distance = position[None, :] - position[:, None]
    bias = slopes[:, None, None] * distance
    return bias.masked_fill(distance > 0, float("-inf"))
