"""What distinguishes the cases of a set of records, and how a case is named in a table or a sentence.

A sweep over precision should show the precision in each row; a sweep over models should not repeat it, nor
list the width and depth that the model's name already stands for. So settings that vary become columns and
parts of names; the others are said once.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.tables import Column, format_count, format_value

EXPERIMENT = "training_step"
"""The experiment whose records this package shows."""

PASSES = {
    "forward": ("forward",),
    "forward-backward": ("forward", "backward", "forward_backward"),
    "train-step": ("forward", "backward", "optimizer_step", "train_step"),
}
"""Rows of each mode, in order; a sum of passes comes last."""

_TITLES_AND_PHRASES = {
    "model": ("Model", "{}"),
    "mode": ("Mode", "{}"),
    "batch_size": ("Batch", "batch {}"),
    "context_length": ("Context", "{} tokens"),
    "precision": ("Precision", "{}"),
    "param_dtype": ("Stored as", "stored as {}"),
    "attention": ("Attention", "{} attention"),
    "kernels": ("Kernels", "kernels {}"),
    "compile": ("Compile", "compile {}"),
    "checkpoint_blocks": ("Checkpoint", "checkpoint {}"),
    "optimizer": ("Optimizer", "optimizer {}"),
    "device": ("Device", "{}"),
    "threads": ("Threads", "{} threads"),
    "torch": ("torch", "torch {}"),
    "commit": ("Commit", "commit {}"),
    "warmup_steps": ("Warmup", "warm-up {}"),
    "steps": ("Steps", "{} steps"),
}
_MACHINE = ("device", "threads", "torch", "commit")
WORKLOAD = (*(name for name in _TITLES_AND_PHRASES if name != "model"), "seed", "max_seconds")
"""Settings that are not about the model."""
_OWN_COLUMN = ("model", "warmup_steps", "steps")
_ALWAYS = tuple(name for name in _TITLES_AND_PHRASES if name not in (*_MACHINE[1:], *_OWN_COLUMN))


def of_training_step(records: Iterable[BenchmarkRecord]) -> tuple[list[BenchmarkRecord], list[str]]:
    """The records of the training-step experiment, and a sentence for each other experiment among them."""
    records = list(records)
    chosen = [record for record in records if record.experiment == EXPERIMENT]
    others = [record.experiment for record in records if record.experiment != EXPERIMENT]
    return chosen, [
        f"{others.count(name)} of {len(records)} records belong to the experiment {name!r} and are left out"
        for name in dict.fromkeys(others)
    ]


def settings(record: BenchmarkRecord, machine: bool = True) -> dict[str, Any]:
    """Everything that defines the case, in the order of the columns; with `machine`, as it really ran.

    The case says `device auto` and `threads 0` (torch's choice); the provenance knows what that came to.
    """
    known = dict(record.case)
    if machine:
        origin = record.provenance
        known |= {"device": short_device(origin.device), "threads": origin.threads}
        known |= {"torch": origin.versions.get("torch"), "commit": short_commit(record)}
    ordered = [name for name in _TITLES_AND_PHRASES if name in known]
    return {name: known[name] for name in (*ordered, *known)}


def workload_settings(record: BenchmarkRecord) -> dict[str, Any]:
    """The settings that are not about the model: two models that agree in these may share a plot."""
    return {name: value for name, value in settings(record).items() if name in WORKLOAD}


def varying_settings(records: Sequence[BenchmarkRecord], machine: bool = True) -> list[str]:
    """Settings that need a column of their own: those that tell apart rows which would otherwise look alike.

    Settings of the workload are listed whenever they differ, others only when the model's label and the
    columns so far leave them open. Labels, warm-up and number of steps have their columns already.
    """
    rows = [settings(record, machine) for record in records]
    listed: list[str] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in _OWN_COLUMN:
            continue
        values = [format_value(row.get(name)) for row in rows]
        if name in _ALWAYS:
            if len(set(values)) > 1:
                listed.append(name)
            continue
        contexts = [tuple(format_value(row.get(known)) for known in ("model", *listed)) for row in rows]
        if len(set(zip(contexts, values, strict=True))) > len(set(contexts)):
            listed.append(name)
    return listed


def label(record: BenchmarkRecord, names: Iterable[str], machine: bool = True) -> str:
    """Name of a case in a sentence: 'small, batch 4, bf16'. `names` are the settings to mention."""
    known = settings(record, machine)
    return ", ".join([str(known["model"]), *(phrase(name, known.get(name)) for name in names)])


def labels(records: Sequence[BenchmarkRecord], machine: bool = True) -> list[str]:
    """A name for each record, with just enough settings to tell them apart."""
    names = varying_settings(records, machine)
    names += [
        name
        for name in ("warmup_steps", "steps")
        if len({format_value(record.case.get(name)) for record in records}) > 1
    ]
    return [label(record, names, machine) for record in records]


def columns(records: Sequence[BenchmarkRecord], varying: Sequence[str]) -> list[Column]:
    """The columns that say which case a row is: model, parameters where known, and what varies."""
    first = settings(records[0]) if records else {}
    counted = any(record.metrics.get("num_parameters") for record in records)
    return [
        Column("model", "Model", align="left"),
        Column("num_parameters", "Params", format=format_count, raw_only=not counted),
        *(
            Column(name, title(name), align="left" if isinstance(first.get(name), str) else "right")
            for name in varying
        ),
    ]


def title(name: str) -> str:
    """Heading of the column of a setting."""
    return _TITLES_AND_PHRASES.get(name, (name, ""))[0]


def phrase(name: str, value: Any) -> str:
    """A setting as part of a sentence: 'batch 4', 'd_ff 4096'."""
    if (name, value) == ("threads", 1):
        return "1 thread"
    return _TITLES_AND_PHRASES.get(name, ("", name + " {}"))[1].format(format_value(value))


def passes_of(record: BenchmarkRecord) -> list[str]:
    """Passes that the record has, or was to have, in the order of its mode."""
    planned = PASSES.get(record.case.get("mode", ""), ())
    return [*planned, *(name for name in record.samples_s if name not in planned)]


def conditions(records: Sequence[BenchmarkRecord]) -> str:
    """What all records share, said once: 'batch 4 x 128 tokens, fp32 (matmul precision highest), ...'."""
    rows = [settings(record) for record in records]
    same = {name: value for name, value in rows[0].items() if all(row.get(name) == value for row in rows)}
    parts = []
    if "batch_size" in same and "context_length" in same:
        parts.append(f"batch {same['batch_size']} x {same['context_length']} tokens")
    else:
        parts += [phrase(name, same[name]) for name in ("batch_size", "context_length") if name in same]
    if "precision" in same:
        parts.append(f"{same['precision']}{_matmul_precision(records)}")
    if same.get("param_dtype", "fp32") != "fp32":
        parts.append(phrase("param_dtype", same["param_dtype"]))
    parts += [phrase(name, same[name]) for name in ("attention",) if name in same]
    if same.get("kernels", "off") != "off":
        parts.append(phrase("kernels", same["kernels"]))
    if same.get("compile"):
        parts.append("compiled")
    if same.get("checkpoint_blocks"):
        parts.append(f"{same['checkpoint_blocks']} blocks a checkpoint")
    if same.get("mode") == "train-step" and "optimizer" in same:
        parts.append(phrase("optimizer", same["optimizer"]))
    return ", ".join(parts)


def machine(records: Sequence[BenchmarkRecord]) -> str:
    """Where and when the records were measured: processor, threads, torch, commit, date."""
    rows = [settings(record) for record in records]
    parts = []
    for name in _MACHINE:
        values = list(dict.fromkeys(row[name] for row in rows if row[name] is not None))
        parts += [phrase(name, " and ".join(map(str, values)))] if values else []
    dates = sorted({record.provenance.time_utc[:10] for record in records})
    parts.append(dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}")
    return ", ".join(parts)


def short_device(name: str) -> str:
    """A processor's name without marks and clock rate: 'Intel Xeon Platinum 8481C'."""
    plain = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*", " ", name)
    return " ".join(plain.split())


def short_commit(record: BenchmarkRecord) -> str | None:
    """Seven digits of the commit, with a star when the checkout had uncommitted changes."""
    commit = record.provenance.commit
    return None if commit is None else commit[:7] + ("*" if record.provenance.dirty else "")


def last_ok(records: Iterable[BenchmarkRecord]) -> tuple[dict[str, BenchmarkRecord], list[str]]:
    """The last record with status ok of each case by its key, and a sentence for each case measured twice."""
    found: dict[str, BenchmarkRecord] = {}
    count: dict[str, int] = {}
    for record in records:
        if record.status == "ok":
            found[record.key] = record
            count[record.key] = count.get(record.key, 0) + 1
    names = dict(zip(found, labels(list(found.values()), machine=False), strict=True)) if found else {}
    again = [f"{names[key]}: measured {num} times, the last is used" for key, num in count.items() if num > 1]
    return found, again


def _matmul_precision(records: Sequence[BenchmarkRecord]) -> str:
    values = {record.metrics.get("matmul_precision") for record in records} - {None}
    return f" (matmul precision {values.pop()})" if len(values) == 1 else ""
