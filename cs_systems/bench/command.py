"""What the commands share in which implementations take turns: rows of tables, notes, the ending."""

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cs_systems.bench.record import BenchmarkRecord, check_writable, read_records
from cs_systems.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Parser
from cs_systems.tables import Column, Table, format_number, render_table

BUSY_CORES = 0.2
"""Other programs using more than this are mentioned below the table."""

RATIO_COLUMNS = [
    Column(key, title, format=lambda ratio: f"{ratio:.3f}")
    for key, title in (("ratio", "Ratio"), ("ratio_low", "95 % from"), ("ratio_high", "to"))
]


@dataclass
class GroupsResult:
    """What the groups brought: records in the order of the rows, and how it ended."""

    records: list[BenchmarkRecord] = field(default_factory=list)
    interrupted: bool = False
    problems: list[str] = field(default_factory=list)
    """Records that could not be stored, and why."""


def milliseconds(seconds: float) -> str:
    """Seconds as a number of milliseconds."""
    return format_number(1e3 * seconds)


def load_finished(args: argparse.Namespace) -> tuple[dict[str, BenchmarkRecord], list[str]]:
    """The rows of --output that need not be measured again, and what was wrong with the file.

    Raises:
        ValueError: when --resume lacks --output, or the file is not one to append records to.
    """
    output: pathlib.Path | None = args.output
    if output is None:
        if args.resume:
            raise ValueError("--resume needs --output FILE.jsonl, the file whose finished cases are kept")
        return {}, []
    check_writable(output)
    if not args.resume:
        return {}, []
    stored, problems = read_records(output)
    return {record.key: record for record in stored if record.status in ("ok", "oom")}, problems


def pass_rows(records: Sequence[BenchmarkRecord]) -> list[dict[str, Any]]:
    """One row a record and pass, those that took turns below each other; one for a record without times."""
    rows = []
    for _, group in itertools.groupby(records, key=_without_implementation):
        members = list(group)
        timed = [record for record in members if "median_s" in record.metrics]
        for name in members[0].case["passes"].split("+"):
            rows += [_pass_row(record, name) for record in timed]
        rows += [_pass_row(record, None) for record in members if record not in timed]
    return rows


def _without_implementation(record: BenchmarkRecord) -> dict[str, Any]:
    return {name: value for name, value in record.case.items() if name != "implementation"}


def _pass_row(record: BenchmarkRecord, pass_name: str | None) -> dict[str, Any]:
    row = {**record.case, "pass": pass_name, "status": record.status, "reason": record.reason}
    row["time_utc"] = record.provenance.time_utc
    for key, value in record.metrics.items():
        row[key] = value.get(pass_name or "") if isinstance(value, dict) else value
    return row


def row_notes(records: Sequence[BenchmarkRecord], label: Callable[[BenchmarkRecord], str]) -> list[str]:
    """Every reason and remark of the records once, with the first row that it holds for."""
    holders: dict[str, list[str]] = {}
    for record in records:
        for text in ([record.reason] if record.reason else []) + record.notes:
            holders.setdefault(text, []).append(label(record))
    notes = [
        f"{rows[0]}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''}: {text}"
        for text, rows in holders.items()
    ]
    load = max((record.metrics.get("other_load_cores") or 0.0 for record in records), default=0.0)
    if load > BUSY_CORES:
        notes.append(f"other programs used up to {load:.1f} cores meanwhile; repeat when it is quiet")
    return notes + list(dict.fromkeys(_machine(record) for record in records))


def _machine(record: BenchmarkRecord) -> str:
    where = record.provenance
    threads = (
        f"{where.threads} thread{'s' if where.threads > 1 else ''}, " if where.device_type == "cpu" else ""
    )
    changes = " with changes" if where.dirty else ""
    return f"{where.device}, {threads}torch {where.versions['torch']}, commit {where.commit}{changes}"


def conclude(
    parser: Parser,
    args: argparse.Namespace,
    make_table: Callable[[Sequence[BenchmarkRecord]], Table],
    summarise: Callable[[Sequence[BenchmarkRecord]], Mapping[str, Any]],
    result: GroupsResult,
    num_rows: int,
    problems: Sequence[str],
) -> int:
    """Print the table, the line of JSON and what went wrong; returns the exit code."""
    records = result.records
    if records:
        print(render_table(make_table(records), args.format))
        if args.format == "table":
            print(json.dumps(summarise(records), allow_nan=False))
    for problem in [*problems, *result.problems]:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
    if result.interrupted:
        kept = sum(record.status == "ok" for record in records)
        print(f"{parser.prog}: interrupted; {kept} of {num_rows} rows are complete", file=sys.stderr)
        return EXIT_INTERRUPTED
    failed = result.problems or any(record.status == "failed" for record in records)
    return EXIT_FAILED if failed else EXIT_OK
