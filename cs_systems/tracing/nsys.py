"""Read what nsys recorded: its SQLite export directly, a report through `nsys export`.

An export has only those tables that have rows, and columns differ between versions: each is looked for.
"""

import contextlib
import math
import pathlib
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from cs_systems.tracing.attribute import Thread, with_operators
from cs_systems.tracing.trace import Kernel, MemoryEvent, Range, Trace, without_launch

_CUT_OFF = "cut off or damaged; export it again, with nsys export --type=sqlite --force-overwrite=true"
_PUSH_POP, _START_END, _DOMAIN_NAME = 59, 60, 75  # kinds of rows of NVTX_EVENTS
_OPERATOR = re.compile(r", (?:seq|op_id) = ")  # stands behind the name of an operator that torch annotated
_NVTX, _MEMORY = "NVTX_EVENTS", "CUDA_GPU_MEMORY_USAGE_EVENTS"
_LAUNCHES = "CUPTI_ACTIVITY_KIND_RUNTIME"
_KERNELS, _COPIES, _FILLS, _GRAPHS = (
    f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE")
)
_WORK = {
    _KERNELS: ("demangledName", "shortName", "mangledName"),
    _COPIES: ("copyKind",),
    _FILLS: (),
    _GRAPHS: ("graphId",),
}
"""Tables of work on the device, with the columns that its names come from."""
_COPY_KINDS = {1: "HtoD", 2: "DtoH", 8: "DtoD", 9: "HtoH", 10: "PtoP"}
_DEVICE_MEMORY = (None, 2, 4, 5, 6)  # kinds of memory: device, managed, and both of them static
_RELEASED = 1


def read_sqlite(path: str | pathlib.Path) -> Trace:
    """The trace in an export (`nsys export --type=sqlite`, or `nsys profile --export=sqlite`).

    Raises:
        ValueError: in one line, when the file is cut off, damaged or something else.
    """
    path = pathlib.Path(path)
    try:
        with contextlib.closing(
            sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)
        ) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")  # a name may be any bytes
            export = _Export(connection)
            if path.stat().st_size < export.num_bytes:
                raise ValueError(f"{path}: {_CUT_OFF}")
            if "StringIds" not in export.columns:
                raise ValueError(f"{path}: has no tables of nsys; give the .sqlite file of `nsys export`")
            return _read(export, path)
    except sqlite3.DatabaseError as error:
        said = "is not an SQLite file" if "not a database" in str(error) else _CUT_OFF
        raise ValueError(f"{path}: {said}") from None


def read_nsys_report(path: str | pathlib.Path) -> Trace:
    """The trace in a .nsys-rep file, which only nsys itself can read.

    Raises:
        ValueError: in one line, when there is no nsys here or it cannot convert the file.
    """
    path = pathlib.Path(path)
    nsys = shutil.which("nsys")
    if nsys is None:
        raise ValueError(
            f"{path}: only nsys can read it, and it is not on PATH; where it is, run "
            f"`nsys export --type=sqlite {path.name}` and give the .sqlite file"
        )
    with tempfile.TemporaryDirectory() as folder:
        exported = pathlib.Path(folder) / "export.sqlite"
        command = [nsys, "export", "--type=sqlite", f"--output={exported}", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode or not exported.exists():
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise ValueError(f"{path}: nsys export failed: {said}")
        trace = read_sqlite(exported)
    trace.meta["path"] = str(path)
    return trace


class _Export:
    """The tables of an export. What is missing has no rows, or None in each."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        self.columns = {
            name: {row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(name)})")}
            for name in names
        }
        self.num_bytes = math.prod(
            connection.execute(f"PRAGMA {part}").fetchone()[0] for part in ("page_count", "page_size")
        )
        rows = self.rows("StringIds", "id", texts=("value",))
        self._strings: dict[int, str] = {number: text for number, text in rows if text is not None}

    def rows(self, table: str, *integers: str, texts: tuple[str, ...] = ()) -> Iterator[tuple]:
        """The given columns of each row, as integers and texts or None."""
        if table not in self.columns:
            return iter(())
        types = {**dict.fromkeys(integers, "INTEGER"), **dict.fromkeys(texts, "TEXT")}
        wanted = [
            f"CAST({_quoted(column)} AS {kind})" if column in self.columns[table] else "NULL"
            for column, kind in types.items()
        ]
        return self._connection.execute(f"SELECT {', '.join(wanted)} FROM {_quoted(table)} ORDER BY rowid")

    def first_start(self, *tables: str) -> int | None:
        """When the first row of any of the tables begins."""
        starts = [start for table in tables for (start,) in self.rows(table, "start") if start is not None]
        return min(starts, default=None)

    def string(self, *numbers: int | None, default: str) -> str:
        """The first of these strings that exists."""
        return next((self._strings[number] for number in numbers if number in self._strings), default)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _read(export: _Export, path: pathlib.Path) -> Trace:
    zero_ns = export.first_start(_NVTX, _LAUNCHES, *_WORK, _MEMORY)
    if zero_ns is None:
        raise ValueError(f"{path}: holds no kernels and no ranges; profile with `nsys profile -t cuda,nvtx`")
    ranges, operators, problems = _read_ranges(export, zero_ns)
    kernels = with_operators(_read_kernels(export, zero_ns), operators)
    problems += without_launch(kernels)
    if _GRAPHS in export.columns:
        problems.append(
            "a CUDA graph counts as one kernel; profile with --cuda-graph-trace=node to see those inside it"
        )
    if not kernels:
        problems.append("no kernels were recorded; on a GPU, profile with `nsys profile -t cuda,nvtx`")
    return Trace(
        ranges=ranges,
        kernels=sorted(kernels, key=lambda kernel: kernel.start_ns),
        memory=_read_memory(export, zero_ns),
        meta={
            "tool": "nsys",
            "path": str(path),
            "device": "cuda" if kernels else "cpu",
            "problems": problems,
            "thread_names": _read_thread_names(export),
        },
    )


def _read_ranges(export: _Export, zero_ns: int) -> tuple[list[Range], list[Range], list[str]]:
    """The ranges of the program, those of torch's operators, and what the reader should know."""
    columns = ("eventType", "start", "end", "globalTid", "textId", "domainId")
    rows = list(export.rows(_NVTX, *columns, texts=("text",)))
    domains = {
        (_thread(thread)[0], domain): text or export.string(text_id, default="")
        for kind, _, _, thread, text_id, domain, text in rows
        if kind == _DOMAIN_NAME and thread is not None
    }
    ranges: list[Range] = []
    operators: list[Range] = []
    unfinished = 0
    for kind, start, end, thread, text_id, domain, text in rows:
        if kind != _PUSH_POP or start is None or thread is None:
            continue
        if end is None:
            unfinished += 1
            continue
        pid, tid = _thread(thread)
        # torch.cuda.nvtx writes the name into the row, the nvtx package registers it once as a string.
        name = export.string(text_id, default="") if text is None else text
        operator = _OPERATOR.split(name, maxsplit=1)
        domain_name = domains.get((pid, domain))
        shown = f"{domain_name}:{name}" if domain_name else operator[0]
        found = operators if len(operator) > 1 else ranges
        found.append(Range(shown, start - zero_ns, end - zero_ns, pid, tid))
    problems = []
    if unfinished:
        problems.append(f"{unfinished} ranges had not ended when the recording did, and are left out")
    if not ranges:
        problems.append(
            "the only ranges are start/end ranges, which belong to no thread; use push and pop instead"
            if any(row[0] == _START_END for row in rows)
            else "no ranges were recorded: profile with -t nvtx, and see that the program's ranges reach nsys"
        )
    return ranges, operators, problems


def _read_kernels(export: _Export, zero_ns: int) -> list[Kernel]:
    launches = _Launches(export)
    columns = ("start", "end", "streamId", "correlationId", "globalPid")
    kernels = []
    for table, name_columns in _WORK.items():
        for start, end, stream, correlation, process, *name in export.rows(table, *columns, *name_columns):
            if start is None or end is None:
                continue
            launch = launches.find(None if process is None else _thread(process)[0], correlation)
            thread = launch.thread if launch else (None, None)
            kernels.append(
                Kernel(
                    name=_work_name(export, table, name),
                    start_ns=start - zero_ns,
                    end_ns=end - zero_ns,
                    busy_ns=end - start,
                    pid=thread[0],
                    tid=thread[1],
                    launch_start_ns=launch.start_ns - zero_ns if launch else None,
                    launch_end_ns=launch.end_ns - zero_ns if launch else None,
                    stream=stream,
                    kind="copy" if table in (_COPIES, _FILLS) else "kernel",
                    op=None,
                )
            )
    return kernels


def _work_name(export: _Export, table: str, details: list[Any]) -> str:
    """What torch.profiler calls the same piece of work, as far as it goes."""
    if table == _COPIES:
        return f"Memcpy {_COPY_KINDS.get(details[0], 'of another kind')}"
    if table == _FILLS:
        return "Memset"
    if table == _GRAPHS:
        return f"CUDA graph {details[0]}"
    return export.string(*details, default="(without a name)")


class _Launch(NamedTuple):
    thread: Thread
    start_ns: int
    end_ns: int


class _Launches:
    """The launch calls, by the number that each shares with what it launched; one graph launches many."""

    def __init__(self, export: _Export) -> None:
        self._found: dict[tuple[int, int], _Launch] = {}
        self._processes: dict[int, set[int]] = defaultdict(set)
        for start, end, thread, correlation in export.rows(
            _LAUNCHES, "start", "end", "globalTid", "correlationId"
        ):
            if None in (start, end, thread, correlation):
                continue
            launch = _Launch(_thread(thread), start, end)
            key = launch.thread[0], correlation
            if key not in self._found or start < self._found[key].start_ns:
                self._found[key] = launch
            self._processes[correlation].add(key[0])

    def find(self, pid: int | None, correlation: int | None) -> _Launch | None:
        """The launch; without a process (older versions) only when no two of them share the number."""
        if correlation is None:
            return None
        processes = {pid} if pid is not None else self._processes.get(correlation, set())
        return self._found.get((min(processes), correlation)) if len(processes) == 1 else None


def _read_memory(export: _Export, zero_ns: int) -> list[MemoryEvent]:
    """What the driver handed out, when nsys was asked for it; torch's allocator asks it rarely."""
    totals: dict[int, int] = defaultdict(int)
    events = []
    columns = ("start", "bytes", "memoryOperationType", "deviceId", "memKind")
    for start, num_bytes, operation, device, kind in sorted(export.rows(_MEMORY, *columns), key=_first):
        if start is None or num_bytes is None or kind not in _DEVICE_MEMORY:
            continue
        delta = -num_bytes if operation == _RELEASED else num_bytes
        totals[device] += delta
        events.append(MemoryEvent(start - zero_ns, delta, totals[device], f"cuda:{device}"))
    return events


def _first(row: tuple) -> int:
    return row[0] or 0


def _read_thread_names(export: _Export) -> dict[Thread, str]:
    """All names that each thread has had."""
    names: dict[Thread, list[str]] = defaultdict(list)
    for name, thread in export.rows("ThreadNames", "nameId", "globalTid"):
        if thread is not None:
            names[_thread(thread)].append(export.string(name, default=""))
    return {thread: " / ".join(filter(None, texts)) for thread, texts in names.items()}


def _thread(number: int) -> Thread:
    """Process and thread out of nsys' number for both, which also names the machine."""
    return (number >> 24) & 0xFFFFFF, number & 0xFFFFFF
