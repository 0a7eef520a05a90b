"""A pytest plugin that runs each graded test once for every mutant of its problem, and writes what came out.

MUTANTS names the module with the list, MUTANTS_JOURNAL the file: one line of JSON for each test and mutant.
"""

import importlib
import json
import os
import pathlib
import types

import pytest
from graded_support.rubric import problem_of

MUTANTS = importlib.import_module(os.environ["MUTANTS"]).MUTANTS


def pytest_generate_tests(metafunc):
    """Each test once for every mutant; a test whose problem has none is not run."""
    problem = problem_of(metafunc.definition.nodeid)
    mutants = [mutant for mutant in MUTANTS if mutant.problem == problem]
    metafunc.parametrize("mutant", mutants, ids=[mutant.name for mutant in mutants], indirect=True)


@pytest.fixture(autouse=True)
def mutant(request, adapters, record_property):
    """Put the wrong functions in the place of the right ones for one test."""
    record_property("problem", request.param.problem)
    record_property("mutant", request.param.name)
    record_property("test", f"{request.node.path.name}::{request.node.originalname}")
    right = adapters._module
    adapters._module = types.SimpleNamespace(**(vars(right) | dict(request.param.adapters)))
    yield
    adapters._module = right


def pytest_runtest_logreport(report):
    """One line for each test that ran, or whose set-up failed."""
    if report.when == "call" or (report.when == "setup" and not report.passed):
        line = dict(report.user_properties) | {"outcome": report.outcome, "message": report.longreprtext}
        with pathlib.Path(os.environ["MUTANTS_JOURNAL"]).open("a") as file:
            file.write(json.dumps(line) + "\n")
