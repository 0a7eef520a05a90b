"""The timeline and the memory chart of a trace as the numbers that the script of `page.html` draws.

What is too much for a browser or a reader is left out here, each time with a sentence that says so.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from cs_systems.tables import format_bytes, format_percent, format_seconds
from cs_systems.tracing.attribute import attribute, phase_of
from cs_systems.tracing.classify import op_class, short_name
from cs_systems.tracing.trace import Kernel, MemoryEvent, Range, Trace

MAX_KERNELS = 100_000
"""Kernels drawn at most; the longest are kept. A browser moves so many without a jerk, in about 4 MB."""
MAX_RANGES = 20_000
MAX_MEMORY_EVENTS = 20_000
MAX_ROWS = 150
"""Rows of the timeline at most, so that the tables below it can still be found."""
MAX_NAME = 1000
"""Letters of a text at most; a longer one is cut and says how long it was."""

NO_PHASE, OTHER = "no phase", "other"

# Light fills, for dark text on a light page and on a dark one. Phases and classes have no colour in common.
_PHASE_COLOURS = {
    "forward": "#86bdf0", "loss": "#dea3c5", "backward": "#f2a774", "optimizer": "#74cfae",
    NO_PHASE: "#c3c9d1",
}  # fmt: skip
_CLASS_COLOURS = {
    "matmul": "#93a5f2", "softmax": "#f3d35f", "reduction": "#ee9090", "elementwise": "#97d692",
    "optimizer": "#bda6e3", "copy": "#cda986", OTHER: "#d6d9de",
}  # fmt: skip

Band = tuple[str, int, int]
"""A phase with its start and end in ns on the axis of the charts."""

_Key = TypeVar("_Key")


class Charts:
    """What is drawn of a trace; its axis starts at 0 with whatever was recorded first."""

    def __init__(self, trace: Trace) -> None:
        timed = [*trace.ranges, *trace.kernels]
        moments = [event.time_ns for event in trace.memory]
        self.origin_ns = min([*(item.start_ns for item in timed), *moments], default=0)
        end_ns = max([*(item.end_ns for item in timed), *moments], default=0)
        self.length_ns = end_ns - self.origin_ns
        self.remarks: list[str] = []
        """Sentences about what is not drawn."""
        self._thread_names: Mapping[tuple[int, int], str] = trace.meta.get("thread_names", {})
        self._names: dict[str, int] = {}  # names and colours are written once, an item holds their indices
        self._labels: dict[int, str] = {}  # the short form of a name, to stand in a box
        self._groups: dict[tuple[str, str], int] = {}
        range_indices = self._longest(trace.ranges, MAX_RANGES, "ranges")
        kernel_indices = self._longest(trace.kernels, MAX_KERNELS, name_of_work(trace))
        self.lanes = self._limited(
            [*self._range_lanes(trace, range_indices), *self._kernel_lanes(trace, kernel_indices)]
        )
        phases = [trace.ranges[i] for i in sorted(range_indices) if _phase(trace, i) == trace.ranges[i].name]
        self.bands: list[Band] = [
            (item.name, item.start_ns - self.origin_ns, item.end_ns - self.origin_ns) for item in phases
        ]
        self.memory = [self._memory(device, events) for device, events in _by_device(trace.memory)]

    def data(self) -> dict[str, Any]:
        """All that the script needs, as JSON values."""
        return {
            "end": max(1, self.length_ns),
            "lanes": self.lanes,
            "memory": self.memory,
            "bands": [(self._group(name, _PHASE_COLOURS), start, end) for name, start, end in self.bands],
            "names": list(self._names),
            "labels": self._labels,
            "groups": list(self._groups),
        }

    def legend(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The colours in use, phases and classes, each under its heading."""
        headings = {"Ranges by phase": _PHASE_COLOURS, "Work by class": _CLASS_COLOURS}
        used = [
            (heading, [group for group in colours.items() if group in self._groups])
            for heading, colours in headings.items()
        ]
        return [(heading, groups) for heading, groups in used if groups]

    def _range_lanes(self, trace: Trace, indices: Iterable[int]) -> list[dict[str, Any]]:
        """A lane for each thread that opened ranges, the busiest first."""
        threads = defaultdict(list)
        for i in indices:
            item, phase = trace.ranges[i], _phase(trace, i) or NO_PHASE
            threads[item.pid, item.tid].append((item, self._group(phase, _PHASE_COLOURS), ""))
        return [
            self._lane(f"ranges of {self._thread(*key)}", items) for key, items in _busiest_first(threads)
        ]

    def _kernel_lanes(self, trace: Trace, indices: Iterable[int]) -> list[dict[str, Any]]:
        """A lane for each thread where the CPU did the work, and for each stream."""
        chains = attribute(trace).kernel_chains
        threads, streams = defaultdict(list), defaultdict(list)
        for i in indices:
            item, path = trace.kernels[i], " > ".join(trace.ranges[outer].name for outer in chains[i])
            drawn = (item, self._group(op_class(item), _CLASS_COLOURS), path or "(unattributed)")
            if item.kind == "op":
                threads[item.pid, item.tid].append(drawn)
            else:
                streams[-1 if item.stream is None else item.stream].append(drawn)
        lanes = [
            self._lane(f"operators of {self._thread(*key)}", items) for key, items in _busiest_first(threads)
        ]
        for stream, items in sorted(streams.items()):
            lanes.append(self._lane("device" if stream < 0 else f"device, stream {stream}", items))
        return lanes

    def _lane(self, label: str, items: Iterable[tuple[Range | Kernel, int, str]]) -> dict[str, Any]:
        """Items on the topmost level that is free: what is nested, or overlaps, goes one level down."""
        levels: list[dict[str, list[int]]] = []
        ends: list[int] = []
        for item, group, path in sorted(items, key=lambda each: (each[0].start_ns, -each[0].end_ns)):
            free = next((i for i, end in enumerate(ends) if end <= item.start_ns), len(ends))
            if free == len(ends):
                ends.append(0)
                levels.append({"start": [], "length": [], "name": [], "group": [], "path": [], "self": []})
            ends[free] = item.end_ns
            level = levels[free]
            level["start"].append(item.start_ns - self.origin_ns)
            level["length"].append(max(0, item.end_ns - item.start_ns))
            name = self._name(item.name)
            level["name"].append(name)
            level["group"].append(group)
            level["path"].append(self._name(path))
            if isinstance(item, Kernel) and item.kind == "op":
                level["self"].append(item.busy_ns)
            elif isinstance(item, Kernel) and item.kind == "kernel":
                self._labels[name] = clean(short_name(item.name))
        return {"label": clean(label), "levels": levels}

    def _memory(self, device: str, events: Sequence[MemoryEvent]) -> dict[str, Any]:
        """The steps of one device's curve."""
        kept = _extremes(events, MAX_MEMORY_EVENTS)
        if len(kept) < len(events):
            self.remarks.append(
                f"The memory chart of {device} shows the highest and the lowest of every "
                f"{math.ceil(2 * len(events) / MAX_MEMORY_EVENTS)} events; its peak is exact."
            )
        totals = [event.total_bytes for event in kept]
        return {
            "device": clean(device),
            "time": [event.time_ns - self.origin_ns for event in kept],
            "total": totals,
            "peak": totals.index(max(totals)),
            "from_zero": events[0].total_bytes == events[0].delta_bytes,
        }

    def peaks(self) -> list[dict[str, Any]]:
        """What the page says of each memory chart in words."""
        peaks = []
        for chart in self.memory:
            at_ns = chart["time"][chart["peak"]]
            phase = next((name for name, start, end in self.bands if start <= at_ns <= end), "")
            words = {"peak": format_bytes(chart["total"][chart["peak"]]), "at": format_seconds(at_ns / 1e9)}
            peaks.append(words | {"phase": phase, "device": chart["device"], "from_zero": chart["from_zero"]})
        return peaks

    def _longest(self, items: Sequence[Range] | Sequence[Kernel], limit: int, what: str) -> Iterable[int]:
        """The indices of at most `limit` of them."""
        if len(items) <= limit:
            return range(len(items))
        lengths = [item.end_ns - item.start_ns for item in items]
        kept = heapq.nlargest(limit, range(len(items)), key=lengths.__getitem__)
        left_out = 1 - sum(lengths[i] for i in kept) / (sum(lengths) or 1)
        self.remarks.append(
            f"The timeline shows the {limit:,} longest of {len(items):,} {what}; the {len(items) - limit:,} "
            f"left out took {format_percent(left_out)} of their time. The tables count all of them."
        )
        return kept

    def _limited(self, lanes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept, rows_left = [], MAX_ROWS
        for lane in lanes:
            if rows_left > 1:
                kept.append(lane | {"levels": lane["levels"][: rows_left - 1]})
            rows_left -= 1 + len(lane["levels"])
        if rows_left < 0:
            self.remarks.append(f"The timeline ends after {MAX_ROWS} rows; {-rows_left} more are not drawn.")
        return kept

    def _name(self, text: str) -> int:
        return self._names.setdefault(clean(text), len(self._names))

    def _group(self, name: str, colours: Mapping[str, str]) -> int:
        return self._groups.setdefault((name, colours[name]), len(self._groups))

    def _thread(self, pid: int | None, tid: int | None) -> str:
        if pid is None or tid is None:
            return "an unknown thread"
        name = self._thread_names.get((pid, tid))
        return f"thread {tid} ({name})" if name else f"thread {tid}"


def name_of_work(trace: Trace) -> str:
    """What the trace holds below its ranges."""
    return "operators" if any(kernel.kind == "op" for kernel in trace.kernels) else "kernels"


def clean(text: str) -> str:
    """Text that UTF-8 can hold, cut when nobody would read it to its end."""
    shown = text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}... ({len(text):,} letters)"
    return shown.encode("utf-8", "replace").decode()


def _busiest_first(lanes: Mapping[_Key, list[Any]]) -> list[tuple[_Key, list[Any]]]:
    return sorted(lanes.items(), key=lambda lane: -len(lane[1]))


def _phase(trace: Trace, index: int) -> str | None:
    """The phase of a range."""
    return phase_of(trace.ranges[i].name for i in attribute(trace).range_chains[index])


def _by_device(events: Sequence[MemoryEvent]) -> list[tuple[str, list[MemoryEvent]]]:
    devices = defaultdict(list)
    for event in sorted(events, key=lambda event: event.time_ns):
        devices[event.device].append(event)
    return sorted(devices.items())


def _extremes(events: Sequence[MemoryEvent], limit: int) -> Sequence[MemoryEvent]:
    """At most `limit` events: the highest and the lowest of each of `limit` / 2 stretches, in order."""
    if len(events) <= limit:
        return events
    size = math.ceil(2 * len(events) / limit)
    kept = []
    for first in range(0, len(events), size):
        stretch = range(first, min(first + size, len(events)))
        ends = {pick(stretch, key=lambda i: events[i].total_bytes) for pick in (min, max)}
        kept += [events[i] for i in sorted(ends)]
    return kept
