"""Which ranges a kernel belongs to, by the thread that launched it and, for backward, by the time.

A GPU lags behind the CPU, so it is the moment of the launch call that counts. On a GPU, autograd launches the
kernels of backward from a thread of its own, on which the program opened no range, while the thread that
called `backward()` waits inside that range. Joined by thread alone, backward would have next to no kernels.
So a kernel that autograd's thread launched has the ranges open on the waiting thread, and then its own.
"""

import bisect
import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cs_systems.tracing.trace import BACKWARD_SUFFIX, MEASURED, PHASES, Kernel, Range, Trace

Thread = tuple[int, int]
"""Process and thread."""
Chain = tuple[int, ...]
"""Ranges by their index in `Trace.ranges`, outermost first."""

_AUTOGRAD_THREAD = "pt_autograd"  # how torch begins the names of its engine's threads, one a device
_STEP_NAME = re.compile(r"\b(backward|step)\b|profilerstep#", re.IGNORECASE)


@dataclass(frozen=True)
class Attribution:
    """What belongs where."""

    range_chains: Sequence[Chain]
    """For each range those around it, then itself."""
    kernel_chains: Sequence[Chain]
    """For each kernel the ranges that it belongs to; empty when there is none."""


def paths(trace: Trace) -> list[tuple[str, ...]]:
    """For each kernel the names of its ranges, outermost first; empty when it belongs to none."""
    return named(trace, attribute(trace).kernel_chains)


def named(trace: Trace, chains: Iterable[Chain]) -> list[tuple[str, ...]]:
    """The names of the ranges of each chain; equal chains share one tuple."""
    known: dict[Chain, tuple[str, ...]] = {}
    found = []
    for chain in chains:
        if chain not in known:
            known[chain] = tuple(trace.ranges[i].name for i in chain)
        found.append(known[chain])
    return found


def phase_of(path: Iterable[str]) -> str | None:
    """The part of the step that a path lies in; the outermost counts."""
    for name in path:
        if name in PHASES:
            return name
        if name.endswith(BACKWARD_SUFFIX):
            return "backward"
    return None


def phase_ranges(trace: Trace) -> list[tuple[str, int]]:
    """The ranges, by index, that are a phase of a step and not inside another; with that phase."""
    chains = named(trace, attribute(trace).range_chains)
    return [
        (path[-1], i) for i, path in enumerate(chains) if path[-1] in PHASES and phase_of(path[:-1]) is None
    ]


@functools.lru_cache(maxsize=2)  # every table of a trace asks, and a comparison has two traces
def attribute(trace: Trace) -> Attribution:
    """Join kernels and ranges; a thread that autograd runs on has the ranges of its process's main thread."""
    by_thread = _by_thread(trace.ranges)
    # Where the CPU does the work itself, backward runs on the thread that called it.
    on_device = any(kernel.kind != "op" for kernel in trace.kernels)
    thread_names = trace.meta.get("thread_names", {})
    waiting = _waiting_threads(trace, by_thread, thread_names) if on_device else {}

    def find(moments: Sequence[tuple[Thread, int] | None]) -> list[Chain]:
        return _open_ranges(trace.ranges, by_thread, waiting, moments)

    open_at_start = find([((item.pid, item.tid), item.start_ns) for item in trace.ranges])
    rank = {i: position for indices in by_thread.values() for position, i in enumerate(indices)}

    def is_around(outer: int, inner: int) -> bool:
        return trace.ranges[outer].tid != trace.ranges[inner].tid or rank[outer] < rank[inner]

    range_chains = [
        (*(j for j in chain if j != i and is_around(j, i)), i) for i, chain in enumerate(open_at_start)
    ]
    return Attribution(range_chains, find([_launch(kernel) for kernel in trace.kernels]))


def with_operators(kernels: Sequence[Kernel], operators: Sequence[Range]) -> list[Kernel]:
    """The kernels with `op`: of the operators, the innermost that was running where each was launched."""
    chains = _open_ranges(operators, _by_thread(operators), {}, [_launch(kernel) for kernel in kernels])
    return [
        dataclasses.replace(kernel, op=operators[chain[-1]].name) if chain else kernel
        for kernel, chain in zip(kernels, chains, strict=True)
    ]


def open_at(intervals: Sequence[tuple[int, int]], times: Sequence[int]) -> list[Chain]:
    """For each time the intervals [start, end) that it lies in, by index, in the order of `intervals`.

    The intervals must be in the order of their starts, those that are longer first.
    """
    found: list[Chain] = [()] * len(times)
    open_now: Chain = ()
    next_start = 0
    for position in sorted(range(len(times)), key=times.__getitem__):
        time = times[position]
        first_new = next_start
        while next_start < len(intervals) and intervals[next_start][0] <= time:
            next_start += 1
        candidates = [*open_now, *range(first_new, next_start)]
        still_open = [i for i in candidates if intervals[i][1] > time]
        if first_new < next_start or len(still_open) < len(open_now):
            open_now = tuple(still_open)
        found[position] = open_now
    return found


def merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of intervals as intervals that do not touch, in order."""
    union: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(end, union[-1][1])
        else:
            union.append((start, end))
    return union


def cut_to_measured(trace: Trace) -> Trace:
    """The trace without what was launched outside the range `measured`, or as it is where there is none.

    Processes may have one each; work of unknown origin is kept when it falls into any of them.
    """
    measured = [item for item in trace.ranges if item.name == MEASURED]
    if not measured:
        return trace
    spans: dict[int | None, list[tuple[int, int]]] = defaultdict(list)
    for item in measured:
        spans[item.pid].append((item.start_ns, item.end_ns))
    spans[None] = [(item.start_ns, item.end_ns) for item in measured]
    spans = {pid: merged(each) for pid, each in spans.items()}

    def is_inside(pid: int | None, time_ns: int) -> bool:
        windows = spans.get(pid, spans[None])
        before = bisect.bisect_right(windows, time_ns, key=lambda window: window[0])
        return before > 0 and time_ns <= windows[before - 1][1]

    def is_kernel_inside(kernel: Kernel) -> bool:
        launch_ns = kernel.launch_start_ns
        return is_inside(kernel.pid, kernel.start_ns if launch_ns is None else launch_ns)

    kernels = list(filter(is_kernel_inside, trace.kernels))
    problems = list(trace.meta.get("problems", ()))
    if len(kernels) < len(trace.kernels):
        what = "operators" if trace.kernels[0].kind == "op" else "kernels and copies"
        left_out = len(trace.kernels) - len(kernels)
        problems.append(f"{left_out} {what} outside the range '{MEASURED}' are left out, as warm-up")
    return dataclasses.replace(
        trace,
        ranges=[item for item in trace.ranges if is_inside(item.pid, item.start_ns)],
        kernels=kernels,
        memory=[event for event in trace.memory if is_inside(None, event.time_ns)],
        meta=trace.meta | {"problems": problems},
    )


def _by_thread(ranges: Sequence[Range]) -> dict[Thread, list[int]]:
    """The indices of the ranges of each thread, outer before inner."""
    threads: dict[Thread, list[int]] = defaultdict(list)
    for i in sorted(range(len(ranges)), key=lambda i: (ranges[i].start_ns, -ranges[i].end_ns)):
        threads[ranges[i].pid, ranges[i].tid].append(i)
    return threads


def _launch(kernel: Kernel) -> tuple[Thread, int] | None:
    if kernel.pid is None or kernel.tid is None or kernel.launch_start_ns is None:
        return None
    return (kernel.pid, kernel.tid), kernel.launch_start_ns


def _waiting_threads(
    trace: Trace, by_thread: Mapping[Thread, Sequence[int]], names: Mapping[Thread, str]
) -> dict[Thread, Thread]:
    """For each thread that works on behalf of another, that other: the main thread of its process.

    Only autograd's threads do, as others, say for loading data, launch on their own account; but where no
    thread bears autograd's name, any could be autograd's.
    """
    owners = [thread for thread in by_thread if _AUTOGRAD_THREAD not in names.get(thread, "")]
    main: dict[int, Thread] = {}
    for thread in sorted(owners, key=lambda thread: _how_main(trace.ranges, by_thread[thread])):
        main[thread[0]] = thread
    launching = {launch[0] for kernel in trace.kernels if (launch := _launch(kernel))}
    threads = {*launching, *by_thread}
    has_names = {thread[0] for thread, name in names.items() if _AUTOGRAD_THREAD in name}
    return {
        thread: main[thread[0]]
        for thread in threads
        if thread != main.get(thread[0], thread)
        and (_AUTOGRAD_THREAD in names.get(thread, "") or thread[0] not in has_names)
    }


def _how_main(ranges: Sequence[Range], indices: Sequence[int]) -> tuple[int, int]:
    """The thread that calls backward or makes the steps; else the one that opened the most ranges."""
    names = [ranges[i].name for i in indices]
    steps = sum(_STEP_NAME.search(name) is not None for name in names if not name.endswith(BACKWARD_SUFFIX))
    return steps, len(names)


def _open_ranges(
    ranges: Sequence[Range],
    by_thread: Mapping[Thread, Sequence[int]],
    waiting: Mapping[Thread, Thread],
    moments: Sequence[tuple[Thread, int] | None],
) -> list[Chain]:
    """For each thread and time the ranges open there, those of the thread that waits for it first."""
    found: list[Chain] = [()] * len(moments)
    asked: dict[Thread, list[int]] = defaultdict(list)
    for i, moment in enumerate(moments):
        if moment is not None:
            asked[moment[0]].append(i)
    for thread, positions in asked.items():
        times = [moment[1] for i in positions if (moment := moments[i])]
        for owner in (waiting.get(thread), thread):
            indices = by_thread.get(owner, ()) if owner else ()
            intervals = [(ranges[i].start_ns, ranges[i].end_ns) for i in indices]
            for position, chain in zip(positions, open_at(intervals, times), strict=True):
                found[position] += tuple(indices[i] for i in chain)
    return found
