"""Tables of generation: every point, its memory, where memory ends; and all that a command prints."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report.generation_layouts import bigcode_tables, bloom_table, cpu_table
from cs_systems.report.generation_published import comparison_table
from cs_systems.report.generation_rows import (
    COLUMN_SETTINGS,
    EXPERIMENT,
    Records,
    by_column,
    column_name,
    notes_of,
    of_generation,
    or_status,
    setting_columns,
    settings,
    table_title,
    tokens_match,
)
from cs_systems.tables import (
    Cell,
    Column,
    Style,
    Table,
    format_bytes,
    format_number,
    format_percent,
    render_table,
    table_as_json,
)

LAYOUTS = ("points", "memory", "frontier", "bigcode", "bloom", "cpu")
"""Tables that can be asked for."""


def render_generation(
    records: Records, style: Style, layouts: Sequence[str], published: str | None = None
) -> str:
    """The tables in `layouts` in one text without a newline at the end; `table` ends with a line of JSON.

    `csv` is the first table alone: two in one file could not be read back.
    """
    chosen = of_generation(records)
    tables = [table for name in layouts for table in _MAKERS[name](chosen)]
    if published is not None:
        tables.append(comparison_table(chosen, published))
    if style == "json":
        return json.dumps([table_as_json(table) for table in tables], allow_nan=False, indent=2)
    parts = [render_table(table, style) for table in (tables[:1] if style == "csv" else tables)]
    if style == "table":
        parts.append(json.dumps(summary(chosen), allow_nan=False))
    return "\n\n".join(parts)


def summary(records: Records) -> dict[str, Any]:
    """What the last line says: settings that differ between columns, outcome and the main figures."""
    names = (
        *(
            "ttft_s",
            "inter_token_p50_s",
            "latency_s",
            "tokens_per_s",
            "mbu",
            "mfu",
            "predicted_largest_batch",
        ),
        *("peak_memory_bytes", "other_load_cores", "contended"),
    )
    return {
        "experiment": EXPERIMENT,
        "records": [
            {name: record.case[name] for name in (*COLUMN_SETTINGS, "batch_size")}
            | {"status": record.status, "reason": record.reason}
            | {name: record.metrics.get(name) for name in names}
            for record in records
        ],
    }


def points_table(records: Records) -> list[Table]:
    """One row a point: times of the prompt and of each token, rates, and their share of what is possible."""
    rows = [
        settings(record)
        | dict(record.metrics)
        | {
            "tokens_match": tokens_match(record, records),
            "latency_s": or_status(record, "latency_s"),
            "other_load_cores": _load(record),
            "status": record.status,
            "reason": record.reason,
        }
        for record in records
    ]
    columns = [
        *setting_columns(records),
        Column("ttft_s", "TTFT", "ms", format=_ms),
        *(
            Column(f"inter_token_{name}_s", f"ITL {name}", "ms", format=_ms)
            for name in ("p10", "p50", "p90", "p99")
        ),
        Column("latency_s", "Latency", "s"),
        Column("tokens_per_s", "tokens/s"),
        Column("tokens_per_s_per_sequence", "a sequence"),
        Column("ms_per_token", "ms/token"),
        Column("decode_bytes_per_s", "Read", "GB/s", format=lambda rate: format_number(rate / 1e9, 3)),
        Column("mbu", "MBU", format=format_percent),
        Column("prompt_flops_per_s", "Prompt", "TFLOP/s", format=lambda rate: format_number(rate / 1e12, 3)),
        Column("mfu", "MFU", format=format_percent),
        _if_any(rows, "mbu_datasheet", "MBU of datasheet"),
        _if_any(rows, "mfu_datasheet", "MFU of datasheet"),
        _if_any(rows, "energy_j_per_token", "J/token", format_number),
        Column("tokens_match", "Same as HF", format=format_percent),
        Column("other_load_cores", "Other load", "cores"),
        Column("contended", "Contended", raw_only=True),
        Column("status", "Status", raw_only=True),
        Column("reason", "Reason", raw_only=True),
    ]
    return [Table(table_title("Generation", records), columns, rows, [*CLOCKS, *notes_of(records)])]


CLOCKS = (
    "TTFT, time to first token: from the text of the prompts to the first new token on the host: tokenising, "
    "copying, the prompt, sampling. ITL, inter-token latency: from one token on the host to the one after it "
    "(step and sampling), over all steps of all runs.",
    "Latency: median of whole generations, text in and text out: tokenising, prompt, all steps, sampling, "
    "detokenising; loading, compiling and warm-up are outside. Ours writes into a cache made before, Hugging "
    "Face makes its own inside. On a GPU nothing waits for a token until the end; ITL is of a second run.",
    "tokens/s = batch x new tokens / latency; a sequence: new tokens / latency; ms/token = 1000 / "
    "(tokens/s), so it is spread over the batch and no time between tokens.",
    "MBU: bytes that a step must read (weights once, keys and values of all tokens so far), over ITL p50, "
    "as a share of the faster of copy and read in this run. MFU: FLOPs of the prompt over its time, as a "
    "share of a large matrix product in this run. int8 is compared with products in bf16.",
    "Same as HF: tokens equal to those of engine hf on the same weights and prompts, by position, in the "
    "first sequences; int8 is held to bf16. Equal is expected in fp32 alone: rounding decides near ties.",
)
"""What is inside each clock."""


def memory_table(records: Records) -> list[Table]:
    """One row a point: weights, cache, and the peak beside its prediction."""
    rows = [
        settings(record)
        | {name: record.metrics.get(name) for name in _MEMORY}
        | {"status": record.status}
        | {"peak_memory_bytes": or_status(record, "peak_memory_bytes")}
        for record in records
    ]
    columns = [
        *setting_columns(records),
        *(Column(name, title, format=format_bytes) for name, title in _MEMORY.items()),
    ]
    notes = [
        "Predicted: weights, cache and temporaries while generating. Peak: on a GPU bytes of tensors; on a "
        "CPU weights and growth of the process while it generates, code that it loads included.",
        "Cache: blank where it belongs to the engine and cannot be asked for its size.",
    ]
    return [Table(table_title("Memory", records), columns, rows, notes)]


_MEMORY = {
    "weight_bytes": "Weights",
    "cache_bytes": "Cache",
    "predicted_bytes": "Predicted",
    "peak_memory_bytes": "Peak",
    "memory_bytes": "Available",
}


def frontier_table(records: Records) -> list[Table]:
    """One row a column: the largest batch that was predicted to fit, and what was observed."""
    rows = []
    for members in by_column(records).values():
        ok = [record.case["batch_size"] for record in members if record.status == "ok"]
        oom = [record.case["batch_size"] for record in members if record.status == "oom"]
        not_run = [r.case["batch_size"] for r in members if r.metrics.get("predicted_oom")]
        known = [record for record in members if record.metrics.get("memory_bytes")]
        if not known:
            continue
        metrics = known[-1].metrics
        rows.append(
            settings(members[0])
            | {
                "predicted_largest_batch": metrics.get("predicted_largest_batch"),
                "predicted_largest_batch_copied": metrics.get("predicted_largest_batch_copied"),
                "largest_ok": max(ok, default=None),
                "first_oom": min(oom)
                if oom
                else Cell(None, f"{min(not_run)} predicted, not run" if not_run else "not reached"),
                "memory_bytes": metrics["memory_bytes"],
                "memory_source": metrics.get("memory_source"),
            }
        )
    columns = [
        *(column for column in setting_columns(records) if column.key != "batch_size"),
        Column("predicted_largest_batch", "Largest batch predicted"),
        Column("predicted_largest_batch_copied", "if the cache were copied"),
        Column("largest_ok", "Largest that ran"),
        Column("first_oom", "First out of memory"),
        Column("memory_bytes", "In", format=format_bytes),
        Column("memory_source", "which is", align="left"),
    ]
    notes = [
        "Predicted before measuring: (memory - weights) / (cache + temporaries of a sequence). A cache that "
        "is concatenated layer by layer counts 1 + 1/(2 layers) times; if the cache were copied as a whole "
        "for each token, as some engines do, it would count twice. Temporaries are a rough guess, and "
        "a C heap cannot use again a block that is one token too small: expect less of a growing cache.",
        *dict.fromkeys(
            f"{column_name(record)}, batch {record.case['batch_size']}: {record.reason}"
            for record in records
            if record.status == "oom"
        ),
    ]
    return [Table(table_title("Where memory ends", records), columns, rows, notes)]


_MAKERS: dict[str, Callable[[Records], list[Table]]] = {
    "points": points_table,
    "memory": memory_table,
    "frontier": frontier_table,
    "bigcode": bigcode_tables,
    "bigcode-published": lambda records: bigcode_tables(records, published=True),
    "bloom": bloom_table,
    "cpu": cpu_table,
}


def _load(record: BenchmarkRecord) -> Cell:
    load = record.metrics.get("other_load_cores")
    flag = " !" if record.metrics.get("contended") else ""
    return Cell(load, "" if load is None else f"{load:.2f}{flag}")


def _if_any(
    rows: Sequence[Mapping[str, Any]], key: str, title: str, form: Callable[[Any], str] = format_percent
) -> Column:
    """A column that people see only when some row has a value."""
    return Column(key, title, format=form, raw_only=all(row.get(key) is None for row in rows))


def _ms(seconds: float) -> str:
    return format_number(1e3 * seconds)
