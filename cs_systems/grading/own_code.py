"""The code that is graded: cs_systems, the adapters, and packages of the student's own that these import."""

import ast
import pathlib
import sys
from collections.abc import Iterable

from cs_systems.grading.packing import LeftOut, Packed, Rule, collect

PACKAGE = "cs_systems"
ADAPTERS = "tests/adapters.py"

_LIMIT = 2**20
_SUFFIXES = (".py", ".html", ".css", ".typ", ".csv", ".json", ".toml", ".txt", ".md")

CODE = (Rule("code", PACKAGE, _SUFFIXES, _LIMIT), Rule("code", ADAPTERS, (), _LIMIT))
"""What every project has."""


def collect_code(root: pathlib.Path) -> tuple[list[Packed], list[LeftOut]]:
    """Read all code that the graded tests run: what `CODE` names, and what that imports from `root`.

    A package of one's own is followed as well, to others that stand beside it. Only `import` statements are
    looked at, not names that are put together while the code runs.

    Raises:
        ValueError: in one line, when a file cannot be read, or code imports from the folder `tests`.
    """
    packed, left_out = collect(root, CODE)
    seen = {PACKAGE}
    waiting = packed
    while waiting:
        found = imported_names(waiting)
        rules = [_rule(root, name, found[name]) for name in sorted(found.keys() - seen)]
        waiting, also_left_out = collect(root, [rule for rule in rules if rule])
        packed, left_out = packed + waiting, left_out + also_left_out
        seen |= found.keys()
    return packed, left_out


def own_places(packed: Iterable[Packed]) -> list[str]:
    """The packages and modules among code that the student added."""
    return sorted({file.place for file in packed} - {rule.place for rule in CODE})


def is_code(path: str, own: Iterable[str]) -> bool:
    """Whether a file of a submission is code, given the places that the student added."""
    places = {rule.place for rule in CODE} | set(own)
    return path in places or path.split("/")[0] in places


def imported_names(files: Iterable[Packed]) -> dict[str, str]:
    """First parts of the modules that Python files import, and for each a file that does."""
    names: dict[str, str] = {}
    for file in files:
        if not file.path.endswith(".py"):
            continue
        try:
            tree = ast.parse(file.data)
        except (SyntaxError, ValueError):  # the tests say so; it can import nothing
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                names.setdefault(module.split(".")[0], file.path)
    return names


def _rule(root: pathlib.Path, name: str, importer: str) -> Rule | None:
    """How a package or module in `root` is taken; None when it stands elsewhere, as torch does."""
    if name in sys.stdlib_module_names:
        return None
    folder, module = root / name, root / f"{name}.py"
    if folder.is_dir() and any(folder.rglob("*.py")):
        if name == "tests":
            raise ValueError(
                f"{importer} imports from tests, which is not handed in; move that code into {PACKAGE} "
                "or a package of your own beside it"
            )
        return Rule("code", name, _SUFFIXES, _LIMIT)
    return Rule("code", module.name, (), _LIMIT) if module.is_file() else None
