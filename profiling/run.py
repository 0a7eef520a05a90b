"""See where the time of a training step goes, with nsys or without it.

    python profiling/run.py --model small --context-length 128,256
    nsys profile -c cudaProfilerApi --capture-range-end=stop -o small python profiling/run.py --model small
    python profiling/run.py report small.nsys-rep --html small.html
    python profiling/run.py compare A.json.gz B.json.gz
    python profiling/run.py saved --model small --checkpoint-blocks 0,1 --compile off,on

Without nsys each case is recorded by torch.profiler and reported at once; on a machine without a GPU the
operators of the CPU stand where the kernels would. Under nsys only ranges are emitted, and the measured steps
are marked; `report` reads what nsys wrote and prints the same tables. `saved` lists what one block keeps for
backward. Flags are those of benchmark.py; lists are crossed, and the last tables show all cases side by side.

Exit codes: 0 done, 1 a case did not fit or a file could not be stored, 2 bad usage or an unreadable file,
130 interrupted; what was recorded before is kept.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import typing
from collections.abc import Sequence

from cs_systems.bench.workload import Case, WorkloadConfig
from cs_systems.cli import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Parser,
    add_flags,
    command_line,
    cross_product,
    field_names,
    leave_with,
    list_of,
    only_fields,
)
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import resolve_model
from cs_systems.report.html import render_page
from cs_systems.tables import Style, Table, render_table, table_as_json
from cs_systems.timing.timer import TimingConfig
from cs_systems.tracing.memory_table import peak_table
from cs_systems.tracing.read import read_trace
from cs_systems.tracing.tables import all_tables, combined_table, compare_tables
from cs_systems.tracing.trace import RunFacts, Trace, read_facts

PROGRAM = "profiling/run.py"
FOLDER = pathlib.Path("results/local/profile")
STEPS = {"warmup_steps": 1, "steps": 3}
"""A recorded step is large (megabytes of events), and three show whether they are alike."""


def make_parser() -> Parser:
    """The flags of a recording; the other commands have parsers of their own."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add_case_flags(parser)
    group = parser.add_argument_group("recording")
    group.add_argument("--output-dir", type=pathlib.Path, default=FOLDER, metavar="FOLDER", help=(
        f"where traces and pages go (default: {FOLDER})"))  # fmt: skip
    group.add_argument("--name", metavar="NAME", help="of the files (default: made from the case)")
    group.add_argument("--memory", action="store_true", help="record every allocation as well")
    add_table_flags(parser)
    return parser


def add_case_flags(parser: Parser) -> None:
    """What is run."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", type=list_of(str), metavar="NAME", default=argparse.SUPPRESS,
        help="preset (default: small; python benchmark.py --list-models)",
    )  # fmt: skip
    add_flags(parser, ModelConfig, "model, in place of or on top of a preset")
    add_flags(parser, WorkloadConfig, "workload")
    add_flags(
        parser, TimingConfig, f"clock (here --warmup-steps {STEPS['warmup_steps']}, --steps {STEPS['steps']})"
    )


def add_table_flags(parser: Parser) -> None:
    """How tables are printed."""
    group = parser.add_argument_group("tables")
    group.add_argument("--format", choices=typing.get_args(Style), default="table", help="(default: table)")
    group.add_argument(
        "--top", type=at_least_1, default=10, metavar="N", help="kernels listed a range (default: 10)"
    )
    group.add_argument("--full-names", action="store_true", help="kernel names with all their arguments")


def at_least_1(text: str) -> int:
    """A count, for argparse."""
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return count


def main(argv: list[str] | None = None) -> int:
    """Record, report or compare, whichever `argv` asks for; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    commands = {"report": report, "compare": compare, "saved": saved}
    try:
        return commands[argv[0]](argv[1:]) if argv and argv[0] in commands else record(argv)
    except KeyboardInterrupt:
        tell("interrupted")
        return EXIT_INTERRUPTED


def report(argv: list[str]) -> int:
    """`report FILE...`: the tables of recorded runs."""
    parser = Parser(prog=f"{PROGRAM} report", description="Tables, and a page, of what a profiler recorded.")
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE", help=(
        ".json or .json.gz of torch.profiler, .sqlite or .nsys-rep of nsys"))  # fmt: skip
    parser.add_argument("--html", type=pathlib.Path, metavar="FILE.html", help="write a page too (one FILE)")
    add_table_flags(parser)
    args = parser.parse_args(argv)
    if args.html and len(args.files) > 1:
        parser.error("--html takes one FILE; a page shows one run")
    try:
        runs = [(read_trace(path), read_facts(path)) for path in args.files]
    except ValueError as error:
        parser.error(str(error))
    for path, (trace, facts) in zip(args.files, runs, strict=True):
        print_run(path, trace, facts, args)
    print_combined(runs, args)
    if args.html:
        try:
            write_page(args.html, *runs[0], args)
        except OSError as error:
            tell(f"cannot write {args.html}: {error.strerror}")
            return EXIT_FAILED
    return EXIT_OK


def compare(argv: list[str]) -> int:
    """`compare A B`: two runs, range by range and class by class."""
    parser = Parser(prog=f"{PROGRAM} compare", description="Two recorded runs side by side.")
    parser.add_argument("before", type=pathlib.Path, metavar="A")
    parser.add_argument("after", type=pathlib.Path, metavar="B")
    add_table_flags(parser)
    args = parser.parse_args(argv)
    try:
        tables = compare_tables(read_trace(args.before), read_trace(args.after))
    except ValueError as error:
        parser.error(str(error))
    print_tables(tables, args)
    return EXIT_OK


def saved(argv: list[str]) -> int:
    """`saved`: which operations of one block keep what for backward, beside the formula."""
    parser = Parser(prog=f"{PROGRAM} saved", description="What one Transformer block keeps for backward.")
    add_case_flags(parser)
    add_table_flags(parser)
    args = parser.parse_args(argv)
    try:
        cases = make_cases(args)
    except ValueError as error:
        parser.error(str(error))
    from cs_systems.bench.saved_tensors import saved_table
    from cs_systems.bench.training import prepare_device
    from cs_systems.device import UnsupportedError

    try:
        print_tables([saved_table(case, prepare_device(case.workload), args.top) for case in cases], args)
    except UnsupportedError as error:
        parser.error(str(error))
    return EXIT_OK


def record(argv: list[str]) -> int:
    """Run the cases under the profiler and report each."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        cases = make_cases(args)
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if args.name and len(cases) > 1:
        parser.error(f"--name is for one case, and these are {len(cases)}")
    from cs_systems.bench.profile_case import is_under_nsys, profile_case  # torch, which --help does without
    from cs_systems.bench.training import prepare_device
    from cs_systems.device import UnsupportedError

    if is_under_nsys() and len(cases) > 1:
        parser.error(f"nsys records one case at a time, and these are {len(cases)}; give single values")
    try:
        for case in cases:
            prepare_device(case.workload)  # refuse what cannot run here before an hour went into the others
    except UnsupportedError as error:
        parser.error(str(error))
    command = command_line(PROGRAM, argv)
    runs: list[tuple[Trace, RunFacts | None]] = []
    exit_code = EXIT_OK
    try:
        for case in cases:
            name = args.name or stem(case, cases)
            path = args.output_dir / f"{name}.json.gz"
            tell(f"recording {name}")
            run = profile_case(case, prepare_device(case.workload), path, command, memory=args.memory)
            if run.reason is not None:
                exit_code = EXIT_FAILED
                tell(f"{name}: skipped, {run.reason}")
            elif is_under_nsys():
                tell("nsys writes its report when this program ends. If it was started with")
                tell(f"-o {args.output_dir / name}, the tables are printed by:")
                print(f"python {PROGRAM} report {args.output_dir / name}.nsys-rep")
            else:
                trace = read_trace(path)
                print_run(path, trace, run.facts, args)
                write_page(args.output_dir / f"{name}.html", trace, run.facts, args)
                runs.append((trace, run.facts))
    except UnsupportedError as error:
        parser.error(str(error))
    except OSError as error:
        tell(f"cannot store {error.filename or path}: {error.strerror}; choose another --output-dir")
        exit_code = EXIT_FAILED
    except KeyboardInterrupt:
        tell(f"interrupted; {len(runs)} of {len(cases)} cases are complete")
        exit_code = EXIT_INTERRUPTED
    print_combined(runs, args)
    return exit_code


def tell(message: str) -> None:
    """A line for people, beside the tables."""
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def make_cases(args: argparse.Namespace) -> list[Case]:
    """The cross product of everything typed."""
    cases = []
    for given in cross_product(args, ["model", *field_names(ModelConfig, WorkloadConfig, TimingConfig)]):
        label, model = resolve_model(given.pop("model", None), only_fields(ModelConfig, given))
        workload = WorkloadConfig(**only_fields(WorkloadConfig, given))
        timing = TimingConfig(**STEPS | only_fields(TimingConfig, given))
        cases.append(Case(label, model, workload, timing))
    return cases


def stem(case: Case, cases: Sequence[Case]) -> str:
    """Name of the files of a case: model, context length, what is unusual, and what differs between cases.

    The label of a model tells what was changed in it, but for the size of its vocabulary.
    """
    mine, usual = case.settings(), dataclasses.asdict(WorkloadConfig())
    settings = [other.settings() for other in cases]
    apart = ("batch_size", "device", "threads", "seed")  # worth a word only where they differ
    words = [mine["model"], mine["context_length"]]
    if len({other["vocab_size"] for other in settings if other["model"] == mine["model"]}) > 1:
        words.append(mine["vocab_size"])
    for name in (*usual, *STEPS):
        differs = len({str(other[name]) for other in settings}) > 1
        if differs or (name in usual and name not in apart and mine[name] != usual[name]):
            words.append(word_for(name, mine[name]))
    return "-".join(map(str, words)).replace("/", "_").replace(" ", "_")


def word_for(name: str, value: object) -> str:
    """A setting as part of a file name: a word speaks for itself, a number or a switch does not."""
    return value if isinstance(value, str) else f"{name}_{value}"


def print_run(path: pathlib.Path, trace: Trace, facts: RunFacts | None, args: argparse.Namespace) -> None:
    """Every table of one run, and what the reader should know about the recording."""
    if args.format in ("table", "md"):
        print(f"\n{path}: {origin(trace, facts)}\n")
    print_tables(all_tables(trace, facts, top=args.top, full_names=args.full_names), args)
    for problem in trace.meta.get("problems", ()):
        tell(f"{path.name}: {problem}")


def origin(trace: Trace, facts: RunFacts | None) -> str:
    """Which tool recorded it, on what, from which code, and when."""
    tool, device = trace.meta.get("tool"), trace.meta.get("device")
    if facts is None:
        return f"recorded by {tool} on {device}"
    parts = [
        f"{facts.model}, {facts.seq_len} tokens, {facts.mode}, {facts.precision}, {facts.attention} attention"
    ]
    parts += [f"recorded by {tool}", facts.device]
    parts += [
        f"{facts.threads} threads",
        f"torch {facts.torch}",
        f"commit {facts.commit}",
        facts.time_utc[:10],
    ]
    return ", ".join(parts)


def print_tables(tables: Sequence[Table], args: argparse.Namespace) -> None:
    """Some tables in the style asked for."""
    for table in tables:
        print(render_table(table, args.format))
        if args.format in ("table", "md"):
            print()


def print_combined(runs: Sequence[tuple[Trace, RunFacts | None]], args: argparse.Namespace) -> None:
    """All runs side by side, and for people's tables the same as JSON in the last line."""
    if not runs:
        return
    combined = {"forward": combined_table(runs), "memory": peak_table(runs)}
    shown = {name: table for name, table in combined.items() if table.rows}
    print_tables(list(shown.values()), args)
    if args.format == "table":
        print(json.dumps({"experiment": "profile"} | {name: table_as_json(shown[name]) for name in shown}))


def write_page(path: pathlib.Path, trace: Trace, facts: RunFacts | None, args: argparse.Namespace) -> None:
    """The page of one run."""
    tables = all_tables(trace, facts, top=args.top, full_names=args.full_names)
    title = f"{facts.model}, {facts.seq_len} tokens, {facts.mode}" if facts else path.stem
    path.write_text(render_page(trace, tables, facts, title), encoding="utf-8")
    tell(f"wrote {path}")


if __name__ == "__main__":
    leave_with(main)
