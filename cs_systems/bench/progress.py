"""Progress of a sweep on standard error: one rewritten line on a terminal, one line a case in a log."""

import time
from collections.abc import Callable, Sequence
from typing import Any


class Progress:
    """Tells which case and step is running and how long the rest may take.

    The time left is the work still to do (in any unit, here FLOPs) over the rate so far: a rough guess,
    since it takes the start of a process and slow first steps for work, that gets better with every step.

    `stream` is a text stream such as sys.stderr.
    """

    def __init__(self, stream: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._rewrites = stream.isatty()
        self._shown = ""
        self.plan([])

    def plan(self, work: Sequence[float]) -> None:
        """Announce the work of every case, in order; 0 for a case that will not be run."""
        self._work = list(work)
        self._index = self._steps_done = self._num_steps = 0
        self._done_work = self._busy_s = self._case_start_s = 0.0
        self._label = ""

    def start_case(self, label: str, num_steps: int) -> None:
        """The next case starts; it will take `num_steps` steps, warm-up included."""
        self._label, self._num_steps, self._steps_done = label, num_steps, 0
        self._case_start_s = self._clock()
        self._show("starting")

    def step(self, phase: str) -> None:
        """One more step of the case is done; `phase` names what it was part of."""
        self._steps_done += 1
        self._show(f"{phase}, step {self._steps_done}/{self._num_steps}, {self._time_left()}")

    def finish_case(self, outcome: str) -> None:
        """The case has ended, or was not needed; `outcome` stays on the screen."""
        if self._steps_done:
            self._done_work += self._work[self._index]
            self._busy_s += self._clock() - self._case_start_s
        self._steps_done = 0
        self._index += 1
        self._clear()
        print(f"[{self._index}/{len(self._work)}] {outcome}", file=self._stream, flush=True)

    def _time_left(self) -> str:
        current = self._work[self._index]
        done = self._done_work + current * min(1.0, self._steps_done / self._num_steps)
        left = sum(self._work[self._index :]) + self._done_work - done
        busy_s = self._busy_s + self._clock() - self._case_start_s
        return f"about {_duration(busy_s / done * left)} left" if done else "time left unknown"

    def _show(self, text: str) -> None:
        if not self._rewrites:
            return
        self._clear()
        self._shown = f"[{self._index + 1}/{len(self._work)}] {self._label}: {text}"
        self._stream.write(self._shown)
        self._stream.flush()

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * len(self._shown) + "\r")
            self._shown = ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
