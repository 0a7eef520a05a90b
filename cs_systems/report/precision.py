"""What a lower precision buys: times and peak memory of the same case in fp32, tf32, bf16 and fp16.

A ratio is only given against products that really keep fp32's 24 significand bits: measured beside a baseline
that silently ran in TF32, bf16 would look far slower than it is.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report import cases
from cs_systems.report.observations import OTHER_LOAD_CORES
from cs_systems.tables import Cell, Column, Table, format_bytes
from cs_systems.timing.stats import Samples, median_ratio_interval

_PRECISION = ("precision", "param_dtype")
_FP32_BITS = 24


def precision_tables(records: Sequence[BenchmarkRecord]) -> list[Table]:
    """A table of times and one of peak memory for the cases that were run in more than one precision.

    Args:
        records: any records; the last of each case counts. Empty when no case varies in precision.
    """
    groups = _groups(records)
    members = [record for group in groups for record in group]
    if not members:
        return []
    varying = [name for name in cases.varying_settings(members) if name not in _PRECISION]
    return [_time_table(groups, members, varying), _memory_table(groups, members, varying)]


def _groups(records: Sequence[BenchmarkRecord]) -> list[list[BenchmarkRecord]]:
    """Cases that differ in nothing but the precision, each group in the order fp32, tf32, bf16, fp16."""
    chosen, _ = cases.of_training_step(records)
    latest = {record.key: record for record in chosen}
    groups: dict[str, list[BenchmarkRecord]] = {}
    for record in latest.values():
        rest = {name: value for name, value in record.case.items() if name not in _PRECISION}
        rest |= {"device": record.provenance.device, "threads": record.provenance.threads}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(record)
    return [sorted(group, key=_order) for group in groups.values() if len(set(map(_order, group))) > 1]


def _order(record: BenchmarkRecord) -> tuple[int, str]:
    names = ("fp32", "tf32", "bf16", "fp16")
    precision = record.case["precision"]
    return (names.index(precision) if precision in names else len(names), record.case["param_dtype"])


def _baseline(group: Sequence[BenchmarkRecord]) -> BenchmarkRecord | None:
    """The record in fp32 throughout, when its products kept all bits."""
    for record in group:
        is_fp32 = all(record.case[name] == "fp32" for name in _PRECISION)
        if is_fp32 and record.status == "ok" and _lost_bits(record) is None:
            return record
    return None


def _lost_bits(record: BenchmarkRecord) -> str | None:
    """Why the products of a record in fp32 are no fp32 products; None when they are."""
    bits, setting = record.metrics.get("fp32_matmul_bits"), record.metrics.get("matmul_precision")
    if bits is not None and bits < _FP32_BITS:
        return f"its products kept {bits} of {_FP32_BITS} bits"
    if setting != "highest":
        return f"its matmul precision was {setting or 'not recorded'}"
    return None


def _time_table(
    groups: Sequence[Sequence[BenchmarkRecord]], members: Sequence[BenchmarkRecord], varying: Sequence[str]
) -> Table:
    rows = [
        _time_row(record, name, _baseline(group))
        for group in groups
        for name in cases.passes_of(group[0])
        for record in group
    ]
    has_stored = len({record.case["param_dtype"] for record in members}) > 1
    columns = [
        *cases.columns(members, varying),
        Column("pass", "Pass", align="left"),
        Column("precision", "Precision", align="left"),
        Column("param_dtype", "Stored as", align="left", raw_only=not has_stored),
        Column("matmul", "Products in", align="left"),
        Column("steps", "Steps"),
        Column("median_s", "Median", unit="s"),
        Column("speedup", "Speed-up", format="{:.2f}x".format),
        Column("speedup_low", "95 % from", format="{:.2f}".format),
        Column("speedup_high", "to", format="{:.2f}".format),
        Column("status", "Status", align="left", raw_only=all(r.status == "ok" for r in members)),
        Column("reason", "Reason", raw_only=True),
    ]
    notes = [
        "Speed-up: the median in fp32 over this one, above 1 is faster; both from this table's records.",
        f"Products in: for fp32 the bits that a product was measured to keep ({_FP32_BITS} is all of fp32, "
        "11 would be TF32).",
        cases.machine(members),
        *_baseline_notes(groups),
        *_emulated_fp16(rows, members),
        *_reasons(members),
    ]
    return Table(f"Precision: {cases.conditions(members)}", columns, rows, notes)


def _time_row(record: BenchmarkRecord, name: str, baseline: BenchmarkRecord | None) -> dict[str, Any]:
    row = {**cases.settings(record), **record.metrics, "pass": name, "status": record.status}
    row |= {"reason": record.reason, "matmul": None if name == "optimizer_step" else _products(record)}
    values = record.samples_s.get(name)
    if not values:
        return row | {"steps": Cell(0, ""), "median_s": Cell(None, record.status)}
    samples = Samples.from_values(values)
    row |= {"steps": samples.num, "median_s": samples.median}
    reference = baseline.samples_s.get(name) if baseline else None
    if baseline is record:
        return row | {"speedup": 1.0}
    if reference and samples.min > 0:
        low, high = median_ratio_interval(values, reference)
        row["speedup"] = Samples.from_values(reference).median / samples.median
        row |= {"speedup_low": low, "speedup_high": high}
    return row


def _products(record: BenchmarkRecord) -> str:
    """In what the matrix products ran."""
    precision, bits = record.case["precision"], record.metrics.get("fp32_matmul_bits")
    if record.case["param_dtype"] != "fp32":
        return record.case["param_dtype"]
    if precision in ("bf16", "fp16"):
        return f"{precision} (autocast)"
    return f"{precision}, {bits} bits" if bits else precision


def _memory_table(
    groups: Sequence[Sequence[BenchmarkRecord]], members: Sequence[BenchmarkRecord], varying: Sequence[str]
) -> Table:
    rows, notes = [], []
    for group in groups:
        first = group[0] if all(group[0].case[name] == "fp32" for name in _PRECISION) else None
        for record in group:
            row = {**cases.settings(record), **record.metrics}
            row["measured_ratio"] = _ratio(record, first, "peak_memory_bytes")
            row["predicted_ratio"] = _ratio(record, first, "predicted_peak_memory_bytes")
            if row.get("peak_memory_bytes") is None and record.status != "ok":
                row["peak_memory_bytes"] = Cell(None, record.status)
            rows.append(row)
        notes += _raised(group, first, varying)
    columns = [
        *cases.columns(members, varying),
        Column("precision", "Precision", align="left"),
        Column("predicted_peak_memory_bytes", "Predicted peak", format=format_bytes),
        Column("predicted_ratio", "of fp32", format="{:.2f}x".format),
        Column("predicted_peak_phase", "in", align="left"),
        Column("peak_memory_bytes", "Measured peak", format=format_bytes),
        Column("measured_ratio", "of fp32", format="{:.2f}x".format),
    ]
    if any(record.provenance.device_type == "cpu" for record in members):
        notes.append("measured on a CPU: growth of the process's memory, with what the allocator keeps")
    return Table("Peak memory by precision, and the phase that owns it", columns, rows, notes)


def _ratio(record: BenchmarkRecord, baseline: BenchmarkRecord | None, metric: str) -> float | None:
    above, below = record.metrics.get(metric), baseline.metrics.get(metric) if baseline else None
    return above / below if above and below else None


def _raised(
    group: Sequence[BenchmarkRecord], baseline: BenchmarkRecord | None, varying: Sequence[str]
) -> list[str]:
    """Autocast keeps the fp32 weights and adds copies: said where the peak does rise."""
    notes = []
    for record in group:
        ratio = _ratio(record, baseline, "predicted_peak_memory_bytes")
        if ratio and ratio > 1 and record.case["param_dtype"] == "fp32" and _is_autocast(record.case):
            notes.append(
                f"{cases.label(record, varying)}: {record.case['precision']} autocast raises the peak. The "
                "parameters stay in fp32 and each product adds a 16-bit copy of its weight, up to 2 bytes a "
                "parameter, kept until backward; only activations shrink, so longer contexts turn this round"
            )
    return notes


def _is_autocast(case: Mapping[str, Any]) -> bool:
    return case["precision"] in ("bf16", "fp16")


def _baseline_notes(groups: Sequence[Sequence[BenchmarkRecord]]) -> list[str]:
    notes = []
    for group in groups:
        if _baseline(group):
            continue
        fp32 = [record for record in group if all(record.case[name] == "fp32" for name in _PRECISION)]
        name = cases.label(group[0], [])
        if not fp32:
            notes.append(f"{name}: no speed-up, as fp32 was not measured; add fp32 to --precision")
        elif lost := _lost_bits(fp32[-1]):
            notes.append(f"{name}: no speed-up, as the baseline is no fp32: {lost}")
        else:
            notes.append(f"{name}: no speed-up, as the baseline is {fp32[-1].status}")
    return notes


def _emulated_fp16(rows: Sequence[Mapping[str, Any]], members: Sequence[BenchmarkRecord]) -> list[str]:
    on_cpu = all(record.provenance.device_type == "cpu" for record in members)
    slow = any(row["precision"] == "fp16" and (row.get("speedup") or 1.0) < 1 for row in rows)
    if not (on_cpu and slow):
        return []
    return ["fp16 is slower than fp32 here: most CPUs have no fp16 arithmetic and emulate it; a GPU has it"]


def _reasons(members: Sequence[BenchmarkRecord]) -> list[str]:
    notes = []
    for name, record in zip(cases.labels(members), members, strict=True):
        load = record.metrics.get("other_load_cores") or 0.0
        if record.status != "ok":
            notes.append(f"{name}: {record.status} ({record.reason or 'no reason given'})")
        elif load > OTHER_LOAD_CORES:
            notes.append(f"{name}: other programs kept {load:.1f} cores busy; repeat when it is quiet")
    return notes
