"""Where the numbers of a table come from: machine, code and day, in a line each."""

import dataclasses
from collections.abc import Sequence

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report import cases
from cs_systems.report.observations import OTHER_LOAD_CORES
from cs_systems.tables import Table

_SHOWN_ORIGINS = 3


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
