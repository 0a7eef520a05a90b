"""run_softmax: exp(x_i) / sum_j exp(x_j) along an axis."""

import math

import torch
from graded_support.compare import check_tensor, rounding_bound
from graded_support.model_checks import check_gradient, check_unchanged
from graded_support.model_truth import softmax


def check(adapters, in_features, dim, *, hint=""):
    """Compare with float64, and with softmax along every other axis."""
    x, dtype = in_features.double(), in_features.dtype
    mistakes = {
        f"it is taken along axis {axis}": softmax(x, axis) for axis in range(x.ndim) if axis != dim % x.ndim
    }
    mistakes |= {
        "all numbers together add up to 1; it is those along one axis": (
            softmax(x.flatten(), 0).reshape(x.shape)
        ),
        "the logarithm of softmax is returned": x - torch.logsumexp(x, dim, keepdim=True),
        "powers of 2 are taken; they are powers of e": softmax(x * math.log(2), dim),
        "numbers are divided by their sum without an exponential": x / x.sum(dim, keepdim=True),
    }
    # An exponential of x - m is off by the rounding of that difference, a sum by one rounding a term.
    visible = torch.where(x.isfinite(), x, 0.0).abs()
    roundings = x.shape[dim] + 2 * visible.amax(dim, keepdim=True)
    expected = softmax(x, dim)
    check_tensor(
        adapters.run_softmax(in_features, dim),
        expected,
        what=f"run_softmax of {tuple(x.shape)} along axis {dim}",
        allowed=rounding_bound(dtype, 1, roundings * expected) + torch.finfo(dtype).tiny,
        dtype=dtype,
        mistakes=mistakes,
        hint=hint or "It is exp(x_i) / sum_j exp(x_j) along the axis.",
    )


def test_any_axis(adapters):
    for dim in (0, 1, 2, -1, -2, -3):
        check(adapters, torch.randn(3, 4, 5), dim)
    check(adapters, torch.randn(6), 0)


def test_exponentials_would_overflow(adapters):
    hint = "exp(1000) is infinite: subtract the maximum along the axis first; the quotient stays the same."
    check(adapters, torch.tensor([1000.0, 1000.0, 999.0]), 0, hint=hint)
    check(adapters, 1000 + 10 * torch.randn(4, 6), -1, hint=hint)


def test_a_row_far_below_the_others(adapters):
    rows = torch.randn(3, 5) + torch.tensor([[1000.0], [0.0], [-1000.0]])
    rows[1, 2] = -math.inf  # a hidden entry; the others of its row share what there is
    hint = (
        "Exponentials that are all 0 make 0 / 0: subtract the maximum of each row, not of the whole tensor."
    )
    check(adapters, rows, 1, hint=hint)
    check(adapters, rows.T.contiguous(), 0, hint=hint)
    check(adapters, 1e4 * torch.randn(4, 6), -1, hint=hint)


def test_sixteen_bits_come_out_as_they_went_in(adapters):
    check(adapters, torch.randn(4, 6).bfloat16(), -1)
    check(adapters, (20 + torch.randn(4, 6)).half(), 0)  # exp(12) is beyond fp16


def test_gradient(adapters):
    in_features, upstream = 2 * torch.randn(4, 7), torch.randn(4, 7)
    x = in_features.double().requires_grad_()
    probabilities = softmax(x, -1)
    probabilities.backward(upstream.double())
    argument = in_features.clone().requires_grad_()
    # p (g - sum(p g)): a sum of 7 terms, and p itself is off by as many roundings as above.
    p, g = probabilities.detach(), upstream.double().abs()
    roundings = 2 * 7 + 4 * x.detach().abs().amax(-1, keepdim=True)
    check_gradient(
        adapters.run_softmax(argument, -1),
        argument,
        x.grad,
        upstream,
        what="run_softmax",
        allowed=rounding_bound(torch.float32, 1, roundings * p * (g + (p * g).sum(-1, keepdim=True))),
        hint="If the values are right: only the maximum may be detached, which cancels; the sum counts.",
    )


def test_the_input_stays_as_it_was(adapters):
    in_features = torch.randn(3, 5)
    before = in_features.clone()
    check(adapters, in_features, -1)
    check_unchanged(in_features, before, what="run_softmax", name="in_features")
