"""run_linear: a matrix product of the last axis."""

import torch
from graded_support.compare import check_tensor, rounding_bound


def check(adapters, in_features, weights):
    """Compare with the product in float64, and with what a transposed weight would give."""
    actual = adapters.run_linear(weights.shape[1], weights.shape[0], weights, in_features)
    wide_x, wide_w = in_features.double(), weights.double()
    mistakes = {}
    if weights.shape[0] == weights.shape[1]:
        mistakes["the weight is used as (in, out); it is (out, in)"] = wide_x @ wide_w
    check_tensor(
        actual,
        torch.einsum("...i,oi->...o", wide_x, wide_w),
        what="run_linear",
        allowed=rounding_bound(weights.dtype, weights.shape[1], wide_x.abs() @ wide_w.abs().T),
        dtype=weights.dtype,
        mistakes=mistakes,
        hint="It is in_features times the transposed weight: weights are (out, in).",
    )


def test_square_weight(adapters):
    check(adapters, torch.randn(5, 16), torch.randn(16, 16))
