"""Tables of generation in three published layouts: BigCode's, the BLOOM article's, and DS3Lab's for CPUs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cs_systems.report.generation_published import load_published
from cs_systems.report.generation_rows import (
    Records,
    by_column,
    column_names,
    conditions,
    notes_of,
    or_status,
    setting_columns,
    settings,
    table_title,
)
from cs_systems.tables import Cell, Column, Table, format_number


def bigcode_tables(records: Records, published: bool = False) -> list[Table]:
    """Two tables a model, in the layout of BigCode's benchmark: throughput and latency by batch size."""
    tables = []
    for model in dict.fromkeys(record.case["model"] for record in records):
        members = [record for record in records if record.case["model"] == model]
        columns = by_column(members)
        names = column_names(columns)
        theirs = [point for point in load_published("bigcode") if point.model == model] if published else []
        batches = sorted({r.case["batch_size"] for r in members} | {point.batch_size for point in theirs})
        for title, show, metric in (
            ("Throughput (tokens/sec | msec/token)", _throughput, "throughput"),
            ("Latency (sec)", _latency, "latency"),
        ):
            rows = [
                {"batch_size": batch}
                | {name: _cell(columns[key], batch, show) for key, name in names.items()}
                | _published_cells(theirs, batch, metric)
                for batch in batches
            ]
            headings = [*names.values(), *_published_cells(theirs, batches[0], metric)]
            notes = _bigcode_notes(members, bool(theirs)) if metric == "latency" else []
            tables.append(
                Table(
                    f"{model}: {title}, {conditions(members)}",
                    [Column("batch_size", "batch_size"), *(Column(name, name) for name in headings)],
                    rows,
                    notes,
                )
            )
    return tables


def _bigcode_notes(records: Records, published: bool) -> list[str]:
    notes = ["oom: ran out of memory; oom*: not run, because it or a smaller batch would not fit"]
    notes += notes_of([record for record in records if record.status != "oom"])
    if published:
        notes.append(
            "published: printed by others, on one A100 80GB, with 7 to 9 prompt tokens and 100 new ones"
        )
    return notes


def _cell(members: Records, batch: int, show: Callable[[Mapping[str, Any]], Cell]) -> Any:
    first_oom = min((r.case["batch_size"] for r in members if r.status == "oom"), default=None)
    record = next((r for r in members if r.case["batch_size"] == batch), None)
    if record is not None and record.status == "ok":
        return show(record.metrics)
    if record is not None and record.status == "oom":
        return Cell(None, "oom")
    is_beyond = first_oom is not None and batch > first_oom
    if is_beyond or (record is not None and record.metrics.get("predicted_oom")):
        return Cell(None, "oom*")
    return None if record is None else Cell(None, record.status)


def _throughput(metrics: Mapping[str, Any]) -> Cell:
    rate, each = metrics["tokens_per_s"], metrics["ms_per_token"]
    return Cell(rate, f"{rate:.2f} | {each:.2f}")


def _latency(metrics: Mapping[str, Any]) -> Cell:
    return Cell(metrics["latency_s"], f"{metrics['latency_s']:.2f}")


def _published_cells(points: Sequence[Any], batch: int, metric: str) -> dict[str, Any]:
    """Cells of the published columns in a row; each names its origin in its heading."""
    cells: dict[str, Any] = {}
    for point in points:
        name = f"published {point.engine} ({point.precision})"
        cells.setdefault(name, None)
        if point.batch_size != batch:
            continue
        if point.metric == metric:
            text = point.status if point.value is None else f"{point.value:.2f}"
            if metric == "throughput" and point.value is not None:
                text += f" | {1e3 / point.value:.2f}"
            cells[name] = Cell(point.value, text)
    return cells


def bloom_table(records: Records) -> list[Table]:
    """The four metrics that the BLOOM article printed, one row a point, each as what its name says."""
    rows = [
        settings(record)
        | {
            "ms_per_token": record.metrics["ms_per_token"],
            "start_to_ready_s": record.metrics["start_to_ready_s"],
            "latency_s": record.metrics["latency_s"],
            "num_tokens": record.case["batch_size"] * record.case["new_tokens"],
            "finish_s": record.metrics["start_to_ready_s"] + record.metrics["latency_s"],
        }
        for record in records
        if record.status == "ok"
    ]
    columns = [
        *setting_columns(records),
        Column("ms_per_token", "Time per token, tokenising included", "ms"),
        Column("start_to_ready_s", "Start to ready", "s"),
        Column("latency_s", "One generation", "s"),
        Column("num_tokens", "Tokens in it"),
        Column("finish_s", "Start to finish", "s"),
    ]
    notes = [
        "Time per token: latency of a whole generation / (batch x new tokens). A time: lower is better; its "
        "inverse is the throughput.",
        "Start to ready: from the end of the imports to weights in place; weights are random, so nothing is "
        "read from a disk.",
        "One generation: median, waited for to its end; its tokens are those of one generation, batch x new "
        "tokens, not of all runs together.",
        "Start to finish: the sum of start to ready and one generation; warm-up and compiling are left out.",
    ]
    return [Table(table_title("Four metrics of a server", records), columns, rows, notes)]


def cpu_table(records: Records) -> list[Table]:
    """Prompt and token times of a CPU run, in the layout of DS3Lab's 175B table, FLOPs by its formula."""
    rows = []
    for record in records:
        row = settings(record) | {"prompt_s": or_status(record, "prompt_s")}
        if record.status == "ok":
            metrics, batch = record.metrics, record.case["batch_size"]
            row["prompt_tflops"] = batch * metrics["prompt_block_flops"] / metrics["prompt_s"] / 1e12
            step_s = metrics.get("inter_token_p50_s")
            if step_s:
                row |= {"step_s": step_s, "decode_tokens_per_s": batch / step_s}
                row["token_tflops"] = batch * metrics["token_block_flops"] / step_s / 1e12
        rows.append(row)
    columns = [
        *setting_columns(records),
        Column("prompt_s", "Prompt time", "s"),
        Column("prompt_tflops", "Prompt FLOPS", "TFLOP/s"),
        Column("step_s", "Generate time per token per batch", "s"),
        Column("decode_tokens_per_s", "Token throughput", "tokens/s"),
        Column("token_tflops", "Token FLOPS", "TFLOP/s"),
    ]
    counts = dict.fromkeys(
        f"{record.case['model']}: FLOPs for a prompt of {record.case['prompt_len']} tokens "
        f"{format_number(record.metrics['prompt_block_flops'] / 1e12)} TFLOP, for a token "
        f"{format_number(record.metrics['token_block_flops'] / 1e12)} TFLOP"
        for record in records
        if record.status == "ok"
    )
    notes = [
        "FLOPs: blocks only, 24 s l h^2 (1 + s / 6 h) for a prompt of s tokens where d_ff = 4 h and every "
        "head has its own keys; a token: s = 1. Head and embedding are left out of the count, not the time.",
        "Token throughput counts steps alone: batch / time of a step, without the prompt.",
        *counts,
    ]
    return [Table(table_title("Prompt and tokens", records), columns, rows, notes)]
