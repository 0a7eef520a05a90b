"""How much memory each phase of a step begins with, needs, and leaves."""

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence

from cs_systems.tables import Column, Table, format_bytes
from cs_systems.tracing.attribute import phase_ranges
from cs_systems.tracing.trace import PHASES, MemoryEvent, RunFacts, Trace

WHOLE = "all of it"
_RUN = {
    "model": "Model", "seq_len": "Context", "batch_size": "Batch", "mode": "Mode", "precision": "Precision",
    "attention": "Attention", "checkpoint_blocks": "Checkpoint",
}  # fmt: skip
_COLUMNS = [
    Column("phase", "Phase", align="left"),
    Column("device", "Device", align="left"),
    *(
        Column(f"{key}_bytes", title, format=format_bytes)
        for key, title in (("start", "Start"), ("peak", "Peak"), ("end", "End"))
    ),
]


def memory_by_phase(trace: Trace) -> Table:
    """Allocated bytes at the start, the peak and the end of each phase.

    Of several steps each phase has the one with its highest peak.
    """
    by_device: dict[str, list[MemoryEvent]] = defaultdict(list)
    for event in trace.memory:
        by_device[event.device].append(event)
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for phase, i in phase_ranges(trace):
        spans[phase].append((trace.ranges[i].start_ns, trace.ranges[i].end_ns))
    rows = []
    for device, events in sorted(by_device.items(), reverse=True):  # cuda before cpu
        times = [event.time_ns for event in events]
        for phase in PHASES:
            found = [_within(events, times, *span) for span in spans[phase]]
            if found:
                highest = max(found, key=lambda row: row["peak_bytes"])
                rows.append({"phase": phase, "device": device, **highest})
        rows.append({"phase": WHOLE, "device": device, **_within(events, times, times[0], times[-1])})
    return Table("Memory", _COLUMNS, rows, _notes(trace, by_device))


def _within(
    events: Sequence[MemoryEvent], times: Sequence[int], start_ns: int, end_ns: int
) -> dict[str, int]:
    """Totals at the start, the peak and the end of a time; the events are in the order of `times`."""
    first, after = bisect.bisect_left(times, start_ns), bisect.bisect_right(times, end_ns)
    before = events[first - 1].total_bytes if first else events[0].total_bytes - events[0].delta_bytes
    totals = [before, *(event.total_bytes for event in events[first:after])]
    return {"start_bytes": totals[0], "peak_bytes": max(totals), "end_bytes": totals[-1]}


def peak_table(runs: Sequence[tuple[Trace, RunFacts | None]]) -> Table:
    """Runs side by side: the peak of each phase as recorded, with what was there before, and as predicted."""
    rows = []
    for trace, facts in runs:
        recorded = {row["phase"]: row["peak_bytes"] for row in reversed(memory_by_phase(trace).rows)}
        if facts is None or not recorded.keys() & set(PHASES):
            continue
        base = facts.base_bytes if trace.meta.get("device") == "cpu" else 0
        row = {name: getattr(facts, name) for name in _RUN} | {"base_bytes": facts.base_bytes}
        row |= {f"{phase}_bytes": base + recorded[phase] for phase in PHASES if phase in recorded}
        row["peak_bytes"] = max(base + recorded[phase] for phase in PHASES if phase in recorded)
        if facts.predicted_bytes:
            row["predicted_bytes"] = max(facts.predicted_bytes.values())
            row["ratio"] = row["predicted_bytes"] / row["peak_bytes"]
        rows.append(row)
    always = ("model", "seq_len")
    varying = [name for name in _RUN if len({row[name] for row in rows}) > 1 or name in always]
    columns = [
        *(Column(name, title, align="left", raw_only=name not in varying) for name, title in _RUN.items()),
        *(
            Column(f"{name}_bytes", name.capitalize(), format=format_bytes)
            for name in ("base", *PHASES, "peak", "predicted")
        ),
        Column("ratio", "Predicted", "of peak", format=lambda ratio: f"{ratio:.2f}x"),
    ]
    notes = ["base: parameters and optimizer state; the peak of each phase includes it"]
    predicted = [row for row in rows if "predicted_bytes" in row]
    if predicted and len({row["checkpoint_blocks"] for row in rows}) > 1:
        best, expected = (
            min(among, key=lambda row: row[key])["checkpoint_blocks"]
            for among, key in ((rows, "peak_bytes"), (predicted, "predicted_bytes"))
        )
        notes.append(f"lowest peak with {best} blocks a checkpoint; by the prediction with {expected}")
    return Table("Peak memory of tensors by phase", columns, rows, notes if rows else [])


def _notes(trace: Trace, devices: Iterable[str]) -> list[str]:
    notes = ["of several steps, each phase shows the one with the highest peak"]
    if trace.meta.get("tool") == "nsys":
        notes.append("what the driver handed out; torch keeps what it frees, and asks the driver rarely")
    elif "cpu" in devices:
        notes.append("cpu: counted from the start of the recording, so without the parameters made before it")
    return notes
