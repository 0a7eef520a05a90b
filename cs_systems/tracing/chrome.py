"""Read the Chrome trace that `torch.profiler` exports, of a run on a GPU or on a CPU."""

import gzip
import json
import pathlib
import sys
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cs_systems.tracing.attribute import Thread, with_operators
from cs_systems.tracing.trace import Kernel, MemoryEvent, Range, Trace, without_launch

_CUT_OFF = "cut off: the run was killed while writing it, or a copy stopped; record it again"
_WORK: dict[str, Literal["kernel", "copy"]] = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "copy"}
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_KEPT = {"cpu_op", "user_annotation", *_WORK, *_LAUNCHES}
_KEPT_ARGS = ("correlation", "stream", "name", "Bytes", "Total Allocated", "Device Type", "Device Id")
_MEMORY, _THREAD_NAME = "[memory]", "thread_name"


class _Event(NamedTuple):
    """What is kept of an event; most of a large file is dropped while it is being read."""

    category: str
    name: str
    start_ns: int
    end_ns: int
    pid: int
    tid: int
    args: Mapping[str, Any]


def read_chrome(path: str | pathlib.Path) -> Trace:
    """The trace in a .json or .json.gz file.

    With kernels in the file, the device's work is what counts: each kernel is joined to its launch call, and
    through that to the innermost operator around it. Without, the operators are the work, with self times.

    Raises:
        ValueError: in one line, when the file is cut off, damaged or something else.
    """
    events = _parse(pathlib.Path(path))
    by_category: dict[str, list[_Event]] = defaultdict(list)
    for event in events:
        by_category[event.category].append(event)
    work = [event for category in _WORK for event in by_category[category]]
    operators, launches = by_category["cpu_op"], [event for name in _LAUNCHES for event in by_category[name]]
    timed = [*work, *operators, *launches, *by_category["user_annotation"], *by_category[_MEMORY]]
    if not timed:
        raise ValueError(f"{path}: holds no operators, kernels or ranges; was it written by torch.profiler?")
    zero_ns = min(event.start_ns for event in timed)
    problems = []
    if work:
        kernels = with_operators(_device_kernels(work, launches, zero_ns), _ranges(operators, zero_ns))
        problems += without_launch(kernels)
    else:
        kernels = _operator_kernels(operators, zero_ns)
        if launches:
            problems.append(
                "kernels were launched and none was recorded, as happens in containers without access to the "
                "GPU's counters; times are those of operators on the CPU"
            )
    return Trace(
        ranges=_ranges(by_category["user_annotation"], zero_ns),
        kernels=sorted(kernels, key=lambda kernel: kernel.start_ns),
        memory=_memory_events(by_category[_MEMORY], zero_ns),
        meta={
            "tool": "torch.profiler",
            "path": str(path),
            "device": "cuda" if work else "cpu",
            "problems": problems,
            "thread_names": {
                (event.pid, event.tid): str(event.args.get("name", "")) for event in by_category[_THREAD_NAME]
            },
        },
    )


def _parse(path: pathlib.Path) -> list[_Event]:
    try:
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
    except EOFError:
        raise ValueError(f"{path}: {_CUT_OFF}") from None
    except (OSError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); record it again") from None
    if not raw.strip():
        raise ValueError(f"{path}: is empty; record it again")
    try:
        # Numbers with a point stay texts, as a float would round a time in microseconds to more than 1 ns.
        data = json.loads(raw, object_hook=_trim, parse_float=str)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text in UTF-8 (byte {error.start}); record it again") from None
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(error.doc.rstrip()) - 1 or error.msg.startswith("Unterminated string")
        said = _CUT_OFF if at_end else f"is not JSON ({error.msg} at character {error.pos}); record it again"
        raise ValueError(f"{path}: {said}") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: is not a trace of torch.profiler ({error})") from None
    events = data.get("traceEvents") if isinstance(data, dict) else None
    if not isinstance(events, list):
        raise ValueError(f"{path}: has no 'traceEvents'; give the file that torch.profiler exported")
    return [event for event in events if isinstance(event, _Event)]


def _trim(found: dict[str, Any]) -> Any:
    """What is kept of a JSON object: it is called for each as soon as it is read, inner ones first."""
    phase = found.get("ph")
    if phase == "X":
        category = found.get("cat")
        if type(category) is not str or category not in _KEPT:
            return None
        start_ns = _nanoseconds(found.get("ts"))
        end_ns = start_ns + max(0, _nanoseconds(found.get("dur")))
        return _event(category, found, start_ns, end_ns)
    if phase is not None:
        if found.get("name") == _MEMORY:
            time_ns = _nanoseconds(found.get("ts"))
            return _event(_MEMORY, found, time_ns, time_ns)
        is_name = phase == "M" and found.get("name") == _THREAD_NAME and type(found.get("tid")) is int
        return _event(_THREAD_NAME, found, 0, 0) if is_name else None
    if "traceEvents" in found:
        return found
    return {key: found[key] for key in _KEPT_ARGS if key in found}


def _event(category: str, found: Mapping[str, Any], start_ns: int, end_ns: int) -> _Event:
    pid, tid, args = found.get("pid"), found.get("tid"), found.get("args") or {}
    if type(pid) is not int or type(tid) is not int or type(args) is not dict:
        raise ValueError(f"an event of process {pid!r} and thread {tid!r}, which should be numbers")
    return _Event(category, sys.intern(str(found.get("name", ""))), start_ns, end_ns, pid, tid, args)


def _nanoseconds(microseconds: Any) -> int:
    if type(microseconds) is int:
        return 1000 * microseconds
    if type(microseconds) is not str:
        raise ValueError(f"a time of {microseconds!r}")
    whole, _, decimals = microseconds.partition(".")
    if len(decimals) == 3 and whole.isdecimal() and decimals.isdecimal():
        return int(whole + decimals)
    return round(1000 * float(microseconds))


def _ranges(events: Sequence[_Event], zero_ns: int) -> list[Range]:
    return [
        Range(event.name, event.start_ns - zero_ns, event.end_ns - zero_ns, event.pid, event.tid)
        for event in events
    ]


def _device_kernels(work: Sequence[_Event], launches: Sequence[_Event], zero_ns: int) -> list[Kernel]:
    launch_of: dict[Any, _Event] = {}
    for launch in sorted(launches, key=lambda launch: launch.start_ns):
        launch_of.setdefault(launch.args.get("correlation"), launch)
    launch_of.pop(None, None)
    kernels = []
    for event in work:
        kind, stream = _WORK[event.category], event.args.get("stream")
        launch = launch_of.get(event.args.get("correlation"))
        kernels.append(
            Kernel(
                # nsys says the direction of a copy and not the kinds of memory, so these are dropped here.
                name=event.name if kind == "kernel" else event.name.partition(" (")[0],
                start_ns=event.start_ns - zero_ns,
                end_ns=event.end_ns - zero_ns,
                busy_ns=event.end_ns - event.start_ns,
                pid=launch.pid if launch else None,
                tid=launch.tid if launch else None,
                launch_start_ns=launch.start_ns - zero_ns if launch else None,
                launch_end_ns=launch.end_ns - zero_ns if launch else None,
                stream=stream if type(stream) is int else None,
                kind=kind,
                op=None,
            )
        )
    return kernels


def _operator_kernels(operators: Sequence[_Event], zero_ns: int) -> list[Kernel]:
    threads: dict[Thread, list[_Event]] = defaultdict(list)
    for event in sorted(operators, key=lambda event: (event.start_ns, -event.end_ns)):
        threads[event.pid, event.tid].append(event)
    kernels = []
    for running in threads.values():
        for event, self_ns in zip(running, _self_times(running), strict=True):
            start_ns, end_ns = event.start_ns - zero_ns, event.end_ns - zero_ns
            kernels.append(
                Kernel(
                    event.name, start_ns, end_ns, self_ns, event.pid, event.tid, start_ns, end_ns, None,
                    "op", event.name,
                )
            )  # fmt: skip
    return kernels


def _self_times(events: Sequence[_Event]) -> list[int]:
    """Each moment counts for the operator that began last of those running, so that times add up.

    The events are those of one thread, outer before inner.
    """
    self_ns = [0] * len(events)
    running: list[int] = []
    now_ns = 0

    def advance(until_ns: int) -> None:
        nonlocal now_ns
        while running and now_ns < until_ns:
            end_ns = min(until_ns, events[running[-1]].end_ns)
            self_ns[running[-1]] += max(0, end_ns - now_ns)
            now_ns = max(now_ns, end_ns)
            if events[running[-1]].end_ns <= now_ns:
                running.pop()
        now_ns = max(now_ns, until_ns)

    for i, event in enumerate(events):
        advance(event.start_ns)
        running.append(i)
    advance(max((event.end_ns for event in events), default=0))
    return self_ns


def _memory_events(events: Sequence[_Event], zero_ns: int) -> list[MemoryEvent]:
    found, cpu_bytes = [], 0
    for event in sorted(events, key=lambda event: event.start_ns):
        delta, total, kind, index = (event.args.get(key) for key in _KEPT_ARGS[3:])
        if type(delta) is int and type(total) is int:
            device = "cpu" if kind == 0 else f"cuda:{index}"
            if device == "cpu":
                # Torch's own total goes on from the last recording of the process, and what was released
                # between the two is still in it.
                cpu_bytes += delta
                total = cpu_bytes
            found.append(MemoryEvent(event.start_ns - zero_ns, delta, total, device))
    return found
