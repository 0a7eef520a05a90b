"""The tables of the training-step experiment, and the report that a command prints."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.model.presets import ALIASES, PRESETS
from cs_systems.report import cases
from cs_systems.report.observations import observations
from cs_systems.report.precision import precision_tables
from cs_systems.tables import (
    Cell,
    Column,
    Style,
    Table,
    format_bytes,
    format_number,
    format_percent,
    format_value,
    render_table,
    table_as_json,
)
from cs_systems.timing.stats import Samples

_TIMES = {"min": "Min", "max": "Max", "mean": "Avg", "std": "Std", "median": "Median", "iqr": "IQR"}
_RECORD_METRICS = ("peak_memory_bytes", "predicted_peak_memory_bytes", "other_load_cores")
_RECORD_FIELDS = ("status", "reason", "time_utc")


def timing_table(records: Sequence[BenchmarkRecord]) -> Table:
    """One row per record and pass: the statistics of its samples and the rates that follow from the median.

    A case without samples has its status where the median would be, and its reason in a note.
    """
    if not records:
        return Table("Training step", [Column("model", "Model", align="left")], [], ["no records"])
    varying = cases.varying_settings(records)
    rows = [_timing_row(record, name) for record in records for name in cases.passes_of(record)]
    columns = [
        *cases.columns(records, varying),
        Column("pass", "Pass", align="left"),
        Column("warmup_steps", "Warmup"),
        Column("steps", "Steps"),
        *(Column(f"{name}_s", text, unit="s") for name, text in _TIMES.items()),
        _optional(rows, "tokens_per_s", "tokens/s"),
        _optional(rows, "tflops_per_s", "TFLOP/s"),
        _optional(rows, "fraction_of_peak", "of peak", format_percent),
        *_raw_columns(records, varying),
    ]
    return Table(f"Training step: {cases.conditions(records)}", columns, rows, _timing_notes(records))


def memory_table(records: Sequence[BenchmarkRecord]) -> Table:
    """One row per record: the peak memory predicted, in which phase, and the peak measured."""
    rows = [_memory_row(record) for record in records]
    varying = cases.varying_settings(records)
    alike = len({record.case.get("warmup_steps") for record in records}) < 2
    columns = [
        *cases.columns(records, varying),
        Column("warmup_steps", "Warmup", raw_only=alike),
        Column("predicted_peak_memory_bytes", "Predicted peak", format=format_bytes),
        Column("predicted_peak_phase", "in", align="left"),
        Column("peak_memory_bytes", "Measured peak", format=format_bytes),
        Column("measured_over_predicted", "Measured / predicted", format="{:.2f}".format),
    ]
    meaning = {
        "cpu": "measured on a CPU: growth of the process's resident memory, with what the allocator keeps",
        "cuda": "measured on a GPU: bytes of tensors at the peak, without the CUDA context",
    }
    measured = {r.provenance.device_type for r in records if r.metrics.get("peak_memory_bytes")}
    notes = [text for device_type, text in meaning.items() if device_type in measured]
    return Table("Peak memory", columns, rows, notes)


def model_table() -> Table:
    """All presets with shape, parameter count and source."""
    sources = list(dict.fromkeys(preset.source for preset in PRESETS.values()))
    shape = ("num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "vocab_size", "context_length")
    rows = [
        {name: getattr(preset.config, name) for name in (*shape, "norm", "activation", "position")}
        | {"model": label, "num_parameters": preset.num_parameters}
        | {"source": Cell(preset.source, f"[{sources.index(preset.source) + 1}]")}
        for label, preset in PRESETS.items()
    ]
    columns = [
        Column("model", "Model", align="left"),
        Column("num_parameters", "Parameters", format="{:,}".format),
        *(Column(name, name) for name in shape),
        *(Column(name, name, align="left") for name in ("norm", "activation", "position")),
        Column("source", "Source", align="left"),
    ]
    notes = [f"{alias} is another name of {name}" for alias, name in ALIASES.items()]
    return Table("Models", columns, rows, [*notes, *(f"[{i}] {text}" for i, text in enumerate(sources, 1))])


def render_report(records: Sequence[BenchmarkRecord], style: Style) -> str:
    """Everything a run has to say, in one text without a newline at the end.

    `table` ends with one line of JSON (`summary`); `json` is one document; `csv` is the timing table with all
    settings as columns, as two tables in one file could not be read back.
    """
    chosen, left_out = cases.of_training_step(records)
    timing, memory = timing_table(chosen), memory_table(chosen)
    timing = Table(timing.title, timing.columns, timing.rows, [*timing.notes, *left_out])
    by_precision = precision_tables(chosen)
    remarks = observations(chosen)
    if style == "json":
        document = {"timing": table_as_json(timing), "memory": table_as_json(memory)}
        document |= {"precision": [table_as_json(table) for table in by_precision], "observations": remarks}
        return json.dumps(document, allow_nan=False, indent=2)
    if style == "csv":
        return render_table(timing, style)
    parts = [render_table(timing, style)]
    if by_precision:
        parts += [render_table(table, style) for table in by_precision]
    elif any(row["predicted_peak_memory_bytes"] or row["peak_memory_bytes"] for row in memory.rows):
        parts.append(render_table(memory, style))
    if remarks:
        bullet = "% " if style == "latex" else "- "
        heading = "**To notice**\n" if style == "md" else f"{'% ' if style == 'latex' else ''}To notice"
        parts.append("\n".join([heading, *(bullet + remark for remark in remarks)]))
    if style == "table":
        parts.append(json.dumps(summary(chosen), allow_nan=False))
    return "\n\n".join(parts)


def summary(records: Sequence[BenchmarkRecord]) -> dict[str, Any]:
    """The result in a few numbers a case, for the last line of a run: medians by pass, in seconds."""
    return {
        "experiment": cases.EXPERIMENT,
        "num_cases": len(records),
        "num_ok": sum(record.status == "ok" for record in records),
        "cases": [
            {
                "case": name,
                "status": record.status,
                "reason": record.reason,
                "median_s": {
                    step: Samples.from_values(values).median for step, values in record.samples_s.items()
                },
                "tokens_per_s": dict(record.metrics.get("tokens_per_s") or {}),
                "peak_memory_bytes": record.metrics.get("peak_memory_bytes"),
            }
            for name, record in zip(cases.labels(records), records, strict=True)
        ],
    }


def _raw_columns(records: Sequence[BenchmarkRecord], varying: Sequence[str]) -> list[Column]:
    """Everything else that programs may want to select by."""
    shown = {"model", "warmup_steps", "steps", *varying}
    others = dict.fromkeys(name for record in records for name in cases.settings(record) if name not in shown)
    return [Column(name, name, raw_only=True) for name in (*others, *_RECORD_METRICS, *_RECORD_FIELDS)]


def _optional(
    rows: Sequence[Mapping[str, Any]], key: str, title: str, form: Callable[[Any], str] = format_value
) -> Column:
    """A column that people see only when some row has a value."""
    hidden = all(row.get(key) is None for row in rows)
    return Column(key, title, format=form, raw_only=hidden)


def _base_row(record: BenchmarkRecord) -> dict[str, Any]:
    names = ("num_parameters", *_RECORD_METRICS)
    return cases.settings(record) | {name: record.metrics.get(name) for name in names}


def _timing_row(record: BenchmarkRecord, name: str) -> dict[str, Any]:
    row = _base_row(record) | {
        "pass": name, "status": record.status, "reason": record.reason,
        "time_utc": record.provenance.time_utc,
    }  # fmt: skip
    for metric in ("tokens_per_s", "tflops_per_s", "fraction_of_peak"):
        row[metric] = (record.metrics.get(metric) or {}).get(name)
    values = record.samples_s.get(name)
    if not values:
        return row | {"steps": Cell(0, ""), "median_s": Cell(None, record.status)}
    samples = Samples.from_values(values)
    warmup_done = len(record.warmup_samples_s.get(name, []))
    return (
        row
        | {
            "warmup_steps": _of_asked(warmup_done, record.case.get("warmup_steps")),
            "steps": _of_asked(samples.num, record.case.get("steps")),
            **{f"{statistic}_s": getattr(samples, statistic) for statistic in _TIMES},
        }
        | ({} if samples.num > 1 else {"iqr_s": None})
    )  # one sample has no spread, which is not a spread of 0


def _of_asked(done: int, asked: int | None) -> Cell:
    return Cell(done, str(done) if asked is None or done >= asked else f"{done}/{asked}")


def _memory_row(record: BenchmarkRecord) -> dict[str, Any]:
    row = _base_row(record) | {"predicted_peak_phase": record.metrics.get("predicted_peak_phase")}
    measured, predicted = row["peak_memory_bytes"], row["predicted_peak_memory_bytes"]
    if measured is None and record.status != "ok":
        row["peak_memory_bytes"] = Cell(None, record.status)
    return row | {"measured_over_predicted": measured / predicted if measured and predicted else None}


def _timing_notes(records: Sequence[BenchmarkRecord]) -> list[str]:
    notes = [cases.machine(records)]
    if any(record.provenance.dirty for record in records):
        notes.append("* the checkout had uncommitted changes")
    peaks: dict[str, list[float]] = {}
    for record in records:
        if record.metrics.get("fraction_of_peak") and record.metrics.get("peak_source"):
            peaks.setdefault(record.metrics["peak_source"], []).append(record.metrics["peak_tflops_per_s"])
    if any(record.metrics.get("tflops_per_s") for record in records):
        notes.append("rates are of the median; TFLOP/s counts matrix products, backward as twice forward")
    for source, values in peaks.items():
        span = " to ".join(dict.fromkeys(format_number(bound, 3) for bound in (min(values), max(values))))
        notes.append(f"of peak: share of {span} TFLOP/s ({source})")
    said: dict[str, list[str]] = {}
    for name, record in zip(cases.labels(records), records, strict=True):
        for note in record.notes:
            said.setdefault(note, []).append(name)
        if record.status != "ok":
            said.setdefault(f"{record.status}: {record.reason or 'no reason given'}", []).append(name)
    for text, names in said.items():
        notes.append(text if len(names) == len(records) > 1 else f"{'; '.join(names)}: {text}")
    return notes
