"""Which kernels take the time, in the columns of nsys, and which one takes the most."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from cs_systems.tables import Column, Table
from cs_systems.tracing.attribute import paths, phase_of, phase_ranges
from cs_systems.tracing.classify import op_class, shown_name
from cs_systems.tracing.columns import duration, is_cpu, share, share_column, time_column
from cs_systems.tracing.trace import PHASES, STEP, Kernel, Trace

_KERNEL_COLUMNS = [
    share_column("share", "Time %"),
    time_column("total_ns", "Total"),
    Column("instances", "Instances"),
    time_column("avg_ns", "Avg"),
    time_column("med_ns", "Med"),
    time_column("min_ns", "Min"),
    time_column("max_ns", "Max"),
    time_column("stddev_ns", "StdDev"),
    Column("name", "Name", align="left"),
]


def kernel_summary(
    trace: Trace, range_name: str | None = None, top: int | None = None, full_names: bool = False
) -> Table:
    """Time by kernel, in the columns of nsys' `cuda_gpu_kern_sum`, longest first.

    Args:
        trace: what was recorded.
        range_name: count only kernels inside ranges of this name.
        top: list so many, and all others in one row.
        full_names: tell kernels apart by their full names, with template arguments.

    Copies are not kernels; a note has their time.
    """
    inside = [
        kernel
        for kernel, path in zip(trace.kernels, paths(trace), strict=True)
        if range_name is None or range_name in path
    ]
    times = _times_by_name([kernel for kernel in inside if kernel.kind != "copy"], full_names)
    total_ns = sum(sum(values) for _, values in times)
    rows = [_kernel_row(name, values, total_ns) for name, values in times[:top]]
    rest = [ns for _, values in times[len(rows) :] for ns in values]
    if rest:
        rows.append(_kernel_row(f"({len(times) - len(rows)} others)", rest, total_ns))
    copies = [kernel.busy_ns for kernel in inside if kernel.kind == "copy"]
    notes = [f"besides, {len(copies)} copies and fills took {duration(sum(copies))}"] if copies else []
    what = "Operators by self time" if is_cpu(trace) else "Kernels"
    where = f" in {range_name}" if range_name else ""
    return Table(f"{what}{where}, {duration(total_ns)} in all", _KERNEL_COLUMNS, rows, notes)


def _times_by_name(kernels: Iterable[Kernel], full_names: bool) -> list[tuple[str, list[int]]]:
    times: dict[str, list[int]] = defaultdict(list)
    for kernel in kernels:
        times[kernel.name if full_names else shown_name(kernel)].append(kernel.busy_ns)
    return sorted(times.items(), key=lambda item: (-sum(item[1]), item[0]))


def _kernel_row(name: str, values: Sequence[int], total_ns: int) -> dict[str, Any]:
    mean = sum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return {
        "share": share(sum(values), total_ns),
        "total_ns": sum(values),
        "instances": len(values),
        "avg_ns": mean,
        "med_ns": statistics.median(values),
        "min_ns": min(values),
        "max_ns": max(values),
        "stddev_ns": math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0,
        "name": name,
    }


def top_kernel_per_forward(trace: Trace) -> Table:
    """The kernel that takes most of each phase and of the whole step, and how often a pass runs it."""
    scopes: dict[str, list[Kernel]] = defaultdict(list)
    for kernel, path in zip(trace.kernels, paths(trace), strict=True):
        if kernel.kind != "copy":
            scopes[phase_of(path) or ""].append(kernel)
    passes = count_passes(trace)
    rows = []
    for scope in (*PHASES, STEP):
        kernels = scopes[scope] if scope != STEP else [each for inside in scopes.values() for each in inside]
        if not kernels or not passes[scope]:
            continue
        name, values = _times_by_name(kernels, full_names=False)[0]
        rows.append(
            {
                "phase": scope,
                "name": name,
                "class": op_class(next(kernel for kernel in kernels if shown_name(kernel) == name)),
                "passes": passes[scope],
                "calls_per_pass": len(values) / passes[scope],
                "time_per_pass_ns": sum(values) / passes[scope],
                "share": share(sum(values), sum(kernel.busy_ns for kernel in kernels)),
            }
        )
    what = "operator" if is_cpu(trace) else "kernel"
    columns = [
        Column("phase", "Phase", align="left"),
        Column("name", f"Top {what}", align="left"),
        Column("class", "Class", align="left"),
        Column("passes", "Passes"),
        Column("calls_per_pass", "Calls a pass", format=lambda calls: f"{calls:.6g}"),
        time_column("time_per_pass_ns", "Time a pass"),
        share_column("share", f"of {what}s"),
    ]
    return Table(f"The {what} that takes the most time", columns, rows)


def count_passes(trace: Trace) -> Counter:
    """How often each phase and the step ran; a step without a range of its own is as often as its forward."""
    passes = Counter(phase for phase, _ in phase_ranges(trace))
    passes[STEP] = sum(item.name == STEP for item in trace.ranges) or passes["forward"]
    return passes
