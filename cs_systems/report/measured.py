"""What a folder holds: records and recordings, where they come from, and which of them count."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cs_systems.bench.record import BenchmarkRecord, read_records
from cs_systems.report import cases
from cs_systems.report.observations import OTHER_LOAD_CORES
from cs_systems.tables import Table
from cs_systems.tracing.read import read_trace
from cs_systems.tracing.trace import RunFacts, Trace, read_facts

PROFILES = "profile"
"""The folder of the recordings within that of the records."""
_SUFFIX = ".json.gz"
_SHOWN_ORIGINS = 3


@dataclass(frozen=True)
class Recording:
    """A trace that is opened when it is asked for, and what was run."""

    path: pathlib.Path
    facts: RunFacts

    @property
    def name(self) -> str:
        """The file without its suffix: small-128."""
        return self.path.name.removesuffix(_SUFFIX)

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
        what = "holds no records" if folder.is_dir() else "does not exist"
        problems.append(f"{folder} {what}: every table is still to be measured")
    records.sort(key=lambda record: record.provenance.time_utc)
    recordings.sort(key=lambda recording: recording.facts.time_utc)
    return Measured(folder, records, recordings, problems)


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


def origins_of_records(records: Sequence[BenchmarkRecord]) -> list[str]:
    """Device, threads, torch, commit and dates, a line for each machine and state of the code."""
    dates: dict[str, list[str]] = {}
    for record in records:
        where = record.provenance
        commit = (where.commit or "unknown")[:12] + (" with changes" if where.dirty else "")
        threads = where.threads if where.device_type == "cpu" else None
        name = origin(where.device, threads, where.versions.get("torch"), commit)
        dates.setdefault(name, []).append(where.time_utc[:10])
    lines = [
        f"{name}, {' to '.join(dict.fromkeys((min(days), max(days))))}"
        for name, days in list(dates.items())[:_SHOWN_ORIGINS]
    ]
    if len(dates) > _SHOWN_ORIGINS:
        lines.append(f"and {len(dates) - _SHOWN_ORIGINS} other machines or commits")
    return lines


def load_of_records(records: Sequence[BenchmarkRecord]) -> list[str]:
    """A sentence when other programs disturbed the measurements."""
    load = max((record.metrics.get("other_load_cores") or 0.0 for record in records), default=0.0)
    if load <= OTHER_LOAD_CORES:
        return []
    return [f"other programs kept up to {load:.1f} cores busy meanwhile: times may be too long"]


def origin(device: str, threads: int | None, torch: str | None, commit: str) -> str:
    """Where a number comes from, but for the date."""
    parts = [cases.short_device(device)]
    parts += [f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []
    return ", ".join([*parts, f"torch {torch or 'unknown'}", f"commit {commit}"])


def without_origin(table: Table, records: Sequence[BenchmarkRecord]) -> Table:
    """The table without the notes that only say where it was measured, for whoever says it elsewhere."""
    devices = {record.provenance.device for record in records}
    starts = tuple(devices | {cases.short_device(device) for device in devices})
    notes = [note for note in table.notes if not (note.startswith(starts) and "torch " in note)]
    if not any(column.key == "commit" for column in table.columns if not column.raw_only):
        notes = [note for note in notes if not note.startswith("* ")]  # of a star behind a commit
    return dataclasses.replace(table, notes=notes)
