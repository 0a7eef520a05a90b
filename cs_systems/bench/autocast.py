"""The autocast experiment: the types of one model under one policy, and how the other policy differs."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cs_systems.bench.provenance import collect_provenance
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.device import DTYPES, choose_device
from cs_systems.mixed_precision.autocast import (
    Difference,
    Inspection,
    check_config,
    course_answers,
    differences,
)
from cs_systems.mixed_precision.autocast_derive import disagreements, why_underivable
from cs_systems.mixed_precision.autocast_emulate import count_casts
from cs_systems.mixed_precision.autocast_policy import RULES, TITLES
from cs_systems.mixed_precision.settings import AutocastConfig


def check_all(configs: Sequence[AutocastConfig]) -> None:
    """Raise ValueError for a model that is no preset, or a precision that the GPU lacks."""
    for config in configs:
        check_config(config)


def num_steps(config: AutocastConfig) -> int:
    """How often `run_case` will tell of a step."""
    return 1


def run_case(
    config: AutocastConfig, command: str, on_step: Callable[[str], object], **options: Any
) -> tuple[BenchmarkRecord | None, bool]:
    """The record of one case, and whether Ctrl-C was pressed before there was one."""
    device = choose_device("auto" if config.policy == "cuda" else "cpu")
    provenance = collect_provenance(command, device)
    try:
        metrics, notes = _measure(config)
    except KeyboardInterrupt:
        return None, True
    on_step("inspect")
    record = BenchmarkRecord(
        config.EXPERIMENT, dataclasses.asdict(config), "ok", provenance, metrics=metrics, notes=notes
    )
    return record, False


def _measure(config: AutocastConfig) -> tuple[dict[str, Any], list[str]]:
    cuda, cpu, differing = differences(config)
    inspection = cuda if config.policy == "cuda" else cpu
    first, second = count_casts(config)
    metrics = {
        "origin": inspection.origin,
        "origins": {"cuda": cuda.origin, "cpu": cpu.origin},
        "course_answers": course_answers(inspection) if config.model == "toy" else None,
        "entries": [dataclasses.asdict(entry) for entry in inspection.entries],
        "operations": group_operations(inspection),
        "differences": group_differences(differing),
        "casts": dataclasses.asdict(first),
        "casts_second_forward": dataclasses.asdict(second),
        "rules": group_rules(),
        "rules_differ": _check_rules(config),
    }
    return metrics, list(inspection.notes)


def group_operations(inspection: Inspection) -> list[dict[str, Any]]:
    """Calls that differ only in the block that they belong to, as one row with their number, in order."""
    calls = Counter(
        (_any_block(call.module), call.op, call.inputs, call.output, call.rule)
        for call in inspection.operations
    )
    return [
        {"module": module, "op": op, "inputs": list(inputs), "output": output, "rule": rule,
         "why": RULES[op].why if op in RULES else None, "times": times}
        for (module, op, inputs, output, rule), times in calls.items()
    ]  # fmt: skip


def group_differences(differing: Iterable[Difference]) -> list[dict[str, Any]]:
    """Differences that differ only in the block that they belong to, as one row with their number."""
    counted = Counter(
        dataclasses.replace(difference, where=_any_block(difference.where)) for difference in differing
    )
    return [{**dataclasses.asdict(difference), "times": times} for difference, times in counted.items()]


def group_rules() -> list[dict[str, Any]]:
    """The table of rules, operations with the same rule and reason together."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for rule in RULES.values():
        grouped.setdefault((TITLES[rule.cuda], TITLES[rule.cpu], rule.why), []).append(rule.op)
    return [{"ops": ops, "cuda": cuda, "cpu": cpu, "why": why} for (cuda, cpu, why), ops in grouped.items()]


def _check_rules(config: AutocastConfig) -> Mapping[str, list[str] | None]:
    """By policy, where this torch's own lists differ from the table; None where they cannot be read."""
    dtype = DTYPES[config.dtype]
    return {
        "cuda": disagreements("cuda", dtype) if why_underivable() is None else None,
        "cpu": disagreements("cpu", dtype),
    }


def _any_block(module: str) -> str:
    """`layers.0.attn` as `layers.*.attn`."""
    return re.sub(r"\.\d+", ".*", module)
