"""Hold a contest: several implementations of one job are checked, warmed up, and timed in turns.

An implementation that is wrong, fails or runs out of memory becomes an outcome with the reason, and the
others go on without it. Nobody is timed whose result was not compared.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cs_systems import device as devices
from cs_systems.bench.record import Status
from cs_systems.bench.turns import Timer, Turn, take_turns, wall_timer
from cs_systems.timing.contention import CoreLoad
from cs_systems.timing.stats import Samples, median_ratio_interval

LARGEST_ERROR = {"fp32": 5e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Of any output or gradient, as a fraction of the largest: rounding stays below, a wrong formula above."""

INTERPRETED = "run by Triton's interpreter: shows that the result is right, not how fast it is on a GPU"
"""Remark on a Triton kernel that was timed on a CPU."""

DEVICE = "_device"
"""Ending of a series that was timed by the GPU's own clock: "forward_device" beside "forward"."""

WARMUP_ROUNDS = 1
"""Rounds of each pass that are timed but not counted; the check ran everything once before."""

_LAUNCH_BOUND = 2.0
_REASON_LENGTH = 300


@dataclass(frozen=True)
class Contestant:
    """One implementation: how to check it, and what is timed in each pass."""

    check: Callable[[], dict[str, Any]]
    """Runs it once and returns metrics, of which `max_error` decides whether it may take part."""
    passes: Mapping[str, Turn]


@dataclass(frozen=True)
class Rules:
    """How a contest is held."""

    rounds: int
    max_seconds: float
    """For everything; one round of each pass is always done."""
    largest_error: float
    """A `max_error` that is not below this is a wrong result."""
    baseline: str
    """Contestant that the times of the others are divided by."""
    timers: Mapping[str, Timer]
    """By ending of the series: "" for the wall clock, and `DEVICE` on a GPU."""


@dataclass
class Outcome:
    """How one contestant fared: the fields of a record that follow from the contest."""

    status: Status = "ok"
    reason: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    samples_s: dict[str, list[float]] = field(default_factory=dict)
    warmup_samples_s: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def timers_of(device: torch.device) -> dict[str, Timer]:
    """The clocks for a device: the wall's, and on a GPU its own."""
    timers = {"": wall_timer(devices.synchronizer(device))}
    own = devices.event_timer(device)
    return timers | ({DEVICE: own} if own else {})


def hold_contest(
    contestants: Mapping[str, Contestant], rules: Rules, on_step: Callable[[str], object]
) -> tuple[dict[str, Outcome], bool]:
    """The outcome of every contestant, and whether Ctrl-C ended it.

    All contestants have the same passes, in the same order. `on_step` is told of every check and round.
    """
    outcomes = {name: Outcome() for name in contestants}
    samples: dict[str, dict[str, list[float]]] = {}
    warmup_samples: dict[str, dict[str, list[float]]] = {}
    notes: list[str] = []
    start, load, interrupted = time.monotonic(), CoreLoad.start(), False
    passes = list(next(iter(contestants.values())).passes)
    try:
        for name, contestant in contestants.items():
            _check(contestant, outcomes[name], rules)
            on_step(f"checking {name}")
        load = CoreLoad.start()
        for number, pass_name in enumerate(passes, start=1):
            turns = {
                name: contestant.passes[pass_name]
                for name, contestant in contestants.items()
                if outcomes[name].status == "ok"
            }
            deadline = start + rules.max_seconds * number / len(passes)
            if turns:
                _time_pass(pass_name, turns, rules, deadline, (warmup_samples, samples, notes), on_step)
    except KeyboardInterrupt:
        interrupted = True
    except failures() as error:  # it went well in the check, so this is not one contestant's fault
        end = as_outcome(error)
        for outcome in outcomes.values():
            if outcome.status == "ok":
                outcome.status, outcome.reason = end.status, f"{end.reason} (while taking turns)"
    other_load = load.finish()
    for name, outcome in outcomes.items():
        outcome.samples_s = {series: times[name] for series, times in samples.items() if times.get(name)}
        outcome.warmup_samples_s = {s: times[name] for s, times in warmup_samples.items() if times.get(name)}
        if outcome.samples_s:
            outcome.notes += notes
            outcome.metrics |= _times(name, samples, rules.baseline) | {"other_load_cores": other_load}
        if interrupted and outcome.status == "ok":
            done = sum(len(outcome.samples_s.get(pass_name, [])) for pass_name in passes)
            outcome.status = "failed"
            outcome.reason = f"interrupted after {done} of {len(passes) * rules.rounds} rounds"
    return outcomes, interrupted


def failures() -> tuple[type[Exception], ...]:
    """What an implementation may raise that cannot do its job; Triton's errors share no base with others."""
    if importlib.util.find_spec("triton") is None:
        return RuntimeError, ValueError, MemoryError
    from triton.errors import TritonError

    return RuntimeError, ValueError, MemoryError, TritonError


def counted(metrics: Mapping[str, Any], pass_name: str) -> float | None:
    """The median that rates and ratios are of: the GPU's own time where there is one."""
    medians = metrics.get("device_median_s") or metrics.get("median_s") or {}
    return medians.get(pass_name)


def _check(contestant: Contestant, outcome: Outcome, rules: Rules) -> None:
    try:
        outcome.metrics = contestant.check()
    except failures() as error:
        end = as_outcome(error)
        outcome.status, outcome.reason = end.status, end.reason
        return
    error = outcome.metrics["max_error"]
    if not error < rules.largest_error:
        outcome.metrics["max_error"] = error if math.isfinite(error) else None  # JSON has no nan
        outcome.status = "failed"
        outcome.reason = f"wrong result: off by {error:.1e} of the largest value, so its time means nothing"


def as_outcome(error: Exception) -> Outcome:
    """What an exception means for whoever raised it."""
    if devices.is_out_of_memory(error):
        return Outcome("oom", "ran out of memory")
    if isinstance(error, devices.UnsupportedError):
        return Outcome("skipped", str(error))
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return Outcome("failed", f"{type(error).__name__}: {first[:_REASON_LENGTH]}")


def _time_pass(
    pass_name: str,
    turns: Mapping[str, Turn],
    rules: Rules,
    deadline: float,
    results: tuple[dict[str, dict], dict[str, dict], list[str]],
    on_step: Callable[[str], object],
) -> None:
    warmup_samples, samples, notes = results
    timers = {pass_name + ending: timer for ending, timer in rules.timers.items()}
    for phase, rounds, into in (
        ("warm-up", WARMUP_ROUNDS, warmup_samples),
        ("measuring", rules.rounds, samples),
    ):
        into.update({series: {} for series in timers})
        done = take_turns(
            turns, rounds, timers, into,
            on_round=lambda phase=phase: on_step(f"{phase} {pass_name}"),
            has_time=lambda: time.monotonic() < deadline,
        )  # fmt: skip
        if done < rounds:
            notes.append(f"{pass_name}: {done} of {rounds} rounds; its share of --max-seconds was used up")


def _times(name: str, samples: Mapping[str, Mapping[str, list[float]]], baseline: str) -> dict[str, Any]:
    """Medians, spreads, and ratios to the baseline with a 95 % interval, each by pass."""
    metrics: dict[str, dict[str, float]] = {}
    for series, times in samples.items():
        if not times.get(name):
            continue
        pass_name, prefix = series.removesuffix(DEVICE), "device_" if series.endswith(DEVICE) else ""
        own = Samples.from_values(times[name])
        metrics.setdefault(f"{prefix}median_s", {})[pass_name] = own.median
        metrics.setdefault(f"{prefix}iqr_s", {})[pass_name] = own.iqr
        if name == baseline or not times.get(baseline) or (pass_name + DEVICE in samples and not prefix):
            continue
        low, high = median_ratio_interval(times[baseline], own.values)
        ratio = own.median / Samples.from_values(times[baseline]).median
        for key, value in {"ratio": ratio, "ratio_low": low, "ratio_high": high}.items():
            metrics.setdefault(key, {})[pass_name] = value
    return metrics


def launch_bound_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Says in which passes the caller waits more than twice as long as the GPU works: for Python to ask."""
    bound = [
        pass_name
        for pass_name, device_s in metrics.get("device_median_s", {}).items()
        if metrics["median_s"][pass_name] > _LAUNCH_BOUND * device_s
    ]
    return [f"launch-bound in {', '.join(bound)}: the GPU idles over half of the time"] if bound else []


def largest_error(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference of an element, as a fraction of the largest element of its tensor; nan stays nan."""
    errors = [
        ((result.to(right.dtype) - right).abs().max() / right.abs().max()).item()
        for result, right in zip(results, expected, strict=True)
    ]
    return max(errors, key=lambda error: (error != error, error))
