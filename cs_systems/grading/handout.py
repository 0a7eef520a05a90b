"""Make the handout: this project without the solutions of its code problems, for students to fill in.

    python -m cs_systems.grading.handout --output-dir dist/handout

What goes in stands in RULES, what of that stays here in EXCLUDED; markers in the files (`markers.py`) say
what is taken out of them. The same sources give the same files, byte for byte. A handout that somebody has
worked in is replaced only with --force, and a folder that is no handout never.

Exit codes: 0 done, 2 bad usage, or a marker or a file that is wrong; then nothing was written.
"""

import dataclasses
import fnmatch
import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from cs_systems.cli import EXIT_OK, Parser
from cs_systems.grading.markers import missing, strip_blocks
from cs_systems.grading.packing import Rule, collect

PROGRAM = "-m cs_systems.grading.handout"
ROOT = pathlib.Path(__file__).parents[2]
STARTER = pathlib.Path(__file__).with_name("starter")
KIT = "tests/graded"
RUBRIC = f"{KIT}/rubric.toml"
ADAPTERS = "tests/adapters.py"
HIDDEN = f"{KIT}/hidden"
HIDDEN_NOTE = f"{KIT}/hidden.txt"
"""Shown below the table of points."""
MANIFEST = ".handout"
"""Hashes of all files, by which a handout is known again, and what was changed in it."""

_MIB = 2**20
RULES = (
    Rule("package", "cs_systems", (".py", ".html", ".css", ".typ"), _MIB),
    Rule("scripts", "profiling", (".py",), _MIB),
    Rule("tests", "tests/graded", (".py", ".toml", ".ini"), _MIB, without=("hidden",)),
    *(
        Rule("file", name, (), _MIB)
        for name in (ADAPTERS, "tests/conftest.py", "benchmark.py", "writeup/run.py", "writeup/questions.md",
                     "writeup/code.md", "Makefile", "pyproject.toml", "constraints.txt", "LICENSE")
    ),
)  # fmt: skip
"""All that can be in a handout."""

EXCLUDED = (
    # Generation of text, and kernels for what eager PyTorch does as well: no problem asks for them.
    "cs_systems/inference/*",
    "cs_systems/estimator/generation.py",
    "cs_systems/bench/generation*.py",
    "cs_systems/report/generation*.py",
    "cs_systems/bench/kernel*.py",
    *(
        f"cs_systems/kernels/{name}.py"
        for name in ("adamw", "apply", "cross_entropy", "linear_cross_entropy", "rmsnorm", "rope", "swiglu")
    ),
    # Solutions as a whole, and what compiles, tunes and checks them.
    *(
        f"cs_systems/kernels/{name}.py"
        for name in ("aot", "census", "flash_configs", "flash_kernels", "flash_tuning", "reference", "tune")
    ),
    "cs_systems/kernels/tuning.py",
    # What is true of the answers in a write-up, and this.
    "cs_systems/grading/truths/*",
    *(
        f"cs_systems/grading/{name}.py"
        for name in ("answers", "check", "evidence", "sentences", "symbolic", "units", "handout", "markers")
    ),
    "cs_systems/grading/starter/*",
)
"""What of that stays here, as patterns of paths."""

STARTED = {"README.md": "README.md", ".gitignore": "gitignore"}
"""Files of the handout that are none of ours, and their names in the folder `starter`."""
PROBLEMS_HERE = "<!-- problems -->\n"
"""Where the README of the handout has the table of problems."""

_CLEAN_UP = ("check", "--fix", "--fixable", "F401,I001,RUF100,D202", "--exit-zero")
_LAY_OUT = ("format",)
_NO_TESTS = 5
"""Exit code of pytest, docs.pytest.org/en/stable/reference/exit-codes.html."""


def read_problems(root: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The entries of the rubric by id, in order, as the graded tests read them.

    Raises:
        ValueError: in one line, when it is no rubric, or a problem has no tests, or tests no problem.
    """
    path = root / RUBRIC
    if not path.is_file():
        raise ValueError(f"{path} does not exist: a handout is made in the folder of the project")
    # The tests are no part of this package and import nothing of it, so they are found by their place.
    spec = importlib.util.spec_from_file_location("rubric", root / KIT / "graded_support/rubric.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    problems = {problem.id: dataclasses.asdict(problem) for problem in module.read_rubric(path)}
    for name in problems:
        if not (root / KIT / f"test_{name}.py").is_file():
            raise ValueError(f"{path}: {name} has no tests; write {KIT}/test_{name}.py, or correct the id")
    return problems


def sections_of(problems: Mapping[str, Any]) -> dict[str, int]:
    """The section of writeup/code.md of each problem."""
    return {name: number for number, name in enumerate(problems, start=1)}


def read_sources(root: pathlib.Path) -> dict[str, str]:
    """Text by path of all files that go in, with their markers.

    Raises:
        ValueError: in one line, when a file cannot be read or is missing.
    """
    packed, _ = collect(root, RULES)
    sources = {
        each.path: each.data.decode()
        for each in packed
        if not any(fnmatch.fnmatchcase(each.path, pattern) for pattern in EXCLUDED)
    }
    lacking = [rule.place for rule in RULES if rule.kind == "file" and rule.place not in sources]
    if lacking:
        raise ValueError(f"{lacking[0]} is missing, and belongs into the handout")
    return sources


def places_of(problem: str, files: Mapping[str, str]) -> list[str]:
    """Where the handout asks for the solution of a problem, but for the adapters."""
    asked = f'"{missing(problem)}'
    return [
        path for path, text in files.items() if asked in text and path.endswith(".py") and path != ADAPTERS
    ]


def problems_table(problems: Mapping[str, Mapping[str, Any]], files: Mapping[str, str]) -> str:
    """The problems in Markdown: points, what they are, and where their solutions go."""
    lines = ["| | Problem | Points | What | Where |", "|--:|:--|--:|:--|:--|"]
    for number, (name, entry) in enumerate(problems.items(), start=1):
        where = ", ".join(f"`{path}`" for path in places_of(name, files))
        where = "(not tested yet)" if entry.get("pending") else where
        lines.append(f"| {number} | `{name}` | {entry['points']:g} | {entry['title']} | {where} |")
    total = sum(entry["points"] for entry in problems.values())
    return "\n".join([*lines, f"| | total | {total:g} | | |", ""])


def hidden_note(root: pathlib.Path) -> str:
    """What students are told of the tests that they do not have; empty where there are none.

    Raises:
        ValueError: in one line, when a file of tests cannot be read.
    """
    number = sum(name.startswith("hidden/") for name in collect_tests(root))
    if not number:
        return ""
    return (
        f"{number} further tests are hidden: they run when your work is graded, on other shapes and "
        "numbers, and share the points of their problems\n"
    )


def collect_tests(root: pathlib.Path) -> list[str]:
    """Names of all graded tests as pytest counts them, a parametrized one once for each of its values.

    Raises:
        ValueError: in one line, when a file of tests cannot be read.
    """
    kit = root / KIT
    places = ("-c", os.devnull, "--rootdir", str(kit), "--confcutdir", str(kit))
    switches = ("-q", "--collect-only", "--import-mode=importlib", "-p", "no:cacheprovider")
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CS_SYSTEMS_"))
    }
    own = {"PYTHONPATH": str(kit), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *switches, *places, str(kit)],
        cwd=root, env=kept | own, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode not in (0, _NO_TESTS):
        file = next(iter(re.findall(r"ERROR collecting (\S+)", result.stdout)), "a file of tests")
        reason = next(iter(re.findall(r"^E +([A-Z]\w+: .*)", result.stdout, re.MULTILINE)), "")
        reason = reason or (result.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"{KIT}/{file}: pytest cannot collect its tests ({reason})")
    return [line for line in result.stdout.splitlines() if "::" in line]


def make_files(root: pathlib.Path) -> dict[str, str]:
    """Text by path of the whole handout, as the markers leave it: imports that nobody needs are still there.

    Raises:
        ValueError: in one line, when a marker or a file is wrong.
    """
    problems = read_problems(root)
    sections = sections_of(problems)
    sources = read_sources(root)
    files = {path: strip_blocks(text, path, sections) for path, text in sources.items()}
    for path, name in STARTED.items():
        files[path] = (STARTER / name).read_text(encoding="utf-8")
    table = problems_table(problems, files)
    files["README.md"] = files["README.md"].replace(PROBLEMS_HERE, table)
    note = hidden_note(root)
    return dict(sorted((files | ({HIDDEN_NOTE: note} if note else {})).items()))


def build(root: pathlib.Path, output: pathlib.Path, force: bool) -> list[str]:
    """Write the handout to a folder; returns the paths of its files.

    Raises:
        ValueError: in one line, when something is wrong; the folder is then as it was.
    """
    check_output(output, force)
    files = make_files(root)
    stripped = [path for path in files if path.endswith(".py") and files[path] != _original(root, path)]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".handout-") as folder:
            tree = pathlib.Path(folder, "tree")
            for path, text in files.items():
                place = tree / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text, encoding="utf-8", newline="\n")
            for command in (_CLEAN_UP, _LAY_OUT):
                _run_ruff(command, stripped, tree)
            hashes = {path: _sha256(tree / path) for path in files}
            manifest = "".join(f"{value}  {path}\n" for path, value in hashes.items())
            (tree / MANIFEST).write_text(manifest, encoding="utf-8", newline="\n")
            if output.exists():
                shutil.rmtree(output)
            tree.rename(output)
    except OSError as error:
        raise ValueError(
            f"--output-dir {output}: cannot write ({error.strerror}); choose another place"
        ) from None
    return [*files, MANIFEST]


def check_output(output: pathlib.Path, force: bool) -> None:
    """Raise ValueError, in one line, when something would be lost that is in the folder."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    manifest = output / MANIFEST
    if not manifest.is_file():
        raise ValueError(
            f"--output-dir {output} exists and is no handout; nothing was written, choose another"
        )
    changed = changed_files(output)
    if changed and not force:
        raise ValueError(
            f"--output-dir {output} is a handout that was worked in ({changed[0]} and so on); "
            "--force replaces it, or choose another"
        )


def changed_files(output: pathlib.Path) -> list[str]:
    """Files of a handout that are not as they were made: changed, gone or new. Caches do not count."""
    lines = (output / MANIFEST).read_text(encoding="utf-8").splitlines()
    made = {path: value for value, path in (line.split("  ", 1) for line in lines)}
    changed = [path for path, value in made.items() if not _is_as_made(output / path, value)]
    found = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    new = [
        path.as_posix()
        for path in found
        if path.as_posix() not in made
        and path.name != MANIFEST
        and not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
    ]
    return sorted([*changed, *new])


def _is_as_made(path: pathlib.Path, value: str) -> bool:
    return path.is_file() and _sha256(path) == value


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _original(root: pathlib.Path, path: str) -> str | None:
    return (root / path).read_text(encoding="utf-8") if (root / path).is_file() else None


def _run_ruff(command: tuple[str, ...], paths: list[str], tree: pathlib.Path) -> None:
    """Remove imports that only solutions needed, and lay out what is left of the files."""
    flags = ("--quiet", "--no-cache", "--no-respect-gitignore")
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *flags, *paths],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        said = next(iter(re.findall(r"\S.*", result.stderr or result.stdout)), "no message")
        raise ValueError(f"ruff {command[0]}: {said} (is it installed? pip install -e '.[dev]')")


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("dist/handout"),
                        metavar="FOLDER", help="where to (default: dist/handout)")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace a handout that was worked in")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Make the handout and return the exit code."""
    parser = make_parser()
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    try:
        problems = read_problems(ROOT)
        files = build(ROOT, args.output_dir, args.force)
    except ValueError as error:
        parser.error(str(error))
    points = sum(entry["points"] for entry in problems.values())
    print(f"{args.output_dir}: {len(files)} files, {len(problems)} problems, {points:g} points")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
