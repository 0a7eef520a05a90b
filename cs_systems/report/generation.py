"""Tables of generation: every point, its memory, where memory ends, and three published layouts."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report.generation_published import comparison_table, load_published
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

EXPERIMENT = "generation"
"""Name of this experiment in records."""

LAYOUTS = ("points", "memory", "frontier", "bigcode", "bloom", "cpu")
"""Tables that can be asked for."""

_COLUMN_SETTINGS = ("model", "engine", "precision", "prompt_len", "new_tokens", "threads", "memory_limit_gib")
_REFERENCE_ENGINE = "hf"

Records = Sequence[BenchmarkRecord]


def of_generation(records: Records) -> list[BenchmarkRecord]:
    """The records of this experiment; of one point measured again, the last."""
    latest = {record.key: record for record in records if record.experiment == EXPERIMENT}
    return list(latest.values())


def render_generation(
    records: Records, style: Style, layouts: Sequence[str], published: str | None = None
) -> str:
    """The tables in `layouts` in one text without a newline at the end; `table` ends with a line of JSON."""
    chosen = of_generation(records)
    tables = [table for name in layouts for table in _MAKERS[name](chosen)]
    if published is not None:
        tables.append(comparison_table(chosen, published))
    if style == "json":
        return json.dumps([table_as_json(table) for table in tables], allow_nan=False, indent=2)
    parts = [render_table(table, style) for table in tables]
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
            {name: record.case[name] for name in (*_COLUMN_SETTINGS, "batch_size")}
            | {"status": record.status, "reason": record.reason}
            | {name: record.metrics.get(name) for name in names}
            for record in records
        ],
    }


def points_table(records: Records) -> list[Table]:
    """One row a point: times of the prompt and of each token, rates, and their share of what is possible."""
    rows = [
        _settings(record)
        | dict(record.metrics)
        | {
            "tokens_match": tokens_match(record, records),
            "latency_s": _or_status(record, "latency_s"),
            "other_load_cores": _load(record),
        }
        for record in records
    ]
    columns = [
        *_setting_columns(records),
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
    ]
    return [Table(_title("Generation", records), columns, rows, [*CLOCKS, *_notes(records)])]


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
        _settings(record)
        | {name: record.metrics.get(name) for name in _MEMORY}
        | {"status": record.status}
        | {"peak_memory_bytes": _or_status(record, "peak_memory_bytes")}
        for record in records
    ]
    columns = [
        *_setting_columns(records),
        *(Column(name, title, format=format_bytes) for name, title in _MEMORY.items()),
    ]
    notes = [
        "Predicted: weights, cache and temporaries while generating. Peak: on a GPU bytes of tensors; on a "
        "CPU weights and growth of the process while it generates, code that it loads included.",
        "Cache: blank where it belongs to the engine and cannot be asked for its size.",
    ]
    return [Table(_title("Memory", records), columns, rows, notes)]


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
    for members in _columns(records).values():
        ok = [record.case["batch_size"] for record in members if record.status == "ok"]
        oom = [record.case["batch_size"] for record in members if record.status == "oom"]
        not_run = [r.case["batch_size"] for r in members if r.metrics.get("predicted_oom")]
        known = [record for record in members if record.metrics.get("memory_bytes")]
        if not known:
            continue
        metrics = known[0].metrics
        rows.append(
            _settings(members[0])
            | {
                "predicted_largest_batch": metrics.get("predicted_largest_batch"),
                "largest_ok": max(ok, default=None),
                "first_oom": min(oom)
                if oom
                else Cell(None, f"{min(not_run)} predicted, not run" if not_run else "not reached"),
                "memory_bytes": metrics["memory_bytes"],
                "memory_source": metrics.get("memory_source"),
            }
        )
    columns = [
        *(column for column in _setting_columns(records) if column.key != "batch_size"),
        Column("predicted_largest_batch", "Largest batch predicted"),
        Column("largest_ok", "Largest that ran"),
        Column("first_oom", "First out of memory"),
        Column("memory_bytes", "In", format=format_bytes),
        Column("memory_source", "which is", align="left"),
    ]
    notes = [
        "Predicted before measuring: (memory - weights) / (cache + temporaries of a sequence). A cache that "
        "is concatenated layer by layer counts 1 + 1/(2 layers) times, one replaced as a whole twice.",
        *dict.fromkeys(
            f"{_column_name(record)}, batch {record.case['batch_size']}: {record.reason}"
            for record in records
            if record.status == "oom"
        ),
    ]
    return [Table(_title("Where memory ends", records), columns, rows, notes)]


def bigcode_tables(records: Records, published: bool = False) -> list[Table]:
    """Two tables a model, in the layout of BigCode's benchmark: throughput and latency by batch size."""
    tables = []
    for model in dict.fromkeys(record.case["model"] for record in records):
        members = [record for record in records if record.case["model"] == model]
        columns = _columns(members)
        names = _column_names(columns)
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
                    f"{model}: {title}, {_conditions(members)}",
                    [Column("batch_size", "batch_size"), *(Column(name, name) for name in headings)],
                    rows,
                    notes,
                )
            )
    return tables


def _bigcode_notes(records: Records, published: bool) -> list[str]:
    notes = ["oom: ran out of memory; oom*: not run, because it or a smaller batch would not fit"]
    notes += _notes([record for record in records if record.status != "oom"])
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
        _settings(record)
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
        *_setting_columns(records),
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
    return [Table(_title("Four metrics of a server", records), columns, rows, notes)]


def cpu_table(records: Records) -> list[Table]:
    """Prompt and token times of a CPU run, in the layout of DS3Lab's 175B table, FLOPs by its formula."""
    rows = []
    for record in records:
        row = _settings(record) | {"prompt_s": _or_status(record, "prompt_s")}
        if record.status == "ok":
            metrics, batch = record.metrics, record.case["batch_size"]
            row["prompt_tflops"] = batch * metrics["prompt_block_flops"] / metrics["prompt_s"] / 1e12
            step_s = metrics.get("inter_token_p50_s")
            if step_s:
                row |= {"step_s": step_s, "decode_tokens_per_s": batch / step_s}
                row["token_tflops"] = batch * metrics["token_block_flops"] / step_s / 1e12
        rows.append(row)
    columns = [
        *_setting_columns(records),
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
    return [Table(_title("Prompt and tokens", records), columns, rows, notes)]


_MAKERS: dict[str, Callable[[Records], list[Table]]] = {
    "points": points_table,
    "memory": memory_table,
    "frontier": frontier_table,
    "bigcode": bigcode_tables,
    "bigcode-published": lambda records: bigcode_tables(records, published=True),
    "bloom": bloom_table,
    "cpu": cpu_table,
}


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


def _columns(records: Records) -> dict[str, list[BenchmarkRecord]]:
    """Records that differ in nothing but the batch size, by a key."""
    columns: dict[str, list[BenchmarkRecord]] = {}
    for record in records:
        settings = {name: value for name, value in record.case.items() if name != "batch_size"}
        columns.setdefault(json.dumps(settings, sort_keys=True), []).append(record)
    return columns


def _column_names(columns: Mapping[str, Records]) -> dict[str, str]:
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


def column_series(
    records: Records,
) -> dict[str, tuple[dict[int, Mapping[str, Any]], int | None]]:
    """By heading of each column: metrics by batch size of what ran, and the first out of memory."""
    columns = _columns(records)
    series = {}
    for key, name in _column_names(columns).items():
        points = {r.case["batch_size"]: r.metrics for r in columns[key] if r.status == "ok"}
        first_oom = min((r.case["batch_size"] for r in columns[key] if r.status == "oom"), default=None)
        if points:
            series[name] = points, first_oom
    return series


def _column_name(record: BenchmarkRecord) -> str:
    return f"{record.case['model']}, {record.case['engine']}, {record.case['precision']}"


def _settings(record: BenchmarkRecord) -> dict[str, Any]:
    return {name: record.case[name] for name in (*_COLUMN_SETTINGS, "batch_size")}


def _setting_columns(records: Records) -> list[Column]:
    titles = {
        "model": "Model", "engine": "Engine", "precision": "Precision", "prompt_len": "Prompt",
        "new_tokens": "New", "threads": "Threads", "memory_limit_gib": "Limit (GiB)",
    }  # fmt: skip
    return [
        *(
            Column(
                name, title, align="left" if name in ("model", "engine", "precision") else "right",
                raw_only=name not in ("engine", "precision") and not _varies(records, name),
            )
            for name, title in titles.items()
        ),
        Column("batch_size", "Batch"),
    ]  # fmt: skip


def _varies(records: Records, name: str) -> bool:
    return len({record.case[name] for record in records}) > 1


def _conditions(records: Records) -> str:
    """What all share: '128 prompt tokens, 32 new'."""
    parts = []
    for name, text in (("prompt_len", "{} prompt tokens"), ("new_tokens", "{} new")):
        if records and not _varies(records, name):
            parts.append(text.format(records[0].case[name]))
    return ", ".join(parts)


def _title(what: str, records: Records) -> str:
    model = [] if not records or _varies(records, "model") else [records[0].case["model"]]
    return f"{what}: {', '.join([*model, _conditions(records)])}"


def _or_status(record: BenchmarkRecord, key: str) -> Any:
    value = record.metrics.get(key)
    return Cell(None, "" if record.status == "ok" else record.status) if value is None else value


def _load(record: BenchmarkRecord) -> Cell:
    load = record.metrics.get("other_load_cores")
    flag = " !" if record.metrics.get("contended") else ""
    return Cell(load, "" if load is None else f"{load:.2f}{flag}")


def _if_any(
    rows: Sequence[Mapping[str, Any]], key: str, title: str, form: Callable[[Any], str] = format_percent
) -> Column:
    """A column that people see only when some row has a value."""
    return Column(key, title, format=form, raw_only=all(row.get(key) is None for row in rows))


def _notes(records: Records) -> list[str]:
    """Reasons and remarks once each, then contention, then the machine."""
    notes: dict[str, list[str]] = {}
    for record in records:
        is_told = record.metrics.get("predicted_oom") and not record.metrics.get("predicted_bytes")
        reasons = [record.reason] if record.reason and not is_told else []
        for text in reasons + list(record.notes):
            notes.setdefault(text, []).append(f"{_column_name(record)}, batch {record.case['batch_size']}")
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


def _ms(seconds: float) -> str:
    return format_number(1e3 * seconds)
