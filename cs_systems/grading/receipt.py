"""The receipt of the graded tests: how they went, and on which code. Without a fresh one nothing is packed.

`pytest tests/graded` leaves it in build/graded.json when all graded tests ran on tests/adapters.py (the hook
is in tests/conftest.py). It holds a hash of every file that the outcome depends on, so a later change shows.
"""

import datetime
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cs_systems.grading.own_code import collect_code
from cs_systems.grading.packing import Packed, Rule, collect

SCHEMA_VERSION = 1
RECEIPT = pathlib.Path("build/graded.json")
"""Where it lies in the project."""
GRADED_TESTS = "tests/graded"

_LIMIT = 2**20
_RUN_TESTS = "run make test (or pytest tests/graded)"
_PACK_UNTESTED = "pack with --untested (make submission ARGS=--untested)"
_SHOWN_NAMES = 3


def tested_files(root: pathlib.Path) -> dict[str, str]:
    """SHA-256 by path of all that the outcome of the graded tests depends on: the code and the tests."""
    return hashes(collect_code(root)[0]) | graded_tests(root)


def graded_tests(root: pathlib.Path) -> dict[str, str]:
    """SHA-256 by path of the graded tests, those that students do not have apart."""
    packed, _ = collect(root, (Rule("tests", GRADED_TESTS, (".py", ".toml"), _LIMIT, without=("hidden",)),))
    return hashes(packed)


def hash_code(root: pathlib.Path) -> str:
    """One SHA-256 for the code that is graded: the same for the same files, wherever they lie.

    Raises:
        ValueError: when a file cannot be read.
    """
    return tree_hash(hashes(collect_code(root)[0]))


def tree_hash(hashes: Mapping[str, str]) -> str:
    """SHA-256 of the lines `hash  path` in the order of the paths, as `sha256sum` prints them."""
    text = "".join(f"{hashes[path]}  {path}\n" for path in sorted(hashes))
    return hashlib.sha256(text.encode()).hexdigest()


def write_receipt(root: pathlib.Path, tests: Mapping[str, str], scores: Sequence[Mapping[str, Any]]) -> None:
    """Note that all graded tests ran on the code as it is now. Called when pytest ends.

    Args:
        root: the project folder.
        tests: outcome of each test by its node id.
        scores: id, points, earned, pending and lost of each problem.

    Raises:
        OSError: when build/ cannot be written.
        ValueError: when a file of the code cannot be read.
    """
    receipt = {
        "schema_version": SCHEMA_VERSION,
        "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "files": tested_files(root),
        "tests": dict(sorted(tests.items())),
        "scores": list(scores),
    }
    path = root / RECEIPT
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(receipt, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def read_receipt(root: pathlib.Path) -> dict[str, Any] | None:
    """What `write_receipt` wrote, or None when there is nothing or nothing readable."""
    try:
        receipt = json.loads((root / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    fits = isinstance(receipt, dict) and receipt.get("schema_version") == SCHEMA_VERSION
    return receipt if fits and {"time_utc", "files", "tests", "scores"} <= receipt.keys() else None


def find_untested(root: pathlib.Path, receipt: Mapping[str, Any] | None) -> str:
    """Why the receipt says nothing about the code as it is now; empty when it does."""
    if receipt is None:
        return f"the tests were not run on this code: {_RUN_TESTS}, or {_PACK_UNTESTED}"
    changed = _differing(receipt["files"], tested_files(root))
    if changed:
        names = first_names(changed)
        return f"code changed since the tests ran: {names}; {_RUN_TESTS} again, or {_PACK_UNTESTED}"
    return ""


def hashes(packed: Iterable[Packed]) -> dict[str, str]:
    """SHA-256 of files by path."""
    return {file.path: file.sha256 for file in packed}


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))


def first_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
