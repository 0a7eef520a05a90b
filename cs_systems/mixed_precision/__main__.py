"""Experiments on numbers of few bits.

    python -m cs_systems.mixed_precision accumulation --value 0.01 --steps 1000
    python -m cs_systems.mixed_precision autocast --model toy,tiny --dtype fp16,bf16
    python -m cs_systems.mixed_precision layer-norm --scale 1,300
    python -m cs_systems.mixed_precision train --precision fp32,bf16,fp16,fp16-noscale,pure-bf16

accumulation: where the digits of a long sum go. autocast: the dtype of everything, and the rule behind it.
layer-norm: which of its operations overflows fp16 or loses digits in bf16. train: a small model on real text
in several precisions. Every flag takes one value or a list. The last line is JSON.

Exit codes: 0 done, 1 a case failed or a file could not be written, 2 bad usage, 130 interrupted; what was
measured is printed and stored in every case.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cs_systems.bench.progress import Progress
from cs_systems.bench.record import (
    BenchmarkRecord,
    append_record,
    case_key,
    check_writable,
    read_records,
)
from cs_systems.cli import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Parser,
    add_flags,
    add_output_flags,
    command_line,
    cross_product,
    field_names,
    leave_with,
    parse_command,
)
from cs_systems.mixed_precision.settings import (
    AccumulationConfig,
    AutocastConfig,
    LayerNormConfig,
    TrainingConfig,
)
from cs_systems.report import accumulation, autocast, layer_norm, training_stability
from cs_systems.tables import Table, render_table, table_as_json

PROGRAM = "-m cs_systems.mixed_precision"


@dataclass(frozen=True)
class Experiment:
    """One command: the class of its settings, and where it is run and shown."""

    settings: Any
    summary: str
    report: ModuleType
    """Has `tables`, `draw` and `summary` of its records."""
    defaults: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Lists that are taken where the flag is not typed."""


EXPERIMENTS = {
    "accumulation": Experiment(
        AccumulationConfig, "where the digits of a long sum go", accumulation,
        {"dtypes": ("fp32", "fp16", "bf16")},
    ),
    "autocast": Experiment(AutocastConfig, "the dtype of everything, and the rule behind it", autocast),
    "layer-norm": Experiment(
        LayerNormConfig, "which operation of layer norm overflows or loses digits", layer_norm,
        {"dtype": ("fp16", "bf16"), "scale": (1.0, 300.0)},
    ),
    "train": Experiment(
        TrainingConfig, "a small model on real text in several precisions", training_stability,
        {"precision": ("fp32", "bf16", "fp16", "fp16-noscale", "pure-bf16"), "seed": (0, 1)},
    ),
}  # fmt: skip


def make_parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the program and those of its commands by name."""
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, experiment in EXPERIMENTS.items():
        command = commands.add_parser(name, help=experiment.summary)
        add_flags(command, experiment.settings, "experiment", experiment.defaults)
        add_output_flags(command)
        command.add_argument("--plots", type=pathlib.Path, metavar="FOLDER",
                             help="draw the plots into this folder, as SVG and PNG")  # fmt: skip
        if name == "train":
            command.add_argument(
                "--checkpoints", type=pathlib.Path, metavar="FOLDER",
                help="keep the state of every run there; with --resume, runs continue from it, bit for bit",
            )  # fmt: skip
        command.set_defaults(command=name)
    return parser, dict(commands.choices)


def main(argv: list[str] | None = None) -> int:
    """Run what `argv` asks for, print it, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser, args = parse_command(*make_parsers(), argv)
    experiment = EXPERIMENTS[args.command]
    try:
        if args.resume and args.output is None and getattr(args, "checkpoints", None) is None:
            raise ValueError("--resume needs --output FILE.jsonl, the file whose finished cases are kept")
        names = field_names(experiment.settings)
        configs = [experiment.settings(**given) for given in cross_product(args, names)]
        if args.output is not None:
            check_writable(args.output)
        for flag in ("plots", "checkpoints"):
            folder = getattr(args, flag, None)
            if folder is not None and folder.exists() and not folder.is_dir():
                raise ValueError(f"--{flag} {folder} is a file; name a folder")
        return _run(experiment, configs, args, command_line(PROGRAM, argv))
    except ValueError as error:  # what one configuration alone cannot know: an unknown preset, a missing text
        parser.error(str(error))
    except KeyboardInterrupt:  # before the first case
        return EXIT_INTERRUPTED


def _run(experiment: Experiment, configs: Sequence[Any], args: argparse.Namespace, command: str) -> int:
    finished, problems = _finished(args)
    bench = _body(args.command)
    bench.check_all(configs)
    folder = getattr(args, "checkpoints", None)
    progress = Progress(sys.stderr)
    progress.plan([float(bench.num_steps(config)) for config in configs])
    records, interrupted = [], False
    for config in configs:
        label = _label(config, configs)
        record = finished.get(case_key(experiment.settings.EXPERIMENT, dataclasses.asdict(config)))
        if record is None:
            progress.start_case(label, bench.num_steps(config))
            options = {"checkpoints": folder, "resume": args.resume} if folder else {}
            record, interrupted = bench.run_case(config, command, progress.step, **options)
            if record is None:
                break
            if args.output is not None:
                problems += _store(args.output, record)
        records.append(record)
        progress.finish_case(f"{label}: {record.status}" + (f" ({record.reason})" if record.reason else ""))
        if interrupted:
            break
    return _show(experiment, records, args, problems, interrupted, len(configs))


def _body(command: str) -> Any:
    """The module that runs a case of the command; torch takes seconds to import, so only now."""
    from cs_systems.bench import accumulation, autocast, layer_norm, training_stability

    bodies = {"accumulation": accumulation, "autocast": autocast, "layer-norm": layer_norm}
    return (bodies | {"train": training_stability})[command]


def _finished(args: argparse.Namespace) -> tuple[dict[str, BenchmarkRecord], list[str]]:
    if not args.resume or args.output is None:
        return {}, []
    stored, problems = read_records(args.output)
    return {record.key: record for record in stored if record.status == "ok"}, problems


def _store(output: pathlib.Path, record: BenchmarkRecord) -> list[str]:
    try:
        append_record(output, record)
    except OSError as error:
        return [f"--output {output}: could not store a record ({error.strerror}); it is printed all the same"]
    return []


def _label(config: Any, configs: Sequence[Any]) -> str:
    """The settings that tell this case from the others."""
    values = [dataclasses.asdict(other) for other in configs]
    varying = [name for name in values[0] if len({str(other[name]) for other in values}) > 1]
    return ", ".join(f"{name} {getattr(config, name)}" for name in varying) or config.EXPERIMENT


def _show(
    experiment: Experiment,
    records: Sequence[BenchmarkRecord],
    args: argparse.Namespace,
    problems: list[str],
    interrupted: bool,
    num_cases: int,
) -> int:
    tables: list[Table] = experiment.report.tables(records) if records else []
    if args.format == "json":
        print(json.dumps([table_as_json(table) for table in tables], allow_nan=False, indent=2))
    else:
        print("\n\n".join(render_table(table, args.format) for table in tables))
    files: list[pathlib.Path] = []
    remarks: list[str] = []
    if args.plots is not None and records:
        try:
            files, remarks = experiment.report.draw(records, args.plots)
        except ValueError as error:  # no matplotlib, or the folder cannot be written
            problems.append(str(error))
    if args.format == "table":
        summary = {"experiment": experiment.settings.EXPERIMENT, "records": [
            {"case": dict(record.case), "status": record.status, "metrics": experiment.report.summary(record)}
            for record in records
        ], "files": [str(file) for file in files]}  # fmt: skip
        print(json.dumps(summary, allow_nan=False))
    for problem in [*remarks, *problems]:
        print(f"python {PROGRAM}: {problem}", file=sys.stderr)
    if interrupted:
        kept = sum(record.status == "ok" for record in records)
        print(f"python {PROGRAM}: interrupted; {kept} of {num_cases} cases are complete", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILED if problems or any(record.status != "ok" for record in records) else EXIT_OK


if __name__ == "__main__":
    leave_with(main)
