"""Time each fused kernel against the formula in plain PyTorch, that compiled, and PyTorch's own function.

    python -m cs_systems.bench.kernels
    python -m cs_systems.bench.kernels --kernel softmax --num-columns 1024,4096,16384 --output runs.jsonl
    python -m cs_systems.bench.kernels --kernel rmsnorm,rope --pass forward --implementation eager,compiled

These kernels compute little and move much, so their rate is in bytes: the least that must be read and
written, over the time. A copy of a large tensor takes turns with them; what is as fast as the copy cannot be
improved. Every result is checked first, and a wrong one gets no time. Ratio: the time over that of eager;
below 1, faster. Lists are crossed. The default takes about two minutes on two quiet cores. The last line is
JSON.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cs_systems.bench.command import (
    RATIO_COLUMNS,
    conclude,
    load_finished,
    milliseconds,
    pass_rows,
    row_notes,
)
from cs_systems.bench.kernel_case import (
    AXES,
    DEFAULTS,
    EXPERIMENT,
    IMPLEMENTATIONS,
    IMPLEMENTATIONS_OF,
    KERNELS,
    PASSES,
    ROUNDS,
    KernelConfig,
    case_settings,
    moved_bytes,
    passes_of,
    shape_of,
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
from cs_systems.tables import Column, Table, format_percent

PROGRAM = "-m cs_systems.bench.kernels"

_ALL_AXES = tuple(dict.fromkeys(axis for axes in AXES.values() for axis in axes))


def kernel_table(records: Sequence[BenchmarkRecord]) -> Table:
    """One row a kernel, shape, implementation and pass."""
    has_device_time = any("device_median_s" in record.metrics for record in records)
    columns = [
        Column("kernel", "Kernel", align="left"),
        Column("shape", "Shape", align="left"),
        Column("precision", "Type", align="left"),
        Column("pass", "Pass", align="left"),
        Column("implementation", "Implementation", align="left"),
        Column("median_s", "Median", "ms", format=milliseconds),
        Column("iqr_s", "IQR", "ms", format=milliseconds),
        Column("device_median_s", "GPU", "ms", format=milliseconds, raw_only=not has_device_time),
        Column("gb_per_s", "GB/s"),
        Column("fraction_of_copy", "of copy", format=format_percent),
        *RATIO_COLUMNS,
        Column("max_error", "Error", format=lambda error: f"{error:.0e}" if error else "0"),
        Column("status", "Status", align="left"),
        Column("copy_gb_per_s", "Copy", "GB/s", raw_only=True),
        *(Column(axis, axis, raw_only=True) for axis in _ALL_AXES),
        Column("reason", "Reason", raw_only=True),
        Column("time_utc", "Time", raw_only=True),
    ]
    notes = [
        "GB/s: the least bytes that must be read and written, over the median. Of copy: share of the rate at "
        "which a large tensor was copied in the same rounds; over 100 %, the tensors fit into a cache.",
        "Ratio: median over that of eager, in turns; below 1, faster. Error: largest difference from the "
        "formula in fp32, over the largest value.",
    ]
    if any(record.case["kernel"] == "linear-cross-entropy" for record in records):
        notes.append("linear-cross-entropy multiplies matrices: its limit is arithmetic, not the copy rate.")
    if has_device_time:
        notes.append("Median: as the caller waits. GPU: as the GPU works; GB/s and ratio are of that.")
    return Table("Kernels", columns, pass_rows(records), notes + row_notes(records, _row_label))


def summary(records: Sequence[BenchmarkRecord]) -> dict[str, Any]:
    """What the last line says: kernel, shape, implementation, outcome and metrics of every record."""
    return {
        "experiment": EXPERIMENT,
        "records": [
            {name: record.case[name] for name in ("kernel", "shape", "precision", "implementation")}
            | {"status": record.status, "reason": record.reason, "metrics": dict(record.metrics)}
            for record in records
        ],
    }


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    group = parser.add_argument_group("what is measured")
    for flag, choices in (("--implementation", IMPLEMENTATIONS), ("--pass", PASSES)):
        group.add_argument(
            flag, type=list_of(functools.partial(one_of, choices=choices)), metavar="|".join(choices),
            default=argparse.SUPPRESS, help="one or a list (default: all there are)",
        )  # fmt: skip
    add_flags(
        parser, KernelConfig, "kernels (default: all), shapes (default: fit for the device), how it is run"
    )
    add_output_flags(parser)
    return parser


def make_configs(args: argparse.Namespace, device_type: str) -> list[KernelConfig]:
    """The kernels and shapes in order, each once; a ValueError says which is impossible."""
    defaults = {name: (value,) for name, value in DEFAULTS[device_type].items()}
    values = argparse.Namespace(**{"kernel": KERNELS} | defaults | vars(args))
    configs = [KernelConfig(**given) for given in cross_product(values, field_names(KernelConfig))]
    if len({(config.device, config.threads) for config in configs}) > 1:
        raise ValueError("--device and --threads take one value: all kernels are measured in one process")
    return list({str(case_settings(config, "", ())): config for config in configs}.values())


def main(argv: list[str] | None = None) -> int:
    """Compare what `argv` asks for, print it, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        first = make_configs(args, "cpu")[0]  # a typo is found before torch is imported
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
    return conclude(parser, args, kernel_table, summary, result, num_rows, problems)


def _make_groups(args: argparse.Namespace, device: Any) -> list[Any]:
    """A group for each kernel and shape."""
    from cs_systems.bench import kernel_run
    from cs_systems.bench.contest import timers_of
    from cs_systems.bench.groups import Group

    passes = getattr(args, "pass", PASSES)
    timers = timers_of(device)
    groups = []
    for config in make_configs(args, device.type):
        config = replace(config, device=device.type, rounds=config.rounds or ROUNDS[device.type])
        names = getattr(args, "implementation", IMPLEMENTATIONS_OF[config.kernel])
        groups.append(Group(
            label=f"{config.kernel}, {shape_of(config)}",
            cases={name: case_settings(config, name, passes) for name in names},
            find_obstacle=functools.partial(kernel_run.find_obstacle, config, device=device),
            measure=functools.partial(
                kernel_run.run_kernel, config, passes=passes, device=device, timers=timers
            ),
            num_passes=len(passes_of(config.kernel, passes)),
            rounds=config.rounds,
            work=max(moved_bytes(config).values()),
        ))  # fmt: skip
    return groups


def _row_label(record: BenchmarkRecord) -> str:
    return f"{record.case['kernel']}, {record.case['implementation']}"


if __name__ == "__main__":
    sys.exit(main())
