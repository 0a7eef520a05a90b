"""run_linear: the last axis times a weight of (out, in), without bias."""

import torch
from graded_support.compare import check_tensor, rounding_bound
from graded_support.model_truth import linear


def check(adapters, weights, in_features):
    """Compare with the product in float64, and with what a transposed weight would give."""
    x, w = in_features.double(), weights.double()
    mistakes = {}
    if w.shape[0] == w.shape[1]:
        mistakes["the weight is used as (in, out); it is (out, in)"] = x @ w
    check_tensor(
        adapters.run_linear(weights.shape[1], weights.shape[0], weights, in_features),
        linear(x, w),
        what=f"run_linear of {tuple(in_features.shape)}",
        # Each result is a sum of d_in products.
        allowed=rounding_bound(weights.dtype, weights.shape[1], linear(x.abs(), w.abs())),
        dtype=weights.dtype,
        mistakes=mistakes,
        hint="It is in_features times the transposed weight, for the weight is (out, in); there is no bias.",
    )


def test_a_square_weight_is_out_by_in(adapters):
    check(adapters, torch.randn(16, 16), torch.randn(5, 16))


def test_any_axes_may_stand_before_the_last(adapters):
    weights = torch.randn(6, 10)
    for shape in [(4, 10), (10,), (2, 3, 10), (2, 1, 3, 10)]:
        check(adapters, weights, torch.randn(shape))


def test_there_is_no_bias(adapters):
    check_tensor(
        adapters.run_linear(10, 6, torch.randn(6, 10), torch.zeros(3, 10)),
        torch.zeros(3, 6, dtype=torch.float64),
        what="run_linear of zeros",
        allowed=0.0,
        dtype=torch.float32,
        hint="A product with zeros is zero: what is left is a bias, and there is none.",
    )
    check(adapters, torch.randn(6, 10), torch.randn(3, 10))


def test_sixteen_bits_come_out_as_they_went_in(adapters):
    check(adapters, torch.randn(6, 8).bfloat16(), torch.randn(4, 8).bfloat16())
    check(adapters, torch.randn(6, 8).half(), torch.randn(4, 8).half())
