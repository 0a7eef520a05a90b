"""What every file of the project keeps to, and no linter checks."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = {".py", ".md", ".toml", ".txt", ".csv", ".jsonl", ".yml", ""}
# Split, so that this file does not contain what it forbids.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(" + "work|root|home" + r")/",
    "unfinished work": r"\b(" + "TO" + "DO|FIX" + "ME|XX" + "X)\\b",
    "a merge left open": "(?m)^(" + "<" * 7 + "|" + ">" * 7 + ")",
}


def project_files():
    """Files that git tracks or would track; all files where there is no git, such as a copied tree."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in names]
    return [path for path in paths if path.is_file() and path.suffix in TEXT]


def forbidden_in(text):
    return [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text)]


def test_no_file_holds_a_machine_path_or_unfinished_work():
    found = {path.relative_to(ROOT).as_posix(): forbidden_in(path.read_text()) for path in project_files()}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize("text", ["cd /ro" + "ot/x", "open('/ho" + "me/me/x')", "# TO" + "DO: later"])
def test_forbidden_text_is_found(text):
    assert forbidden_in(text) != []


@pytest.mark.parametrize("text", ["https://x.org/work/a", "results/home/x", "todo lists", "a/root/b"])
def test_plain_text_is_not(text):
    assert forbidden_in(text) == []


def test_every_module_has_a_docstring():
    modules = [path for path in project_files() if path.suffix == ".py"]
    silent = [
        str(path.relative_to(ROOT)) for path in modules if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert modules
    assert silent == []
