"""Attention, what it keeps and its gradients in float64 by the formula, and how far rounding may move them.

Scores are s = q k^T / sqrt(d), weights p = softmax(s) over the keys that a query sees, the result is o = p v,
and L = log(sum(exp(s))). Gradients come from autograd of that formula. The bounds follow one error through
it: that of a score, `_score_error`, is the relative error of a weight, because exp(s + e) is about
exp(s) (1 + e).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graded_support.compare import rounding_bound

NAMES = ("dq", "dk", "dv")


@dataclass(frozen=True)
class Inputs:
    """One call: q (batch, queries, d), k and v (batch, keys, d), and the result's gradient, shaped as q."""

    q: Tensor
    k: Tensor
    v: Tensor
    is_causal: bool
    do: Tensor | None = None

    @property
    def scale(self) -> float:
        """1 / sqrt(d), by which scores are multiplied."""
        return 1 / math.sqrt(self.q.shape[-1])

    def upstream(self) -> Tensor:
        """The result's gradient, of a call that has one."""
        assert self.do is not None
        return self.do

    def wide(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v in float64."""
        return self.q.detach().double(), self.k.detach().double(), self.v.detach().double()

    def visible(self, shift: int = 0) -> Tensor:
        """Which keys a query sees, (queries, keys): with a mask, key j where j <= i + shift."""
        shape = self.q.shape[1], self.k.shape[1]
        all_keys = torch.ones(shape, dtype=torch.bool, device=self.q.device)
        return all_keys.tril(shift) if self.is_causal else all_keys


@dataclass(frozen=True)
class Truth:
    """Values in float64, and how far off each of them may be."""

    values: Tensor
    allowed: Tensor


def make_inputs(
    batch_size: int, num_queries: int, num_keys: int, d: int, is_causal: bool, *,
    dtype: torch.dtype = torch.float32, device: str = "cpu",
) -> Inputs:  # fmt: skip
    """Normal random numbers from torch's seed."""
    sizes = num_queries, num_keys, num_keys, num_queries
    q, k, v, do = (torch.randn(batch_size, rows, d).to(device, dtype) for rows in sizes)
    return Inputs(q, k, v, is_causal, do)


def scores_of(inputs: Inputs, visible: Tensor | None = None, scale: float | None = None) -> Tensor:
    """s in float64, -inf where a key is not seen."""
    q, k, _ = inputs.wide()
    scores = q @ k.mT * (inputs.scale if scale is None else scale)
    return scores.masked_fill(~(inputs.visible() if visible is None else visible), -torch.inf)


def true_result(inputs: Inputs) -> Truth:
    """o: each weight may be off by its own error and by that of the sum it is divided by."""
    v = inputs.wide()[2]
    weights = scores_of(inputs).softmax(-1)
    o = weights @ v
    error = weights * _score_error(inputs)
    allowed = error @ v.abs() + error.sum(-1, keepdim=True) * o.abs()
    return Truth(o, allowed + _product_error(inputs.q, inputs.k.shape[1], weights @ v.abs()))


def true_log_sum_exp(inputs: Inputs) -> Truth:
    """L: off by the mean error of the scores, and by the roundings of a sum, a logarithm and an addition."""
    scores = scores_of(inputs)
    lse = scores.logsumexp(-1)
    mean_error = (scores.softmax(-1) * _score_error(inputs)).sum(-1)
    of_sum = rounding_bound(torch.float32, scores.shape[-1], 1.0)
    of_log = rounding_bound(torch.float32, 2, lse.abs() + scores.amax(-1).abs())
    return Truth(lse, mean_error + of_sum + of_log)


def true_gradients(inputs: Inputs) -> dict[str, Truth]:
    """dq, dk, dv by autograd of the formula."""
    q, k, v = (tensor.requires_grad_() for tensor in inputs.wide())
    scores = (q @ k.mT * inputs.scale).masked_fill(~inputs.visible(), -torch.inf)
    values = torch.autograd.grad(scores.softmax(-1) @ v, (q, k, v), inputs.upstream().double())
    allowed = _gradient_errors(inputs)
    return {name: Truth(*pair) for name, *pair in zip(NAMES, values, allowed, strict=True)}


def _gradient_errors(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """How far dq, dk, dv may be off, step by step as backward computes them."""
    (q, k, v), do, d = inputs.wide(), inputs.upstream().double(), inputs.q.shape[-1]
    num_queries, num_keys = q.shape[1], k.shape[1]
    weights = scores_of(inputs).softmax(-1)
    lse = true_log_sum_exp(inputs)
    weight_error = weights * (_score_error(inputs) + lse.allowed[..., None])
    dp = do @ v.mT
    delta = (weights * dp).sum(-1, keepdim=True)
    o = true_result(inputs)
    delta_error = (o.allowed * do.abs()).sum(-1, keepdim=True)
    delta_error += rounding_bound(inputs.q.dtype, d, (o.values * do).abs().sum(-1, keepdim=True))
    dp_error = _product_error(inputs.q, d, do.abs() @ v.abs().mT)
    ds = (weights * (dp - delta)).abs()
    # dp - delta is rounded as well, after which both may have been much larger than what is left.
    rounded = rounding_bound(inputs.q.dtype, 1, dp.abs() + delta.abs())
    ds_error = weight_error * (dp - delta).abs() + weights * (dp_error + delta_error + rounded)

    def product(errors: Tensor, values: Tensor, other: Tensor, length: int) -> Tensor:
        return errors @ other.abs() + _product_error(inputs.q, length, values @ other.abs())

    return (
        product(ds_error, ds, k, num_keys) * inputs.scale,
        product(ds_error.mT, ds.mT, q, num_queries) * inputs.scale,
        product(weight_error.mT, weights.mT, do, num_queries),
    )


def _score_error(inputs: Inputs) -> Tensor:
    """How far a score minus the maximum of its row may be off: by the product, and by two more roundings."""
    q, k, _ = inputs.wide()
    size = q.abs() @ k.abs().mT * inputs.scale
    scores = (q @ k.mT * inputs.scale).abs()
    difference = rounding_bound(inputs.q.dtype, 2, scores + scores.amax(-1, keepdim=True))
    return _product_error(inputs.q, q.shape[-1], size) + difference


def _product_error(like: Tensor, length: int, magnitude: Tensor) -> Tensor:
    """How far a matrix product of tensors like this one may be off, where `magnitude` is |A| |B|.

    fp32 is added up in any order. 16-bit types are added up in fp32, but a factor that was computed is
    rounded first, and the result may be. A GPU rounds both factors to TF32, unless it is told otherwise: such
    a number has as many digits as one in fp16.
    """
    if like.dtype == torch.float32 and not like.is_cuda:
        return rounding_bound(torch.float32, length, magnitude)
    return rounding_bound(torch.float16 if like.dtype == torch.float32 else like.dtype, 2, magnitude)
