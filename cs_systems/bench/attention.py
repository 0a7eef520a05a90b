"""Time implementations of attention against each other: from-scratch, compiled, tiled, Triton, PyTorch's own.

    python -m cs_systems.bench.attention
    python -m cs_systems.bench.attention --preset course-flash --output runs.jsonl --resume
    python -m cs_systems.bench.attention --seq-len 256,1024 --implementation naive,sdpa --causal off,on

A preset is a grid of shapes; a flag of the grid replaces its values, and lists are crossed. On each shape all
implementations are checked against the formula in fp32 (a wrong result gets no time), then they take turns in
one process. Ratio: the time over that of naive; below 1, faster. The default takes about two minutes on two
quiet cores. The last line is JSON.

Presets: cpu (the default without a GPU), gpu (the default with one), course-naive and course-flash (the grids
of Stanford CS336, assignment 2), leaderboard (its shape of 16 heads and 16,384 positions).
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cs_systems.bench.attention_case import (
    CHOSEN,
    EXPERIMENT,
    IMPLEMENTATIONS,
    PASSES,
    PRESETS,
    ROUNDS,
    AttentionConfig,
    attention_flops,
    case_settings,
    grid_of,
)
from cs_systems.bench.command import (
    RATIO_COLUMNS,
    conclude,
    load_finished,
    milliseconds,
    pass_rows,
    row_notes,
)
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.cli import (
    Parser,
    add_flags,
    add_output_flags,
    command_line,
    cross_product,
    field_names,
    list_of,
    one_of,
)
from cs_systems.tables import Column, Table, format_bytes, format_value

PROGRAM = "-m cs_systems.bench.attention"

_SHAPE = ("batch_size", "num_heads", "d_head", "seq_len", "precision", "causal")


def attention_table(records: Sequence[BenchmarkRecord]) -> Table:
    """One row a shape, implementation and pass; settings that never change stand in the title."""
    varying = [name for name in _SHAPE if len({str(record.case[name]) for record in records}) > 1]
    has_device_time = any("device_median_s" in record.metrics for record in records)
    columns = [
        *(Column(name, name, align="left", raw_only=name not in varying) for name in _SHAPE),
        Column("implementation", "Implementation", align="left"),
        Column("pass", "Pass", align="left"),
        Column("median_s", "Median", "ms", format=milliseconds),
        Column("iqr_s", "IQR", "ms", format=milliseconds),
        Column("device_median_s", "GPU", "ms", format=milliseconds, raw_only=not has_device_time),
        Column("tflops_per_s", "TFLOP/s"),
        *RATIO_COLUMNS,
        Column("held_bytes", "Held", format=format_bytes),
        Column("max_error", "Error", format=lambda error: f"{error:.0e}" if error else "0"),
        Column("status", "Status", align="left"),
        Column("reason", "Reason", raw_only=True),
        Column("time_utc", "Time", raw_only=True),
    ]
    notes = [
        "Ratio: median over that of naive, in turns; below 1, faster.",
        "TFLOP/s: 4 x batch x heads x seq^2 x d_head forward, half of it when causal, and 2.5 times that "
        "backward, whatever was computed on top.",
        "Held: memory that forward leaves for backward, result included. Error: largest difference from the "
        "formula in fp32, over the largest value.",
    ]
    if has_device_time:
        notes.append("Median: as the caller waits. GPU: as the GPU works; TFLOP/s and ratio are of that.")
    fixed = ", ".join(
        f"{name} {format_value(records[0].case[name])}" for name in _SHAPE if name not in varying
    )
    rows = pass_rows(records)
    label = functools.partial(_row_label, varying=varying)
    return Table(f"Attention: {fixed}", columns, rows, notes + row_notes(records, label))


def summary(records: Sequence[BenchmarkRecord]) -> dict[str, Any]:
    """What the last line says: shape, implementation, outcome and metrics of every record."""
    return {
        "experiment": EXPERIMENT,
        "records": [
            {name: record.case[name] for name in (*_SHAPE, "implementation")}
            | {"status": record.status, "reason": record.reason, "metrics": dict(record.metrics)}
            for record in records
        ],
    }


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--preset", type=functools.partial(one_of, choices=tuple(PRESETS)), metavar="|".join(PRESETS),
        help="named grid (default: gpu where there is one, else cpu)",
    )  # fmt: skip
    for flag, choices, default in (
        ("--implementation", IMPLEMENTATIONS, "all that this machine is made for"),
        ("--pass", PASSES, "the preset's"),
    ):
        group.add_argument(
            flag, type=list_of(functools.partial(one_of, choices=choices)), metavar="|".join(choices),
            default=argparse.SUPPRESS, help=f"one or a list (default: {default})",
        )  # fmt: skip
    add_flags(parser, AttentionConfig, "grid (the preset's where there is no default) and how it is run")
    add_output_flags(parser)
    return parser


def make_configs(args: argparse.Namespace, preset: str) -> list[AttentionConfig]:
    """The shapes of the grid in order; a ValueError says which is impossible."""
    values = argparse.Namespace(**vars(args) | grid_of(preset, vars(args)))
    configs = [AttentionConfig(**given) for given in cross_product(values, field_names(AttentionConfig))]
    if len({(config.device, config.threads) for config in configs}) > 1:
        raise ValueError("--device and --threads take one value: all shapes are measured in one process")
    return configs


def main(argv: list[str] | None = None) -> int:
    """Compare what `argv` asks for, print it, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        first = make_configs(args, args.preset or "cpu")[0]  # a typo is found before torch is imported
        finished, problems = load_finished(args)
    except ValueError as error:
        parser.error(str(error))
    from cs_systems.bench.groups import prepare_device, run_groups  # torch takes seconds to import

    try:
        device = prepare_device(first.device, first.threads)
        groups = _make_groups(args, device)
    except ValueError as error:
        parser.error(str(error))
    result = run_groups(EXPERIMENT, groups, command_line(PROGRAM, argv), device, args.output, finished)
    num_rows = sum(len(group.cases) for group in groups)
    return conclude(parser, args, attention_table, summary, result, num_rows, problems)


def _make_groups(args: argparse.Namespace, device: Any) -> list[Any]:
    """A group for each shape, with the implementations that were named or that this machine is made for."""
    from cs_systems.bench import attention_run
    from cs_systems.bench.contest import timers_of
    from cs_systems.bench.groups import Group

    preset = args.preset or ("gpu" if device.type == "cuda" else "cpu")
    passes = grid_of(preset, vars(args))["pass"]
    settings = {"passes": passes, "device": device}
    timers = timers_of(device)
    configs = make_configs(args, preset)
    groups = []
    for config in configs:
        config = replace(config, device=device.type, rounds=config.rounds or ROUNDS[device.type])
        names = getattr(args, "implementation", None) or [
            name for name in CHOSEN[device.type] if attention_run.find_obstacle(config, name, device) is None
        ]
        groups.append(Group(
            label=_config_label(config, configs),
            cases={name: case_settings(config, name, passes) for name in names},
            find_obstacle=functools.partial(attention_run.find_any_obstacle, config, **settings),
            measure=functools.partial(attention_run.run_shape, config, **settings, timers=timers),
            num_passes=len(passes),
            rounds=config.rounds,
            work=sum(attention_flops(config).values()),
        ))  # fmt: skip
    return groups


def _config_label(config: AttentionConfig, configs: Sequence[AttentionConfig]) -> str:
    """What tells a shape from the others of the grid."""
    varying = [name for name in _SHAPE if len({getattr(other, name) for other in configs}) > 1]
    return ", ".join(f"{name} {format_value(getattr(config, name))}" for name in varying) or "attention"


def _row_label(record: BenchmarkRecord, varying: Sequence[str]) -> str:
    return ", ".join(
        [record.case["implementation"], *(f"{n} {format_value(record.case[n])}" for n in varying)]
    )


if __name__ == "__main__":
    sys.exit(main())
