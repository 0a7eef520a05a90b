"""How to time work that has only been asked for.

A GPU runs beside the CPU. Calling a function on it puts work in a queue and returns after a few microseconds;
a clock read then shows how long it took to ask, not to do. Three rules make the reading mean what it says:

1. Wait before starting the clock, or the first pass pays for work queued earlier.
2. Wait before stopping it, or the last pass pays nothing for work still in the queue.
3. Do the same between passes, or backward pays for forward.

Waiting is `synchronize`, given from outside: on a CPU it does nothing, and this file needs no GPU library.

The first steps of a process are slow for reasons that never return (kernels are chosen, compiled and loaded,
memory is asked of the system, the optimizer makes its state), so they are measured apart, as warm-up. Their
times are kept: they are the answer to the question why warm-up is needed.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TimingConfig:
    """How often a case is repeated, and how long that may take."""

    warmup_steps: int = 5
    """Steps before the measured ones; timed too, but kept apart."""
    steps: int = 10
    """Steps that are measured."""
    max_seconds: float = 120.0
    """Budget for the steps of one case, at most half of it for warm-up; one step of each is always done."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"--warmup-steps {self.warmup_steps} must not be negative; 0 means none")
        if self.steps < 1:
            raise ValueError(f"--steps {self.steps} must be at least 1")
        if not self.max_seconds > 0:
            raise ValueError(f"--max-seconds {self.max_seconds:g} must be over 0, for example 120")


@dataclass(frozen=True)
class Measurement:
    """Seconds of each step by pass, in the order measured; empty when not one step was completed."""

    samples_s: dict[str, list[float]]
    warmup_samples_s: dict[str, list[float]]
    interrupted: bool
    """Whether Ctrl-C ended it; the steps completed before are here."""
    notes: list[str]
    """Where the budget allowed fewer steps than asked for."""


def measure_passes(
    passes: Mapping[str, Callable[[], object]],
    config: TimingConfig,
    *,
    synchronize: Callable[[], None],
    prepare: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """Run the passes in order, again and again, and time each of them.

    Args:
        passes: the work, by name; one call of each is a step.
        config: number of steps and time allowed.
        synchronize: returns when all work given to the device is done.
        prepare: runs before each step with the clock stopped, for example to draw the next inputs.
        clock: seconds that never go back. `time.time` may: it follows corrections of the date.
        on_step: told ("warm-up" or "measuring", steps done, steps planned) after each step, clock stopped.

    An exception of a pass is the caller's to handle; Ctrl-C is not one: it returns what was measured.
    """
    assert passes, "nothing to time"
    # BEGIN SOLUTION benchmarking_script
    # One row a step, so that an interruption can never leave passes with different numbers of samples.
    warmup_rows: list[list[float]] = []
    rows: list[list[float]] = []
    limit = f"--max-seconds {config.max_seconds:g}"
    phases = (
        ("warm-up", warmup_rows, config.warmup_steps, config.max_seconds / 2, f"half of {limit}"),
        ("measuring", rows, config.steps, config.max_seconds, limit),
    )
    notes = []
    interrupted = False
    start = clock()
    try:
        for phase, done, total, allowed_s, budget in phases:
            while len(done) < total:
                if done and clock() - start >= allowed_s:
                    notes.append(f"{phase} stopped after {len(done)} of {total} steps: {budget} was used up")
                    break
                done.append(_time_step(passes, synchronize, prepare, clock))
                if on_step:
                    on_step(phase, len(done), total)
    except KeyboardInterrupt:  # the step in progress is lost, the ones before it are not
        interrupted = True
    return Measurement(_by_pass(passes, rows), _by_pass(passes, warmup_rows), interrupted, notes)
    # END SOLUTION


# BEGIN SOLUTION benchmarking_script
def _time_step(
    passes: Mapping[str, Callable[[], object]],
    synchronize: Callable[[], None],
    prepare: Callable[[], None] | None,
    clock: Callable[[], float],
) -> list[float]:
    """Seconds of each pass of one step. This is the whole measurement."""
    if prepare:
        prepare()
    synchronize()
    times = []
    for run in passes.values():
        start = clock()
        run()
        synchronize()
        times.append(clock() - start)
    return times


def _by_pass(passes: Mapping[str, object], rows: list[list[float]]) -> dict[str, list[float]]:
    return {name: list(times) for name, times in zip(passes, zip(*rows, strict=True), strict=False)}


# END SOLUTION
