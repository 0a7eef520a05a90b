"""Which files of a project are handed in: an allow-list of places, and a reason for all that is left out."""

import hashlib
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cs_systems.tables import format_bytes

_CACHES = ("__pycache__", "node_modules", "venv")


@dataclass(frozen=True)
class Rule:
    """A place that files are taken from."""

    kind: str
    """What they are, for people: code, records."""
    place: str
    """A folder with everything below it, or one file; relative to the project, with slashes."""
    suffixes: tuple[str, ...]
    """Endings of the files that are taken from a folder."""
    file_limit: int
    """Most bytes of one file."""
    together: int | None = None
    """Most bytes of all of them."""
    without: tuple[str, ...] = ()
    """Folders directly in it that this rule passes over; another rule may have them."""


@dataclass(frozen=True)
class Packed:
    """A file as it was read, once: what is hashed is what is packed."""

    path: str
    """Relative to the project, with slashes."""
    kind: str
    place: str
    data: bytes

    @property
    def sha256(self) -> str:
        """Of its content, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that lies in an allowed place and is not handed in."""

    path: str
    reason: str


def collect(root: pathlib.Path, rules: Sequence[Rule]) -> tuple[list[Packed], list[LeftOut]]:
    """Read what the rules take, sorted by rule and path; places that do not exist have nothing.

    Raises:
        ValueError: in one line, when a file that is wanted cannot be read.
    """
    packed: list[Packed] = []
    left_out: list[LeftOut] = []
    for rule in rules:
        used = 0
        for path in _walk(root, root / rule.place, rule, left_out):
            name = path.relative_to(root).as_posix()
            reason = _reason_to_leave(path, name, rule)
            if not reason and rule.together is not None and used + path.stat().st_size > rule.together:
                reason = f"over the {format_bytes(rule.together)} that all of {rule.place} may take"
            if reason:
                left_out.append(LeftOut(printable(name), reason))
                continue
            try:
                data = path.read_bytes()
            except OSError as error:
                raise ValueError(
                    f"{name}: cannot read ({error.strerror}); it belongs to the submission"
                ) from None
            used += len(data)
            packed.append(Packed(name, rule.kind, rule.place, data))
    return packed, left_out


def _walk(
    root: pathlib.Path, place: pathlib.Path, rule: Rule, left_out: list[LeftOut]
) -> Iterator[pathlib.Path]:
    """Everything in a place that is not a folder, in the order of names; folders left out are noted."""
    if not place.is_dir() or place.is_symlink():
        if os.path.lexists(place):
            yield place
        return
    try:
        children = sorted(place.iterdir())
    except OSError as error:
        raise ValueError(f"{place.relative_to(root).as_posix()}: cannot read ({error.strerror})") from None
    for child in children:
        if not child.is_dir() or child.is_symlink():
            yield child
            continue
        name = child.relative_to(root).as_posix()
        if child.name in _CACHES or child.name.startswith("."):
            left_out.append(LeftOut(printable(name) + "/", "a cache or a hidden folder"))
        elif not (child.parent == root / rule.place and child.name in rule.without):
            yield from _walk(root, child, rule, left_out)


def _reason_to_leave(path: pathlib.Path, name: str, rule: Rule) -> str:
    """Why a file is not packed; empty when it is."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "a link"
    if not stat.S_ISREG(status.st_mode):
        return "not an ordinary file"
    if path.name.startswith("."):
        return "a hidden file"
    if name != printable(name):
        return "a name with characters that not every system can write"
    if rule.suffixes and not path.name.endswith(rule.suffixes):
        return f"none of {', '.join(rule.suffixes)}"
    if status.st_size > rule.file_limit:
        return f"larger than {format_bytes(rule.file_limit)}"
    return ""


def printable(name: str) -> str:
    """A name as it can be printed: backslashes, control characters and what is no UTF-8 as escapes."""
    return "".join(each if each.isprintable() and each != "\\" else ascii(each)[1:-1] for each in name)
