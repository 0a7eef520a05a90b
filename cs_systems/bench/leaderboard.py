"""Time flash attention of a submission, forward and backward, check what it computed, and give it its place.

    python -m cs_systems.bench.leaderboard                                 # this project
    python -m cs_systems.bench.leaderboard --submission handed-in/ada --name ada
    python -m cs_systems.bench.leaderboard --show                          # the boards, measuring nothing

A submission is a folder with tests/adapters.py and its own cs_systems. It runs in a process of its own, on
inputs that it cannot know; results and gradients of the timed calls are compared with the formula, and what
is wrong gets a reason and no place. One more call is watched: PyTorch's own attention gets no place, and as
Triton only what launches a kernel and leaves no product, softmax or sum of forward to PyTorch. With a GPU
the shape is that of the course's leaderboard of 2025 (16 heads of 16,384 positions, d_head 64, bf16);
without one it is small, and the implementation in PyTorch is timed, as Triton's interpreter is no contest.
Boards of different shapes or processors stand in tables of their own. The last line is JSON.

Exit codes: 0 accepted, 1 rejected (see the reason), 2 bad usage, 130 interrupted; nothing is recorded then.
"""

import argparse
import functools
import json
import pathlib
import secrets
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cs_systems.bench.attention_case import AttentionConfig, attention_flops
from cs_systems.bench.leaderboard_table import (
    COUNTED,
    EXPERIMENT,
    boards,
    make_board,
    make_metrics,
    same_board,
)
from cs_systems.bench.leaderboard_worker import BEFORE, KIT, overdue, run_worker
from cs_systems.bench.record import BenchmarkRecord, append_record, check_writable, read_records
from cs_systems.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Parser, command_line, one_of
from cs_systems.grading.receipt import hash_code
from cs_systems.tables import Style, Table, format_bytes, render_table, table_as_json

PROGRAM = "-m cs_systems.bench.leaderboard"
ROOT = pathlib.Path(__file__).parents[2]
RECORDS = pathlib.Path("results/local/leaderboard.jsonl")
IMPLEMENTATIONS = ("triton", "pytorch")
INTERPRETED = "run by Triton's interpreter: shows that the result is right, not how fast it is on a GPU"
LEAST_POSITIONS = 64
"""Errors are averaged over so many, or one that is large by chance would count."""
_NAME_LENGTH = 40
_SCORES_AT_A_TIME = 2**28  # as in graded_support/timed_results.py
_LEAST_SECONDS = 10.0  # torch alone takes seconds to import


@dataclass(frozen=True)
class Entry:
    """What is timed, and under which name."""

    batch_size: int
    num_heads: int
    seq_len: int
    d_head: int
    device_type: str
    """cpu or cuda."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.num_heads, self.d_head) < 1 or self.seq_len < LEAST_POSITIONS:
            raise ValueError(
                f"--shape: at least 1 sequence, 1 head, {LEAST_POSITIONS} positions and a d_head of 1; "
                "for example 1,4,512,64"
            )

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """bf16 on a GPU, as in the course; fp32 on a CPU, where bf16 is seldom fast."""
        return "bf16" if self.device_type == "cuda" else "fp32"

    @property
    def flops(self) -> float:
        """Operations of forward and backward, as in the table of the attention experiment."""
        shape = {name: getattr(self, name) for name in ("batch_size", "num_heads", "seq_len", "d_head")}
        return attention_flops(AttentionConfig(**shape, precision=self.precision, causal=True))[COUNTED]

    @property
    def least_memory_bytes(self) -> int:
        """What checking with the formula takes at the least, in the wider type that it is the truth in.

        Four arrays of scores, of as many heads as the tests take at a time, and inputs, results and truths.
        """
        wide, heads = (4 if self.precision == "bf16" else 8), self.batch_size * self.num_heads
        scores = min(heads * self.seq_len**2, max(_SCORES_AT_A_TIME, self.seq_len**2))
        return wide * (4 * scores + 12 * heads * self.seq_len * self.d_head)

    def case(self, name: str, implementation: str, code: str) -> dict[str, Any]:
        """The settings that define the case in records."""
        shape = {key: getattr(self, key) for key in ("batch_size", "num_heads", "seq_len", "d_head")}
        return shape | {
            "precision": self.precision,
            "causal": True,
            "device_type": self.device_type,
            "name": name,
            "implementation": implementation,
            "code": code,
        }


SHAPES = {"gpu": (1, 16, 16384, 64), "cpu": (1, 4, 512, 64)}
"""Sequences, heads, positions and d_head by name."""
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def read_shape(text: str) -> tuple[int, ...] | str:
    """`gpu`, `cpu`, or four numbers."""
    if text in SHAPES:
        return text
    words = text.split(",")
    if len(words) != 4 or not all(word.strip().isdecimal() for word in words):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither gpu nor cpu nor sequences, heads, positions, d_head such as 1,4,512,64"
        )
    return tuple(int(word) for word in words)


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    styles = typing.get_args(Style)
    parser.add_argument("--submission", type=pathlib.Path, metavar="FOLDER", default=ROOT, help=(
        "what is timed: a folder with tests/adapters.py and cs_systems (default: this project)"))  # fmt: skip
    parser.add_argument("--name", help="how the table calls it (default: the name of the folder)")
    parser.add_argument(
        "--implementation",
        type=functools.partial(one_of, choices=IMPLEMENTATIONS),
        metavar="|".join(IMPLEMENTATIONS),
        help="which of the two adapters (default: triton on a GPU, pytorch on a CPU)",
    )
    parser.add_argument("--shape", type=read_shape, metavar="gpu|cpu|B,H,S,D", help=(
        "sequences, heads, positions, d_head (default: gpu where there is one)"))  # fmt: skip
    parser.add_argument("--repeats", type=int, metavar="N", default=20, help="timed calls (default: 20)")
    parser.add_argument("--max-seconds", type=float, metavar="X", default=600.0, help=(
        "then it is stopped, compiling and checking included (default: 600)"))  # fmt: skip
    parser.add_argument("--records", type=pathlib.Path, metavar="FILE.jsonl", default=RECORDS, help=(
        f"where results are kept (default: {RECORDS})"))  # fmt: skip
    parser.add_argument("--show", action="store_true", help="print all boards and measure nothing")
    parser.add_argument("--format", type=functools.partial(one_of, choices=styles), metavar="|".join(styles),
        default="table", help=(
        "how results are printed; table is followed by one line of JSON (default: table)"))  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Do what `argv` asks for and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return (
            show(args, parser.prog) if args.show else measure(args, parser.prog, command_line(PROGRAM, argv))
        )
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; nothing was recorded", file=sys.stderr)
        return EXIT_INTERRUPTED


def show(args: argparse.Namespace, prog: str) -> int:
    """Print every board of the file."""
    if not args.records.exists():
        raise ValueError(
            f"--records {args.records} does not exist: nobody was timed yet; make leaderboard does"
        )
    records = _read(args.records, prog)
    _print_boards(boards(records), args.format, {"experiment": EXPERIMENT, "num_records": len(records)})
    return EXIT_OK


def measure(args: argparse.Namespace, prog: str, command: str) -> int:
    """Time a submission, append the record, and print its board."""
    folder, name = check_submission(args.submission), args.name or args.submission.resolve().name
    if not name.strip() or len(name) > _NAME_LENGTH or not name.isprintable():
        raise ValueError(f"--name {name!r}: choose one of at most {_NAME_LENGTH} characters, in one line")
    if args.repeats < 1:
        raise ValueError("--repeats must be over 0, for example 20")
    if not args.max_seconds >= _LEAST_SECONDS:
        raise ValueError(
            f"--max-seconds must be at least {_LEAST_SECONDS:g}: torch alone takes seconds to import"
        )
    args.records.parent.mkdir(parents=True, exist_ok=True)
    check_writable(args.records, "--records")
    code = hash_code(folder)
    from cs_systems.bench.provenance import collect_provenance  # torch takes seconds to import
    from cs_systems.device import choose_device

    entry = choose_entry(args.shape, choose_device("auto").type)
    check_memory(entry)
    implementation = args.implementation or ("triton" if entry.device_type == "cuda" else "pytorch")
    provenance = collect_provenance(command, choose_device(entry.device_type))
    request = {
        "seed": secrets.randbits(63),
        "submission": str(folder),
        "implementation": implementation,
        "heads": entry.batch_size * entry.num_heads,
        "seq": entry.seq_len,
        "d_head": entry.d_head,
        "dtype": DTYPES[entry.precision],
        "device": entry.device_type,
        "calls": args.repeats,
    }
    case = entry.case(name, implementation, code)
    notes = [INTERPRETED] if (implementation, entry.device_type) == ("triton", "cpu") else []
    outcome = run_worker(request, args.max_seconds)
    if outcome.get("reason") == overdue(args.max_seconds, BEFORE):
        raise ValueError(
            f"--max-seconds {args.max_seconds:g} was over before the submission was even imported; "
            "nothing was recorded, give it more"
        )
    if outcome.get("reason"):
        record = BenchmarkRecord(
            EXPERIMENT, case, "failed", provenance, reason=outcome["reason"], notes=notes
        )
    else:
        metrics = make_metrics(outcome["samples_s"], entry.flops)
        metrics |= {
            key: outcome[key] for key in ("checked_calls", "error", "floor_s", "bytes_per_s", "flops_per_s")
        }
        record = BenchmarkRecord(
            EXPERIMENT,
            case,
            "ok",
            provenance,
            None,
            outcome["samples_s"],
            outcome["warmup_samples_s"],
            metrics,
            notes,
        )
    append_record(args.records, record)
    table = make_board(same_board(_read(args.records, prog), record))
    summary = {"experiment": EXPERIMENT, "name": name, "status": record.status, "reason": record.reason}
    _print_boards([table], args.format, summary | {"metrics": dict(record.metrics)})
    if record.status == "ok":
        return EXIT_OK
    print(f"{prog}: {name} was rejected: {record.reason}", file=sys.stderr)
    return EXIT_FAILED


def check_submission(folder: pathlib.Path) -> pathlib.Path:
    """The folder of a submission, absolute.

    Raises:
        ValueError: in one line, when there is no submission, or no kit to time it with.
    """
    if folder.is_file():
        raise ValueError(f"--submission {folder} is a file; unpack it, and name the folder")
    if not (folder / "tests/adapters.py").is_file():
        raise ValueError(
            f"--submission {folder} has no tests/adapters.py; name the folder that holds tests and code"
        )
    if not (KIT / "graded_support/timed_calls.py").is_file():
        raise ValueError(f"{KIT} is missing, and it is what times; run this in a checkout of the project")
    return folder.resolve()


def choose_entry(shape: tuple[int, ...] | str | None, device_type: str) -> Entry:
    """What is computed, for the shape that was typed and the best processor here."""
    name = shape or ("gpu" if device_type == "cuda" else "cpu")
    if name == "gpu" and device_type != "cuda":
        raise ValueError("--shape gpu: there is no GPU here, and a CPU would take hours; leave --shape out")
    if isinstance(name, str):
        return Entry(*SHAPES[name], device_type="cuda" if name == "gpu" else "cpu")
    return Entry(*name, device_type=device_type)


def check_memory(entry: Entry) -> None:
    """Raise ValueError, in one line, for a shape that this machine cannot check: no submission's fault."""
    from cs_systems.bench.training import free_memory_bytes
    from cs_systems.device import choose_device

    free = free_memory_bytes(choose_device(entry.device_type))
    if free is not None and entry.least_memory_bytes > free:
        needed = format_bytes(entry.least_memory_bytes)
        raise ValueError(
            f"--shape: checking results of this size takes at least {needed}, and {format_bytes(free)} "
            "are free here; choose fewer heads or positions"
        )


def _read(path: pathlib.Path, prog: str) -> list[BenchmarkRecord]:
    records, problems = read_records(path)
    for problem in problems:
        print(f"{prog}: {problem}", file=sys.stderr)
    found = [record for record in records if record.experiment == EXPERIMENT]
    if not found:
        raise ValueError(f"--records {path} holds no record of the leaderboard; make leaderboard adds one")
    return found


def _print_boards(tables: Sequence[Table], style: Style, summary: dict[str, Any]) -> None:
    if style == "json":
        print(json.dumps([table_as_json(table) for table in tables], allow_nan=False, indent=2))
        return
    print("\n\n".join(render_table(table, style) for table in tables))
    if style == "table":
        print(json.dumps(summary, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
