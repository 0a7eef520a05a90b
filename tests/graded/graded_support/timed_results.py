"""What flash attention computes from given inputs, and whether a result of a timed call is that.

Everything here is bound when the module is imported: `timed_calls` imports it before the submission.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, cat, full, matmul, ones, randn, softmax, split, triu
from torch.autograd import grad
from torch.nn.functional import avg_pool1d

NAMES = ("o", "dq", "dk", "dv")
"""What a call returns: the result and its gradients."""

_SCORES = 2**28  # that exist at one time when the formula is computed: 1 GiB in fp32
_BLOCK = 64  # positions whose errors are averaged: a single wrong block is seen
_EXPONENT = 4  # roundings of exp(x) in units of the last place: as large as x is
_FACTOR = 4.0  # errors of one right implementation over those of another, and some room


class RejectedError(Exception):
    """Why a submission gets no time, in one line."""


@dataclass(frozen=True)
class Shape:
    """What is computed: causal attention of q, k and v of (heads, seq, d_head) each, and its gradients."""

    heads: int
    """Sequences times heads."""
    seq: int
    d_head: int
    dtype: torch.dtype
    device: torch.device

    @property
    def flops(self) -> float:
        """Operations of the matrix products: two forward, five backward, half of each hidden by causality."""
        return 7 * 2 * self.heads * self.seq**2 * self.d_head / 2

    @property
    def bytes_of_array(self) -> int:
        """Of q, and of each of the seven others that are read or written."""
        return self.heads * self.seq * self.d_head * self.dtype.itemsize


def make_inputs(shape: Shape, seed: int) -> list[Tensor]:
    """q, k, v and the gradient of the result, the same for the same seed."""
    generator = Generator(device=shape.device)
    generator.manual_seed(seed)
    size = (shape.heads, shape.seq, shape.d_head)
    return [randn(size, generator=generator, dtype=shape.dtype, device=shape.device) for _ in range(4)]


def full_of_nan(shape: Shape) -> Tensor:
    """A tensor of the size of a result that nobody should ever see."""
    return full((shape.heads, shape.seq, shape.d_head), math.nan, dtype=shape.dtype, device=shape.device)


@torch.enable_grad()
def formula(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> list[Tensor]:
    """o, dq, dk, dv of causal attention by its formula, some heads at a time so that their scores fit."""
    seq, d_head = q.shape[1:]
    hidden = triu(ones(seq, seq, dtype=torch.bool, device=q.device), 1)
    heads_at_a_time = max(1, _SCORES // seq**2)
    parts = []
    for *inputs, do_part in zip(
        *(split(tensor.detach(), heads_at_a_time) for tensor in (q, k, v, do)), strict=True
    ):
        leaves = [tensor.requires_grad_() for tensor in inputs]
        scores = matmul(leaves[0], leaves[1].mT) * d_head**-0.5
        o = matmul(softmax(scores.masked_fill(hidden, -math.inf), -1), leaves[2])
        parts.append([o.detach(), *grad(o, leaves, do_part)])
    return [cat(pieces) for pieces in zip(*parts, strict=True)]


def check_kind(name: str, output: Any, like: Tensor) -> None:
    """Raise RejectedError unless it is a plain tensor of the shape, type, place and layout of `like`."""
    if type(output) is not Tensor:
        raise RejectedError(f"{name} is a {type(output).__name__}; expected a plain torch.Tensor")
    found, expected = ((tuple(t.shape), t.dtype, t.device, t.layout) for t in (output, like))
    for what, is_, should_be in zip(("shape", "type", "device", "layout"), found, expected, strict=True):
        if is_ != should_be:
            raise RejectedError(f"{name} has {what} {is_}; expected {should_be}")


def check_results(shape: Shape, seeds: Mapping[int, int], results: Mapping[int, list[Tensor]]) -> float:
    """Compare what calls returned with the formula; returns the largest error over the one that is allowed.

    Both arguments are by number of the call: the seed of its inputs, and its four results.

    The truth is the formula in fp64 (fp32 for types of 16 bits). Allowed is, averaged over each block of 64
    positions of a head, four times the error of the formula in the type of the inputs, which rounds what
    FlashAttention keeps in fp32 or never has, and four times what storing the truth in that type costs and
    what exp(score - L) in fp32 does.

    Raises:
        RejectedError: at the first result that is further off, or is nan.
    """
    worst = 0.0
    wide = torch.float64 if shape.dtype == torch.float32 else torch.float32
    rounding = torch.finfo(shape.dtype).eps + _EXPONENT * torch.finfo(torch.float32).eps
    for number in sorted(results):
        inputs = make_inputs(shape, seeds[number])
        plain = formula(*inputs)
        truth = formula(*(tensor.to(wide) for tensor in inputs))
        for name, found, rounded, expected in zip(NAMES, results[number], plain, truth, strict=True):
            size = _block_rms(expected)
            allowed = _FACTOR * (_block_rms(rounded - expected) + rounding * size)
            error = _block_rms(found.to(wide) - expected)
            if not bool((error <= allowed).all()):
                at = f"{name} of timed call {number}"
                raise RejectedError(_explain(at, number, NAMES.index(name), results, error, size))
            worst = max(worst, float((error / allowed).max()))
    return worst


def _block_rms(values: Tensor) -> Tensor:
    """Root of the mean square of each block of positions: (heads, blocks)."""
    return avg_pool1d((values * values).mean(-1), _BLOCK, ceil_mode=True).sqrt()


def _explain(
    at: str, number: int, index: int, results: Mapping[int, list[Tensor]], error: Tensor, size: Tensor
) -> str:
    found = results[number][index]
    if bool(found.isnan().any()):
        return f"{at} holds nan: memory that was never written to?"
    for other in sorted(results.keys() - {number}):
        if torch.equal(found, results[other][index]):
            return (
                f"{at} is the same as that of call {other}, which had other inputs: it "
                "was kept from an earlier call, or never computed"
            )
    share = float((error / size.clamp_min(torch.finfo(size.dtype).tiny)).max())
    return f"{at} is wrong: off by {share:.1%} of its size, more than rounding explains"
