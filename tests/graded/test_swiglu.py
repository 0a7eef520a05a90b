"""run_silu, x sigmoid(x), and run_swiglu, W2 (silu(W1 x) * (W3 x))."""

import torch
from graded_support.compare import check_tensor, rounding_bound
from graded_support.model_truth import linear, silu, swiglu


def check_silu(adapters, in_features, *, hint):
    """Compare with float64, and with other functions of that shape."""
    x = in_features.double()
    sigmoid = torch.special.expit(x)
    check_tensor(
        adapters.run_silu(in_features),
        silu(x),
        what="run_silu",
        # Exponential, sum, quotient, product; below -80 an exponential has few bits, or is flushed to 0.
        allowed=rounding_bound(torch.float32, 4, silu(x).abs()) + 1e-30,
        dtype=torch.float32,
        mistakes={
            "the factor x is missing: silu is x * sigmoid(x)": sigmoid,
            "it is gelu": torch.nn.functional.gelu(x),
            "it is the approximation of gelu by a tanh": torch.nn.functional.gelu(x, approximate="tanh"),
            "it is the approximation of gelu by sigmoid(1.702 x)": x * torch.special.expit(1.702 * x),
            "it is relu": x.relu(),
            "the sign in the exponential is wrong": x * (1 - sigmoid),
        },
        hint=hint,
    )


def check_swiglu(adapters, d_model, d_ff, shape):
    """Compare with float64, and with what exchanged and forgotten parts would give."""
    w1, w3 = torch.randn(2, d_ff, d_model).unbind()
    w2, in_features = torch.randn(d_model, d_ff), torch.randn(*shape, d_model)
    x, wide1, wide2, wide3 = (tensor.double() for tensor in (in_features, w1, w2, w3))
    a, b = linear(x, wide1), linear(x, wide3)
    mistakes = {
        "w1 and w3 are exchanged; silu is taken of w1 x, not of w3 x": linear(silu(b) * a, wide2),
        "silu is missing": linear(a * b, wide2),
        "silu is taken of the product": linear(silu(a * b), wide2),
        "silu is taken of both": linear(silu(a) * silu(b), wide2),
        "the gate w3 x is missing": linear(silu(a), wide2),
        "the gate is added, not multiplied": linear(silu(a) + b, wide2),
        "sigmoid stands in the place of silu": linear(torch.special.expit(a) * b, wide2),
        "gelu stands in the place of silu": linear(torch.nn.functional.gelu(a) * b, wide2),
        "relu stands in the place of silu": linear(a.relu() * b, wide2),
    }
    # |silu(a)| <= |a|, and its slope is at most 1.1: the sums of d_model products, then the one of d_ff.
    inner = linear(x.abs(), wide1.abs()) * linear(x.abs(), wide3.abs())
    check_tensor(
        adapters.run_swiglu(d_model, d_ff, w1, w2, w3, in_features),
        swiglu(x, wide1, wide2, wide3),
        what=f"run_swiglu with d_model {d_model} and d_ff {d_ff}",
        allowed=rounding_bound(torch.float32, 2 * d_model + d_ff, linear(inner, wide2.abs())),
        dtype=torch.float32,
        mistakes=mistakes,
        hint="It is w2 (silu(w1 x) * (w3 x)), with all weights as (out, in).",
    )


def test_silu_is_x_times_sigmoid(adapters):
    check_silu(adapters, torch.linspace(-6, 6, 25).reshape(5, 5), hint="silu(x) is x * sigmoid(x).")


def test_silu_far_from_zero(adapters):
    x = torch.tensor([-1000.0, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0, 1000.0])
    check_silu(
        adapters,
        x,
        hint="exp(1000) is infinite, and inf / inf is nan: take torch.sigmoid, or x / (1 + exp(-x)).",
    )


def test_swiglu_goes_through_silu_of_w1(adapters):
    check_swiglu(adapters, 8, 24, (5,))


def test_swiglu_takes_any_axes_and_sizes(adapters):
    check_swiglu(adapters, 6, 6, (4,))
    check_swiglu(adapters, 10, 17, ())
    check_swiglu(adapters, 12, 7, (2, 1, 3))
