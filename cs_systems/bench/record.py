"""The one format of measured and estimated numbers: a record per case, a JSON object per line.

Files are append-only and versioned. A line that cannot be read (a run killed while writing, a foreign file)
is skipped and reported, never fatal and never silent. Nothing here imports torch.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

SCHEMA_VERSION = 1
_SHOWN_PROBLEMS = 3

Status = Literal["ok", "oom", "skipped", "failed"]


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from: enough to run it again and to know what it may be compared with."""

    command: str
    """What was typed."""
    commit: str | None
    """Git commit of the code that ran; None outside a checkout."""
    dirty: bool | None
    """Whether the checkout had uncommitted changes, those of results/ apart: records change no code."""
    time_utc: str
    """Start of the case, ISO 8601."""
    device: str
    """Name of the processor that ran the model."""
    device_type: str
    """cpu or cuda."""
    threads: int
    """Threads torch used for one operation on the CPU."""
    versions: Mapping[str, str | None]
    """Python, torch, triton, CUDA and driver; None where absent."""


@dataclass(frozen=True)
class BenchmarkRecord:
    """One case of one experiment: what was asked, how it ended, every sample, what follows from them."""

    experiment: str
    case: Mapping[str, Any]
    """Every resolved setting that defines the case; two records are comparable when these agree."""
    status: Status
    """ok, oom, skipped (not run: see reason) or failed (ran and ended early)."""
    provenance: Provenance
    reason: str | None = None
    """Why the status is not ok, with advice."""
    samples_s: Mapping[str, list[float]] = field(default_factory=dict)
    """Seconds of each measured step by pass, in the order measured."""
    warmup_samples_s: Mapping[str, list[float]] = field(default_factory=dict)
    """Seconds of each warm-up step by pass."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What follows from the samples; the unit is in each name, None means not known."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know about this row."""
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """Identity of the case within an experiment: equal for runs that may be compared."""
        return case_key(self.experiment, self.case)

    def to_json(self) -> str:
        """The record as one line of JSON, without the newline."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "BenchmarkRecord":
        """Read a line written by `to_json`.

        Raises:
            ValueError: when the line is no record of this schema; the message says why.
        """
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            raise ValueError("not JSON, or cut off") from None
        if not isinstance(values, dict) or "schema_version" not in values:
            raise ValueError("JSON, but not a benchmark record")
        if values["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema {values['schema_version']}, this program reads {SCHEMA_VERSION}")
        try:
            provenance = Provenance(**values.pop("provenance"))
            record = cls(provenance=provenance, **values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"a record with missing or unknown fields ({error})") from None
        if record.status not in get_args(Status):
            raise ValueError(f"unknown status {record.status!r}")
        parts = (record.case, record.samples_s, record.warmup_samples_s, record.metrics)
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("case, samples_s, warmup_samples_s and metrics must be JSON objects")
        for samples in (*record.samples_s.values(), *record.warmup_samples_s.values()):
            if not _are_seconds(samples):
                raise ValueError("samples must be lists of seconds")
        if not isinstance(record.notes, list) or not all(isinstance(note, str) for note in record.notes):
            raise ValueError("notes must be a list of texts")
        return record


def case_key(experiment: str, case: Mapping[str, Any]) -> str:
    """Identity of a case, the same before and after it was measured and read back from a file."""
    return json.dumps([experiment, dict(case)], sort_keys=True)


def _are_seconds(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and 0 <= value < math.inf for value in values
    )


def check_writable(path: pathlib.Path, flag: str = "--output") -> None:
    """Open `path`, which was given by `flag`, so that a bad path is reported before hours of measuring.

    Raises:
        ValueError: naming the folder or file and what to do.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: folder {path.parent} does not exist; create it first")
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot write ({error.strerror}); choose another place") from None
    if path.is_file():
        read_records(path)  # appending to somebody's notes would spoil them


def append_record(path: pathlib.Path, record: BenchmarkRecord) -> None:
    """Append one line and force it to disk, so that nothing measured is lost when the next case dies."""
    line = record.to_json().encode() + b"\n"  # before the file is touched: a record with nan is refused
    with path.open("a+b") as file:
        if file.tell() and not _ends_with_newline(file):
            file.write(b"\n")  # close a half-written line instead of gluing the next record to it
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_records(path: pathlib.Path) -> tuple[list[BenchmarkRecord], list[str]]:
    """The records of a file and one message per line that was skipped.

    Raises:
        ValueError: when the file cannot be read, or holds lines but no record.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot read ({error.strerror})") from None
    records, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(BenchmarkRecord.from_json(line))
        except ValueError as error:
            problems.append(f"line {number} ignored: {error}")
    was_cut_off = len(problems) == 1 and lines[-1].startswith(
        '{"experiment"'
    )  # in the middle of its first record
    if problems and not records and not was_cut_off:
        raise ValueError(f"{path} holds no benchmark records ({problems[0]})")
    shown = [f"{path}: {problem}" for problem in problems[:_SHOWN_PROBLEMS]]
    if len(problems) > _SHOWN_PROBLEMS:
        shown.append(f"{path}: {len(problems) - _SHOWN_PROBLEMS} more lines ignored")
    return records, shown
