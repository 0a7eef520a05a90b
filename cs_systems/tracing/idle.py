"""How long the device, or the CPU's operators, stood still, and why."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cs_systems.tables import Column, Table, format_percent, format_seconds
from cs_systems.tracing.attribute import merged
from cs_systems.tracing.columns import TOTAL, is_cpu, share, share_column, time_column
from cs_systems.tracing.trace import MEASURED, Kernel, Trace

_LAUNCH_BOUND = 0.3
"""Share of the time that may be spent waiting for the CPU before it is what limits the run."""
_BETWEEN_KERNELS_NS = 30
"""A gap this short is the device's own, between two kernels that were both ready."""


@dataclass(frozen=True)
class Idle:
    """The time from the start to the end of what was measured; the five parts add up to `span_ns`."""

    span_ns: int
    busy_ns: int
    """Time with at least one kernel running, on whatever stream."""
    host_wait_ns: int
    """Gaps before kernels whose launch call ended only after the device had run dry."""
    kernel_wait_ns: int
    """Gaps so short that they lie between two kernels in any case."""
    other_ns: int
    """Gaps before kernels that had been launched in time, or whose launch is not known."""
    tail_ns: int
    """After the last kernel, to the end of the last range."""

    @property
    def is_launch_bound(self) -> bool:
        """Whether waiting for the CPU takes so much of the time that faster kernels would not help."""
        return self.host_wait_ns > _LAUNCH_BOUND * self.span_ns


def find_idle(trace: Trace) -> Idle | None:
    """Busy time and gaps; None for a trace without kernels.

    It begins with the range `measured`, or where there is none with the first kernel.
    """
    if not trace.kernels:
        return None
    measured = [item for item in trace.ranges if item.name == MEASURED]
    union = merged((kernel.start_ns, kernel.end_ns) for kernel in trace.kernels)
    start_ns = min([union[0][0], *(item.start_ns for item in measured)])
    end_ns = max([union[-1][1], *(item.end_ns for item in measured or trace.ranges)])
    gaps = {"host_wait_ns": 0, "kernel_wait_ns": 0, "other_ns": 0}
    previous_end_ns = start_ns
    for kernel in sorted(trace.kernels, key=lambda kernel: kernel.start_ns):
        if kernel.start_ns > previous_end_ns:
            gaps[_why_idle(kernel, previous_end_ns)] += kernel.start_ns - previous_end_ns
        previous_end_ns = max(previous_end_ns, kernel.end_ns)
    return Idle(
        span_ns=end_ns - start_ns,
        busy_ns=sum(end - start for start, end in union),
        tail_ns=end_ns - union[-1][1],
        **gaps,
    )


def explain_idle(trace: Trace, idle: Idle) -> list[str]:
    """The verdict as a sentence, and then what speaks for it."""
    waiting = format_percent(idle.host_wait_ns / max(1, idle.span_ns))
    busy = format_percent(idle.busy_ns / max(1, idle.span_ns))
    if is_cpu(trace):
        if idle.is_launch_bound:
            return [f"overhead-bound: {waiting} of the time passes between operators, in Python and below it"]
        return [f"compute-bound: operators run {busy} of the time, {waiting} passes between them"]
    if idle.is_launch_bound:
        verdict = f"launch-bound: the device waits for the CPU {waiting} of the time"
        verdict += "; larger batches, torch.compile or CUDA graphs help, faster kernels do not"
    elif idle.busy_ns > idle.span_ns / 2:
        verdict = f"device-bound: the device is busy {busy} of the time and waits for the CPU {waiting}"
    else:
        verdict = f"neither: the device is busy {busy} of the time, yet waits for the CPU only {waiting}"
    return [verdict, *_evidence(trace.kernels)]


def idle_table(trace: Trace) -> Table:
    """Busy and idle time with the verdict; its rows add up to the time that was measured."""
    idle = find_idle(trace)
    columns = [
        Column("state", "Operators are" if is_cpu(trace) else "The device is", align="left"),
        time_column("time_ns", "Time"),
        share_column("share", "Share"),
    ]
    if idle is None:
        return Table("Busy and idle", columns, [])
    waiting = "waiting for Python" if is_cpu(trace) else "waiting for the CPU to launch"
    times = {
        "busy": idle.busy_ns,
        waiting: idle.host_wait_ns,
        "between two kernels": idle.kernel_wait_ns,
        "idle for another reason": idle.other_ns,
        "done, the range not": idle.tail_ns,
        TOTAL: idle.span_ns,
    }
    rows = [{"state": state, "time_ns": ns, "share": share(ns, idle.span_ns)} for state, ns in times.items()]
    return Table("Busy and idle", columns, rows, explain_idle(trace, idle))


def _evidence(kernels: Sequence[Kernel]) -> list[str]:
    median = statistics.median(kernel.busy_ns for kernel in kernels)
    evidence = [f"{len(kernels)} kernels and copies; half of them take under {format_seconds(median / 1e9)}"]
    in_queue = [
        kernel.start_ns - kernel.launch_start_ns for kernel in kernels if kernel.launch_start_ns is not None
    ]
    if in_queue:
        queued = format_seconds(max(0, statistics.median(in_queue)) / 1e9)
        evidence.append(
            f"half of them start over {queued} after their launch; a long queue keeps the device busy"
        )
    return evidence


def _why_idle(kernel: Kernel, since_ns: int) -> str:
    if kernel.launch_end_ns is not None and kernel.launch_end_ns > since_ns:
        return "host_wait_ns"
    return "kernel_wait_ns" if kernel.start_ns - since_ns <= _BETWEEN_KERNELS_NS else "other_ns"
