"""Published measurements of generation, as printed by their authors, and ours beside them when asked for.

Only facts are stored: values, units, and what each was measured on. Two devices are never compared by a
ratio; a row that stands beside another device's says so.
"""

import csv
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.tables import Cell, Column, Table, format_number

_FILE = "published.csv"

SOURCES = {
    "bigcode": (
        "bigcode-project/bigcode-inference-benchmark, README at 66ed2bd (2022-12-12): one A100 80GB, 7 to 9 "
        "prompt tokens, 100 new ones, mean of 5 runs with tokenising and detokenising inside"
    ),
    "ds3lab": (
        "DS3Lab/Decentralized_FM_alpha, results/Inference_benchmarks.md at d2740e9 (2022-08-09): a 175B "
        "model in bf16 on 128 virtual CPUs, blocks only, no embedding and no head"
    ),
    "bloom-blog": (
        "Bekman, Gugger and Patry, Efficient BLOOM Inference on PyTorch (draft of 2022-07): BLOOM-176B on "
        "eight A100 80GB"
    ),
}
"""What may stand beside our rows, by name."""

ALIASES = {"seed-000": "bigcode", "seed-001": "ds3lab", "seed-002": "bloom-blog"}
"""Other names of the sources."""


@dataclass(frozen=True)
class PublishedPoint:
    """One printed value."""

    source: str
    model: str
    device: str
    num_devices: int
    engine: str
    precision: str
    batch_size: int
    prompt_len: int | None
    new_tokens: int | None
    metric: str
    value: float | None
    unit: str
    status: str


def load_published(source: str) -> list[PublishedPoint]:
    """The points of a source, in the order printed."""
    text = (importlib.resources.files("cs_systems.report") / _FILE).read_text(encoding="utf-8")
    name = ALIASES.get(source, source)
    return [_point(row) for row in csv.DictReader(text.splitlines()) if row["source"] == name]


def _point(row: dict[str, str]) -> PublishedPoint:
    return PublishedPoint(
        source=row["source"], model=row["model"], device=row["device"], num_devices=int(row["num_devices"]),
        engine=row["engine"], precision=row["precision"], batch_size=int(row["batch_size"]),
        prompt_len=_whole(row["prompt_len"]), new_tokens=_whole(row["new_tokens"]), metric=row["metric"],
        value=float(row["value"]) if row["value"] else None, unit=row["unit"], status=row["status"],
    )  # fmt: skip


def _whole(text: str) -> int | None:
    return int(text) if text else None


_OURS = {
    "throughput": "tokens_per_s",
    "latency": "latency_s",
    "prompt_time": "prompt_s",
    "decode_step_time": "inter_token_p50_s",
    "time_per_token": "ms_per_token",
    "load_time": "start_to_ready_s",
    "generate_time_one_cycle": "latency_s",
}
"""Metric of ours, in the same unit, that stands beside each published metric."""

_LEFT_OUT = {"bigcode": ("time_per_token",), "ds3lab": ("throughput",)}
"""Metrics that follow from another one of the same row."""

_PROMPT_TOLERANCE = 2

_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8}


def comparison_table(records: Sequence[BenchmarkRecord], source: str) -> Table:
    """Ours and theirs, a row for each printed value and each point of ours of as many bits and sequences.

    Where one of our models is among the published ones, only equal models stand beside each other. A ratio is
    printed only where device, model and lengths are the same.
    """
    name = ALIASES.get(source, source)
    left_out = _LEFT_OUT.get(name, ())
    points = [p for p in load_published(name) if p.metric in _OURS and p.metric not in left_out]
    measured = [record for record in records if record.status in ("ok", "oom")]
    models = {record.case["model"] for record in measured} & {point.model for point in points}
    pairs = [
        (point, record)
        for point in points
        for record in measured
        if record.case["batch_size"] == point.batch_size
        and _BITS[record.case["precision"]] == _BITS[point.precision]
        and (not models or point.model == record.case["model"])
    ]
    rows = [_row(point, record) for point, record in pairs]
    columns = [
        Column("batch_size", "Batch"),
        Column("metric", "Metric", align="left"),
        Column("theirs", "Published"),
        Column("ours", "Ours"),
        Column("unit", "Unit", align="left"),
        Column("ratio", "Ours / published", format=lambda ratio: f"{ratio:.2f}"),
        Column("their_engine", "Published engine", align="left"),
        Column("our_engine", "Our engine", align="left"),
        Column("their_model", "Published model", align="left"),
        Column("our_model", "Our model", align="left"),
        Column("their_device", "Published device", align="left"),
        Column("our_device", "Our device", align="left"),
    ]
    notes = [
        f"Published: as printed in {SOURCES[name]}.",
        "No ratio stands between different devices, models or lengths: it would compare those. Read "
        "the two columns for how each changes with the batch size.",
    ]
    if not rows:
        notes.append("no batch size and precision of ours is among the published ones")
    return Table(f"Beside published values: {name}", columns, rows, notes)


def _row(point: PublishedPoint, record: BenchmarkRecord) -> dict[str, Any]:
    value = record.metrics.get(_OURS[point.metric]) if record.status == "ok" else None
    same = {
        "device": same_device(point, record),
        "model": record.case["model"] == point.model,
        "lengths": _has_lengths_of(point, record),
    }
    others = [name for name, is_same in same.items() if not is_same]
    ratio: Any = Cell(None, f"no: other {', '.join(others)}")
    if not others:
        ratio = value / point.value if value is not None and point.value else None
    work = record.case
    count = f"{point.num_devices} x " if point.num_devices > 1 else ""
    return {
        "batch_size": point.batch_size,
        "metric": point.metric.replace("_", " "),
        "theirs": Cell(point.value, point.status if point.value is None else format_number(point.value)),
        "ours": Cell(value, record.status if value is None else format_number(value)),
        "unit": point.unit,
        "ratio": ratio,
        "their_engine": f"{point.engine} {point.precision}",
        "our_engine": f"{work['engine']} {work['precision']}, {work['prompt_len']} + {work['new_tokens']}",
        "their_model": point.model,
        "our_model": work["model"],
        "their_device": count + point.device,
        "our_device": record.provenance.device,
    }


def _has_lengths_of(point: PublishedPoint, record: BenchmarkRecord) -> bool:
    """As many new tokens, and as many of the prompt up to two: their prompts were sentences of 7 to 9."""
    prompt_len, new_tokens = record.case["prompt_len"], record.case["new_tokens"]
    if point.prompt_len is None or point.new_tokens != new_tokens:
        return False
    return abs(point.prompt_len - prompt_len) <= _PROMPT_TOLERANCE


def same_device(point: PublishedPoint, record: BenchmarkRecord) -> bool:
    """Whether both ran on a device of one name; memory sizes count, marks and forms of the card do not."""
    words = record.provenance.device.replace("-", " ").split()
    return point.num_devices == 1 and set(point.device.split()) <= set(words)
