"""Time forward, backward and optimizer step of a Transformer language model.

    python benchmark.py --d-model 1024 --num-layers 24
    python benchmark.py --model small,medium --warmup-steps 0,1,5
    python benchmark.py --model small --precision fp32,bf16 --attention naive,sdpa --output runs.jsonl

Every flag below takes one value or a comma-separated list; lists are crossed, and every case runs in a fresh
process. Shape flags alone find their preset (d_model 1024 with 24 layers is medium); flags beside --model
change that preset. The last line is JSON.

Exit codes: 0 done (a case that cannot fit is a row), 1 a case failed or could not be stored, 2 bad usage,
130 interrupted; what was measured is printed and stored in every case.
"""

import argparse
import sys

from cs_systems.bench.progress import Progress
from cs_systems.bench.record import check_writable
from cs_systems.bench.sweep import WorkerError, finished_cases, run_sweep
from cs_systems.bench.workload import Case, WorkloadConfig
from cs_systems.cli import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    Parser,
    add_flags,
    add_output_flags,
    command_line,
    cross_product,
    field_names,
    list_of,
    only_fields,
)
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import resolve_model
from cs_systems.report.tables import model_table, render_report
from cs_systems.tables import render_table
from cs_systems.timing.timer import TimingConfig


def make_parser() -> Parser:
    """All flags, made from the dataclasses that they fill."""
    parser = Parser(prog="benchmark.py", description=__doc__)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", type=list_of(str), metavar="NAME", default=argparse.SUPPRESS,
        help="preset (default: small; see --list-models)",
    )  # fmt: skip
    group.add_argument("--list-models", action="store_true", help="print all presets and leave")
    add_flags(parser, ModelConfig, "model, in place of or on top of a preset")
    add_flags(parser, WorkloadConfig, "workload")
    add_flags(parser, TimingConfig, "clock")
    add_output_flags(parser)
    return parser


def make_cases(args: argparse.Namespace) -> list[Case]:
    """The cross product of everything typed; a ValueError says which combination is impossible and why."""
    cases = []
    for given in cross_product(args, ["model", *field_names(ModelConfig, WorkloadConfig, TimingConfig)]):
        label, model = resolve_model(given.pop("model", None), only_fields(ModelConfig, given))
        workload = WorkloadConfig(**only_fields(WorkloadConfig, given))
        cases.append(Case(label, model, workload, TimingConfig(**only_fields(TimingConfig, given))))
    return cases


def main(argv: list[str] | None = None) -> int:
    """Measure what `argv` asks for, print it, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.list_models:
        print(render_table(model_table(), args.format))
        return EXIT_OK
    if args.resume and args.output is None:
        parser.error("--resume needs --output FILE.jsonl, the file whose finished cases are kept")
    try:
        cases = make_cases(args)
        if args.output is not None:
            check_writable(args.output)
        finished, problems = finished_cases(args.output) if args.output and args.resume else ({}, [])
    except ValueError as error:
        parser.error(str(error))
    try:
        result = run_sweep(
            cases, command_line("benchmark.py", argv), args.output, finished, Progress(sys.stderr)
        )
    except WorkerError as error:
        print(f"benchmark.py: the measuring process could not start: {error}", file=sys.stderr)
        return EXIT_FAILED
    if result.records:
        print(render_report(result.records, args.format))
    for problem in problems + result.problems:
        print(f"benchmark.py: {problem}", file=sys.stderr)
    if result.interrupted:
        kept = sum(record.status == "ok" for record in result.records)
        print(f"benchmark.py: interrupted; {kept} of {len(cases)} cases are complete", file=sys.stderr)
        return EXIT_INTERRUPTED
    if result.num_unsupported == len(cases):
        print(f"benchmark.py: {result.records[0].reason}", file=sys.stderr)
        return EXIT_USAGE
    failed = result.problems or any(record.status == "failed" for record in result.records)
    return EXIT_FAILED if failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
