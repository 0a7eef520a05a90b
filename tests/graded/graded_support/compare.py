"""Compare a result with the truth, and say what probably went wrong.

The truth is computed in float64 by other means than the implementation. How far a result may be from it
follows from its number format and from how many roundings it takes (`rounding_bound`), so that another
machine, another order of additions or another library passes. A result that is further off is set beside what
the known mistakes would give.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from graded_support.numbers import check_number as check_number
from graded_support.numbers import describe_any as describe_any
from graded_support.numbers import fail, kind

Magnitude = TypeVar("Magnitude", Tensor, float)
Mistakes = Mapping[str, Tensor | float | Callable[[], Tensor | float]]
"""What people get wrong, told in words ("eps is added after the square root"), and what then comes out."""


def rounding_bound(
    dtype: torch.dtype, num_operations: float, magnitude: Magnitude, *, factor: float = 4.0
) -> Magnitude:
    """How far a result may be off: num_operations roundings of half a unit in the last place, times `factor`.

    A sum of n products in any order is within n eps / 2 * sum |a_i b_i| of the truth (Higham 2002, section
    3.1); `magnitude` is that sum of absolute values, or whatever bounds what is rounded. `factor` allows for
    the roundings of functions such as exp, and of what comes before and after.
    """
    return factor * num_operations * torch.finfo(dtype).eps / 2 * magnitude


def check_tensor(
    actual: Any,
    expected: Tensor,
    *,
    what: str,
    allowed: Tensor | float,
    dtype: torch.dtype,
    mistakes: Mistakes | None = None,
    hint: str = "",
) -> None:
    """Fail unless `actual` is a tensor of this type and shape with values within `allowed` of `expected`.

    Args:
        actual: what the student's function returned.
        expected: the truth, in float64.
        what: what is compared, as the message calls it: "run_linear", "dq of flash attention".
        allowed: greatest difference of each value, from `rounding_bound`; at least the spacing there.
        dtype: the type that the result must have.
        mistakes: what to say when the result is, within `allowed`, that of a known mistake.
        hint: what to say when it is not.
    """
    if type(actual) not in (Tensor, torch.nn.Parameter):
        fail(f"{what} returned {kind(actual)}; expected a torch.Tensor")
    if actual.shape != expected.shape:
        fail(f"{what} has shape {tuple(actual.shape)}; expected {tuple(expected.shape)}")
    if actual.dtype != dtype:
        fail(f"{what} has type {_name(actual.dtype)}; expected {_name(dtype)}")
    if actual.device != expected.device:
        fail(f"{what} is on {actual.device}; expected {expected.device}")
    found = actual.detach().to(torch.float64)
    allowed = torch.as_tensor(allowed, dtype=torch.float64, device=expected.device)
    allowed = torch.maximum(allowed, torch.finfo(dtype).eps * expected.abs().nan_to_num(posinf=0.0))
    if _agree(found, expected, allowed):
        return
    fail(
        f"{what} is wrong: {_differences(found, expected, allowed)}."
        f"{_explain(found, expected, allowed, mistakes or {}, hint)}"
    )


def _agree(found: Tensor, expected: Tensor, allowed: Tensor) -> bool:
    """Whether all values are close; nan is close to nothing but an expected nan, infinity only to itself."""
    close = ((found - expected).abs() <= allowed) | (found == expected) | (found.isnan() & expected.isnan())
    return bool(close.all())


def _differences(found: Tensor, expected: Tensor, allowed: Tensor) -> str:
    if found.isnan().any() and not expected.isnan().any():
        return f"{int(found.isnan().sum())} of {found.numel()} values are nan"
    excess = (found - expected).abs() - allowed
    bad = ~((excess <= 0) | (found == expected))
    worst = int(torch.where(bad, excess.nan_to_num(nan=math.inf), -math.inf).argmax())
    limit = allowed.expand(found.shape).reshape(-1)[worst]
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), found.shape)) if found.ndim else ""
    return (
        f"{int(bad.sum())} of {found.numel()} values are off, most at {list(at) if at else 'the value'}: "
        f"{float(found.reshape(-1)[worst]):.6g} instead of {float(expected.reshape(-1)[worst]):.6g}, "
        f"where rounding explains {float(limit):.2g}"
    )


def _explain(found: Tensor, expected: Tensor, allowed: Tensor, mistakes: Mistakes, hint: str) -> str:
    """The first known mistake that would give what was found, in words."""
    for words, value in mistakes.items():
        wrong = torch.as_tensor(value() if callable(value) else value, dtype=torch.float64)
        # A mistake that cannot be told from the truth here explains nothing.
        if wrong.shape != found.shape or _agree(wrong, expected, allowed):
            continue
        if _agree(found, wrong, torch.clamp(allowed, min=_rounding_of_mistake(wrong, expected, allowed))):
            return f" This is what comes out when {words}."
    return f" {hint}" if hint else ""


def _rounding_of_mistake(wrong: Tensor, expected: Tensor, allowed: Tensor) -> float:
    """How far off a mistake may be at least: where the truth happens to be exact, it is not.

    A mistake that makes much larger numbers also makes larger roundings.
    """
    largest, usual = (float(tensor.abs().nan_to_num(posinf=0.0).max()) for tensor in (wrong, expected))
    return max(float(allowed.mean()), 1e-4 * largest if largest > 10 * usual else 0.0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
