"""A device with a queue and a clock, both made of numbers, to find out what a timing harness measures.

The host asks for work and goes on; the device does it later, in order. Time is a number that only they move
on, so each reading is exact, and what a harness reads, with a known mistake or without, follows from the
costs by arithmetic. No harness stands here.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from graded_support.numbers import fail, kind

TOLERANCE_S = 1e-9
"""Readings are sums of a few numbers below a hundred thousand seconds; they are exact to 1e-11."""


@dataclass(frozen=True)
class Costs:
    """Seconds that things take."""

    input_host_s: float = 0.0
    """Making an input keeps the host busy this long."""
    input_device_s: float = 0.0
    """It also leaves so much work in the queue, such as a copy."""
    step_host_s: float = 0.25
    step_device_s: float = 4.0
    slower_s: float = 0.0
    """The second step takes the device so much longer than the first, the third twice as much, and so on."""
    cold_s: float = 0.0
    """More work in each of the first steps of a process, as compilation is."""
    num_cold: int = 0


class Experiment:
    """What a harness is given: make_inputs, step, synchronize and clock; and what it did with them."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.now_s = 1000.0
        """Time of the host. A clock starts anywhere."""
        self.idle_from_s = 1000.0
        """When the device will have done all that it was asked for."""
        self.num_inputs = 0
        self.num_clock_reads = 0
        self.steps_on: list[Any] = []
        """The input of each call of step, in order."""

    def make_inputs(self) -> list[int]:
        """The next input: a list with its number, so that no two are the same object."""
        self.num_inputs += 1
        self._ask(self.costs.input_host_s, self.costs.input_device_s)
        return [self.num_inputs]

    def step(self, inputs: Any) -> None:
        """Ask the device for one step, and return."""
        number = len(self.steps_on)
        self.steps_on.append(inputs)
        cold_s = self.costs.cold_s if number < self.costs.num_cold else 0.0
        self._ask(self.costs.step_host_s, self.costs.step_device_s + number * self.costs.slower_s + cold_s)

    def synchronize(self) -> None:
        """Wait until the queue is empty."""
        self.now_s = max(self.now_s, self.idle_from_s)

    def clock(self) -> float:
        """The time of the host."""
        self.num_clock_reads += 1
        return self.now_s

    def _ask(self, host_s: float, device_s: float) -> None:
        self.now_s += host_s
        if device_s:
            self.idle_from_s = max(self.idle_from_s, self.now_s) + device_s


@dataclass(frozen=True)
class Truth:
    """How long the device works for each counted step: all that a reading follows from, beside the costs."""

    costs: Costs
    warmup_s: tuple[float, ...]
    """Of the warm-up steps."""
    counted_s: tuple[float, ...]

    @property
    def samples_s(self) -> list[float]:
        """The host asks for a step, and then nothing but the step is in the queue."""
        return [self.costs.step_host_s + work_s for work_s in self.counted_s]


def _until_asked(truth: Truth) -> list[float]:
    return [truth.costs.step_host_s for _ in truth.counted_s]


def _with_the_queue(truth: Truth) -> list[float]:
    """The step begins when it was asked for and the inputs are there, whichever is later."""
    start_s = max(truth.costs.input_device_s, truth.costs.step_host_s)
    return [start_s + work_s for work_s in truth.counted_s]


def _with_the_inputs(truth: Truth) -> list[float]:
    return [truth.costs.input_host_s + sample_s for sample_s in _with_the_queue(truth)]


def _shared_out(truth: Truth) -> list[float]:
    """The device is done with all when it is done with what followed the last moment at which it waited."""
    num, host_s = len(truth.counted_s), truth.costs.step_host_s
    total_s = max((i + 1) * host_s + sum(truth.counted_s[i:]) for i in range(num))
    return [total_s / num] * num


def _first_of_all(truth: Truth) -> list[float]:
    work_s = (truth.warmup_s + truth.counted_s)[: len(truth.counted_s)]
    return [truth.costs.step_host_s + each_s for each_s in work_s]


MISTAKES: dict[str, Callable[[Truth], list[float]]] = {
    "the clock is stopped without waiting: a step is timed until it is asked for, not until it is done; call "
    "synchronize before the second reading": _until_asked,
    "the clock is started while earlier work is in the queue, which the step then pays for; call synchronize "
    "before the first reading": _with_the_queue,
    "the samples are the warm-up's: the first steps of a process are slow for reasons that do not come "
    "back": _first_of_all,
    "inputs are made while the clock runs: make them before": _with_the_inputs,
    "one reading around the whole loop is divided by the steps: each step needs its own": _shared_out,
    "the mean is repeated: return the samples, for the spread is a result too": lambda truth: (
        [sum(truth.samples_s) / len(truth.samples_s)] * len(truth.samples_s)
    ),
    "each sample is counted from the start of the loop, not of its step": lambda truth: list(
        itertools.accumulate(truth.samples_s)
    ),
    "the times are in milliseconds": lambda truth: [1e3 * sample_s for sample_s in truth.samples_s],
}
"""What people get wrong, and what then comes out."""


def predict(costs: Costs, warmup_steps: int, steps: int) -> Truth:
    """What the device will do for each step."""
    work_s = [
        costs.step_device_s + number * costs.slower_s + (costs.cold_s if number < costs.num_cold else 0.0)
        for number in range(warmup_steps + steps)
    ]
    return Truth(costs, tuple(work_s[:warmup_steps]), tuple(work_s[warmup_steps:]))


def run_harness(
    run_benchmark: Callable[..., Any], costs: Costs, warmup_steps: int, steps: int
) -> tuple[Experiment, Any]:
    """What a harness did to the device, and what it returned. It is given functions without an owner."""
    done = Experiment(costs)
    given = (
        lambda: done.make_inputs(),
        lambda inputs: done.step(inputs),
        lambda: done.synchronize(),
        lambda: done.clock(),
    )
    return done, run_benchmark(*given, warmup_steps, steps)


def check_harness(run_benchmark: Callable[..., Any], costs: Costs, warmup_steps: int, steps: int) -> None:
    """Run a student's harness on the device, and fail with what is wrong about its calls or its samples."""
    done, samples = run_harness(run_benchmark, costs, warmup_steps, steps)
    for complaint in _complaints(done, samples, warmup_steps, steps):
        fail(complaint)
    truth = predict(costs, warmup_steps, steps)
    if are_close(samples, truth.samples_s):
        return
    explained = ""
    for words, predicted in MISTAKES.items():
        wrong = predicted(truth)
        if are_close(samples, wrong) and not are_close(wrong, truth.samples_s):
            explained = f" This is what comes out when {words}."
            break
    fail(f"run_benchmark returned {_show(samples)} s; the steps took {_show(truth.samples_s)} s.{explained}")


def _complaints(done: Experiment, samples: Any, warmup_steps: int, steps: int) -> Iterator[str]:
    """What is wrong about how often and with what things were called, the cause before its effects."""
    asked = f"{warmup_steps} warm-up and {steps} counted steps"
    total = warmup_steps + steps
    if len(done.steps_on) != total:
        words = ""
        if len(done.steps_on) == steps:
            words = ": warm-up was left out, so the first samples contain what happens only once"
        yield f"step was called {len(done.steps_on)} times for {asked}; expected {total}{words}"
    if done.num_inputs == 1 < total:
        yield (
            f"make_inputs was called once for {asked}, and its result used again: a cache remembers inputs "
            f"that it has seen; make new ones for each step"
        )
    if done.num_inputs != total:
        yield f"make_inputs was called {done.num_inputs} times for {asked}; expected {total}, once for each"
    if [inputs for inputs in done.steps_on if type(inputs) is not list]:
        yield "step was not called with what make_inputs returned"
    if len({id(inputs) for inputs in done.steps_on}) < total:
        yield "some inputs were used twice: each step gets what make_inputs returned for it"
    if not done.num_clock_reads:
        yield "the clock that was given was never read: call clock(), not time.perf_counter() or time.time()"
    if not isinstance(samples, list | tuple):
        yield f"run_benchmark returned {kind(samples)}; expected a list with the seconds of each step"
    if any(isinstance(sample, bool) or not isinstance(sample, int | float) for sample in samples):
        yield "run_benchmark returned a list of other things than numbers"
    if len(samples) == total != steps:
        yield f"run_benchmark returned {total} samples for {asked}: warm-up is done but not counted"
    if len(samples) != steps:
        yield f"run_benchmark returned {len(samples)} samples for {steps} counted steps"


def are_close(samples: Any, others: list[float]) -> bool:
    """Whether two lists of as many numbers are the same but for rounding."""
    return all(abs(float(a) - b) <= TOLERANCE_S for a, b in zip(samples, others, strict=True))


def _show(samples: Any) -> str:
    return "[" + ", ".join(f"{float(sample):.6g}" for sample in samples) + "]"
