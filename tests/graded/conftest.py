"""Fixtures of the graded tests."""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
from graded_support.submission import load_adapters

DEFAULT = pathlib.Path(__file__).parents[1] / "adapters.py"


class Adapters:
    """The functions of the adapters; a missing one is a failure that says what is missing."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.classes: list[tuple[str, type]] = []
        """Classes that they returned, and which of them did: some may not be handed in, as remarks say."""

    def __getattr__(self, name: str) -> Any:
        try:
            function = getattr(self._module, name)
        except AttributeError:
            pytest.fail(f"the adapters have no function {name}", pytrace=False)
        return self._noting_classes(name, function) if name.startswith("get_") else function

    def _noting_classes(self, name: str, function: Callable[[], Any]) -> Callable[[], Any]:
        def get(*arguments: Any) -> Any:
            returned = function(*arguments)
            if isinstance(returned, type):
                self.classes.append((name, returned))
            return returned

        return get


@pytest.fixture(scope="session")
def adapters() -> Adapters:
    """The implementation under test. Imported here, and never while tests are collected."""
    __tracebackhide__ = True
    if known := os.environ.get("CS_SYSTEMS_BROKEN_IMPORT"):  # the grader saw it end the process
        pytest.fail(known, pytrace=False)
    try:
        return Adapters(load_adapters(DEFAULT))
    except SystemExit as error:  # pytest keeps other errors of a fixture for the next test, and not this one
        pytest.fail(f"importing the adapters raised SystemExit ({error})", pytrace=False)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The same random numbers in every run of a test, whatever ran before it."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)


@pytest.fixture
def secret_seed() -> int:
    """What hidden tests draw their shapes and numbers from; an instructor chooses it when grading."""
    return int(os.environ.get("CS_SYSTEMS_SEED", "0"))
