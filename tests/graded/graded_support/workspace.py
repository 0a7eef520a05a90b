"""The folders of a grading run: a copy of what was handed in, and fresh copies of it and of the tests for
each start.

Nothing of the submission's own folder is ever written. Links, git's and Python's own folders are left out.
"""

import errno
import hashlib
import os
import pathlib
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator

from graded_support.rubric import HIDDEN_FOLDER
from graded_support.submission import REFERENCE

KIT = pathlib.Path(__file__).parents[1]
ADAPTERS = ("tests/adapters.py", "adapters.py")
MAX_BYTES, MAX_FILES = 2**30, 50_000
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of an OSError that is the fault of the machine, and not of what was handed in."""
LEFT_OUT = {
    *(".git", ".hg", ".venv", "venv", "node_modules", "__MACOSX", ".DS_Store"),
    *("__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis", ".tox"),
}
INI = """[pytest]
addopts = --import-mode=importlib
pythonpath = .
"""


class Workspace:
    """Temporary folders of one grading run."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.original = folder / "original"
        self.run = folder / "run"

    @property
    def kit(self) -> pathlib.Path:
        """The tests, for one start of pytest."""
        return self.run / "graded"

    @property
    def submission(self) -> pathlib.Path:
        """What was handed in, for one start of pytest, which also starts there."""
        return self.run / "submission"

    @property
    def home(self) -> pathlib.Path:
        """Home, temporary files and caches; short, because the path of a socket has 104 bytes on macOS."""
        return self.run / "h"

    def take(self, submission: pathlib.Path) -> None:
        """Copy what was handed in, a folder or a zip file.

        Raises:
            ValueError: in one line, when it cannot be graded.
            OSError: if there is no room for the copy.
        """
        try:
            if submission.is_dir():
                _copy_folder(submission, self.original)
            elif submission.is_file():
                _unpack(submission, self.original)
            else:
                raise ValueError(f"{submission} is neither a folder nor a zip file")
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            place = f" ({error.filename})" if error.filename else ""
            raise ValueError(f"{submission} cannot be read: {error.strerror or error}{place}") from None
        if not any(self.original.iterdir()):
            raise ValueError(f"{submission} is empty; hand in the folder with {ADAPTERS[0]} in it")

    def find_adapters(self, given: str) -> str:
        """The path of the adapters within the submission: the one that is given, or where they usually are.

        Raises:
            ValueError: in one line, when they are not there.
        """
        entries = list(self.original.iterdir())
        places = [self.original]
        if len(entries) == 1 and entries[0].is_dir():
            places += entries  # the folder was packed, and not what is in it
        for place in places:
            for name in [given] if given else ADAPTERS:
                path = place / name
                if path.is_file() and path.resolve().is_relative_to(place.resolve()):
                    self.original = place
                    return name
        others = sorted(
            path.relative_to(self.original).as_posix() for path in self.original.rglob("adapters.py")
        )
        hint = "it connects your code with the tests; take it from the handout"
        if others:
            hint = f"there is {others[0]}: --adapters {others[0]} takes it"
        raise ValueError(f"the submission has no {given or ADAPTERS[0]}; {hint}")

    def refresh(self, *, with_hidden: bool) -> None:
        """Make the folders of `run` anew, whatever was done to them, with or without the hidden tests."""
        remove(self.run)
        _copy_folder(self.original, self.submission)
        _copy_folder(KIT, self.kit)
        if not with_hidden:
            shutil.rmtree(self.kit / HIDDEN_FOLDER, ignore_errors=True)
        (self.kit / "grader.ini").write_text(INI)
        self.home.mkdir()


def hash_files(folder: pathlib.Path) -> str:
    """SHA-256 of all files that are copied: of lines `hash  path` as `sha256sum` prints them, by path."""
    return _hash(folder, _files(folder))


def hash_code(folder: pathlib.Path) -> str:
    """The same of the code alone: what `make submission` calls code_sha256 in the manifest of an archive.

    An archive has only the files that count; a folder that is no unpacked archive may have others.
    Packages of the student's own are in the manifest's hash and not in this one: with some, the two differ.
    """
    inside = folder / REFERENCE
    adapters = folder / ADAPTERS[0]
    return _hash(folder, (path for path in _files(folder) if path == adapters or inside in path.parents))


def _hash(folder: pathlib.Path, paths: Iterator[pathlib.Path]) -> str:
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()) for path in paths}
    total = hashlib.sha256()
    for name in sorted(hashes):
        total.update(f"{hashes[name].hexdigest()}  ".encode() + os.fsencode(name) + b"\n")
    return total.hexdigest()


def remove(folder: pathlib.Path) -> None:
    """Delete a folder, also when somebody took away the right to; links are removed and not followed."""
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Files that are copied: no links, pipes or devices, and nothing of git's or Python's."""

    def give_up(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=give_up):
        here = pathlib.Path(parent)
        folders[:] = [
            name for name in folders if _is_taken(name) and not (here / name / "pyvenv.cfg").exists()
        ]
        for name in names:
            if _is_taken(name) and stat.S_ISREG((here / name).lstat().st_mode):
                yield here / name


def _is_taken(name: str) -> bool:
    return name not in LEFT_OUT and not name.endswith(".pyc")


def _copy_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    target.mkdir(parents=True)
    num_bytes = 0
    # All names first: the source may hold the folder that is being filled.
    for num_files, path in enumerate(list(_files(source)), start=1):
        num_bytes += path.stat().st_size
        _check_size(source, num_files, num_bytes)
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _unpack(archive: pathlib.Path, target: pathlib.Path) -> None:
    """Extract a zip file whose entries all lie within it."""
    target.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            _check_size(archive, len(entries), sum(entry.file_size for entry in entries))
            for entry in entries:
                _unpack_entry(packed, entry, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{archive} is neither a folder nor a zip file that can be read ({error})") from None
    except RuntimeError:
        raise ValueError(f"{archive} needs a password; pack it without one") from None


def _unpack_entry(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, target: pathlib.Path) -> None:
    parts = pathlib.PurePosixPath(entry.filename.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise ValueError(f"the zip file has an entry outside of itself, {entry.filename!r}; pack it anew")
    is_link = stat.S_ISLNK(entry.external_attr >> 16)
    if entry.is_dir() or is_link or not all(map(_is_taken, parts)):
        return
    path = target.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with packed.open(entry) as source, path.open("wb") as copy:  # never more than the size that it declares
        shutil.copyfileobj(source, copy)


def _check_size(what: pathlib.Path, num_files: int, num_bytes: int) -> None:
    if num_files > MAX_FILES or num_bytes > MAX_BYTES:
        raise ValueError(
            f"{what} is larger than a submission may be ({MAX_FILES} files, {MAX_BYTES / 2**30:g} GiB); "
            "leave out data, results and virtual environments"
        )
