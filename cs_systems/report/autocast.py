"""Tables of the autocast experiment, from its records."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cs_systems.bench.command import row_notes
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.tables import Column, Table, format_bytes

_POLICIES = {"cuda": "CUDA", "cpu": "CPU"}
_LOSSES = {
    "cross-entropy": "torch's cross-entropy",
    "hand-written": "cross-entropy by hand",
    "upcast": "cross-entropy by hand, after a cast to fp32",
    "mean": "mean of the logits",
    "mse": "mean squared error",
}
_COURSE = {
    "parameters": "Parameters",
    "fc1": "fc1",
    "layer_norm": "Layer norm",
    "logits": "Logits",
    "loss": "Loss",
    "gradients": "Gradients",
}


def tables(records: Sequence[BenchmarkRecord]) -> list[Table]:
    """Types, operations and CPU against CUDA of each record; rules of both policies at the end."""
    shown = [record for record in records if record.status == "ok"]
    toys = [record for record in shown if record.metrics["course_answers"]]
    found = [_course_table(toys)] if len(toys) > 1 else []
    compared = set()
    for record in shown:
        found += [_entry_table(record), _operation_table(record)]
        case = tuple(record.case[name] for name in ("model", "dtype", "loss"))
        if case not in compared:  # both policies of a case have the same differences
            found.append(_difference_table(record))
            compared.add(case)
    return [*found, _rule_table(shown[0])] if shown else found


def draw(records: Sequence[BenchmarkRecord], folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """No plot, and a remark that says so."""
    return [], [f"--plots {folder}: types are words, and autocast has no plot; its tables say it all"]


def summary(record: BenchmarkRecord) -> dict[str, Any]:
    """How the types are known, those of logits and loss, and how many outputs differ between GPU and CPU."""
    metrics = record.metrics
    by_kind = {entry["kind"]: entry["dtype"] for entry in metrics["entries"]}
    found = {"origin": metrics["origin"]}
    found |= metrics["course_answers"] or {kind: by_kind[kind] for kind in ("logits", "loss")}
    return found | {"num_differences": len(metrics["differences"])}


def _course_table(records: Sequence[BenchmarkRecord]) -> Table:
    rows = [
        {
            **record.case,
            **record.metrics["course_answers"],
            "policy": _POLICIES[record.case["policy"]],
            "loss_function": record.case["loss"],
            "origin": record.metrics["origin"],
        }
        for record in records
    ]
    columns = [
        Column("policy", "Policy", align="left"),
        Column("dtype", "Autocast", align="left"),
        Column("loss_function", "Loss function", align="left"),
        *(Column(key, title, align="left") for key, title in _COURSE.items()),
        Column("origin", "How it is known", align="left"),
    ]
    return Table("Autocast: the toy model", columns, rows, _notes(records))


def _entry_table(record: BenchmarkRecord) -> Table:
    rows: dict[tuple, dict[str, Any]] = {}
    for entry in record.metrics["entries"]:
        kind, name = entry["kind"], re.sub(r"\.\d+", ".*", entry["name"])
        place = kind if kind in ("parameter", "gradient") else name  # all parameters together
        key = kind, place, entry["dtype"], entry["rule"]
        rows.setdefault(key, {**entry, "name": name, "count": 0})["count"] += 1
    for row in rows.values():
        if row["kind"] in ("parameter", "gradient"):
            alone = _is_uniform(record, row["kind"])
            row["name"] = f"all {row['count']}" if alone else f"{row['count']}, {row['name']} first"
    columns = [
        Column("kind", "Tensor", align="left"),
        Column("name", "Name", align="left"),
        Column("dtype", "Type", align="left"),
        Column("rule", "Decided by", align="left"),
        Column("count", "How many", raw_only=True),
    ]
    return Table(f"Autocast: {_title(record)}", columns, list(rows.values()), _notes([record]))


def _is_uniform(record: BenchmarkRecord, kind: str) -> bool:
    return len({entry["dtype"] for entry in record.metrics["entries"] if entry["kind"] == kind}) == 1


def _operation_table(record: BenchmarkRecord) -> Table:
    """Operations with the same types in and out, from whatever modules, in the order of the first."""
    rows: dict[tuple, dict[str, Any]] = {}
    for call in record.metrics["operations"]:
        types = f"{', '.join(call['inputs'])} -> {call['output']}"
        row = rows.setdefault(
            (call["op"], types, call["rule"]), {**call, "types": types, "modules": [], "times": 0}
        )
        row["modules"].append(call["module"])
        row["times"] += call["times"]
    for row in rows.values():
        row["where"] = _where(row.pop("modules"))
        row["why"] = row["why"] or "the model asks for it"
    columns = [
        Column("op", "Operation", align="left"),
        Column("where", "in", align="left"),
        Column("times", "Times"),
        Column("types", "Types", align="left"),
        Column("rule", "Rule", align="left"),
        Column("why", "Why", align="left"),
    ]
    notes = [
        "operations that only look at or move numbers are left out (views, slices, transposes), and masks",
        _cast_note(record),
    ]
    return Table(f"Operations: {_title(record)}", columns, list(rows.values()), notes)


def _where(modules: Sequence[str]) -> str:
    """Modules without the `layers.*.` that all blocks share: `attn.q_proj, ffn.w1, lm_head`."""
    names = list(dict.fromkeys(module.removeprefix("layers.*.") for module in modules))
    named = ["block" if name == "layers.*" else name for name in names]
    return ", ".join(named) if len(named) <= 3 else f"{', '.join(named[:2])} and {len(named) - 2} more"


def _cast_note(record: BenchmarkRecord) -> str:
    first, second = record.metrics["casts"], record.metrics["casts_second_forward"]
    opening = (
        f"the price, for one sequence through the whole model: {first['weight_casts']} casts of weights to "
        f"{record.case['dtype']} ({format_bytes(first['weight_bytes'])}) and {first['activation_casts']} of "
        f"activations ({format_bytes(first['activation_bytes'])}), kept for backward"
    )
    if not second["weight_casts"]:
        return (
            f"{opening}; a second pass in the same context casts no weight again: linear takes the parameter "
            "itself, and autocast keeps copies of parameters until the context ends"
        )
    return (
        f"{opening}; a second pass in the same context casts {second['weight_casts']} weights again: "
        "autocast keeps copies of parameters only, and x @ weight.T hands it a view of one"
    )


def _difference_table(record: BenchmarkRecord) -> Table:
    case, origins = record.case, record.metrics["origins"]
    rows = [{**row, "because": _because(row)} for row in record.metrics["differences"]]
    columns = [
        Column("where", "In", align="left"),
        Column("what", "Output of", align="left"),
        Column("cuda", "CUDA", align="left"),
        Column("cpu", "CPU", align="left"),
        Column("because", "Because", align="left"),
        Column("cuda_rule", "Rule of CUDA", raw_only=True),
        Column("cpu_rule", "Rule of the CPU", raw_only=True),
        Column("times", "Times", raw_only=True),
    ]
    notes = [f"CUDA: {origins['cuda']}; CPU: {origins['cpu']}"]
    if not rows:
        notes.append("no output differs here: operations whose rules differ were given fp32 already")
    notes += [
        "a model that casts to fp32 itself before sensitive operations has the same types on both",
        f"a laptop teaches the wrong answer: the output of layer norm is {case['dtype']} on a CPU and fp32 "
        "on a GPU, and so are those of softmax, exp, log, pow and sum",
    ]
    title = f"CUDA against CPU: {case['model']}, autocast to {case['dtype']}, {_LOSSES[case['loss']]}"
    return Table(title, columns, rows, notes)


def _because(row: Mapping[str, Any]) -> str:
    if row["cuda_rule"] == row["cpu_rule"]:
        return "its inputs differ already"
    return f"CUDA: {row['cuda_rule']}; CPU: {row['cpu_rule']}"


def _rule_table(record: BenchmarkRecord) -> Table:
    rows = [{**row, "ops": ", ".join(row["ops"])} for row in record.metrics["rules"]]
    columns = [
        Column("ops", "Operations", align="left"),
        Column("cuda", "CUDA", align="left"),
        Column("cpu", "CPU", align="left"),
        Column("why", "Why", align="left"),
    ]
    return Table("Rules of autocast on a GPU and on a CPU", columns, rows, _rule_notes(record))


def _rule_notes(record: BenchmarkRecord) -> list[str]:
    torch, found = f"torch {record.provenance.versions['torch']}", record.metrics["rules_differ"]
    notes = []
    for policy, title in _POLICIES.items():
        if found[policy] is None:
            notes.append(f"{title}: from the table alone; {torch} has no fake tensors that could confirm it")
        elif found[policy]:
            notes.append(f"{title}: {torch} differs from this table, trust torch: {'; '.join(found[policy])}")
        else:
            notes.append(f"{title}: as {torch} does it, each operation tried")
    notes.append(
        "operations in place (exp_) and with out= follow no list: they keep the type of their output"
    )
    return notes


def _title(record: BenchmarkRecord) -> str:
    case = record.case
    return (
        f"{case['model']}, {_POLICIES[case['policy']]} policy ({record.metrics['origin']}), "
        f"autocast to {case['dtype']}, {_LOSSES[case['loss']]}"
    )


def _notes(records: Sequence[BenchmarkRecord]) -> list[str]:
    return row_notes(records, _label)


def _label(record: BenchmarkRecord) -> str:
    case: Mapping[str, Any] = record.case
    return f"{case['model']}, {_POLICIES[case['policy']]}, {case['dtype']}"
