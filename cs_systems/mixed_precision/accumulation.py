"""The same number added many times, in every way that matters, and where the digits of each sum go.

Two roundings spoil such a sum. *Input rounding*: the number itself is not in the format, so every term is off
by the same bit, and the sum by `steps` times that, however it is added. *Accumulation rounding*: a sum has no
more digits than its format, so each addition is rounded to the grid around the sum, which gets coarser as
the sum grows. A wider sum cures the second and never the first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cs_systems.device import DTYPES
from cs_systems.mixed_precision.formats import FORMATS, Format, spacing, walk

ALL_DTYPES = {**DTYPES, "fp64": torch.float64}
WIDER = {"fp16": "fp32", "bf16": "fp32", "fp32": "fp64"}
"""The format in which a careful program adds terms of each format."""
BLOCK = 128
"""Terms of a block. FP8 kernels move the sum of so many products from the tensor cores' narrow accumulator to
fp32 (DeepSeek-V3 report, 2024, section 3.3.2)."""
LONGEST_LOOP = 250_000
"""Additions at most of a method that Python has to do one by one, at some 10 us apiece."""

ONE_BY_ONE = "one by one"
"""Name of the simplest method, and the beginning of those that differ from it in the sum alone."""
NUM_METHODS = 9
"""Ways of adding that `compare_methods` tries."""

_LONGEST_STRETCH = 2**20
_CPU = torch.device("cpu")

Scalar = Float[Tensor, ""]


@dataclass(frozen=True)
class Sum:
    """One way to add a term `steps` times, and what came out."""

    method: str
    accumulator: str
    """Format of the sum while it grows."""
    total: float | None
    """inf or nan when the format could not hold it; None when so many additions would take too long."""
    stall_step: int | None
    """Number of the first addition that changed nothing, if one did and if terms were added one by one."""
    predicted_stall_step: int | None
    """The same from the format alone; None where no rule is known, or where infinity comes first."""
    sums: tuple[float | None, ...]
    """The sum after each of some numbers of additions."""


# BEGIN SOLUTION mixed_precision_accumulation
def course_sums() -> dict[str, float]:
    """The course's four sums: 0.01 added a thousand times in fp32, in fp16, and twice from fp16 into fp32.

    Returns:
        Totals by `fp32`, `fp16`, `fp16 into fp32` and `fp16 cast, into fp32`.
    """
    totals = {}
    for name, terms, accumulator, cast in (
        ("fp32", torch.float32, torch.float32, False),
        ("fp16", torch.float16, torch.float16, False),
        ("fp16 into fp32", torch.float16, torch.float32, False),
        ("fp16 cast, into fp32", torch.float16, torch.float32, True),
    ):
        total = torch.tensor(0, dtype=accumulator)
        for _ in range(1000):
            term = torch.tensor(0.01, dtype=terms)
            total += term.to(accumulator) if cast else term
        totals[name] = total.item()
    return totals


# END SOLUTION


def points(steps: int, num: int = 60) -> list[int]:
    """About `num` numbers from 1 to `steps`, evenly on a logarithmic axis; all of them if there are few."""
    return sorted({round(steps ** (i / (num - 1))) for i in range(num)})


def loop(term: Scalar, accumulator: torch.dtype, steps: int) -> Float[Tensor, " steps"]:
    """All sums, added one by one: the definition of what `add_one_by_one` does faster."""
    # BEGIN SOLUTION mixed_precision_accumulation
    total = torch.zeros((), dtype=accumulator)
    sums = []
    for _ in range(steps):
        total = (total + term).to(accumulator)  # a wider term would make the sum wider as well
        sums.append(total.item())
    return torch.tensor(sums, dtype=accumulator)
    # END SOLUTION


def add_one_by_one(term: Scalar, accumulator: torch.dtype, steps: int) -> Float[Tensor, " steps"]:
    """All sums, added one by one in the format of the sum.

    Neighbouring additions mostly add the same, so a stretch of sums is guessed from one addition and checked:
    each sum but the first must be what the addition of torch makes of the one before it. Up to the first that
    is not, all are right.
    """
    # BEGIN SOLUTION mixed_precision_accumulation
    sums = torch.empty(steps, dtype=accumulator)
    total, done, length = torch.zeros((), dtype=accumulator), 0, 1
    while done < steps:
        length = min(length, steps - done, _LONGEST_STRETCH)
        first = total + term
        gain = (first + term - first).double()
        guess = (first.double() + gain * torch.arange(length)).to(accumulator)
        guess[0] = first  # of infinity, the guess is not a number
        wrong = (guess[:-1] + term != guess[1:]).nonzero()
        right = int(wrong[0]) + 1 if len(wrong) else length
        sums[done : done + right] = guess[:right]
        total, done, length = guess[right - 1], done + right, 2 * right
        if not total.isfinite():
            sums[done:] = total
            break
    return sums
    # END SOLUTION


def add_with_kahan(term: Scalar, steps: int) -> Float[Tensor, " steps"]:
    """All sums, each with what its rounding lost subtracted from the next term (Kahan, 1965)."""
    total = lost = torch.zeros((), dtype=term.dtype)
    sums = []
    for _ in range(steps):
        corrected = term - lost
        new_total = total + corrected
        lost = (new_total - total) - corrected
        total = new_total
        sums.append(total.item())
    return torch.tensor(sums, dtype=term.dtype)


def add_pairwise(terms: Float[Tensor, " terms"]) -> Scalar:
    """Neighbours are added, then neighbouring sums, and so on: log2(n) roundings for each term, not n."""
    while len(terms) > 1:
        if len(terms) % 2:
            terms = torch.cat([terms, terms.new_zeros(1)])
        terms = terms[0::2] + terms[1::2]
    return terms[0]


def add_in_blocks(terms: Float[Tensor, " terms"]) -> Scalar:
    """Blocks are added one by one in the format of the terms, then their sums one by one in a wider one.

    The sum in a block stays small, and its grid fine; what comes of the blocks is few numbers.
    """
    padded = torch.nn.functional.pad(terms, (0, -len(terms) % BLOCK)).view(-1, BLOCK)
    blocks = torch.zeros_like(padded[:, 0])
    for column in padded.unbind(1):
        blocks = blocks + column
    total = torch.zeros((), dtype=torch.float64 if terms.dtype == torch.float32 else torch.float32)
    for block in blocks:
        total = total + block
    return total


def add_stochastically(
    term: float, draws: Float64[Tensor, " steps"], format: Format
) -> Float64[Tensor, " steps"]:
    """All sums of a positive term, each rounded up or down by chance, so that it is right on average.

    A number that lies a quarter of the way from one neighbour to the next becomes the next in one of four
    cases. With u the distance between them and r uniform in [0, 1), that is u * floor(number / u + r).

    In a binade the sum is a multiple of u, so what is added, u * floor(term / u + r), does not depend on it,
    and a stretch of additions is one cumulative sum. float64 holds each number before it is rounded exactly.

    Args:
        term: a positive number of the format, which has at most 24 significand bits.
        draws: the r of each addition.
        format: of the sums.
    """
    sums = torch.empty_like(draws)
    total, done, largest = 0.0, 0, float(format.largest)
    while done < len(draws):
        if total + term >= 2.0 ** (format.max_exponent + 1):
            sums[done:] = math.inf
            break
        grid = float(spacing(Fraction(total + term), format))
        end = 2 * grid / float(format.epsilon)
        some = draws[done : done + min(_LONGEST_STRETCH, 16 + int((end - total) / term))]
        if total < end / 2:  # the sum crosses into this binade: it is not a multiple of its grid yet
            some = some[:1]
            new = grid * torch.floor((total + term) / grid + some)
        else:
            new = total + grid * torch.floor(term / grid + some).cumsum(0)
            outside = (new + term >= end).nonzero()  # the addition after such a sum has another grid
            new = new[: int(outside[0]) + 1] if len(outside) else new
        new[new > largest] = math.inf
        sums[done : done + len(new)] = new
        total, done = new[-1].item(), done + len(new)
    return sums


def compare_methods(
    value: float,
    steps: int,
    dtype: str,
    seed: int,
    device: torch.device,
    on_method: Callable[[str], object] = lambda method: None,
) -> list[Sum]:
    """Add `value` in every way, as terms of a format, and say what each came to.

    Args:
        value: what is added.
        steps: how often.
        dtype: fp32, fp16 or bf16.
        seed: of stochastic rounding.
        device: where torch's own sum and product run; the others give the same everywhere and run on the CPU.
        on_method: told of each method when it is done.
    """
    term = torch.tensor(value, dtype=DTYPES[dtype])
    wider = WIDER[dtype]
    own, wide = ALL_DTYPES[dtype], ALL_DTYPES[wider]
    running: dict[str, tuple[str, Callable[[], Tensor]]] = {
        ONE_BY_ONE: (dtype, lambda: add_one_by_one(term, own, steps)),
        f"{ONE_BY_ONE} into {wider}": (wider, lambda: add_one_by_one(term, wide, steps)),
        f"{ONE_BY_ONE}, cast to {wider}": (wider, lambda: add_one_by_one(term.to(wide), wide, steps)),
        "Kahan": (dtype, lambda: add_with_kahan(term, min(steps, LONGEST_LOOP))),
        "stochastic rounding": (dtype, lambda: _one_stochastic(term, steps, dtype, seed)),
    }
    at_once: dict[str, tuple[str, torch.device, Callable[[Tensor], Tensor]]] = {
        "pairwise": (dtype, _CPU, add_pairwise),
        f"blocks of {BLOCK}": (f"{dtype}, then {wider}", _CPU, add_in_blocks),
        "torch.sum": ("torch's choice", device, torch.sum),
        "matmul with ones": ("torch's choice", device, lambda terms: torch.ones_like(terms) @ terms[:, None]),
    }
    numbers = points(steps)
    results = []
    for method, (accumulator, run) in running.items():
        sums = run()
        some = [sums[number - 1].item() if number <= len(sums) else None for number in numbers]
        stalls = (None, None)
        if method.startswith(ONE_BY_ONE):
            stalls = _first_unchanged(sums), _predict_stall(term, FORMATS[accumulator])
        results.append(Sum(method, accumulator, some[-1], *stalls, tuple(some)))
        on_method(method)
    for method, (accumulator, where, add) in at_once.items():
        terms = term.to(where).expand(steps).contiguous()
        some = [add(terms[:number]).item() for number in numbers]
        results.append(Sum(method, accumulator, some[-1], None, None, tuple(some)))
        on_method(method)
    return results


def repeat_stochastic(value: float, steps: int, dtype: str, seed: int, repeats: int) -> list[float]:
    """Totals of stochastic rounding with as many seeds, from `seed` on."""
    term = torch.tensor(value, dtype=DTYPES[dtype])
    return [_one_stochastic(term, steps, dtype, seed + i)[-1].item() for i in range(repeats)]


def _one_stochastic(term: Scalar, steps: int, dtype: str, seed: int) -> Float64[Tensor, " steps"]:
    draws = torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return term.sign().item() * add_stochastically(abs(term.item()), draws, FORMATS[dtype])


def _first_unchanged(sums: Float[Tensor, " steps"]) -> int | None:
    """Number of the first addition that left a finite sum as it was, counted from 1."""
    found = ((sums[1:] == sums[:-1]) & sums[1:].isfinite()).nonzero()
    return int(found[0]) + 2 if len(found) else None


def _predict_stall(term: Scalar, format: Format) -> int | None:
    return walk(abs(Fraction(term.item())), None, format).stall_step
