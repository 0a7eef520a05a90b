"""A pytest plugin beside mutants.plugin: ranks are other processes, so a mutant reaches them as a file."""

import os

import pytest
from graded_support import ranks
from graded_support.submission import ADAPTERS

FILE = """
from distributed_reference import *
from mutants.distributed import MUTANTS

[mutant] = [one for one in MUTANTS if (one.problem, one.name) == {which!r}]
globals().update(mutant.adapters)
"""


def pytest_collection_modifyitems(config, items):
    """Keep of all pairs of a test and a mutant those in which the mutant names the test."""

    def is_wanted(item):
        return item.originalname == f"test_{item.callspec.params['mutant'].noticed_by}"

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = [item for item in items if is_wanted(item)]


@pytest.fixture(autouse=True)
def adapters_of_the_mutant(request, tmp_path, monkeypatch):
    """Name an adapters file of the mutant that is tested, and wait less long for ranks that hang."""
    mutant = request.node.callspec.params["mutant"]
    path = tmp_path / "adapters.py"
    path.write_text(FILE.format(which=(mutant.problem, mutant.name)))
    monkeypatch.setenv(ADAPTERS, os.fspath(path))
    monkeypatch.setattr(ranks, "COLLECTIVE_LIMIT_S", 3.0)
