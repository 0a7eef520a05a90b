"""Time functions in turns in one process, so that a ratio of their times means something.

Two programs run one after another meet two different machines: clock rate and neighbours have changed. So the
functions take turns, and every second round goes backwards (a, b, b, a, ...): what drifts slowly hits all
alike and leaves their ratios alone.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Timer = Callable[[Callable[[], object]], float]
"""Runs a function and returns the seconds that it took."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Turn:
    """What is timed, and what must be done just before it with the clock stopped."""

    run: Callable[[], object]
    prepare: Callable[[], object] = _nothing


def wall_timer(
    synchronize: Callable[[], object] = _nothing, clock: Callable[[], float] = time.perf_counter
) -> Timer:
    """Seconds until the result is there; `synchronize` returns when the device has done all its work."""

    # BEGIN SOLUTION benchmarking_script
    def timer(run: Callable[[], object]) -> float:
        synchronize()
        start = clock()
        run()
        synchronize()
        return clock() - start

    return timer
    # END SOLUTION


def take_turns(
    turns: Mapping[str, Turn],
    rounds: int,
    timers: Mapping[str, Timer],
    into: Mapping[str, dict[str, list[float]]],
    *,
    on_round: Callable[[], object],
    has_time: Callable[[], bool] = lambda: True,
) -> int:
    """Add the seconds of each turn in each round to `into[timer][turn]`; returns the rounds that were done.

    Every turn runs once for each timer. At least one round is done, more while `has_time()`. `on_round` is
    called after each round. A round cut short leaves nothing behind, so all lists stay of one length.
    """
    names = list(turns)
    for timer in timers:
        into[timer].update({name: [] for name in names})
    for done in range(rounds):
        if done and not has_time():
            return done
        seconds = {}
        for name in names if done % 2 == 0 else reversed(names):
            for timer, take in timers.items():
                turns[name].prepare()
                seconds[timer, name] = take(turns[name].run)
        for (timer, name), value in seconds.items():
            into[timer][name].append(value)
        on_round()
    return rounds
