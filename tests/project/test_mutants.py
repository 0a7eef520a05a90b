"""The graded tests notice wrong implementations: each mutant with the right words, each test one at least."""

import ast
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
GRADED = ROOT / "tests/graded"
GROUPS = ("mutants.model", "mutants.training", "mutants.measuring", "mutants.attention", "mutants.kernels")


def run_mutants(group, folder):
    """Every test against every mutant of its problem, in one process: what came out, a dict each."""
    journal = folder / "journal.jsonl"
    paths = [GRADED.parent / "project", GRADED]
    environment = os.environ | {
        "MUTANTS": group,
        "MUTANTS_JOURNAL": str(journal),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "CS_SYSTEMS_RUN_PENDING": "1",
    }
    environment.pop("CS_SYSTEMS_ADAPTERS", None)
    problems = {mutant.problem for mutant in importlib.import_module(group).MUTANTS}
    files = [path for path in GRADED.rglob("test_*.py") if path.stem.removeprefix("test_") in problems]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mutants.plugin", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout[-3000:] + result.stderr[-3000:]
    return [json.loads(line) for line in journal.read_text().splitlines()]


@pytest.fixture(scope="module", params=GROUPS)
def group(request, tmp_path_factory):
    outcomes = run_mutants(request.param, tmp_path_factory.mktemp("mutants"))
    return importlib.import_module(request.param).MUTANTS, outcomes


def test_every_mutant_is_noticed_and_told_what_is_wrong(group):
    mutants, outcomes = group
    silent = []
    for mutant in mutants:
        mine = [
            line for line in outcomes if (line["problem"], line["mutant"]) == (mutant.problem, mutant.name)
        ]
        messages = [line["message"] for line in mine if line["outcome"] == "failed"]
        if not any(re.search(mutant.says, message) for message in messages):
            silent.append((mutant.problem, mutant.name, messages[:1]))
    assert silent == []


def test_every_graded_test_notices_some_mutant(group):
    mutants, outcomes = group
    problems = {mutant.problem for mutant in mutants}
    blind = []
    for path in sorted(GRADED.rglob("test_*.py")):
        if path.stem.removeprefix("test_") not in problems:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = f"{path.name}::{node.name}"
                results = {line["outcome"] for line in outcomes if line["test"] == name}
                if results == {"passed"} or not results:
                    blind.append(name)
    assert blind == []
