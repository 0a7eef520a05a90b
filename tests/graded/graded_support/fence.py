"""Notice code under test that takes the tests' answers, or changes the tests themselves.

A fence and no wall: it looks at modules as they are after each test, so it stops an import that somebody
thought harmless and a function that was replaced for good. Code that hides what it does gets through;
`supervise` says what a grader can do about that.
"""

import ast
import os
import pathlib
import re
import sys
from types import ModuleType
from typing import Any

from graded_support.submission import LOADED_ADAPTERS

PACKAGE = __name__.split(".")[0]
KIT = pathlib.Path(__file__).parents[1]


class Fence:
    """What the tests were before the code under test was imported, and which modules came with it."""

    def __init__(self, submission: str) -> None:
        """Look at modules from the folder of a submission, or from this project when none is graded."""
        self._folder = os.path.join(submission or KIT.parents[1], "")
        # Other tests of this project, which may run in the same process, do use the graded tests.
        self._passed_over = (os.path.join(KIT if submission else KIT.parent, ""), *LIBRARIES)
        self._functions: dict[str, tuple[object, object]] = {}
        self._seen: set[str] = set()
        self._words = ""

    def begin(self) -> None:
        """Remember the functions of the tests; called when all tests are collected."""
        self._functions = _functions_of_tests()

    def find(self) -> str:
        """What the code under test has done, in words; once it was found, in every test after."""
        self._words = self._words or self._find_import() or self._find_replaced()
        return self._words

    def _find_import(self) -> str:
        """Look at modules that were imported since the last time."""
        for name, module in list(sys.modules.items()):
            if name in self._seen:
                continue
            self._seen.add(name)
            # No getattr, which would run what a lazy module does when it is asked.
            file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
            if isinstance(file, str) and self._is_submitted(name, file) and imports_answers(file):
                shown = file.removeprefix(self._folder)
                return f"{shown} imports {PACKAGE}, the tests' own answers; the adapters may not"
        return ""

    def _is_submitted(self, name: str, file: str) -> bool:
        if name == LOADED_ADAPTERS:
            return True
        return file.startswith(self._folder) and not any(place in file for place in self._passed_over)

    def _find_replaced(self) -> str:
        now = _functions_of_tests()
        for name, (function, code) in self._functions.items():
            kept = now.get(name, (None, None))
            if kept[0] is not function or kept[1] is not code:
                return f"the code replaced {name}, a function of the tests"
        return ""


LIBRARIES = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
"""What the paths of installed packages have in them."""


def imports_answers(file: str) -> bool:
    """Whether a file of Python names the package of the tests in an import, or as the name of a module."""
    try:
        text = pathlib.Path(file).read_text(encoding="utf-8")
        nodes = ast.walk(ast.parse(text)) if PACKAGE in text else ()
    except (OSError, ValueError, SyntaxError):
        return False  # compiled, or gone meanwhile
    return any(_names_answers(node) for node in nodes)


def _names_answers(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""] if node.level == 0 else []
    else:  # import_module("..."), sys.modules["..."]
        names = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
    return any(re.fullmatch(rf"{PACKAGE}(\.\w+)*", name) for name in names)


def _functions_of_tests() -> dict[str, tuple[object, Any]]:
    """Each function in a module of the tests, by name, with the code that it runs."""
    inside = os.path.join(KIT, "")
    modules = [
        (name, vars(module))
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and str(vars(module).get("__file__")).startswith(inside)
    ]
    return {
        f"{name}.{key}": (value, getattr(value, "__code__", None))
        for name, contents in modules
        for key, value in list(contents.items())
        if callable(value)
    }
