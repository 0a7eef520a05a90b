"""The leaderboard, from records alone: one table for each board, sorted by the median as a number."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cs_systems.bench.command import milliseconds
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.tables import Column, Table, format_number
from cs_systems.timing.stats import Samples

EXPERIMENT = "leaderboard"
"""Name of this experiment in records."""
BOARD = ("device_type", "batch_size", "num_heads", "seq_len", "d_head", "precision", "causal")
"""Settings that all times of a board share, beside the processor and the number of its threads."""
COUNTED = "forward-backward"
"""The series that a place depends on."""
FORMULA = "formula"
"""The series of attention by its formula in PyTorch, timed after the submission in the same process."""

_HASH_SHOWN = 8

COLUMNS = (
    Column("rank", "Rank"),
    Column("name", "Name", align="left"),
    Column("implementation", "By", align="left"),
    Column("median_s", "Median", "ms", format=milliseconds),
    Column("iqr_s", "IQR", "ms", format=milliseconds),
    Column("best_s", "Best", "ms", format=milliseconds),
    Column("tflops_per_s", "TFLOP/s"),
    Column("times_as_fast", "Times as fast", format=lambda ratio: format_number(ratio, 3)),
    Column("status", "Status", align="left"),
    Column("time_utc", "When", align="left"),
    Column("code", "Code", align="left", format=lambda code: code[:_HASH_SHOWN]),
    Column("commit", "Measured by", align="left"),
    Column("reason", "Reason", raw_only=True),
    *(Column(name, name, raw_only=True) for name in BOARD),
    Column("device", "Device", raw_only=True),
    Column("threads", "Threads", raw_only=True),
)


def boards(records: Sequence[BenchmarkRecord]) -> list[Table]:
    """A table for each shape, type and processor that was measured: times of two boards do not compare."""
    ordered = sorted(records, key=lambda record: str(_board(record)))
    return [make_board(list(group)) for _, group in itertools.groupby(ordered, key=_board)]


def same_board(records: Sequence[BenchmarkRecord], record: BenchmarkRecord) -> list[BenchmarkRecord]:
    """Those that stand in one table with `record`."""
    return [other for other in records if _board(other) == _board(record)]


def make_board(records: Sequence[BenchmarkRecord]) -> Table:
    """The table of the records of one board: by time, and below what failed, with the reason."""
    chosen = latest_of_each_name(records)
    ranked = sorted(
        (each for each in chosen if each.status == "ok"), key=lambda each: each.metrics["median_s"][COUNTED]
    )
    failed = sorted((each for each in chosen if each.status != "ok"), key=lambda each: each.case["name"])
    rows = [_row(record, rank) for rank, record in enumerate(ranked, start=1)]
    rows += [_row(record, None) for record in failed]
    notes = [f"{record.case['name']} ({record.provenance.time_utc}): {record.reason}" for record in failed]
    notes += [
        "Forward and backward, as the caller waits, each call on inputs of its own, results and gradients "
        "checked. Of each name the last that counted, and a later one that failed.",
        "TFLOP/s: 7 products of half of seq^2 each, whatever was computed on top. Times as fast: as the "
        "formula in PyTorch, timed after it in the same process.",
    ]
    if any("interpreter" in note for record in chosen for note in record.notes):
        notes.append(
            "Triton on a CPU is run by its interpreter: that shows that it is right, not how fast it is."
        )
    return Table(_title(records[0]), COLUMNS, rows, notes)


def latest_of_each_name(records: Sequence[BenchmarkRecord]) -> list[BenchmarkRecord]:
    """Of each name and implementation the last record that is ok, and the last of all if that one failed."""
    chosen: dict[tuple[str, str, bool], BenchmarkRecord] = {}
    for record in sorted(records, key=lambda record: record.provenance.time_utc):
        key = record.case["name"], record.case["implementation"]
        if record.status == "ok":
            chosen.pop((*key, False), None)
        chosen[*key, record.status == "ok"] = record
    return list(chosen.values())


def _board(record: BenchmarkRecord) -> tuple[Any, ...]:
    where = record.provenance
    return (
        *(record.case[name] for name in BOARD),
        where.device,
        where.threads * (where.device_type == "cpu"),
    )


def _row(record: BenchmarkRecord, rank: int | None) -> dict[str, Any]:
    where = record.provenance
    row: dict[str, Any] = {**record.case, "rank": rank, "status": record.status, "reason": record.reason}
    row |= {"time_utc": where.time_utc, "device": where.device, "threads": where.threads}
    row["commit"] = where.commit and where.commit + (" with changes" if where.dirty else "")
    if record.status == "ok":
        row |= {key: record.metrics[key][COUNTED] for key in ("median_s", "iqr_s", "best_s")}
        row |= {key: record.metrics[key] for key in ("tflops_per_s", "times_as_fast")}
    return row


def make_metrics(samples_s: Mapping[str, Sequence[float]], flops: float) -> dict[str, Any]:
    """What follows from the seconds of a submission and of the formula for one piece of work of `flops`."""
    series = {name: Samples.from_values(values) for name, values in samples_s.items()}
    counted, formula = series[COUNTED], series[FORMULA]
    return {
        "median_s": {name: samples.median for name, samples in series.items()},
        "iqr_s": {name: samples.iqr for name, samples in series.items()},
        "best_s": {name: samples.min for name, samples in series.items()},
        "tflops_per_s": flops / counted.median / 1e12,
        "times_as_fast": formula.median / counted.median,
    }


def _title(record: BenchmarkRecord) -> str:
    case, where = record.case, record.provenance
    threads = (
        f", {where.threads} thread{'s' if where.threads > 1 else ''}" if where.device_type == "cpu" else ""
    )
    heads = (f"{case['batch_size']} x " if case["batch_size"] > 1 else "") + f"{case['num_heads']} heads"
    size = f"{heads}, {case['seq_len']} positions, d_head {case['d_head']}, {case['precision']}"
    return f"Leaderboard of flash attention: {size}, causal; {where.device}{threads}"
