"""The accumulation experiment: one number added many times, in every way; one record for each type."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch

from cs_systems.bench.provenance import collect_provenance
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.device import DTYPES, choose_device
from cs_systems.mixed_precision.accumulation import (
    NUM_METHODS,
    ONE_BY_ONE,
    Sum,
    compare_methods,
    points,
    repeat_stochastic,
)
from cs_systems.mixed_precision.formats import (
    FORMATS,
    Format,
    check_representable,
    round_to,
    spacing,
    stall_value,
    walk,
)
from cs_systems.mixed_precision.settings import AccumulationConfig

_MOST_REPEATS, _MOST_DRAWS = 32, 10_000_000


def check_all(configs: Sequence[AccumulationConfig]) -> None:
    """Raise ValueError where a format cannot hold the number that is to be added."""
    for config in configs:
        try:
            check_representable(Fraction(config.value), FORMATS[config.dtypes])
        except ValueError as error:
            raise ValueError(f"--value {config.value:g}, --dtypes {config.dtypes}: {error}") from None


def num_steps(config: AccumulationConfig) -> int:
    """How often `run_case` will tell of a step."""
    return NUM_METHODS


def run_case(
    config: AccumulationConfig, command: str, on_step: Callable[[str], object]
) -> tuple[BenchmarkRecord | None, bool]:
    """The record of one type, and whether Ctrl-C ended it, in which case there is none.

    `on_step` is told of each method, not of each addition: there may be ten million.
    """
    device = choose_device("auto")
    provenance = collect_provenance(command, device)
    try:
        metrics = measure(config, device, on_step)
    except KeyboardInterrupt:
        return None, True
    case = dataclasses.asdict(config)
    return BenchmarkRecord(config.EXPERIMENT, case, "ok", provenance, metrics=metrics), False


def measure(
    config: AccumulationConfig, device: torch.device, on_step: Callable[[str], object]
) -> dict[str, Any]:
    """All that the tables and the plot show of one type; numbers that are not finite are words or None."""
    value, steps, name = config.value, config.steps, config.dtypes
    format = FORMATS[name]
    term = Fraction(torch.tensor(value, dtype=DTYPES[name]).item())
    sums = compare_methods(value, steps, name, config.seed, device, on_step)
    wanted = Fraction(str(value))  # as typed: 0.01 is a hundredth, which no binary format holds
    repeats = max(1, min(_MOST_REPEATS, _MOST_DRAWS // steps))
    totals = repeat_stochastic(value, steps, name, config.seed, repeats)
    path = walk(abs(term), steps, format)
    stall = stall_value(term, format)
    return {
        "term": float(term),
        "term_error": float(term - wanted),
        "exact_sum": float(steps * wanted),
        "input_error": float(steps * (term - wanted)),
        "nearest_sum": _nearest(steps * term, format),
        "significand_bits": format.significand_bits,
        "largest": float(format.largest),
        "num_additions": points(steps),
        "methods": [_describe(one, term, wanted, steps) for one in sums],
        "stall_value": None if stall is None else float(stall),
        "stall_spacing": None if stall is None else float(spacing(stall, format)),
        "kahan_stall_value": None if stall is None else _kahan_stall(stall, format),
        "stochastic": {"repeats": repeats} | _mean_and_deviation(totals),
        "predicted_sum": "inf" if path.total is None else float(path.total if term > 0 else -path.total),
        "observed_sum": _word(next(one.total for one in sums if one.method == ONE_BY_ONE)),
        "overflow_step": path.overflow_step,
        "binades": [
            {name: float(number) for name, number in vars(row).items()}
            | {"num_additions": row.num_additions, "error": float(row.error if term > 0 else -row.error)}
            for row in path.binades
        ],
    }


def _describe(one: Sum, term: Fraction, wanted: Fraction, steps: int) -> dict[str, Any]:
    errors = [_off(sum_, number * wanted) for number, sum_ in zip(points(steps), one.sums, strict=True)]
    return {
        "method": one.method,
        "accumulator": one.accumulator,
        "sum": _word(one.total),
        "error": _off(one.total, steps * wanted),
        "accumulation_error": _off(one.total, steps * term),
        "stall_step": one.stall_step,
        "predicted_stall_step": one.predicted_stall_step,
        "errors": errors,
    }


def _off(total: float | None, exact: Fraction) -> float | None:
    """Total less what it should be; None when there is no finite total."""
    return None if total is None or not math.isfinite(total) else float(Fraction(total) - exact)


def _nearest(exact: Fraction, format: Format) -> float | str:
    try:
        return float(round_to(exact, format))
    except OverflowError:
        return "inf"


def _kahan_stall(stall: Fraction, format: Format) -> float | None:
    """Where the compensated sum stalls: what it lost so far is a plain sum of terms, which stalls itself.

    From then on the correction never exceeds `stall`, and a sum whose grid is twice that takes no notice.
    """
    value = 2 * stall / format.epsilon
    return float(value) if abs(value) <= format.largest else None


def _mean_and_deviation(totals: list[float]) -> dict[str, Any]:
    if not all(map(math.isfinite, totals)):
        return {"mean": "inf", "deviation": None}
    deviation = statistics.stdev(totals) if len(totals) > 1 else None
    return {"mean": statistics.fmean(totals), "deviation": deviation}


def _word(number: float | None) -> float | str | None:
    """A number that JSON can hold; "inf" or "nan" for others."""
    return number if number is None or math.isfinite(number) else str(number)
