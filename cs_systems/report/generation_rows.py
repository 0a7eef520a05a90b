"""What the tables of generation share: columns of a sweep, their names, settings, notes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.tables import Cell, Column, format_number

EXPERIMENT = "generation"
"""Name of this experiment in records."""


COLUMN_SETTINGS = ("model", "engine", "precision", "prompt_len", "new_tokens", "threads", "memory_limit_gib")


_REFERENCE_ENGINE = "hf"


Records = Sequence[BenchmarkRecord]


def of_generation(records: Records) -> list[BenchmarkRecord]:
    """The records of this experiment; of one point measured again, the last."""
    latest = {record.key: record for record in records if record.experiment == EXPERIMENT}
    return list(latest.values())


def tokens_match(record: BenchmarkRecord, records: Records) -> float | None:
    """Share of the kept tokens that are those of engine hf; None where hf did not run, and for hf itself."""
    if record.status != "ok" or record.case["engine"] == _REFERENCE_ENGINE:
        return None
    precision = "bf16" if record.case["precision"] == "int8" else record.case["precision"]
    wanted = _identity(record) | {"engine": _REFERENCE_ENGINE, "precision": precision}
    other = next((r for r in records if r.status == "ok" and _identity(r) == wanted), None)
    if other is None:
        return None
    if other.metrics["tokens_sha256"] == record.metrics["tokens_sha256"]:
        return 1.0
    pairs = [
        (mine, theirs)
        for own_row, their_row in zip(record.metrics["tokens"], other.metrics["tokens"], strict=True)
        for mine, theirs in zip(own_row, their_row, strict=True)
    ]
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)


_CLOCK_SETTINGS = ("runs", "warmup_runs", "max_seconds", "memory_limit_gib", "threads")


def _identity(record: BenchmarkRecord) -> dict[str, Any]:
    """Settings that decide which tokens come out."""
    return {name: value for name, value in record.case.items() if name not in _CLOCK_SETTINGS}


def by_column(records: Records) -> dict[str, list[BenchmarkRecord]]:
    """Records that differ in nothing but the batch size, by a key."""
    columns: dict[str, list[BenchmarkRecord]] = {}
    for record in records:
        settings = {name: value for name, value in record.case.items() if name != "batch_size"}
        columns.setdefault(json.dumps(settings, sort_keys=True), []).append(record)
    return columns


def column_series(
    records: Records,
) -> dict[str, tuple[dict[int, Mapping[str, Any]], int | None]]:
    """By heading of each column: metrics by batch size of what ran, and the first out of memory."""
    columns = by_column(records)
    series = {}
    for key, name in column_names(columns).items():
        points = {r.case["batch_size"]: r.metrics for r in columns[key] if r.status == "ok"}
        first_oom = min((r.case["batch_size"] for r in columns[key] if r.status == "oom"), default=None)
        if points:
            series[name] = points, first_oom
    return series


def column_names(columns: Mapping[str, Records]) -> dict[str, str]:
    """A heading for each column: engine and precision, and what else is needed to tell them apart."""
    cases = {key: members[0].case for key, members in columns.items()}
    varying = [
        name
        for name in ("prompt_len", "new_tokens", "threads", "memory_limit_gib", "seed")
        if len({case[name] for case in cases.values()}) > 1
    ]
    return {
        key: f"{case['engine']} ({case['precision']})"
        + "".join(f", {name.replace('_', ' ')} {case[name]}" for name in varying)
        for key, case in cases.items()
    }


def column_name(record: BenchmarkRecord) -> str:
    """A point's column in a sentence: model, engine, precision."""
    return f"{record.case['model']}, {record.case['engine']}, {record.case['precision']}"


def settings(record: BenchmarkRecord) -> dict[str, Any]:
    """The cells that say which point a row is."""
    return {name: record.case[name] for name in (*COLUMN_SETTINGS, "batch_size")}


def setting_columns(records: Records) -> list[Column]:
    """The columns for them: people see engine, precision, batch, and whatever differs between rows."""
    titles = {
        "model": "Model", "engine": "Engine", "precision": "Precision", "prompt_len": "Prompt",
        "new_tokens": "New", "threads": "Threads", "memory_limit_gib": "Limit (GiB)",
    }  # fmt: skip
    return [
        *(
            Column(
                name, title, align="left" if name in ("model", "engine", "precision") else "right",
                raw_only=name not in ("engine", "precision") and not varies(records, name),
            )
            for name, title in titles.items()
        ),
        Column("batch_size", "Batch"),
    ]  # fmt: skip


def varies(records: Records, name: str) -> bool:
    """Whether the records differ in this setting."""
    return len({record.case[name] for record in records}) > 1


def conditions(records: Records) -> str:
    """What all share: '128 prompt tokens, 32 new'."""
    parts = []
    for name, text in (("prompt_len", "{} prompt tokens"), ("new_tokens", "{} new")):
        if records and not varies(records, name):
            parts.append(text.format(records[0].case[name]))
    return ", ".join(parts)


def table_title(what: str, records: Records) -> str:
    """A title with the model, where there is one, and the lengths."""
    model = [] if not records or varies(records, "model") else [records[0].case["model"]]
    return f"{what}: {', '.join([*model, conditions(records)])}"


def or_status(record: BenchmarkRecord, key: str) -> Any:
    """The value of a metric; how the point ended where there is none."""
    value = record.metrics.get(key)
    return Cell(None, "" if record.status == "ok" else record.status) if value is None else value


def notes_of(records: Records) -> list[str]:
    """Reasons and remarks once each, then contention, then the machine."""
    notes: dict[str, list[str]] = {}
    for record in records:
        is_told = record.metrics.get("predicted_oom") and not record.metrics.get("predicted_bytes")
        reasons = [record.reason] if record.reason and not is_told else []
        for text in reasons + list(record.notes):
            notes.setdefault(text, []).append(f"{column_name(record)}, batch {record.case['batch_size']}")
    lines = [
        f"{rows[0]}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''}: {text}"
        for text, rows in notes.items()
    ]
    ran = [record for record in records if record.status == "ok"]
    busy = [record for record in ran if record.metrics.get("contended")]
    if busy:
        most = max(record.metrics["other_load_cores"] for record in busy)
        lines.append(
            f"! contended: in {len(busy)} of {len(ran)} rows other programs used up to {most:.1f} cores; "
            f"measure again on a quiet machine before comparing"
        )
    return lines + list(dict.fromkeys(_machine(record) for record in ran))


def _machine(record: BenchmarkRecord) -> str:
    where, metrics = record.provenance, record.metrics
    threads = f"{where.threads} threads, " if where.device_type == "cpu" else ""
    ceilings = (
        f"; measured in this run: {format_number(metrics['peak_bytes_per_s'] / 1e9, 3)} GB/s, "
        f"{record.case['precision']} {format_number(metrics['peak_flops_per_s'] / 1e12, 3)} TFLOP/s"
    )
    changes = " with changes" if where.dirty else ""
    return (
        f"{where.device}, {threads}torch {where.versions['torch']}, commit {where.commit}{changes}{ceilings}"
    )
