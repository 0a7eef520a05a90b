"""What a folder holds: records and recordings, oldest first, and what could not be read. No torch here."""

import functools
import pathlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from cs_systems.bench.record import BenchmarkRecord, read_records
from cs_systems.tracing.read import read_trace
from cs_systems.tracing.trace import RunFacts, Trace, read_facts

MEASURE_COMMAND = "make measure"
"""What fills an empty folder."""
PROFILES = "profile"
"""The folder of the recordings within that of the records."""
_SUFFIX = ".json.gz"


@dataclass(frozen=True, eq=False)
class Recording:
    """A trace that is opened when it is asked for, and what was run."""

    path: pathlib.Path
    facts: RunFacts

    @property
    def name(self) -> str:
        """The file without its suffix: small-128."""
        return self.path.name.removesuffix(_SUFFIX)

    @property
    def has_memory(self) -> bool:
        """Whether allocations were recorded too, which slows down what is timed."""
        return "--memory" in shlex.split(self.facts.command)

    @functools.cached_property
    def trace(self) -> Trace:
        """What was recorded; a ValueError says in one line why it cannot be read."""
        return read_trace(self.path)


@dataclass(frozen=True)
class Measured:
    """Everything of one folder, oldest first, and a sentence for each thing that could not be read."""

    folder: pathlib.Path
    records: list[BenchmarkRecord]
    recordings: list[Recording]
    problems: list[str]


def read_measured(folder: pathlib.Path) -> Measured:
    """The records of `folder/*.jsonl` and the recordings `folder/profile/*.json.gz`; nothing is fatal."""
    records: list[BenchmarkRecord] = []
    recordings, problems = [], []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            found, remarks = read_records(path)
        except ValueError as error:
            found, remarks = [], [str(error)]
        records += found
        problems += remarks
    for path in sorted((folder / PROFILES).glob(f"*{_SUFFIX}")):
        try:
            facts = read_facts(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        if facts is not None:
            recordings.append(Recording(path, facts))
        else:
            problems.append(f"{path} is not used: no .run.json beside it says what was run")
    if not records and not recordings:
        problems.append(nothing_measured(folder))
    records.sort(key=lambda record: record.provenance.time_utc)
    recordings.sort(key=lambda recording: recording.facts.time_utc)
    return Measured(folder, records, recordings, problems)


def nothing_measured(folder: pathlib.Path) -> str:
    """What to say of a folder without a record or recording."""
    what = "does not exist"
    if folder.exists():
        what = "holds no records" if folder.is_dir() else "is a file and no folder of records"
    return f"{folder} {what}: nothing of your own to show or check; type {MEASURE_COMMAND}"


def latest_of_each_case(records: Iterable[BenchmarkRecord]) -> list[BenchmarkRecord]:
    """One record for each case and device: the last that is ok, or the last where none is.

    A case that ran out of memory keeps its row; a run that was interrupted never hides one that was not.
    """
    found: dict[tuple[str, str], BenchmarkRecord] = {}
    for record in records:
        key = record.key, record.provenance.device
        if key not in found or record.status == "ok" or found[key].status != "ok":
            found[key] = record
    return list(found.values())
