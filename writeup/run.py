"""The write-up: a skeleton to fill in, the measurements it shows, and the document.

    python writeup/run.py new                    # once: writeup/answers.md, which is yours from then on
    python writeup/run.py measure                # what its tables need and no record has yet
    python writeup/run.py build                  # build/writeup.md, .html and .pdf

`--problem benchmarking_script,benchmarking_mixed_precision` does any of these for some problems alone. Tables
and plots come from the records in results/local; nothing measured is typed by hand, except the numbers that
you read off and answer with, and those are compared with your records.

Exit codes: 0 done, 1 something is wrong, or a measurement is missing, 2 bad usage or an unreadable file, 130
interrupted; what was measured is kept.
"""

import argparse
import difflib
import pathlib
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Sequence

from cs_systems.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Parser, list_of, parse_command
from cs_systems.grading.answers import check_answers, messages, verdict_table
from cs_systems.grading.blocks import Answers, parse_answers, read_answers
from cs_systems.grading.evidence import Evidence
from cs_systems.grading.items import Problem, Verdict
from cs_systems.grading.problems import PROBLEMS
from cs_systems.report.views import commands_of
from cs_systems.report.writeup import build
from cs_systems.tables import Style, render_table

PROGRAM = "writeup/run.py"
ROOT = pathlib.Path(__file__).parents[1]
QUESTIONS = pathlib.Path(__file__).with_name("questions.md")
ANSWERS = pathlib.Path("writeup/answers.md")
RECORDS = pathlib.Path("results/local")

_SECTION = re.compile(r"^## +\S+ +(?P<id>\w+)", re.MULTILINE)
# BEGIN INSTRUCTOR
_OPEN = ("missing", "not measured")
# END INSTRUCTOR


def make_parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the program and those of its commands by name."""
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    new = commands.add_parser("new", help="write the skeleton; an existing file is never touched")
    measure = commands.add_parser("measure", help="run the commands whose records the tables need")
    measure.add_argument("--list", action="store_true", help="print the commands and run none")
    runs = {new: run_new, measure: run_measure}
    # BEGIN INSTRUCTOR
    check = commands.add_parser("check", help="check every answer and say what is wrong, not what is right")
    check.add_argument("--format", choices=typing.get_args(Style), default="table", help="(default: table)")
    runs[check] = run_check
    # END INSTRUCTOR
    make = commands.add_parser("build", help="put tables and plots in, and write Markdown, HTML and PDF")
    make.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("build"), metavar="FOLDER",
                      help="where to (default: build)")  # fmt: skip
    runs[make] = run_build
    # BEGIN INSTRUCTOR
    for command in (check, make):
        command.add_argument(
            "--strict", action="store_true", help="unanswered questions and wrong answers are errors"
        )
    # END INSTRUCTOR
    for command, run in runs.items():
        command.add_argument("--answers", type=pathlib.Path, default=ANSWERS, metavar="FILE.md",
                             help=f"the write-up (default: {ANSWERS})")  # fmt: skip
        command.add_argument("--problem", type=list_of(str), default=(), metavar="NAME",
                             help="these problems alone (default: all that the file has)")  # fmt: skip
        if command is not new:
            command.add_argument("--records", type=pathlib.Path, default=RECORDS, metavar="FOLDER",
                                 help=f"your measurements (default: {RECORDS})")  # fmt: skip
        command.set_defaults(run=run)
    return parser, dict(commands.choices)


def main(argv: list[str] | None = None) -> int:
    """Do what `argv` asks for and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser, args = parse_command(*make_parsers(), argv)
    try:
        return args.run(args)
    except ValueError as error:
        parser.error(str(error))


def run_new(args: argparse.Namespace) -> int:
    """Copy the questions, or those of some problems, to a file that does not exist yet."""
    problems = _chosen_problems(args)
    text = _sections(QUESTIONS.read_text(encoding="utf-8"), problems, str(QUESTIONS))
    try:
        with args.answers.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{args.answers} exists and is yours: move it away first, or name another "
                         "place with --answers") from None  # fmt: skip
    except OSError as error:
        raise ValueError(
            f"{args.answers}: cannot write ({error.strerror}); choose another --answers"
        ) from None
    print(f"{args.answers} has the questions of {len(problems)} problems. Next: make measure")
    return EXIT_OK


def run_measure(args: argparse.Namespace) -> int:
    """Run each command that the measured blocks of the write-up, or of the skeleton, still need."""
    answers = _read(args) if args.answers.exists() else _only(read_answers(QUESTIONS), _chosen_problems(args))
    commands = commands_of(answers.measured, args.records)
    if args.list or not commands:
        print(*(commands or ["everything that the write-up shows is measured"]), sep="\n")
        return EXIT_OK
    try:
        args.records.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--records {args.records}: cannot be a folder ({error.strerror})") from None
    failed = []
    for number, command in enumerate(commands, start=1):
        print(f"[{number}/{len(commands)}] {command}", flush=True)
        program, *words = shlex.split(command)
        assert program == "python"
        try:
            code = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        if code == EXIT_INTERRUPTED:
            print(f"python {PROGRAM}: interrupted; type it again to go on", file=sys.stderr)
            return EXIT_INTERRUPTED
        if code != EXIT_OK:
            failed.append(command)
    for command in failed:
        print(f"python {PROGRAM}: this ended with an error, see above: {command}", file=sys.stderr)
    return EXIT_FAILED if failed else EXIT_OK


# BEGIN INSTRUCTOR
def run_check(args: argparse.Namespace) -> int:
    """Print a line for every answer that is not right, and a table of the problems."""
    evidence, verdicts, problems = _check(args)
    if args.format == "table":
        print(*messages(verdicts), "", sep="\n")
    print(render_table(verdict_table(verdicts, problems), args.format))
    _say(*evidence.problems)
    return _outcome(verdicts, args.strict)


# END INSTRUCTOR


def run_build(args: argparse.Namespace) -> int:
    """Write the document; what is missing is said in it and on standard error."""
    table, said, code = None, [], EXIT_OK
    # BEGIN INSTRUCTOR
    evidence, verdicts, problems = _check(args)
    table = verdict_table(verdicts, problems)
    print(render_table(table, "table"))
    said = [*messages(each for each in verdicts if each.status == "unreadable"), *evidence.problems]
    code = _outcome(verdicts, args.strict) if args.strict else EXIT_OK
    # END INSTRUCTOR
    result = build(_read(args), args.records, args.output_dir, table)
    print(*result.files, sep="\n")
    _say(*dict.fromkeys([*said, *result.problems]), *(each.line for each in result.missing))
    return EXIT_FAILED if result.missing or result.problems else code


# BEGIN INSTRUCTOR
def _check(args: argparse.Namespace) -> tuple[Evidence, list[Verdict], Sequence[Problem]]:
    answers, evidence = _read(args), Evidence(args.records)
    answered = {block.id.split(".")[0] for block in answers.blocks}
    problems = [problem for problem in PROBLEMS if problem.id in answered]
    return evidence, check_answers(answers, evidence, problems), problems


# END INSTRUCTOR


def _chosen_problems(args: argparse.Namespace) -> Sequence[Problem]:
    by_id = {problem.id: problem for problem in PROBLEMS}
    for name in args.problem:
        if name not in by_id:
            near = difflib.get_close_matches(name, by_id, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(by_id)}"
            raise ValueError(f"--problem {name} is unknown; {hint}")
    return [by_id[name] for name in args.problem] or PROBLEMS


def _read(args: argparse.Namespace) -> Answers:
    return _only(read_answers(args.answers), _chosen_problems(args))


def _only(answers: Answers, problems: Sequence[Problem]) -> Answers:
    """The write-up without the sections of other problems."""
    if len(problems) == len(PROBLEMS):
        return answers
    text = "".join(piece.source for piece in answers.pieces)
    return parse_answers(_sections(text, problems, answers.name), answers.name)


def _sections(text: str, problems: Sequence[Problem], name: str) -> str:
    """What stands before the first section, and the sections of `problems`, which open with `## 1 id`."""
    found = {match["id"]: match.start() for match in _SECTION.finditer(text)}
    ends = dict(zip(found, [*list(found.values())[1:], len(text)], strict=True))
    for problem in problems:
        if problem.id not in found:
            raise ValueError(f"{name} has no section '## ... {problem.id}'")
    kept = [text[found[problem.id] : ends[problem.id]] for problem in problems]
    return text[: min(found.values())] + "".join(kept)


# BEGIN INSTRUCTOR
def _outcome(verdicts: Sequence[Verdict], strict: bool) -> int:
    fine = ("right",) if strict else ("right", *_OPEN)
    return EXIT_OK if all(verdict.status in fine for verdict in verdicts) else EXIT_FAILED


# END INSTRUCTOR


def _say(*lines: str) -> None:
    for line in lines:
        print(f"python {PROGRAM}: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
