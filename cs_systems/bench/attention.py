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
from cs_systems.bench.attention_table import SHAPE, attention_table
from cs_systems.bench.command import conclude, load_finished
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.cli import (
    Parser,
    add_flags,
    add_output_flags,
    command_line,
    cross_product,
    field_names,
    leave_with,
    list_of,
    one_of,
)
from cs_systems.tables import format_value

PROGRAM = "-m cs_systems.bench.attention"


def summary(records: Sequence[BenchmarkRecord]) -> dict[str, Any]:
    """What the last line says: shape, implementation, outcome and metrics of every record."""
    return {
        "experiment": EXPERIMENT,
        "records": [
            {name: record.case[name] for name in (*SHAPE, "implementation")}
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
    varying = [name for name in SHAPE if len({getattr(other, name) for other in configs}) > 1]
    return ", ".join(f"{name} {format_value(getattr(config, name))}" for name in varying) or "attention"


if __name__ == "__main__":
    leave_with(main)
