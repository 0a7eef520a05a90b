"""The views of a write-up by name: what each shows of one's own measurements, and what measures it.

The commands suit a laptop: tiny and small on two cores, each bounded by --max-seconds, all of them together
in about ten minutes. On a GPU measure larger models and more; the views take what there is.
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from cs_systems.bench.attention_table import SETTINGS as ATTENTION_SETTINGS
from cs_systems.bench.attention_table import attention_table
from cs_systems.bench.measured import Recording, read_measured
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.grading.blocks import MeasuredBlock
from cs_systems.mixed_precision.settings import (
    AccumulationConfig,
    AutocastConfig,
    LayerNormConfig,
    TrainingConfig,
)
from cs_systems.model.presets import PRESETS
from cs_systems.report import accumulation, autocast, cases, layer_norm, training_stability
from cs_systems.report.effect import effect_table
from cs_systems.report.figure import our_style, save
from cs_systems.report.plots import Drawn, draw_model_size, draw_warmup
from cs_systems.report.precision import precision_tables
from cs_systems.report.record_view import Draw, RecordView, Where
from cs_systems.report.tables import memory_table, timing_table
from cs_systems.report.trace_view import TraceView
from cs_systems.tables import Table
from cs_systems.tracing import attention_table as traced_attention
from cs_systems.tracing.kernel_tables import kernel_summary, top_kernel_per_forward
from cs_systems.tracing.memory_table import memory_by_phase, peak_table
from cs_systems.tracing.tables import class_by_phase, combined_table
from cs_systems.tracing.trace import RunFacts, Trace

View = RecordView | TraceView

_PLAIN: Where = {
    "precision": "fp32",
    "param_dtype": "fp32",
    "attention": "naive",
    "kernels": "off",
    "compile": False,
    "checkpoint_blocks": 0,
    "optimizer": "adamw",
}
"""A training step with nothing switched on."""
_PLAIN_TRACE: Where = {"mode": "train-step", "precision": "fp32", "checkpoint_blocks": 0}
"""The same of a recording."""
_SMALL: dict[str, Any] = {"model": ("tiny", "small"), "context_length": 128}
_RATES = ("tokens_per_s", "tflops_per_s", "fraction_of_peak")
_KERNELS_SHOWN = 8
_BY_TILES = ("naive", "flash-torch", "flash", "sdpa", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient")


def _but(*names: str) -> Where:
    """A plain training step, with these settings left open."""
    return {name: value for name, value in _PLAIN.items() if name not in names}


def _clock(warmup_steps: int, steps: int, max_seconds: int) -> dict[str, Any]:
    return {"warmup_steps": warmup_steps, "steps": steps, "max_seconds": max_seconds}


def _without(table: Table, *keys: str) -> Table:
    return dataclasses.replace(table, columns=[column for column in table.columns if column.key not in keys])


def _timing(records: Sequence[BenchmarkRecord]) -> list[Table]:
    return [_without(timing_table(records), "min_s", "max_s")]


def _warmup(records: Sequence[BenchmarkRecord]) -> list[Table]:
    """Rows of the same pass below each other, with the first step in place of the rates."""
    table = timing_table(records)
    keys = [column.key for column in table.columns if not column.raw_only]
    same = keys[: keys.index("pass") + 1]
    groups: dict[tuple, list] = {}
    for row in table.rows:
        groups.setdefault(tuple(str(row.get(key)) for key in same), []).append(row)
    rows = [row for group in groups.values() for row in group]
    notes = [note for note in table.notes if not note.startswith(("rates are", "of peak"))]
    return [_without(dataclasses.replace(table, rows=rows, notes=notes), *_RATES)]


def _naive_attention(records: Sequence[BenchmarkRecord]) -> list[Table]:
    """One implementation has nobody to be compared with."""
    table = _without(attention_table(records), "ratio", "ratio_low", "ratio_high")
    notes = [note for note in table.notes if not note.startswith("Ratio")]
    return [dataclasses.replace(table, notes=notes)]


def _drawn_by(name: str, draw: Callable[[Sequence[BenchmarkRecord]], Drawn]) -> Draw:
    def draw_into(
        records: Sequence[BenchmarkRecord], folder: pathlib.Path
    ) -> tuple[list[pathlib.Path], list[str]]:
        with our_style():
            figure, why = draw([record for record in records if record.samples_s])
            return (save(figure, folder, name) if figure else []), why

    return draw_into


def _largest_model(draw: Draw) -> Draw:
    """Draw the steps of one model: those of several would not be told apart."""

    def draw_largest(
        records: Sequence[BenchmarkRecord], folder: pathlib.Path
    ) -> tuple[list[pathlib.Path], list[str]]:
        sizes = [record.metrics.get("num_parameters") or 0 for record in records]
        chosen = [record for record, size in zip(records, sizes, strict=True) if size == max(sizes)]
        return draw(chosen, folder)

    return draw_largest


def _model_size(
    records: Sequence[BenchmarkRecord], folder: pathlib.Path
) -> tuple[list[pathlib.Path], list[str]]:
    """A plot where two models can be compared; nothing to say where not, as the table has it all."""
    files, remarks = _drawn_by("model_size", draw_model_size)(records, folder)
    return files, remarks if files else []


_STEP = RecordView(
    name="timing",
    title="Time of forward, backward and optimizer step",
    experiment=cases.EXPERIMENT,
    settings=frozenset(
        {"model", *(field.name for field in dataclasses.fields(PRESETS["small"].config)), *cases.WORKLOAD}
        - {"torch", "commit"}
    ),
    program="benchmark.py",
    flags=_SMALL | {"warmup_steps": (0, 1, 2, 5), "steps": 10, "max_seconds": 120},
    file="training_step.jsonl",
    tables=_timing,
    draw=_model_size,
    plain=_PLAIN,
    warmest=True,
)
_ATTENTION = RecordView(
    name="attention",
    title="Attention from its formula",
    experiment="attention",
    settings=frozenset(ATTENTION_SETTINGS),
    program="-m cs_systems.bench.attention",
    flags={
        "batch_size": 8, "num_heads": 0, "d_head": (16, 64), "seq_len": (256, 1024, 4096, 16384),
        "precision": "fp32", "causal": False, "implementation": "naive", "passes": ("forward", "backward"),
        "rounds": 5, "max_seconds": 30,
    },
    file="attention.jsonl",
    tables=_naive_attention,
    plain={"implementation": "naive", "causal": False},
)  # fmt: skip


def _numbers(
    name: str, title: str, config: Any, module: ModuleType, flags: Where, left_out: Sequence[str] = ()
) -> RecordView:
    """A view of an experiment with numbers of few bits.

    `left_out` are words in the titles of tables that the command prints and that are too long for a write-up.
    """

    def tables(records: Sequence[BenchmarkRecord]) -> list[Table]:
        return [each for each in module.tables(records) if not any(words in each.title for words in left_out)]

    return RecordView(
        name=name,
        title=title,
        experiment=config.EXPERIMENT,
        settings=frozenset(field.name for field in dataclasses.fields(config)),
        program=f"-m cs_systems.mixed_precision {'train' if config is TrainingConfig else name}",
        flags=flags,
        file=f"{config.EXPERIMENT}.jsonl",
        tables=tables,
        draw=None if module is autocast else module.draw,  # types are words
    )


def _profiled_kernels(recordings: Sequence[Recording]) -> list[Table]:
    (recording,) = recordings
    scopes = (None, "forward", "backward")
    tables = [kernel_summary(recording.trace, scope, _KERNELS_SHOWN) for scope in scopes]
    return [top_kernel_per_forward(recording.trace), *tables]


def _peaks(recordings: Sequence[Recording]) -> list[Table]:
    return [peak_table([(recording.trace, recording.facts) for recording in recordings])]


def _profiled_memory(recordings: Sequence[Recording]) -> list[Table]:
    steps = [each for each in recordings if (each.facts.mode, each.facts.precision) == ("train-step", "fp32")]
    one = [*recordings, *steps][-1]
    return [
        *_peaks(recordings),
        dataclasses.replace(memory_by_phase(one.trace), title=f"Memory of {one.name}, phase by phase"),
    ]


def _traced(tables: Callable[[Trace, RunFacts], Table]) -> Callable[[Sequence[Recording]], list[Table]]:
    return lambda recordings: [tables(each.trace, each.facts) for each in recordings]


_ALL: tuple[View, ...] = (
    _STEP,
    dataclasses.replace(
        _STEP,
        name="warmup",
        title="The same model after 0, 1, 2 and 5 steps of warm-up",
        tables=_warmup,
        draw=_largest_model(_drawn_by("warmup", draw_warmup)),
        varies="warmup_steps",
        warmest=False,
    ),
    dataclasses.replace(
        _STEP,
        name="precision",
        title="Time and memory by precision",
        flags=_SMALL | {"precision": ("fp32", "bf16")} | _clock(1, 5, 20),
        file="precision.jsonl",
        tables=precision_tables,
        draw=None,
        plain=_but("precision", "param_dtype"),
        varies="precision",
        warmest=False,
    ),
    dataclasses.replace(
        _STEP,
        name="compile",
        title="Compiled against not compiled",
        flags=_SMALL | {"compile": (False, True)} | _clock(1, 5, 60),
        file="compile.jsonl",
        tables=lambda records: [effect_table(records, "compile")],
        draw=None,
        plain=_but("compile"),
        varies="compile",
        warmest=False,
    ),
    dataclasses.replace(
        _STEP,
        name="memory",
        title="Peak memory, predicted and measured",
        flags={"model": ("tiny", "small"), "context_length": (128, 256), "mode": ("forward", "train-step")}
        | _clock(1, 2, 10),
        tables=lambda records: [memory_table(records)],
        draw=None,
        plain=_but("precision"),
    ),
    _numbers(
        "accumulation", "A sum in few bits", AccumulationConfig, accumulation,
        {"value": 0.01, "steps": 1000, "dtypes": ("fp32", "fp16", "bf16")},
        ["by the size of the sum", "in every way"],
    ),
    _numbers(
        "autocast", "Types under autocast", AutocastConfig, autocast,
        {"model": "toy", "dtype": ("fp16", "bf16")}, ["Operations", "Rules of autocast"],
    ),
    _numbers(
        "layer-norm", "Layer norm in few bits", LayerNormConfig, layer_norm,
        {"dtype": ("fp16", "bf16"), "scale": (1, 300)},
    ),
    _numbers(
        "training-stability", "Training in several precisions", TrainingConfig, training_stability,
        {"precision": ("fp32", "bf16", "fp16", "fp16-noscale", "pure-bf16"), "seed": 0, "steps": 150},
    ),
    _ATTENTION,
    dataclasses.replace(
        _ATTENTION,
        name="attention-compiled",
        title="Attention from its formula, compiled against not",
        flags=dict(_ATTENTION.flags) | {"d_head": 64, "seq_len": (256, 1024)}
        | {"implementation": ("naive", "naive-compiled")},
        tables=lambda records: [attention_table(records)],
        plain={"implementation": ("naive", "naive-compiled")},
        varies="implementation",
    ),
    dataclasses.replace(
        _ATTENTION,
        name="flash",
        title="Attention by tiles against attention from its formula",
        flags=dict(_ATTENTION.flags) | {"batch_size": 4, "num_heads": 12, "d_head": 64, "seq_len": (128, 512)}
        | {"causal": True, "implementation": ("naive", "flash-torch", "sdpa")}
        | {"passes": ("forward", "backward", "forward-backward")},
        tables=lambda records: [attention_table(records)],
        plain={"implementation": _BY_TILES},
        varies="implementation",
    ),
    TraceView(
        "profile-timer", "Forward pass by profiler and by timer", side_by_side=True, plain=_PLAIN_TRACE,
        tables=lambda recordings: [combined_table([(each.trace, each.facts) for each in recordings])],
    ),
    TraceView("profile-kernels", "What the time is spent on", _profiled_kernels, plain=_PLAIN_TRACE),
    TraceView(
        "profile-kinds", "Kinds of work by phase", _traced(lambda trace, _: class_by_phase(trace)),
        plain=_PLAIN_TRACE,
    ),
    TraceView(
        "profile-attention", "Attention in parts", _traced(traced_attention.attention_table),
        plain=_PLAIN_TRACE,
    ),
    TraceView(
        "profile-memory", "Memory in each phase", _profiled_memory, memory=True, side_by_side=True,
        flags={"context_length": 128, "mode": ("forward", "train-step")}, varies="mode",
        plain={"checkpoint_blocks": 0},
    ),
    TraceView(
        "checkpointing", "Peak memory by blocks a checkpoint", _peaks, memory=True, side_by_side=True,
        flags={"context_length": 128, "checkpoint_blocks": (0, 1, 2, 3, 4, 6)}, varies="checkpoint_blocks",
        plain={"mode": "train-step", "precision": "fp32"},
    ),
)  # fmt: skip
VIEWS: dict[str, View] = {view.name: view for view in _ALL}


def commands_of(blocks: Sequence[MeasuredBlock], folder: pathlib.Path) -> list[str]:
    """The commands that fill what the blocks show and the folder does not hold yet, each once.

    Raises:
        ValueError: in one line, when a block asks for a view or a setting that there is not.
    """
    measured = read_measured(folder)
    commands = []
    for block in blocks:
        try:
            commands += [each.command for each in find_view(block.show).missing(measured, block.where)]
        except ValueError as error:
            raise ValueError(f"measured block in line {block.line}: {error}") from None
    return list(dict.fromkeys(commands))


def find_view(name: str) -> View:
    """The view of that name; a ValueError suggests the nearest."""
    if name in VIEWS:
        return VIEWS[name]
    near = difflib.get_close_matches(name, VIEWS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(VIEWS)}"
    raise ValueError(f"there is no view {name!r}; {hint}")
