"""Layer norm taken apart: each operation in a low precision, beside the same operation in float64.

What spoils it can be of two kinds. The *range*: squares and their sum outgrow fp16, which ends at 65504, or
are too small for it. The *digits*: a long sum rounds each addition, and inputs far from 0 spend their digits
on the mean, which is then subtracted. PyTorch's own layer norm has neither problem inside, as it computes
mean and variance in fp32 whatever the type of its input, and rounds what it returns.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from cs_systems.mixed_precision.formats import Format

Values = Mapping[str, Tensor]
"""Results so far by name: x, and one for each operation that was done."""
Operation = tuple[str, str, Callable[[Values], Tensor]]
"""Name of the result, formula, and what computes it."""
Inputs = Float64[Tensor, "*batch d_model"]


@dataclass(frozen=True)
class Step:
    """What one operation made of a vector in low precision; an error that is not finite is None."""

    name: str
    formula: str
    largest: float
    """Largest magnitude of the result; inf or nan if one of its numbers is."""
    exact_largest: float
    """The same if everything is done in float64."""
    own_error: float | None
    """Relative error that this operation makes of its low-precision input."""
    total_error: float | None
    """Relative error since the float64 inputs, all operations so far together."""
    size: int
    num_inf: int
    num_nan: int
    num_lost: int
    """Numbers that are 0 and would not be in float64."""


def add_up(numbers: Float[Tensor, "*batch terms"]) -> Float[Tensor, "*batch 1"]:
    """The sum over the last dimension, one by one in the type of the terms."""
    # BEGIN SOLUTION mixed_precision_accumulation
    total = torch.zeros_like(numbers[..., :1])
    for term in numbers.split(1, dim=-1):
        total = total + term
    return total
    # END SOLUTION


LAYER_NORM: tuple[Operation, ...] = (
    ("sum", "sum of x", lambda v: add_up(v["x"])),
    ("mean", "sum / d", lambda v: v["sum"] / v["x"].shape[-1]),
    ("centred", "x - mean", lambda v: v["x"] - v["mean"]),
    ("squares", "centred^2", lambda v: v["centred"] * v["centred"]),
    ("sum of squares", "sum of squares", lambda v: add_up(v["squares"])),
    ("variance", "sum of squares / d", lambda v: v["sum of squares"] / v["x"].shape[-1]),
    ("with eps", "variance + eps", lambda v: v["variance"] + v["eps"]),
    ("rsqrt", "1 / sqrt(with eps)", lambda v: v["with eps"].rsqrt()),
    ("normalised", "centred * rsqrt", lambda v: v["centred"] * v["rsqrt"]),
)
"""Without weight and bias, which change nothing about what is shown."""

RMS_NORM: tuple[Operation, ...] = (
    ("squares", "x^2", lambda v: v["x"] * v["x"]),
    *LAYER_NORM[4:8],
    ("normalised", "x * rsqrt", lambda v: v["x"] * v["rsqrt"]),
)


def unit_inputs(d_model: int, seed: int) -> Float64[Tensor, " d_model"]:
    """Normally distributed numbers whose mean is 0 and whose standard deviation is 1, both exactly."""
    z = torch.randn(d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = z - z.mean()
    return z / z.square().mean().sqrt()


def run_operations(
    x: Inputs, eps: float, dtype: torch.dtype, operations: tuple[Operation, ...] = LAYER_NORM
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Each result in three ways: in `dtype`; in float64 of the same inputs in `dtype`; in float64 throughout.

    Also `x` itself, whose only operation is the cast. eps is stored in `dtype` like everything else.
    """
    low = {"x": x.to(dtype), "eps": x.new_tensor(eps).to(dtype)}
    exact = {"x": x, "eps": x.new_tensor(eps)}
    results = {"x": (low["x"], x, x)}
    for name, _, compute in operations:
        own = compute({key: value.double() for key, value in low.items()})
        low[name], exact[name] = compute(low), compute(exact)
        results[name] = (low[name], own, exact[name])
    return results


def relative_error(
    low: Float[Tensor, "*batch n"], exact: Float64[Tensor, "*batch n"], size: Tensor | None = None
) -> list[float | None]:
    """Root mean square of the difference, over that of the exact numbers or `size`, for each vector.

    None where one of them is inf or nan, or where the size is 0.
    """
    size = exact.square().mean(-1).sqrt() if size is None else size
    distance = (low.double() - exact).square().mean(-1).sqrt()
    errors = (distance / size).flatten().tolist()
    return [error if math.isfinite(error) else None for error in errors]


def _sizes(x: Inputs) -> dict[str, Tensor]:
    """What the errors of sum and mean are measured by: they may be 0 while the numbers are not."""
    typical = x.square().mean(-1).sqrt()
    return {"sum": x.shape[-1] * typical, "mean": typical}


def take_apart(x: Float64[Tensor, " d_model"], eps: float, dtype: torch.dtype) -> list[Step]:
    """Each operation of layer norm on one vector, beginning with the cast of the inputs."""
    formulas = {"x": "the inputs, rounded"} | {name: formula for name, formula, _ in LAYER_NORM}
    steps, sizes = [], _sizes(x)
    for name, (low, own, exact) in run_operations(x, eps, dtype).items():
        (own_error,) = relative_error(low, own, sizes.get(name))
        (total_error,) = relative_error(low, exact, sizes.get(name))
        lost = (low == 0) & (exact != 0)
        steps.append(
            Step(
                name, formulas[name], low.abs().max().item(), exact.abs().max().item(),
                own_error, total_error, low.numel(),
                int(low.isinf().sum()), int(low.isnan().sum()), int(lost.sum()),
            )
        )  # fmt: skip
    return steps


def compare_norms(x: Inputs, eps: float, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Whole norms by name: what comes out, and what would in float64.

    For a GPU, autocast runs `layer_norm` in fp32, which is the row of the fp32 input.
    """
    d_model = (x.shape[-1],)
    layer = run_operations(x, eps, dtype)["normalised"]
    rms = run_operations(x, eps, dtype, RMS_NORM)["normalised"]
    return {
        "layer norm, op by op": (layer[0], layer[2]),
        "F.layer_norm": (F.layer_norm(x.to(dtype), d_model, eps=eps), layer[2]),
        "F.layer_norm, fp32 input": (F.layer_norm(x.float(), d_model, eps=eps), layer[2]),
        "RMS norm, op by op": (rms[0], rms[2]),
        "F.rms_norm": (F.rms_norm(x.to(dtype), d_model, eps=eps), rms[2]),
    }


def sweep(
    x: Float64[Tensor, "cases d_model"], eps: float, dtype: torch.dtype
) -> dict[str, list[float | None]]:
    """Total error of each operation and of `F.layer_norm` for each row of `x`."""
    sizes, results = _sizes(x), run_operations(x, eps, dtype)
    errors = {name: relative_error(low, exact, sizes.get(name)) for name, (low, _, exact) in results.items()}
    low, exact = compare_norms(x, eps, dtype)["F.layer_norm"]
    return errors | {"F.layer_norm": relative_error(low, exact)}


def overflow_bound(format: Format) -> float:
    """The root of the least number that rounds to infinity, which is half a spacing above the largest."""
    return math.sqrt(format.largest * (1 + format.epsilon / (2 - format.epsilon) / 2))


def underflow_bound(format: Format) -> float:
    """The root of the greatest number that rounds to 0: half of the smallest, a tie that goes to even."""
    return math.sqrt(Fraction(format.smallest_subnormal) / 2)


def find_scale(happens: Callable[[float], bool], low: float, high: float) -> float | None:
    """The scale from which on something happens, by bisection to six digits; None if not by `high`."""
    if not happens(high):
        return None
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if happens(middle) else (middle, high)
    return high
