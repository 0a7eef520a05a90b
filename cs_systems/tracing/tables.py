"""What a trace says, as tables. All are computed from `Trace`, so two profilers give the same ones.

Times are of the device; where there is none, of the operators on the CPU. Rows that should add up to the
whole end with (unattributed), for what belongs nowhere, and a total.
"""

import pathlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cs_systems.tables import Cell, Column, Table, format_percent
from cs_systems.tracing.attention_table import attention_table
from cs_systems.tracing.attribute import attribute, named, paths, phase_of, phase_ranges
from cs_systems.tracing.classify import OP_CLASSES, is_fused_attention, op_class
from cs_systems.tracing.columns import (
    TOTAL,
    UNATTRIBUTED,
    duration,
    is_cpu,
    share,
    share_column,
    time_column,
    work_word,
)
from cs_systems.tracing.idle import idle_table
from cs_systems.tracing.kernel_tables import count_passes, kernel_summary, top_kernel_per_forward
from cs_systems.tracing.memory_table import memory_by_phase
from cs_systems.tracing.trace import PHASES, STEP, RunFacts, Trace

_FACT_COLUMNS = [
    Column("model", "Model", align="left"),
    Column("seq_len", "Context"),
    Column("batch_size", "Batch"),
    Column("precision", "Precision", align="left"),
    Column("attention", "Attention", align="left"),
    Column("device", "Device", align="left"),
]
_Times = dict[str, tuple[Any, float]]
"""Rows of a comparison: what people see of the name, and ns."""
_BUSY_PERCENT = 20
"""Other programs using more than this of a core are mentioned."""
_LAUNCH_ONLY = 0.5
"""A range that ended before half of its kernels' time was over only launched them."""


def all_tables(
    trace: Trace, facts: RunFacts | None = None, *, top: int | None = 10, full_names: bool = False
) -> list[Table]:
    """Every table that the trace has something for; kernels of the whole and of each phase."""
    phases = {phase_of(path) for path in paths(trace)}
    scopes = [None, *(phase for phase in PHASES if phase in phases)]
    tables = [
        range_summary(trace),
        class_by_phase(trace),
        attention_table(trace, facts),
        top_kernel_per_forward(trace),
        idle_table(trace),
        memory_by_phase(trace),
        *(kernel_summary(trace, scope, top, full_names) for scope in scopes),
    ]
    return [table for table in tables if table.rows]


def range_summary(trace: Trace) -> Table:
    """Every range by its path: what the CPU spent in it, and the work launched from it.

    "Work" counts all that was launched inside, "own" what no inner range has, so that "own" adds up. The
    span is from the start of the first kernel of a range to the end of the last, summed over its instances.
    """
    attributed = attribute(trace)
    sums: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    first_start: dict[tuple[str, ...], int] = {}
    range_paths = named(trace, attributed.range_chains)
    for item, path in zip(trace.ranges, range_paths, strict=True):
        sums[path].update(instances=1, wall_ns=item.end_ns - item.start_ns)
        first_start[path] = min(item.start_ns, first_start.get(path, item.start_ns))
    spans: dict[int, tuple[int, int]] = {}
    nowhere: Counter = Counter()
    for kernel, chain in zip(trace.kernels, attributed.kernel_chains, strict=True):
        for i in chain:
            work = sums[range_paths[i]]
            work["busy_ns"] += kernel.busy_ns
            work["kernels"] += 1
            start, end = spans.get(i, (kernel.start_ns, kernel.end_ns))
            spans[i] = min(start, kernel.start_ns), max(end, kernel.end_ns)
        innermost = sums[range_paths[chain[-1]]] if chain else nowhere
        innermost["own_ns"] += kernel.busy_ns
    for i, (start, end) in spans.items():
        sums[range_paths[i]]["span_ns"] += end - start
    total_ns = sum(kernel.busy_ns for kernel in trace.kernels)

    def position(path: tuple[str, ...]) -> list[int]:
        """Below the row of the enclosing range, in the order of time."""
        return [first_start.get(path[:depth], first_start[path]) for depth in range(1, len(path) + 1)]

    rows = [_range_row(path, sums[path], total_ns) for path in sorted(first_start, key=position)]
    lost_ns, lost = nowhere["own_ns"], sum(not chain for chain in attributed.kernel_chains)
    ends = [(UNATTRIBUTED, lost_ns, lost), (TOTAL, total_ns, len(trace.kernels))]
    rows += [
        {"range": name, "busy_ns": ns, "own_ns": ns, "kernels": count, "share": share(ns, total_ns)}
        for name, ns, count in ends
    ]
    work = work_word(trace)
    columns = [
        Column("range", "Range", align="left"),
        Column("instances", "Instances"),
        time_column("wall_ns", "CPU wall"),
        time_column("busy_ns", f"Work ({work})"),
        time_column("own_ns", "own"),
        time_column("span_ns", "Span"),
        Column("kernels", "Operators" if is_cpu(trace) else "Kernels"),
        share_column("share", "Work %"),
    ]
    return Table("Ranges", columns, rows if trace.ranges else [], _launch_only_notes(trace, sums))


def _range_row(path: tuple[str, ...], sums: Counter, total_ns: int) -> dict[str, Any]:
    keys = ("instances", "wall_ns", "busy_ns", "own_ns", "span_ns", "kernels")
    shown = Cell(" > ".join(path), "· " * (len(path) - 1) + path[-1])
    return {"range": shown, **{key: sums[key] for key in keys}, "share": share(sums["busy_ns"], total_ns)}


def _launch_only_notes(trace: Trace, sums: Mapping[tuple[str, ...], Counter]) -> list[str]:
    if is_cpu(trace):
        return []
    names = dict.fromkeys(
        path[-1] for path, each in sums.items() if each["wall_ns"] < _LAUNCH_ONLY * each["busy_ns"]
    )
    if not names:
        return []
    return [
        f"CPU wall is only the time to launch in: {', '.join(names)}. The device was still at work when the "
        "CPU left the range; take work or span for its duration"
    ]


def class_by_phase(trace: Trace) -> Table:
    """What kind of work each phase is made of; shares are of the phase."""
    times: dict[str | None, Counter] = defaultdict(Counter)
    for kernel, path in zip(trace.kernels, paths(trace), strict=True):
        times[phase_of(path)][op_class(kernel)] += kernel.busy_ns
    classes = [name for name in OP_CLASSES if any(phase[name] for phase in times.values())]
    order = [*(phase for phase in PHASES if phase in times), None]
    rows = [_class_row(phase or UNATTRIBUTED, times[phase]) for phase in order]
    whole = sum(times.values(), Counter())
    rows.append(_class_row(TOTAL, whole))
    columns = [
        Column("phase", "Phase", align="left"),
        time_column("total_ns", f"Work ({work_word(trace)})"),
        *(time_column(f"{name}_ns", name) for name in classes),
    ]
    return Table("Work by class", columns, rows if classes else [], _class_notes(trace))


def _class_row(phase: str, times: Counter) -> dict[str, Any]:
    total_ns = times.total()
    row: dict[str, Any] = {"phase": phase, "total_ns": total_ns}
    for name, ns in times.items():
        row[f"{name}_ns"] = Cell(ns, f"{duration(ns)} ({format_percent(ns / max(1, total_ns))})")
    return row


def _class_notes(trace: Trace) -> list[str]:
    without = sum(kernel.op is None for kernel in trace.kernels)
    notes = [f"{without} of {len(trace.kernels)} kernels are classed by their names, as no operator is known"]
    fused_ns = sum(kernel.busy_ns for kernel in trace.kernels if is_fused_attention(kernel))
    fused = (
        f"other: {duration(fused_ns)} of it is attention in one kernel, matrix products and softmax together"
    )
    return [*(notes if without else []), *([fused] if fused_ns else [])]


def combined_table(runs: Sequence[tuple[Trace, RunFacts | None]]) -> Table:
    """Runs side by side: the forward pass by the profiler, and beside it by the timer without one.

    The timer's forward has the loss in it and ends when the device is done, so the profiler's does too: it
    lasts from the start of `forward` to the end of the last kernel of `forward` or `loss`.
    """
    rows = []
    for trace, facts in runs:
        passes = _forward_passes(trace)
        if not passes:
            continue
        medians = {key: statistics.median(each[key] for each in passes) for key in passes[0]}
        row = {"run": pathlib.Path(str(trace.meta.get("path", ""))).name, "passes": len(passes), **medians}
        if facts is not None:
            timer_s = facts.timer_s.get("forward")
            row |= {column.key: getattr(facts, column.key) for column in _FACT_COLUMNS}
            row["timer_ns"] = None if timer_s is None else 1e9 * timer_s
            row["ratio"] = None if timer_s is None else share(medians["profiler_ns"], 1e9 * timer_s)
        rows.append(row)
    columns = [
        *_FACT_COLUMNS,
        Column("passes", "Passes"),
        time_column("wall_ns", "CPU wall"),
        time_column("busy_ns", "Work"),
        time_column("profiler_ns", "Profiler"),
        time_column("timer_ns", "Timer"),
        Column("ratio", "Profiler", "of timer", format=lambda ratio: f"{ratio:.2f}x"),
        Column("run", "File", align="left", raw_only=any(facts for _, facts in runs)),
    ]
    notes = [
        "medians over the passes; CPU wall and work are of forward alone, the others have the loss in them"
    ]
    load = max((facts.other_load_percent for _, facts in runs if facts is not None), default=0)
    if load > _BUSY_PERCENT:
        notes.append(f"other programs used up to {load / 100:.1f} cores meanwhile; repeat when it is quiet")
    return Table("Forward pass, by profiler and by timer", columns, rows, notes if rows else [])


def _forward_passes(trace: Trace) -> list[dict[str, int]]:
    """For each forward its CPU wall, its work, and the time until its loss is done, in ns."""
    work: Counter = Counter()
    ends: dict[int, int] = {}
    for kernel, chain in zip(trace.kernels, attribute(trace).kernel_chains, strict=True):
        for i in chain:
            work[i] += kernel.busy_ns
            ends[i] = max(kernel.end_ns, ends.get(i, 0))
    passes: list[dict[str, int]] = []
    start_ns = 0
    for phase, i in sorted(phase_ranges(trace), key=lambda each: trace.ranges[each[1]].start_ns):
        item = trace.ranges[i]
        if phase == "forward":
            start_ns = item.start_ns
            passes.append({"wall_ns": item.end_ns - start_ns, "busy_ns": work[i], "profiler_ns": 0})
        if phase in ("forward", "loss") and passes:
            passes[-1]["profiler_ns"] = max(item.end_ns, ends.get(i, 0)) - start_ns
    return passes


def compare_tables(a: Trace, b: Trace) -> list[Table]:
    """Two runs, range by range and class by class: the work of a step in each, and B as a multiple of A."""
    names = [str(trace.meta.get("path", "")) for trace in (a, b)]
    steps = [max(1, count_passes(trace)[STEP]) for trace in (a, b)]
    notes = [
        f"{letter}: {name}, {count} steps, time of the {work_word(trace)}"
        for letter, name, count, trace in zip("AB", names, steps, (a, b), strict=True)
    ]
    by_range: list[_Times] = []
    by_class: list[_Times] = []
    for trace, count in zip((a, b), steps, strict=True):
        rows = range_summary(trace).rows
        by_range.append({_value(row["range"]): (row["range"], row["busy_ns"] / count) for row in rows})
        classes: Counter = Counter()
        for kernel in trace.kernels:
            classes[op_class(kernel)] += kernel.busy_ns
        ordered = {name: classes[name] for name in OP_CLASSES if classes[name]} | {TOTAL: classes.total()}
        by_class.append({name: (name, ns / count) for name, ns in ordered.items()})
    return [
        _compared("Work of a step by range", "Range", by_range, notes),
        _compared("Work of a step by class", "Class", by_class, notes),
    ]


def _compared(title: str, heading: str, times: Sequence[_Times], notes: Sequence[str]) -> Table:
    a, b = times
    columns = [
        Column("name", heading, align="left"),
        time_column("a_ns", "A"),
        time_column("b_ns", "B"),
        Column("ratio", "B of A", format=lambda ratio: f"{ratio:.2f}x"),
    ]
    last = [name for name in (UNATTRIBUTED, TOTAL) if name in a | b]
    rows = []
    for name in [*(name for name in a | b if name not in last), *last]:
        a_ns, b_ns = (each[name][1] if name in each else None for each in (a, b))
        ratio = share(b_ns, a_ns) if a_ns is not None and b_ns is not None else None
        rows.append({"name": (a | b)[name][0], "a_ns": a_ns, "b_ns": b_ns, "ratio": ratio})
    return Table(title, columns, rows, notes)


def _value(cell: Any) -> Any:
    return cell.value if isinstance(cell, Cell) else cell
