"""What a precision does to training, from the records: a table of precisions and one of runs."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.mixed_precision.settings import TrainingConfig
from cs_systems.report import cases
from cs_systems.report.observations import OTHER_LOAD_CORES
from cs_systems.report.training_curves import BASELINE, draw, find_baseline, run_name, varying_settings
from cs_systems.tables import Cell, Column, Table, format_number, format_percent, format_seconds

__all__ = ["draw", "summary", "tables"]

Numbers = dict[str, Any]
"""A row, or a part of the metrics of a record."""

_SHOWN = (
    "final_loss", "held_out_loss", "held_out_bits_per_byte", "gradient_error", "zeroed_logit_fraction",
    "zeroed_fraction", "below_fp16_fraction", "below_fp16_normal_fraction", "lost_update_fraction",
    "min_scale", "max_scale", "num_skipped_steps",
)  # fmt: skip
_OVER_SEEDS = (*_SHOWN[:-3], "minus_fp32", "median_step_s")


def tables(records: Sequence[BenchmarkRecord]) -> list[Table]:
    """One row a precision, with medians over the seeds, and one row a run."""
    settings = varying_settings(records)
    but_steps = [name for name in settings if name != "steps"]
    rows = [_run_row(record, records) for record in records]
    return [
        Table(
            "Training by precision, median over the seeds",
            [*_setting_columns(rows, settings), Column("num_runs", "Seeds"), *_result_columns()],
            _precision_rows(rows, settings),
            [
                *_meanings(records), *_below_fp16(records), _seed_noise(records), _text_read(records),
                *_origin(records),
            ],
        ),
        Table(
            "Training, each run",
            [
                *_setting_columns(rows, but_steps), Column("seed", "Seed"),
                Column("steps_done", "Steps"), *_result_columns(), *_scaler_columns(records),
            ],
            rows,
            [*_remarks(records), *_origin(records)],
        ),
    ]  # fmt: skip


def summary(record: BenchmarkRecord) -> Numbers:
    """The numbers of a run without its curves."""
    row = _run_row(record, [record])
    names = ("steps_done", "diverged_at_step", *_SHOWN, "median_step_s")
    return {name: record.metrics.get(name) for name in names} | {"median_step_s": row["median_step_s"]}


def _run_row(record: BenchmarkRecord, records: Sequence[BenchmarkRecord]) -> Numbers:
    metrics = record.metrics
    row = {**record.case, **{name: metrics.get(name) for name in _SHOWN}, "reason": record.reason}
    row |= {"processor": cases.short_device(record.provenance.device)}
    row |= {"status": record.status, "minus_fp32": _minus_baseline(record, records)}
    times = record.samples_s.get("train_step", [])[1:]  # the first step makes the optimizer's state
    row["median_step_s"] = statistics.median(times) if times else None
    done, asked = metrics.get("steps_done"), record.case["steps"]
    row["steps_done"] = done if done in (None, asked) else Cell(done, f"{done}/{asked}")
    if metrics.get("diverged_at_step") is not None:
        row |= dict.fromkeys(("final_loss", "held_out_loss"), Cell(None, "diverged"))
    elif record.status != "ok":
        row["held_out_loss"] = Cell(None, record.status)
    return row


def _minus_baseline(record: BenchmarkRecord, records: Sequence[BenchmarkRecord]) -> float | None:
    """Held-out loss less the one of fp32 with the same seed, settings and text."""
    baseline = find_baseline(record, records)
    if baseline is None or not (_is_complete(record) and _is_complete(baseline)):
        return None
    return record.metrics["held_out_loss"] - baseline.metrics["held_out_loss"]


def _is_complete(record: BenchmarkRecord) -> bool:
    return record.status == "ok" and record.metrics.get("held_out_loss") is not None


def _precision_rows(rows: Sequence[Numbers], settings: Sequence[str]) -> list[Numbers]:
    groups: dict[str, list[Numbers]] = {}
    for row in rows:
        groups.setdefault(repr([row[name] for name in (*settings, "processor", "precision")]), []).append(row)
    return [_precision_row(group) for group in groups.values()]


def _precision_row(rows: Sequence[Numbers]) -> Numbers:
    """Medians of the complete runs; where none is, how the first ended."""
    complete = [row for row in rows if not isinstance(row["held_out_loss"], Cell)]
    row = dict(rows[0])
    num, asked = len(complete), len(rows)
    row["num_runs"] = Cell(num, str(num) if num == asked else f"{num}/{asked}")
    for name in _OVER_SEEDS if complete else ():
        values = [one[name] for one in complete if one[name] is not None]
        row[name] = statistics.median(values) if values else None
    return row


def _setting_columns(rows: Sequence[Numbers], settings: Sequence[str]) -> list[Column]:
    """What tells the rows apart; programs get all that a run can be selected by."""
    one_processor = len({row["processor"] for row in rows}) == 1
    others = [field.name for field in dataclasses.fields(TrainingConfig)]
    shown = (*settings, "precision", "seed")
    return [
        Column("processor", "Processor", align="left", raw_only=one_processor),
        *(Column(name, cases.title(name)) for name in settings),
        Column("precision", "Precision", align="left"),
        *(Column(name, name, raw_only=True) for name in (*others, "status", "reason") if name not in shown),
    ]


def _result_columns() -> list[Column]:
    return [
        Column("final_loss", "Train loss", "nats"),
        Column("held_out_loss", "Held-out", "nats"),
        Column("held_out_bits_per_byte", "bits/byte", format="{:.3f}".format),
        Column("minus_fp32", "minus fp32", "nats", format="{:+.4f}".format),
        Column("gradient_error", "Gradient error", format=_small_percent),
        Column("zeroed_logit_fraction", "Zeroed: logits", format=_small_percent),
        Column("zeroed_fraction", "weights", format=_small_percent),
        Column("below_fp16_normal_fraction", "Below 2^-14", raw_only=True),
        Column("below_fp16_fraction", "Below 2^-24", raw_only=True),
        Column("lost_update_fraction", "Lost updates", format=_small_percent),
        Column("median_step_s", "Step", format=format_seconds),
    ]


def _scaler_columns(records: Sequence[BenchmarkRecord]) -> list[Column]:
    hidden = all(record.metrics.get("max_scale") is None for record in records)
    return [
        Column("min_scale", "Scale from", format=_as_power, raw_only=hidden),
        Column("max_scale", "to", format=_as_power, raw_only=hidden),
        Column("num_skipped_steps", "Skipped", raw_only=hidden),
    ]


def _small_percent(fraction: float) -> str:
    """A share of which the small ones matter too: 0, 0.0042%, 0.31%, 12.3%."""
    return "0" if fraction == 0 else format_percent(fraction) if fraction >= 0.1 else f"{100 * fraction:.2g}%"


def _as_power(scale: float) -> str:
    """65536 as 2^16: a scaler starts with a power of two, halves and doubles."""
    mantissa, exponent = float(scale).hex().split("p")
    return f"2^{int(exponent)}" if mantissa == "0x1.0000000000000" else format_number(scale)


def _meanings(records: Sequence[BenchmarkRecord]) -> list[str]:
    """How the columns are to be read, for the precisions that are there."""
    present = {record.case["precision"] for record in records}
    every = " or ".join(str(steps) for steps in sorted({record.case["eval_every"] for record in records}))
    notes = [
        "train loss: mean over the last tenth of the steps; minus fp32: held-out loss less that of fp32 "
        "with the same seed, so with the same first weights and the same batches",
        f"measured every {every} steps, by computing the gradient once more in this precision and in fp32 "
        "(the time of a step is without that); the table has means over the run",
        "gradient error: length of the difference between the two, over the length of the gradient; zeroed: "
        "share of the elements not 0 in fp32 that are 0, of the logits' gradient (the first of backward) "
        "and the weights'",
        "lost updates: weights that Adam moved by less than half the distance to the next number of their "
        "type (in bf16 1/512 to 1/256 of the weight, in fp32 65,536 times less), so that they stayed where "
        "they were",
    ]
    if "pure-bf16" in present:
        notes.append(
            "pure-bf16 loses updates rather than gradients (whose error is that of products only: its "
            "weights are bf16 already), the more of them the lower the learning rate. Adam's mean of "
            "squares sticks too: times 0.999 rounds back to the same number. Hence fp32 weights beside bf16 "
            "products"
        )
    if "fp16-noscale" in present:
        notes.append(
            "fp16-noscale: the gradient of a logit is its probability over the number of bytes in a batch, "
            "less in a larger batch and for a surer model; those of weights are sums of many and underflow "
            "less"
        )
    if any(record.provenance.device_type == "cpu" for record in records):
        notes += _cpu_meanings(present)
    return notes


def _cpu_meanings(present: set[str]) -> list[str]:
    notes = []
    if present & {"bf16", "fp16", "fp16-noscale"}:
        notes.append(
            "autocast on a CPU leaves exp and sums, and so the softmax of attention, in the lower "
            "precision; CUDA's computes them in fp32. Norms, rotations and the loss are in fp32 on both: "
            "this model asks for it"
        )
    if present & {"fp16", "fp16-noscale"}:
        notes.append(
            "most CPUs have no fp16 arithmetic and convert: the time of fp16 says nothing about a GPU"
        )
    return notes


def _below_fp16(records: Sequence[BenchmarkRecord]) -> list[str]:
    """How much of the gradient fp16 could not hold, which is the gradient's doing and not the precision's."""
    known = [record.metrics for record in records if record.metrics.get("below_fp16_fraction") is not None]
    if not known:
        return []
    normal, smallest = (
        _small_percent(statistics.median(metrics[name] for metrics in known))
        for name in ("below_fp16_normal_fraction", "below_fp16_fraction")
    )
    return [
        f"of the weights' gradient in fp32, {normal} of the elements are below 2^-14, where fp16 begins to "
        f"lose digits, and {smallest} below 2^-24, its smallest number (median of the runs, before any "
        "scale)"
    ]


def _seed_noise(records: Sequence[BenchmarkRecord]) -> str:
    """How far apart seeds are, to judge differences between precisions by."""
    losses: dict[str, list[float]] = {}
    for record in records:
        if record.case["precision"] == BASELINE and _is_complete(record):
            settings = {name: value for name, value in record.case.items() if name != "seed"}
            losses.setdefault(repr(settings), []).append(record.metrics["held_out_loss"])
    spans = [max(values) - min(values) for values in losses.values() if len(values) > 1]
    if not spans:
        return "one seed says little: with --seed 0,1,2 the table shows what chance alone changes"
    return f"for comparison: seeds of fp32 end up to {max(spans):.4f} nats apart on the held-out text"


def _text_read(records: Sequence[BenchmarkRecord]) -> str:
    texts = {
        (record.case["text"], metrics["text_num_files"], metrics["text_num_bytes"], metrics["text_sha256"])
        for record in records
        if "text_sha256" in (metrics := record.metrics)
    }
    parts = [
        f"{name}, {files:,} file{'s' if files > 1 else ''}, {size:,} bytes, sha256 {digest[:12]}"
        for name, files, size, digest in sorted(texts)
    ]
    return f"text, its last tenth held out: {'; '.join(parts) or 'not read'}"


def _remarks(records: Sequence[BenchmarkRecord]) -> list[str]:
    """Every reason and note of the runs."""
    remarks = []
    for record in records:
        reasons = [f"{record.status}, {record.reason}"] if record.reason else []
        remarks += [f"{run_name(record)}: {text}" for text in (*reasons, *record.notes)]
    if any(record.metrics.get("num_skipped_steps") for record in records):
        growth = ", ".join(str(steps) for steps in sorted({r.case["growth_interval"] for r in records}))
        remarks.append(
            f"the scale doubles after {growth} good steps in a row; a step whose gradients overflow is "
            "skipped and halves it. A skipped batch is lost, and is how the scaler finds the largest scale "
            "that fits"
        )
    return remarks


def _origin(records: Sequence[BenchmarkRecord]) -> list[str]:
    """Machine, versions and date, and whether somebody else kept it busy."""
    notes = ["time of a step: median without the first"]
    load = max((record.metrics.get("other_load_cores") or 0.0 for record in records), default=0.0)
    if load > OTHER_LOAD_CORES:
        notes[0] += (
            f"; other programs used up to {load:.1f} cores meanwhile, so repeat times when it is quiet"
        )
    changed = any(record.provenance.dirty for record in records)
    return [*notes, cases.machine(records) + (" (* with changes that are not committed)" if changed else "")]
