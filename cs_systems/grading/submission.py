"""Pack what is handed in: code, adapters, write-up and records, as one zip file with a manifest.

    python -m cs_systems.grading.submission                          # dist/submission.zip
    python -m cs_systems.grading.submission --untested               # code that the tests were not run on
    python -m cs_systems.grading.submission --verify submission.zip  # is it whole? were the tests edited?

Only kinds of files that are asked for are packed; what else lies in their folders is listed with the reason.
A package or module of your own is packed as well, when it stands beside cs_systems and the code imports it.
The same files give the same zip file. `pytest tests/graded` leaves a receipt (build/graded.json), so that
nobody hands in code that was never tested. The last line is JSON.

Exit codes: 0 done, 1 the archive differs from its manifest or was made with edited tests, 2 bad usage, or
nothing was packed and why.
"""

import argparse
import collections
import importlib.metadata
import json
import pathlib
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cs_systems.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Parser
from cs_systems.grading.archive import MANIFEST, check_output, read_archive, write_archive
from cs_systems.grading.blocks import NEW_COMMAND, read_answers
from cs_systems.grading.own_code import ADAPTERS, collect_code, is_code, own_places
from cs_systems.grading.packing import LeftOut, Packed, Rule, collect, printable
from cs_systems.grading.receipt import (
    SCHEMA_VERSION,
    find_untested,
    first_names,
    graded_tests,
    hashes,
    read_receipt,
    tree_hash,
)
from cs_systems.tables import Column, Table, format_bytes, render_table

PROGRAM = "-m cs_systems.grading.submission"
ROOT = pathlib.Path(__file__).parents[2]
ANSWERS = "writeup/answers.md"
DOCUMENTS = ("build/writeup.md", "build/writeup.html", "build/writeup.pdf")

OUTPUT = pathlib.Path("dist/submission.zip")
RECORDS = pathlib.Path("results/local")

MIB = 2**20
OTHERS = (
    Rule("scripts", "profiling", (".py",), MIB),
    *(
        Rule("scripts", name, (), MIB)
        for name in ("benchmark.py", "writeup/run.py", "writeup/questions.md", "pyproject.toml",
                     "constraints.txt", "Makefile", "README.md", "LICENSE")
    ),
    Rule("write-up", ANSWERS, (), 4 * MIB),
    *(Rule("write-up", name, (), 32 * MIB) for name in DOCUMENTS),
)  # fmt: skip


def record_rules(folder: str) -> tuple[Rule, ...]:
    """What is packed of a folder of records: the records, and of the recordings as much as fits."""
    return (
        Rule("records", folder, (".jsonl",), 16 * MIB, without=("profile",)),
        Rule("profile", f"{folder}/profile", (".json.gz", ".run.json", ".md"), 16 * MIB, together=48 * MIB),
    )


def make_manifest(
    root: pathlib.Path, packed: Sequence[Packed], left_out: Sequence[LeftOut], name: str | None, tested: bool
) -> dict[str, Any]:
    """What stands in manifest.json; no time but that of the tests: the same files, the same archive."""
    receipt = read_receipt(root)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "code_sha256": tree_hash(hashes(file for file in packed if file.kind == "code")),
        "own_code": own_places(file for file in packed if file.kind == "code"),
        "files": {file.path: {"sha256": file.sha256, "bytes": len(file.data)} for file in packed},
        "left_out": {entry.path: entry.reason for entry in left_out},
        "tested": tested,
        "tests": receipt and {key: receipt[key] for key in ("time_utc", "scores", "tests")},
        "graded_tests": graded_tests(root),
        "answers": count_answers(root / ANSWERS)[0],
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in ("cs_systems", "torch", "triton", "numpy")},
    }


def count_answers(path: pathlib.Path) -> tuple[dict[str, int] | None, str]:
    """How many blanks of the write-up are filled in, or None and why that cannot be said."""
    if not path.exists():
        return (
            None,
            f"{ANSWERS} does not exist: there are no answers in this submission; {NEW_COMMAND} begins it",
        )
    try:
        blocks = read_answers(path).blocks
    except ValueError as error:
        return None, str(error)
    values = [value for block in blocks for value in block.values.values()]
    filled = sum(bool(value.strip()) if isinstance(value, str) else value != [] for value in values)
    return {"filled": filled, "asked": len(values)}, ""


def find_warnings(root: pathlib.Path) -> list[str]:
    """What a student may have forgotten, a sentence each."""
    answers = root / ANSWERS
    found = [reason] if (reason := count_answers(answers)[1]) else []
    if answers.exists():
        built = [root / name for name in DOCUMENTS if (root / name).exists()]
        if not built:
            found.append("the write-up is not built: make writeup makes build/writeup.pdf")
        elif min(path.stat().st_mtime for path in built) < answers.stat().st_mtime:
            found.append(f"build/{built[0].name} is older than {ANSWERS}: make writeup builds it again")
    return found


def pack(
    root: pathlib.Path, output: pathlib.Path, records: str, name: str | None, *, untested: bool
) -> tuple[dict[str, Any], list[Packed], list[LeftOut]]:
    """Write the archive; returns its manifest, what was packed and what was left out.

    Raises:
        ValueError: in one line, when there is nothing to pack, the tests were not run on this code (unless
            `untested`), or the archive cannot be written.
    """
    if not (root / ADAPTERS).is_file():
        raise ValueError(
            f"{ADAPTERS} is missing, and without it nothing can be graded; run this in the project"
        )
    check_output(output)
    reason = find_untested(root, read_receipt(root))
    if reason and not untested:
        raise ValueError(reason)
    packed, left_out = collect_code(root)
    code = {file.path for file in packed}
    others, also_left_out = collect(root, (*OTHERS, *record_rules(records)))
    packed += [file for file in others if file.path not in code]
    left_out += also_left_out
    manifest = make_manifest(root, packed, left_out, name, tested=not reason)
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    write_archive(output, {MANIFEST: text.encode()} | {file.path: file.data for file in packed})
    return manifest, packed, left_out


def verify(archive: pathlib.Path, root: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest of an archive, and a line for each thing that does not fit it or this checkout's tests.

    Hashes show what was changed after packing, and no more: whoever packs can write what they like, also as
    points.

    Raises:
        ValueError: in one line, when it cannot be read or is no submission.
    """
    manifest, found = read_archive(archive)
    listed = {path: entry["sha256"] for path, entry in manifest["files"].items()}
    problems = [
        f"{path}: listed in {MANIFEST}, and not in the archive" for path in sorted(listed.keys() - found)
    ]
    problems += [
        f"{path}: in the archive, and not listed in {MANIFEST}" for path in sorted(found - listed.keys())
    ]
    problems += [
        f"{path}: changed after it was packed"
        for path in sorted(listed)
        if found.get(path, listed[path]) != listed[path]
    ]
    code = {path: value for path, value in found.items() if is_code(path, manifest["own_code"])}
    if tree_hash(code) != manifest["code_sha256"]:
        problems.append(f"code_sha256 in {MANIFEST} is not that of the code in the archive")
    ours, theirs = graded_tests(root), manifest["graded_tests"]
    problems += [
        f"{path}: this test file was edited or added"
        for path in sorted(theirs)
        if theirs[path] != ours.get(path)
    ]
    problems += [f"{path}: this test file was removed" for path in sorted(ours.keys() - theirs)]
    return manifest, [printable(problem) for problem in problems]


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE.zip", default=OUTPUT,
                        help=f"where to (default: {OUTPUT})")  # fmt: skip
    parser.add_argument("--name", help="you or your team; stands in the manifest")
    parser.add_argument("--untested", action="store_true", help="pack code that the tests were not run on")
    parser.add_argument("--records", type=pathlib.Path, metavar="FOLDER", default=RECORDS,
                        help=f"your measurements (default: {RECORDS})")  # fmt: skip
    parser.add_argument("--verify", type=pathlib.Path, metavar="FILE.zip", help=(
        "check an archive, or the folder it was unpacked to, against its manifest and the graded tests here; "
        "packs nothing"))  # fmt: skip
    return parser


def main(argv: list[str] | None = None, root: pathlib.Path = ROOT) -> int:
    """Do what `argv` asks for and return the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return run_verify(args, root, parser.prog) if args.verify else run_pack(args, root, parser.prog)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED


def run_pack(args: argparse.Namespace, root: pathlib.Path, prog: str) -> int:
    """Pack, and say what is in the archive and what is not."""
    manifest, packed, left_out = pack(
        root, args.output, _inside(root, args.records), args.name, untested=args.untested
    )
    print(render_table(packed_table(packed, left_out), "table"))
    print(_points_line(manifest))
    for warning in find_warnings(root):
        print(f"{prog}: {warning}", file=sys.stderr)
    size = args.output.stat().st_size
    print(f"{args.output}: {len(packed)} files, {format_bytes(size)}")
    print(json.dumps({"file": str(args.output), "bytes": size} | _summary(manifest), allow_nan=False))
    return EXIT_OK


def run_verify(args: argparse.Namespace, root: pathlib.Path, prog: str) -> int:
    """Compare an archive with its manifest, and the tests it was made with with those here."""
    manifest, problems = verify(args.verify, root)
    print(f"claimed, not checked (make grade does): {_points_line(manifest)}")
    for problem in problems:
        print(f"{prog}: {problem}", file=sys.stderr)
    outcome = f"{len(problems)} differences" if problems else "as they were packed, with these tests"
    print(f"{args.verify}: {len(manifest['files'])} files, {outcome}")
    print(
        json.dumps({"file": str(args.verify), "differences": problems} | _summary(manifest), allow_nan=False)
    )
    return EXIT_FAILED if problems else EXIT_OK


def packed_table(packed: Sequence[Packed], left_out: Sequence[LeftOut]) -> Table:
    """One row a place that something was packed from, a note for each reason to leave something out."""
    groups: dict[tuple[str, str], list[Packed]] = collections.defaultdict(list)
    for file in packed:
        groups[file.kind, file.place].append(file)
    rows = [
        {"kind": kind, "place": place, "files": len(files), "bytes": sum(len(file.data) for file in files)}
        for (kind, place), files in groups.items()
    ]
    rows.append({"kind": "total", "files": len(packed), "bytes": sum(len(file.data) for file in packed)})
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    for entry in left_out:
        reasons[entry.reason].append(entry.path)
    notes = [f"Left out, {reason}: {first_names(paths)}" for reason, paths in reasons.items()]
    columns = [
        Column("kind", "Kind", align="left"),
        Column("place", "Place", align="left"),
        Column("files", "Files"),
        Column("bytes", "Size", format=format_bytes),
    ]
    return Table("Packed", columns, rows, notes)


def _summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    totals = _totals(manifest)
    return {
        "name": manifest["name"],
        "num_files": len(manifest["files"]),
        "code_sha256": manifest["code_sha256"],
        "tested": manifest["tested"],
        "points": totals,
        "answers": manifest["answers"],
    }


def _totals(manifest: Mapping[str, Any]) -> dict[str, float] | None:
    tests = manifest["tests"]
    if not tests:
        return None
    return {
        key: sum(score[key] for score in tests["scores"]) for key in ("points", "earned", "pending", "lost")
    }


def _points_line(manifest: Mapping[str, Any]) -> str:
    totals, answers = _totals(manifest), manifest["answers"]
    parts = ["no test was run"]
    if totals is not None:
        when = printable(manifest["tests"]["time_utc"])
        counts = ", ".join(f"{totals[key]:g} {key}" for key in ("earned", "pending", "lost"))
        parts = [f"points of the tests: {counts}, of {totals['points']:g} ({when})"]
        parts += [] if manifest["tested"] else ["the code changed since"]
    parts += [f"{answers['filled']} of {answers['asked']} answers filled in"] if answers else []
    return "; ".join(parts)


def _inside(root: pathlib.Path, folder: pathlib.Path) -> str:
    """The path of a folder within the project, with slashes."""
    try:
        return (root / folder).resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise ValueError(
            f"--records {folder} is not in this project; copy your records to results/local"
        ) from None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
