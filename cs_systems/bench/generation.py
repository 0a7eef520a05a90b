"""Generate text with each engine at growing batch sizes, until memory runs out; tables in published layouts.

    python -m cs_systems.bench.generation --model tiny --prompt-len 32 --batch-size 1,2,4,...,64
    python -m cs_systems.bench.generation --engine ours,hf --precision fp32,bf16 --output runs.jsonl --resume
    python -m cs_systems.bench.generation --batch-size 1,2,4,... --memory-limit-gib 1 --layout frontier
    python -m cs_systems.bench.generation --records runs.jsonl --layout bigcode --plots folder
    python -m cs_systems.bench.generation --side-by-side

Before it measures, it predicts the largest batch of each column from weights and cache; a column ends at its
first point that runs out of memory, which is a row with the account. Every point has a process of its own.
Every flag takes one value or a list; lists are crossed. Batch sizes may be ranges: 8-64+8, 8-64*2, and three
dots go on, without an end until memory runs out. The default takes about a minute; the last line is JSON.

--side-by-side lets our engines and Hugging Face take turns in one process, and prints how many times as fast
ours are.
"""

import argparse
import functools
import os
import pathlib
import sys
from collections.abc import Sequence

from cs_systems.bench import generation_contest_table as contest_table
from cs_systems.bench.generation_case import (
    DEFAULT_MODEL,
    GenerationCase,
    GenerationWorkload,
    check_case,
    int8_obstacle,
    parse_batch_sizes,
)
from cs_systems.bench.generation_sweep import GenerationColumn, GenerationResult, run_columns
from cs_systems.bench.progress import Progress
from cs_systems.bench.record import BenchmarkRecord, check_writable, read_records
from cs_systems.bench.sweep import WorkerError
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
    one_of,
    only_fields,
)
from cs_systems.inference.tokenizer import load_tokenizer
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import resolve_model
from cs_systems.report.generation import LAYOUTS, render_generation
from cs_systems.report.generation_plots import draw_generation
from cs_systems.report.generation_published import ALIASES, SOURCES
from cs_systems.report.generation_rows import of_generation
from cs_systems.tables import render_table

PROGRAM = "-m cs_systems.bench.generation"
DEFAULT_BATCH_SIZES = ((1, 2, 4), False)
DEFAULT_LAYOUTS = ("points", "frontier", "bigcode")


LEAST_LIMIT_GIB = 0.1
"""Libraries take tens of MiB for themselves, which no account of weights and cache knows."""


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--model", type=list_of(str), metavar="NAME", default=argparse.SUPPRESS,
        help=f"preset (see `python benchmark.py --list-models`; default: {DEFAULT_MODEL})",
    )  # fmt: skip
    group.add_argument(
        "--batch-size", type=parse_batch_sizes, metavar="N,...", default=None,
        help="sequences generated together: a list, ranges, or a ladder such as 1,2,4,... (default: 1,2,4)",
    )  # fmt: skip
    group.add_argument(
        "--side-by-side", action="store_true", help="our engines and Hugging Face in turns in one process"
    )
    group.add_argument(
        "--records", type=pathlib.Path, metavar="FILE.jsonl", help="measure nothing: show what is stored here"
    )
    add_flags(parser, GenerationWorkload, "generation")
    add_flags(parser, ModelConfig, "model, on top of the preset")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--layout", type=list_of(functools.partial(one_of, choices=LAYOUTS)), metavar="|".join(LAYOUTS),
        default=DEFAULT_LAYOUTS, help=f"tables (default: {','.join(DEFAULT_LAYOUTS)})",
    )  # fmt: skip
    sources = (*SOURCES, *ALIASES)
    shown.add_argument(
        "--compare-published", type=functools.partial(one_of, choices=sources), metavar="|".join(sources),
        help="put published values beside ours, marked as such, with the names of the devices",
    )  # fmt: skip
    shown.add_argument(
        "--plots", type=pathlib.Path, metavar="FOLDER", help="draw throughput and latency against batch size"
    )
    add_output_flags(parser)
    return parser


def make_columns(args: argparse.Namespace) -> list[GenerationColumn]:
    """The columns of everything typed; a ValueError says which is impossible and why."""
    sizes, is_open = args.batch_size or DEFAULT_BATCH_SIZES
    columns = []
    for given in cross_product(args, ["model", *field_names(ModelConfig, GenerationWorkload)]):
        workload = GenerationWorkload(**only_fields(GenerationWorkload, given))
        if 0 < workload.memory_limit_gib < LEAST_LIMIT_GIB:
            raise ValueError(
                f"--memory-limit-gib {workload.memory_limit_gib:g} is below {LEAST_LIMIT_GIB:g}: buffers "
                "of libraries decide and may crash; use a larger limit, or a larger model"
            )
        label, model = resolve_model(given.pop("model", DEFAULT_MODEL), only_fields(ModelConfig, given))
        cases = [GenerationCase(label, model, workload, size) for size in sizes]
        check_case(cases[0])
        columns.append(GenerationColumn(cases, is_open))
    works = [column.cases[0].workload for column in columns]
    if len({(work.device, work.threads) for work in works}) > 1:
        raise ValueError("--device and --threads take one value: one machine is measured")
    for name in {work.tokenizer for work in works}:
        load_tokenizer(name or None)  # a missing file is a usage error before anything runs
    if all(work.precision == "int8" for work in works):
        obstacles = [int8_obstacle(column.cases[0].model) for column in columns]
        if all(obstacles):
            raise ValueError(f"--precision int8: {obstacles[0]}")
    return columns


def main(argv: list[str] | None = None) -> int:
    """Measure what `argv` asks for, print it, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # Threads that spin while they wait take the core that a neighbour needs to finish, and a step takes many
    # times as long. On a quiet machine it makes no difference. It is read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.resume and args.output is None:
        parser.error("--resume needs --output FILE.jsonl, the file whose finished points are kept")
    try:
        if args.output is not None:
            check_writable(args.output)
        if args.records is not None:
            stored, problems = read_records(args.records)
            return _show(parser, args, stored, problems)
        if args.side_by_side:
            from cs_systems.bench.generation_contest import run_contests  # torch takes seconds to import

            return run_contests(parser, args, command_line(PROGRAM, argv))
        columns = make_columns(args)
        finished, problems = _load_finished(args)
    except ValueError as error:
        parser.error(str(error))
    try:
        result = run_columns(
            columns, command_line(PROGRAM, argv), args.output, finished, Progress(sys.stderr),
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    except WorkerError as error:
        print(f"{parser.prog}: the measuring process could not start: {error}", file=sys.stderr)
        return EXIT_FAILED
    if result.unsupported:
        print(f"{parser.prog}: {result.unsupported}", file=sys.stderr)
        return EXIT_USAGE
    result.problems = [*problems, *result.problems]
    return _conclude(parser, args, result)


def _show(
    parser: Parser, args: argparse.Namespace, stored: Sequence[BenchmarkRecord], problems: list[str]
) -> int:
    """The tables of what is stored, of both experiments."""
    contests = {record.key: record for record in stored if record.experiment == contest_table.EXPERIMENT}
    if contests:
        print(render_table(contest_table.contest_table(list(contests.values())), args.format), end="\n\n")
    return _conclude(parser, args, GenerationResult(of_generation(stored), problems=problems))


def _load_finished(args: argparse.Namespace) -> tuple[dict[str, BenchmarkRecord], list[str]]:
    """The points of --output that need not be measured again: what ran, and what ran out of memory."""
    if not args.resume or not args.output.exists():
        return {}, []
    stored, problems = read_records(args.output)
    return {record.key: record for record in stored if record.status in ("ok", "oom")}, problems


def _conclude(parser: Parser, args: argparse.Namespace, result: GenerationResult) -> int:
    """Print the tables, draw the plots, say what went wrong; returns the exit code."""
    problems = list(result.problems)
    if result.records:
        print(render_generation(result.records, args.format, _layouts(args), args.compare_published))
        if args.plots is not None:
            try:
                files, remarks = draw_generation(result.records, args.plots)
            except ValueError as error:
                files, remarks = [], [str(error)]
            problems += remarks
            for file in files:
                print(f"wrote {file}", file=sys.stderr)
    for problem in problems:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
    if result.interrupted:
        kept = sum(record.status in ("ok", "oom") for record in result.records)
        print(f"{parser.prog}: interrupted; {kept} points are complete", file=sys.stderr)
        return EXIT_INTERRUPTED
    failed = result.problems or any(record.status == "failed" for record in result.records)
    return EXIT_FAILED if failed else EXIT_OK


def _layouts(args: argparse.Namespace) -> Sequence[str]:
    """The layouts asked for; BigCode's with its published columns when they are asked for."""
    wants = args.compare_published in ("bigcode", "seed-000")
    return [f"{name}-published" if wants and name == "bigcode" else name for name in args.layout]


if __name__ == "__main__":
    sys.exit(main())
