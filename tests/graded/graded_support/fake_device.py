"""A device with a queue and a clock, both made of numbers, to find out what a timing harness measures.

The host asks for work and goes on; the device does it later, in order. Time is a number that only they move
on, so each reading is exact, and what a harness with a known mistake would read is computed by running it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from graded_support.numbers import fail, kind

TOLERANCE_S = 1e-9
"""Readings are sums of a few numbers below a hundred thousand seconds; they are exact to 1e-11."""

Harness = Callable[["Experiment", int, int], list[float]]
"""What measures: it gets the experiment, the number of warm-up steps, and the number of steps that count."""


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


def measure_rightly(
    experiment: Experiment,
    warmup_steps: int,
    steps: int,
    *,
    sync_before: bool = True,
    sync_after: bool = True,
) -> list[float]:
    """The definition of what is to be measured, with two ways to spoil it."""
    samples = []
    for number in range(warmup_steps + steps):
        inputs = experiment.make_inputs()
        if sync_before:
            experiment.synchronize()
        start = experiment.clock()
        experiment.step(inputs)
        if sync_after:
            experiment.synchronize()
        if number >= warmup_steps:
            samples.append(experiment.clock() - start)
        if number == warmup_steps - 1:
            experiment.synchronize()  # whoever waits nowhere else waits after warm-up
    return samples


def _wait_after(experiment: Experiment, warmup_steps: int, steps: int) -> list[float]:
    return measure_rightly(experiment, warmup_steps, steps, sync_before=False)


def _wait_before(experiment: Experiment, warmup_steps: int, steps: int) -> list[float]:
    return measure_rightly(experiment, warmup_steps, steps, sync_after=False)


def _time_the_loop(experiment: Experiment, warmup_steps: int, steps: int) -> list[float]:
    """One reading around all steps, shared out."""
    measure_rightly(experiment, warmup_steps, 0)
    all_inputs = [experiment.make_inputs() for _ in range(steps)]
    experiment.synchronize()
    start = experiment.clock()
    for inputs in all_inputs:
        experiment.step(inputs)
    experiment.synchronize()
    return [(experiment.clock() - start) / steps] * steps


def _time_the_inputs(experiment: Experiment, warmup_steps: int, steps: int) -> list[float]:
    measure_rightly(experiment, warmup_steps, 0)
    samples = []
    for _ in range(steps):
        experiment.synchronize()
        start = experiment.clock()
        experiment.step(experiment.make_inputs())
        experiment.synchronize()
        samples.append(experiment.clock() - start)
    return samples


def _repeat_the_mean(experiment: Experiment, warmup_steps: int, steps: int) -> list[float]:
    samples = measure_rightly(experiment, warmup_steps, steps)
    return [sum(samples) / steps] * steps


def _add_up(experiment: Experiment, warmup_steps: int, steps: int) -> list[float]:
    samples = measure_rightly(experiment, warmup_steps, steps)
    return [sum(samples[: i + 1]) for i in range(steps)]


def _count_warmup(experiment: Experiment, warmup_steps: int, steps: int) -> list[float]:
    return measure_rightly(experiment, 0, warmup_steps + steps)[:steps]


def _in_milliseconds(experiment: Experiment, warmup_steps: int, steps: int) -> list[float]:
    return [1e3 * sample for sample in measure_rightly(experiment, warmup_steps, steps)]


MISTAKES: dict[str, Harness] = {
    "the clock is stopped without waiting: a step is timed until it is asked for, not until it is done; call "
    "synchronize before the second reading": _wait_before,
    "the clock is started while earlier work is in the queue, which the step then pays for; call synchronize "
    "before the first reading": _wait_after,
    "the samples are the warm-up's: the first steps of a process are slow for reasons that do not come "
    "back": _count_warmup,
    "inputs are made while the clock runs: make them before": _time_the_inputs,
    "one reading around the whole loop is divided by the steps: each step needs its own": _time_the_loop,
    "the mean is repeated: return the samples, for the spread is a result too": _repeat_the_mean,
    "each sample is counted from the start of the loop, not of its step": _add_up,
    "the times are in milliseconds": _in_milliseconds,
}
"""What people get wrong, and a harness that does."""


def check_harness(run_benchmark: Callable[..., Any], costs: Costs, warmup_steps: int, steps: int) -> None:
    """Run a student's harness on the device, and fail with what is wrong about its calls or its samples."""
    done = Experiment(costs)
    samples = run_benchmark(done.make_inputs, done.step, done.synchronize, done.clock, warmup_steps, steps)
    for complaint in _complaints(done, samples, warmup_steps, steps):
        fail(complaint)
    expected = measure_rightly(Experiment(costs), warmup_steps, steps)
    if _are_close(samples, expected):
        return
    explained = ""
    for words, harness in MISTAKES.items():
        wrong = harness(Experiment(costs), warmup_steps, steps)
        if _are_close(samples, wrong) and not _are_close(wrong, expected):
            explained = f" This is what comes out when {words}."
            break
    fail(f"run_benchmark returned {_show(samples)} s; the steps took {_show(expected)} s.{explained}")


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


def _are_close(samples: Any, others: list[float]) -> bool:
    """Whether two lists of as many numbers are the same but for rounding."""
    return all(abs(float(a) - b) <= TOLERANCE_S for a, b in zip(samples, others, strict=True))


def _show(samples: Any) -> str:
    return "[" + ", ".join(f"{float(sample):.6g}" for sample in samples) + "]"
