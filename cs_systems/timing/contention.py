"""How busy everybody else kept the machine while we measured: a neighbour makes a CPU timing worthless.

Minimum and median hide short bursts, but not a process that runs all the time, which can double every sample.
The time that all cores were busy, less what this process used, is what the others had.
"""

import os
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass

_STAT = pathlib.Path("/proc/stat")

SHORTEST_WINDOW_S = 0.25
"""The kernel counts in ticks of 10 ms; over a shorter time the counting error is as large as the answer."""


def parse_busy_ticks(stat: str) -> int:
    """Ticks that all cores together spent working since boot, from the text of /proc/stat.

    "cpu user nice system idle iowait irq softirq steal guest guest_nice": waiting is left out, steal (time
    that the host of a virtual machine gave to others) counts as busy, guest time is already part of user.
    """
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return user + nice + system + irq + softirq + steal


def system_busy_s() -> float | None:
    """Core-seconds of work since boot by everything on this machine; None where Linux's /proc is missing."""
    if not _STAT.exists():
        return None
    return parse_busy_ticks(_STAT.read_text()) / os.sysconf("SC_CLK_TCK")


Counters = tuple[float, float | None, float]
"""Seconds: of the wall clock, of work on all cores (None where unknown), of work by this process."""


@dataclass(frozen=True)
class CoreLoad:
    """The counters at the start of a window: `load = CoreLoad.start()`, then the work, then `load.finish()`.

    Only this process counts as us: work done in child processes is seen as somebody else's.
    """

    before: Counters
    read_counters: Callable[[], Counters]

    @classmethod
    def start(cls, read_counters: Callable[[], Counters] | None = None) -> "CoreLoad":
        """Open a window now."""
        read = read_counters or _read_counters
        return cls(read(), read)

    def finish(self) -> float | None:
        """How many cores' worth of other work ran since `start`; None where that is not known.

        It is not known outside Linux, and over less than `SHORTEST_WINDOW_S`.
        """
        wall_before_s, busy_before_s, own_before_s = self.before
        wall_s, busy_s, own_s = self.read_counters()
        elapsed_s = wall_s - wall_before_s
        if busy_s is None or busy_before_s is None or elapsed_s < SHORTEST_WINDOW_S:
            return None
        others_s = (busy_s - busy_before_s) - (own_s - own_before_s)
        return max(0.0, others_s) / elapsed_s  # the two counters tick apart: slightly negative means none


def _read_counters() -> Counters:
    return time.perf_counter(), system_busy_s(), time.process_time()
