"""What a profiler recorded, whichever profiler it was: `Trace`. `read.read_trace` reads one from a file.

Times are whole nanoseconds from the first event of the file.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PHASES = ("forward", "loss", "backward", "optimizer")
"""The names of the ranges that a step is made of."""
MEASURED = "measured"
"""The range around everything that counts; warm-up stands outside it."""
STEP = "step"
BACKWARD_SUFFIX = " (backward)"
"""Added to the name of a range for the backward pass of the same part of the model."""


@dataclass(frozen=True, slots=True)
class Range:
    """A range that the program named: NVTX push and pop, or `record_function`."""

    name: str
    start_ns: int
    end_ns: int
    pid: int
    tid: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """One piece of work: a kernel or a copy on the device, or an operator where the CPU did the work."""

    name: str
    start_ns: int
    end_ns: int
    busy_ns: int
    """On a device end - start; of an operator its self time, without the operators it called."""
    pid: int | None
    """Process and thread of the launch; None when the file does not hold it."""
    tid: int | None
    launch_start_ns: int | None
    """The launch call; of an operator its own start and end."""
    launch_end_ns: int | None
    stream: int | None
    kind: Literal["kernel", "copy", "op"]
    op: str | None
    """The operator that launched it, such as aten::mm."""


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """An allocation (positive) or a release (negative), and the total after it."""

    time_ns: int
    delta_bytes: int
    total_bytes: int
    device: str
    """cpu, cuda:0, ..."""


@dataclass(frozen=True, eq=False)
class Trace:
    """All that was recorded. It is never changed, and equal only to itself: what is derived is kept by it."""

    ranges: Sequence[Range]
    kernels: Sequence[Kernel]
    """In the order of their starts."""
    memory: Sequence[MemoryEvent] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    """tool (torch.profiler or nsys), path, device (cpu or cuda), problems (sentences for the reader),
    thread_names {(pid, tid): name}."""


@dataclass(frozen=True)
class RunFacts:
    """What was run: FLOPs and counts per pass follow from it, and no profiler writes it down."""

    model: str
    num_layers: int
    num_heads: int
    d_head: int
    batch_size: int
    seq_len: int
    steps: int
    mode: str
    precision: str
    attention: str
    device: str
    command: str
    timer_s: dict[str, float] = field(default_factory=dict)
    """Median of each pass by the timer, without a profiler; `forward` has the loss in it."""
    checkpoint_blocks: int = 0
    """Blocks per activation checkpoint; 0 for none."""
    base_bytes: int = 0
    """Parameters and optimizer state, which were there before the recording began."""
    predicted_bytes: dict[str, int] = field(default_factory=dict)
    """Predicted peak of each phase, all tensors included."""
    commit: str = ""
    """Of the code that ran; "with changes" if the checkout had any."""
    time_utc: str = ""
    torch: str = ""
    """Its version."""
    threads: int = 0
    other_load_percent: int = 0
    """Of one core, used by other programs meanwhile."""


def without_launch(kernels: Sequence[Kernel]) -> list[str]:
    """A sentence for the reader, when the launch of some of `kernels` is not in the file."""
    lost = sum(kernel.launch_start_ns is None for kernel in kernels)
    if not lost:
        return []
    return [
        f"the file does not say what launched {lost} of {len(kernels)} kernels and copies, as when recording "
        "begins late: they are (unattributed)"
    ]


def facts_path(trace_path: str | pathlib.Path) -> pathlib.Path:
    """Where the facts of a trace lie: runs/a.json.gz has runs/a.run.json."""
    path = pathlib.Path(trace_path)
    return path.with_name(pathlib.Path(path.name.removesuffix(".gz")).stem + ".run.json")


def write_facts(trace_path: str | pathlib.Path, facts: RunFacts) -> None:
    """Store the facts beside the trace."""
    facts_path(trace_path).write_text(json.dumps(dataclasses.asdict(facts), indent=2) + "\n")


def read_facts(trace_path: str | pathlib.Path) -> RunFacts | None:
    """The facts of a trace, or None where none were stored.

    Raises:
        ValueError: when the file is there and does not hold them.
    """
    path = facts_path(trace_path)
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); delete it") from None
    names = [each.name for each in dataclasses.fields(RunFacts)]
    required = names[: names.index("timer_s")]  # a file from before a later field was added is still good
    if not isinstance(values, dict) or not set(required) <= set(values) <= set(names):
        raise ValueError(f"{path}: does not hold the facts of a run, {', '.join(names)}; delete it")
    for each in dataclasses.fields(RunFacts):
        if each.name in values and not _fits(values[each.name], each.type):
            raise ValueError(f"{path}: {each.name} cannot be {values[each.name]!r}; delete the file")
    return RunFacts(**values)


def _fits(value: Any, kind: Any) -> bool:
    if kind in (int, str):
        return type(value) is kind
    return isinstance(value, dict) and all(type(seconds) in (int, float) for seconds in value.values())
