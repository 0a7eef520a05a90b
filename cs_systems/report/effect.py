"""What switching one thing on does to the time: the same case without and with it, side by side."""

import json
from collections.abc import Sequence
from typing import Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report import cases
from cs_systems.tables import Cell, Column, Table
from cs_systems.timing.stats import Samples, median_ratio_interval


def effect_table(records: Sequence[BenchmarkRecord], setting: str) -> Table:
    """Times of training steps that differ in `setting` alone, with their ratio to the case that has it off.

    Args:
        records: of the training-step experiment, a record a case.
        setting: name of a setting that is False or 0 when off; its values become neighbouring rows.
    """
    groups: dict[str, list[BenchmarkRecord]] = {}
    for record in records:
        rest = {name: value for name, value in record.case.items() if name != setting}
        key = json.dumps([record.provenance.device, rest], sort_keys=True)
        groups.setdefault(key, []).append(record)
    rows = [
        _row(record, name, setting, group)
        for group in groups.values()
        for name in cases.passes_of(group[0])
        for record in sorted(group, key=lambda record: record.case.get(setting, 0))
    ]
    columns = [
        *cases.columns(records, [name for name in cases.varying_settings(records) if name != setting]),
        Column("pass", "Pass", align="left"),
        Column(setting, cases.title(setting)),
        Column("first_s", "First step", unit="s"),
        Column("steps", "Steps"),
        Column("median_s", "Median", unit="s"),
        Column("iqr_s", "IQR", unit="s"),
        Column("ratio", "Ratio", format="{:.3f}".format),
        Column("ratio_low", "95 % from", format="{:.3f}".format),
        Column("ratio_high", "to", format="{:.3f}".format),
    ]
    notes = [
        "Ratio: the median over that of the row where it is off; below 1, faster. First step: of the "
        "process, with all that happens only once.",
        *(
            f"{name}: {record.status} ({record.reason or 'no reason given'})"
            for name, record in zip(cases.labels(records), records, strict=True)
            if record.status != "ok"
        ),
    ]
    return Table(f"{cases.title(setting)}: {cases.conditions(records)}", columns, rows, notes)


def _row(
    record: BenchmarkRecord, name: str, setting: str, group: Sequence[BenchmarkRecord]
) -> dict[str, Any]:
    row = {**cases.settings(record), **record.metrics, "pass": name}
    values = record.samples_s.get(name)
    if not values:
        return row | {"steps": Cell(0, ""), "median_s": Cell(None, record.status)}
    samples = Samples.from_values(values)
    first = [*record.warmup_samples_s.get(name, []), *values][0]
    row |= {"first_s": first, "steps": samples.num, "median_s": samples.median}
    row |= {"iqr_s": samples.iqr} if samples.num > 1 else {}
    baseline = next((other for other in group if not other.case.get(setting) and other.status == "ok"), None)
    without = baseline.samples_s.get(name) if baseline else None
    if baseline is record:
        return row | {"ratio": 1.0}
    if without and min(without) > 0:
        low, high = median_ratio_interval(without, values)
        ratio = samples.median / Samples.from_values(without).median
        row |= {"ratio": ratio, "ratio_low": low, "ratio_high": high}
    return row
