"""The table of the attention experiment, from records alone: the command prints it, and so does a report."""

import functools
from collections.abc import Sequence

from cs_systems.bench.attention_case import AttentionConfig
from cs_systems.bench.command import RATIO_COLUMNS, milliseconds, pass_rows, row_notes
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.cli import field_names
from cs_systems.tables import Column, Table, format_bytes, format_value

SHAPE = ("batch_size", "num_heads", "d_head", "seq_len", "precision", "causal")
"""Settings of a case that make its shape; the implementations take turns on each."""
SETTINGS = (*field_names(AttentionConfig), "implementation", "passes")
"""All settings of a case."""


def attention_table(records: Sequence[BenchmarkRecord]) -> Table:
    """One row a shape, implementation and pass; settings that never change stand in the title."""
    varying = [name for name in SHAPE if len({str(record.case[name]) for record in records}) > 1]
    has_device_time = any("device_median_s" in record.metrics for record in records)
    columns = [
        *(Column(name, name, align="left", raw_only=name not in varying) for name in SHAPE),
        Column("implementation", "Implementation", align="left"),
        Column("pass", "Pass", align="left"),
        Column("median_s", "Median", "ms", format=milliseconds),
        Column("iqr_s", "IQR", "ms", format=milliseconds),
        Column("device_median_s", "GPU", "ms", format=milliseconds, raw_only=not has_device_time),
        Column("tflops_per_s", "TFLOP/s"),
        *RATIO_COLUMNS,
        Column("held_bytes", "Held", format=format_bytes),
        Column("max_error", "Error", format=lambda error: f"{error:.0e}" if error else "0"),
        Column("status", "Status", align="left"),
        Column("reason", "Reason", raw_only=True),
        Column("time_utc", "Time", raw_only=True),
    ]
    notes = [
        "Ratio: median over that of naive, in turns; below 1, faster.",
        "TFLOP/s: 4 x batch x heads x seq^2 x d_head forward, half of it when causal, and 2.5 times that "
        "backward, whatever was computed on top.",
        "Held: memory that forward leaves for backward, result included. Error: largest difference from the "
        "formula in fp32, over the largest value.",
    ]
    if has_device_time:
        notes.append("Median: as the caller waits. GPU: as the GPU works; TFLOP/s and ratio are of that.")
    fixed = ", ".join(
        f"{name} {format_value(records[0].case[name])}" for name in SHAPE if name not in varying
    )
    rows = pass_rows(records)
    label = functools.partial(_row_label, varying=varying)
    return Table(f"Attention: {fixed}", columns, rows, notes + row_notes(records, label))


def _row_label(record: BenchmarkRecord, varying: Sequence[str]) -> str:
    return ", ".join(
        [record.case["implementation"], *(f"{n} {format_value(record.case[n])}" for n in varying)]
    )
