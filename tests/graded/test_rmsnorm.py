"""run_rmsnorm: x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in fp32."""

import torch
from graded_support.compare import check_tensor, rounding_bound
from graded_support.model_checks import check_gradient, check_unchanged
from graded_support.model_truth import rms_norm


def check(adapters, weights, in_features, eps):
    """Compare with float64, and with what other norms and other places of eps would give."""
    dtype = in_features.dtype
    x, w = in_features.double(), weights.double()
    mean_square = x.square().mean(-1, keepdim=True)
    expected = rms_norm(x, w, eps)
    narrow_root = ((in_features * in_features).mean(-1, keepdim=True) + eps).sqrt()
    mistakes = {
        "eps is added after the square root; it is added to the mean square, under the root": (
            x / (mean_square.sqrt() + eps) * w
        ),
        "eps is left out": x / mean_square.sqrt() * w,
        "eps is 1e-5, whatever is asked for": rms_norm(x, w, 1e-5),
        "eps is 1e-6, whatever is asked for": rms_norm(x, w, 1e-6),
        "eps is 1e-8, whatever is asked for": rms_norm(x, w, 1e-8),
        "the mean is subtracted, that is layer norm": rms_norm(x - x.mean(-1, keepdim=True), w, eps),
        "the squares are added up and not averaged": x / (mean_square * x.shape[-1] + eps).sqrt() * w,
        "the weight is left out": rms_norm(x, torch.ones_like(w), eps),
        "1 + weight is used as the weight": rms_norm(x, 1 + w, eps),
        "the mean is taken over all axes; it is taken over the last": (
            x / (x.square().mean() + eps).sqrt() * w
        ),
        "the root is left out": x / (mean_square + eps) * w,
        "it is computed in the low precision: convert to fp32 first, and back at the end": (
            (in_features / narrow_root * weights).double()
        ),
    }
    # A mean of d_model squares, of which the root makes half, and a root and two products, in fp32; and two
    # roundings to the type of the result, for those who multiply by the weight in that type.
    in_fp32 = rounding_bound(torch.float32, x.shape[-1], expected.abs())
    at_the_end = rounding_bound(dtype, 2, expected.abs(), factor=1.5) if dtype != torch.float32 else 0.0
    check_tensor(
        adapters.run_rmsnorm(x.shape[-1], eps, weights, in_features),
        expected,
        what=f"run_rmsnorm of {tuple(x.shape)} in {str(dtype).removeprefix('torch.')} with eps {eps:g}",
        allowed=in_fp32 + at_the_end,
        dtype=dtype,
        mistakes=mistakes,
        hint="It is x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis.",
    )


def test_the_last_axis_is_divided_by_its_root_mean_square(adapters):
    weights = 0.5 + torch.rand(12)
    for shape in [(5, 12), (12,), (2, 3, 12)]:
        check(adapters, weights, 1 + 2 * torch.randn(shape), 1e-5)


def test_eps_stands_under_the_root(adapters):
    weights = 0.5 + torch.rand(8)
    small = 1e-2 * torch.randn(4, 8)
    small[3] = 0.0  # without eps, 0 / 0
    check(adapters, weights, small, 1e-3)
    check(adapters, weights, small, 1e-6)


def test_sixteen_bits_are_computed_in_fp32(adapters):
    weights = 0.5 + torch.rand(64)
    check(adapters, weights.half(), (300 * torch.randn(4, 64)).half(), 1e-5)  # the squares are beyond fp16
    check(adapters, weights.bfloat16(), torch.randn(4, 64).bfloat16(), 1e-5)


def test_gradient_of_the_input(adapters):
    in_features, weights, upstream = torch.randn(5, 16), 0.5 + torch.rand(16), torch.randn(5, 16)
    x = in_features.double().requires_grad_()
    rms_norm(x, weights.double(), 1e-5).backward(upstream.double())
    inverse = (x.detach().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    normed, weighted = (x.detach() * inverse).abs(), (upstream * weights).double().abs()
    argument = in_features.clone().requires_grad_()
    result = adapters.run_rmsnorm(16, 1e-5, weights, argument)
    # (w g - n mean(n w g)) / rms with n = x / rms: two means of d_model terms.
    size = inverse * (weighted + normed * (normed * weighted).mean(-1, keepdim=True))
    check_gradient(
        result,
        argument,
        x.grad,
        upstream,
        what="run_rmsnorm",
        allowed=rounding_bound(torch.float32, 2 * 16, size),
        hint="If the values are right: the root mean square depends on x too, and must not be detached.",
    )


def test_the_input_stays_as_it_was(adapters):
    in_features, weights = torch.randn(3, 8), 0.5 + torch.rand(8)
    before = in_features.clone()
    check(adapters, weights, in_features, 1e-5)
    check_unchanged(in_features, before, what="run_rmsnorm", name="in_features")
