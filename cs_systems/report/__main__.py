"""Show, compare and plot records that were measured before.

    python -m cs_systems.report table runs.jsonl --format md
    python -m cs_systems.report compare before.jsonl after.jsonl
    python -m cs_systems.report plot runs.jsonl --output-dir plots

With --format table (the default) the last line is JSON.
"""

import argparse
import json
import pathlib
import sys
import typing

from cs_systems.bench.record import BenchmarkRecord, read_records
from cs_systems.cli import EXIT_OK, EXIT_USAGE, Parser, parse_command
from cs_systems.report.compare import compare_records
from cs_systems.report.plots import draw_plots
from cs_systems.report.tables import render_report
from cs_systems.tables import Style, render_table

_PROGRAM = "python -m cs_systems.report"


def make_parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the program and those of its commands by name."""
    parser = Parser(prog=_PROGRAM, description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    table = commands.add_parser("table", help="the tables of FILE again, in any format")
    table.add_argument("file", type=pathlib.Path, metavar="FILE", help="records, one JSON object a line")
    table.set_defaults(run=run_table)
    compare = commands.add_parser("compare", help="is B faster than A? case by case, with the uncertainty")
    compare.add_argument("a", type=pathlib.Path, metavar="A", help="records to compare with")
    compare.add_argument("b", type=pathlib.Path, metavar="B", help="records of the change")
    compare.set_defaults(run=run_compare)
    plot = commands.add_parser("plot", help="warm-up, time against model size and against context length")
    plot.add_argument("file", type=pathlib.Path, metavar="FILE", help="records, one JSON object a line")
    plot.add_argument("--output-dir", type=pathlib.Path, metavar="DIR", default=pathlib.Path("plots"),
                      help="folder for the SVG and PNG files (default: plots)")  # fmt: skip
    plot.set_defaults(run=run_plot)
    for command in (table, compare):
        command.add_argument("--format", choices=typing.get_args(Style), default="table",
                             help="table is followed by one line of JSON (default: table)")  # fmt: skip
    return parser, dict(commands.choices)


def main(argv: list[str] | None = None) -> int:
    """Do what `argv` asks for and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser, args = parse_command(*make_parsers(), argv)
    try:
        return args.run(args)
    except ValueError as error:
        parser.error(str(error))


def run_table(args: argparse.Namespace) -> int:
    """Print the tables of a file."""
    print(render_report(_read(args.file), args.format))
    return EXIT_OK


def run_compare(args: argparse.Namespace) -> int:
    """Print the comparison of two files; it is an error when they have no case in common."""
    result = compare_records(_read(args.a), _read(args.b))
    if result.num_compared == 0:
        _say(*result.table.notes)
        raise ValueError(
            f"{args.a} and {args.b} have no case in common that was measured in both; cases match when all "
            "settings agree, from the model to --steps"
        )
    print(render_table(result.table, args.format))
    if args.format == "table":
        print()
        print(json.dumps({"num_compared": result.num_compared, "verdicts": result.verdicts}))
    return EXIT_OK


def run_plot(args: argparse.Namespace) -> int:
    """Draw the plots of a file and print the paths."""
    files, remarks = draw_plots(_read(args.file), args.output_dir)
    _say(*remarks)
    print(*files, sep="\n")
    print(json.dumps({"files": [str(file) for file in files]}))
    return EXIT_OK if files else EXIT_USAGE


def _read(path: pathlib.Path) -> list[BenchmarkRecord]:
    records, problems = read_records(path)
    _say(*problems)
    if not records:
        raise ValueError(f"{path} is empty: no records to show")
    return records


def _say(*lines: str) -> None:
    for line in lines:
        print(f"{_PROGRAM}: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
