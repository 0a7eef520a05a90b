"""Grade a submission: run the tests beside this file on it, and print its points.

The submission is a folder, or a zip file of one, with tests/adapters.py in it. It is copied and never written
to; its own tests, conftest.py and pytest.ini count for nothing. A test that hangs, crashes or takes too much
memory costs its own points, and the rest goes on. Results are written after every test, so an interruption
loses nothing.

What protects whom from what stands at the top of graded_support/supervise.py: in short, this is proof against
accidents, and a container is needed against malice.

Exit codes: 0 graded, whatever the score; 1 the grader itself failed, or could not write or print the results;
2 bad usage or nothing that can be graded; 130 interrupted.
"""

import argparse
import difflib
import math
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import IO, Any, NoReturn

from graded_support.formats import FORMATS, render_table
from graded_support.output import Output, open_standard_files, say
from graded_support.processes import machine_memory_bytes
from graded_support.record import NOT_REACHED, Record
from graded_support.rubric import problem_of, read_rubric
from graded_support.supervise import Limits, supervise
from graded_support.workspace import KIT, NO_ROOM, Workspace, hash_code, hash_files, remove

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line with a suggestion, and whose flags cannot be shortened.

    `cs_systems.cli` has one like it, which cannot be used here: that package is what is graded.
    """

    def error(self, message: str) -> NoReturn:
        """Print one line that says what is wrong, and leave with exit code 2."""
        line = " ".join(message.split())
        self.exit(EXIT_USAGE, f"{self.prog}: {line}{'' if line.endswith('?') else '.'} See --help.\n")

    def _print_message(self, message: str, file: IO[Any] | None = None) -> None:
        """Print, also where the caller has closed what is printed to."""
        say(file or sys.stderr, message)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, answering an unknown flag with the nearest known one."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            word = unknown[0].split("=")[0]
            self.error(f"unknown argument {word}{_did_you_mean(word, flags)}")
        return known


def make_parser(problems: Sequence[str]) -> Parser:
    """The flags of the command."""
    parser = Parser(
        prog="grade.py",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    memory_gib = default_memory_gib(machine_memory_bytes() / 2**30)
    limits = Limits()
    parser.add_argument("--submission", type=pathlib.Path, default=pathlib.Path("."), metavar="DIR|ZIP",
        help="what is graded (default: the current folder)")  # fmt: skip
    parser.add_argument("--adapters", default="", metavar="FILE",
        help="its adapters, a path within it (default: tests/adapters.py, then adapters.py)")  # fmt: skip
    parser.add_argument("--problem", type=_problems(problems), action="append", metavar="ID,ID",
        help="grade these problems only; may be given again (default: all that have tests)")  # fmt: skip
    parser.add_argument("--format", type=_one_of(list(FORMATS)), default="table", metavar="|".join(FORMATS),
        help="what is written (default: table)")  # fmt: skip
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE",
        help="write it here, anew after every test, and print the table (default: print it)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N",
        help="what hidden tests draw their shapes and numbers from (default: 0)")  # fmt: skip
    parser.add_argument("--show-hidden", action="store_true",
        help="say of hidden tests what they are and why they failed; for instructors")  # fmt: skip
    parser.add_argument("--timeout-scale", type=_positive, default=limits.timeout_scale, metavar="X",
        help="factor on the time limit of each test, for slow machines (default: 1)")  # fmt: skip
    parser.add_argument("--max-minutes", type=_positive, default=limits.max_minutes, metavar="X",
        help=f"time for everything (default: {limits.max_minutes:g})")  # fmt: skip
    parser.add_argument("--max-memory-gib", type=_positive, default=memory_gib, metavar="X",
        help=f"memory of all processes of a test together (default: {memory_gib:.3g}, "
        "half of this machine's, at least 2 if it has them and at most 8)")  # fmt: skip
    return parser


def default_memory_gib(machine_gib: float) -> float:
    """Memory of a test: half of the machine's, but pytest and torch alone take half a GiB of it."""
    return min(machine_gib, max(2.0, min(8.0, machine_gib / 2)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    open_standard_files()
    try:
        problems = read_rubric(KIT / "rubric.toml")
    except (OSError, ValueError) as error:
        say(sys.stderr, f"grade.py: {error}\n")
        return EXIT_FAILED
    files = sorted(path.relative_to(KIT).as_posix() for path in KIT.rglob("test_*.py"))
    have_tests = {problem_of(name) for name in files}
    parser = make_parser([problem.id for problem in problems if problem.id in have_tests])
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    if not args.submission.exists():
        parser.error(f"{args.submission} does not exist; give --submission the folder that is graded")
    try:
        output = None if args.output is None else Output(args.output)
    except ValueError as error:
        parser.error(f"--output {args.output} cannot be written: {error}")
    wanted = {name for group in args.problem or [have_tests] for name in group}
    chosen = tuple(problem for problem in problems if problem.id in wanted)
    record = Record(
        chosen,
        absent_note=_read_hidden_note(),
        about={"submission": args.submission.absolute().name, "seed": args.seed},
    )
    record.about |= {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "kit_sha256": hash_files(KIT),
    }
    for number in ENDING_SIGNALS:
        signal.signal(number, _interrupt)
    started = time.monotonic()

    def write(record: Record) -> None:
        record.about["duration_s"] = round(time.monotonic() - started, 1)
        if output is not None:
            output.write(FORMATS[args.format](record, show_hidden=args.show_hidden))
        _show_progress(record)

    record.changed = write
    record.expect_files([name for name in files if problem_of(name) in wanted])
    if output is not None and output.trouble:
        parser.error(f"--output {args.output} cannot be written: {output.trouble}")
    code, problem = _grade(args, record)
    record.keep_pending()
    problems_at_end = [problem] if problem else []
    if output is not None and output.trouble:
        problems_at_end.append(f"the newest results are not in {args.output}: {output.trouble}")
    if not _print_end(args, record, is_written=len(problems_at_end) == bool(problem)):
        problems_at_end.append("the results could not be printed: standard output is closed or full")
    for each in problems_at_end:
        say(sys.stderr, f"grade.py: {each}.\n")
    return code or (EXIT_FAILED if problems_at_end else EXIT_OK)


def _grade(args: argparse.Namespace, record: Record) -> tuple[int, str]:
    """Grade into the record, and leave nothing else behind; the exit code, and why it is not 0."""
    code, problem = EXIT_OK, ""
    folder = None
    limits = Limits(args.timeout_scale, args.max_minutes, args.max_memory_gib)
    try:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="grade-")).resolve()
        workspace = Workspace(folder)
        try:
            workspace.take(args.submission)
            adapters = workspace.find_adapters(args.adapters)
        except ValueError as error:
            code, problem = EXIT_USAGE, str(error)
            record.fail_all(problem)
        else:
            record.about["submission_sha256"] = hash_files(workspace.original)
            record.about["code_sha256"] = hash_code(workspace.original)
            if not supervise(record, workspace, adapters, args.seed, limits):
                code = EXIT_FAILED
                problem = f"the grader itself failed{_why(record)}"
    except KeyboardInterrupt:
        code, problem = EXIT_INTERRUPTED, "interrupted; the results are those until then"
        record.remarks.append(problem)
    except OSError as error:
        code, problem = EXIT_FAILED, f"grading failed: {error}"
        if error.errno in NO_ROOM or folder is None:
            why = error.strerror if error.errno in NO_ROOM else "no folder there can be written"
            problem = f"cannot copy the submission to TMPDIR ({why}): set TMPDIR to a folder with room"
        record.remarks.append(problem)
    finally:
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if folder is not None:
            remove(folder)
    return code, problem


def _why(record: Record) -> str:
    """The first reason that is known for the end of the grader, and whose fault it is not."""
    broken = [
        result.message
        for result in record.results.values()
        if result.status == NOT_REACHED and result.message != NOT_REACHED
    ]
    reason = "".join(f": {each}" for each in [*broken, *record.remarks][:1])
    no_fault = "no fault of the submission"
    return reason if no_fault in reason else f"{reason}; what is not reached is {no_fault}"


def _print_end(args: argparse.Namespace, record: Record, *, is_written: bool) -> bool:
    """Print the document where no file takes it, or the table of points; False if that cannot be read."""
    if _is_watched():
        say(sys.stderr, "\r\x1b[K")
    width = shutil.get_terminal_size((110, 24)).columns
    text = ""
    if args.output is None and args.format != "table":
        text = FORMATS[args.format](record, show_hidden=args.show_hidden)
    elif record.tests_known:
        text = render_table(record, show_hidden=args.show_hidden, width=max(80, width))
    if args.output is not None and is_written:
        text += f"Written to {args.output}\n"
    return say(sys.stdout, text)


def _show_progress(record: Record) -> None:
    """One line that is written over, for somebody who waits at a terminal."""
    if _is_watched() and record.tests_known:
        done = record.done()
        last = done[-1] if done else ""
        say(sys.stderr, f"\r\x1b[K{len(done)} of {len(record.results)} tests {last}"[:100])


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End as by Ctrl-C, whoever asks; a second time would leave processes and folders behind."""
    for each in ENDING_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _read_hidden_note() -> str:
    """What the handout says of the tests that are not in it."""
    note = KIT / "hidden.txt"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


def _problems(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        parse_one = _one_of(known)
        return tuple(parse_one(word.strip()) for word in text.split(","))

    return parse


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text in choices:
            return text
        hint = _did_you_mean(text, choices) or f"; one of {', '.join(choices)}"
        raise argparse.ArgumentTypeError(f"{text!r} is not known here{hint}")

    return parse


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.replace("_", "-") if word.startswith("-") else word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
