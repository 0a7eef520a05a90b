"""The table of engines that took turns, ours beside Hugging Face's. No torch here."""

from collections.abc import Sequence
from typing import Any

from cs_systems.bench.command import milliseconds, row_notes
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.tables import Column, Table, format_percent

EXPERIMENT = "generation_side_by_side"
"""Name of this experiment in records."""

BASELINE = "hf"
"""Engine that the times of the others are compared with."""

PARTS = ("end_to_end", "inter_token")
"""What ratios are of: whole generations, and the time from one token to the next."""


def contest_table(records: Sequence[BenchmarkRecord]) -> Table:
    """One row a contestant."""
    rows = [
        dict(record.metrics)
        | {name: record.case[name] for name in ("batch_size", "precision", "engine")}
        | {"status": record.status}
        for record in records
    ]
    columns = [
        Column("batch_size", "Batch"),
        Column("engine", "Engine", align="left"),
        Column("precision", "Precision", align="left"),
        Column("end_to_end_median_s", "Latency", "ms", format=milliseconds),
        Column("first_token_median_s", "TTFT", "ms", format=milliseconds),
        Column("inter_token_p10_s", "ITL p10", "ms", format=milliseconds),
        Column("inter_token_median_s", "p50", "ms", format=milliseconds),
        *(
            Column(f"{part}_speedup{end}", title, format="{:.2f}".format)
            for part, first in zip(PARTS, ("Times as fast", "Each token"), strict=True)
            for end, title in (("", first), ("_low", "95 % from"), ("_high", "to"))
        ),
        Column("tokens_match", "Same tokens", format=format_percent),
        Column("status", "Status", align="left"),
    ]
    case = records[0].case
    notes = [
        "Times as fast: median latency of hf over ours, of whole generations taken in turns; each token: the "
        "same of the time between tokens. Above 1, ours is faster. int8 is compared with hf in bf16, "
        "which has no weights in 8 bits without further packages.",
        "Inside the clock: copying token ids, prompt, steps, choosing tokens, which go to the host singly. "
        "Outside: loading, compiling, text to tokens and back.",
        *row_notes(records, _label),
    ]
    title = f"{case['model']}: {case['prompt_len']} prompt tokens, {case['new_tokens']} new, greedy, in turns"
    return Table(title, columns, rows, notes)


def _label(record: BenchmarkRecord) -> str:
    return f"batch {record.case['batch_size']}, {record.case['engine']} {record.case['precision']}"


def summary(records: Sequence[BenchmarkRecord]) -> dict[str, Any]:
    """What the last line says."""
    names = ("batch_size", "engine", "precision", "model", "prompt_len", "new_tokens")
    return {
        "experiment": EXPERIMENT,
        "records": [
            {name: record.case[name] for name in names}
            | {"status": record.status, "reason": record.reason, "metrics": dict(record.metrics)}
            for record in records
        ],
    }
