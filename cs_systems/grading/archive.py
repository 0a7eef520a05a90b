"""The zip file of a submission: written in one piece and always the same way, read without trusting it."""

import hashlib
import json
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

MANIFEST = "manifest.json"
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip file can express; the same in every archive
_LARGEST_MANIFEST = 2**24
_LARGEST_NUMBER = 1e9
_CHUNK = 2**20
_KEYS = {"name": str | None, "code_sha256": str, "files": dict, "tested": bool, "tests": dict | None,
         "graded_tests": dict, "answers": dict | None, "own_code": list}  # fmt: skip


def check_output(path: pathlib.Path) -> None:
    """Make the folder of an archive, and see that nothing but an older submission would be overwritten.

    Raises:
        ValueError: in one line, naming what is in the way.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ValueError(f"--output {path} is a folder; name a file in it")
        if not path.exists():
            return
    except OSError as error:
        raise ValueError(f"--output {path}: cannot write ({error.strerror}); choose another place") from None
    try:
        read_archive(path)
    except ValueError:
        raise ValueError(
            f"--output {path} exists and is no submission; move it away, or name another file"
        ) from None


def write_archive(path: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Write a zip file of these files: the whole of it, or nothing. The same files give the same bytes.

    Raises:
        ValueError: in one line, when it cannot be written.
    """
    part = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            part = pathlib.Path(file.name)
            _write_zip(file, files)
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"--output {path}: cannot write ({reason}); make room, or choose another place"
        ) from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _write_zip(file: IO[bytes], files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(files, key=lambda name: (name != MANIFEST, name)):
            info = zipfile.ZipInfo(name, _EARLIEST)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix, also when packed elsewhere
            info.external_attr = 0o100644 << 16
            archive.writestr(info, files[name])


def read_archive(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest of a submission, and the SHA-256 of each file that really is in it.

    It may also lie in one folder within the zip file, as when it was unpacked and packed again, or be the
    folder that it was unpacked to.

    Raises:
        ValueError: in one line, when it cannot be read or is no submission.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        with zipfile.ZipFile(path) as archive:
            names = [each for each in archive.namelist() if not each.endswith("/")]
            outer = _outer_folder(names)
            if outer + MANIFEST not in names:
                raise ValueError(f"{path} has no {MANIFEST}: make submission did not make it")
            if len(set(names)) < len(names):
                raise ValueError(f"{path} holds a file twice: it was changed after it was packed")
            with archive.open(outer + MANIFEST) as file:
                manifest = _parse_manifest(file.read(_LARGEST_MANIFEST), path)
            found = {name.removeprefix(outer): _hash(archive, name) for name in names}
    except OSError as error:
        raise ValueError(f"{path}: cannot read ({error.strerror or error})") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is no zip file, or a damaged one ({error}); pack it again") from None
    except (NotImplementedError, RuntimeError) as error:  # another compression, a password
        raise ValueError(f"{path} was not made by make submission ({error})") from None
    del found[MANIFEST]
    return manifest, found


def _outer_folder(names: Sequence[str]) -> str:
    """The folder, with a slash, that everything lies in; empty where there is none."""
    folders = {name.partition("/")[0] for name in names}
    return f"{folders.pop()}/" if len(folders) == 1 and MANIFEST not in names else ""


def _read_folder(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The same of an unpacked one; what Python caches is no part of it."""
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} has no {MANIFEST}: it is no unpacked archive of make submission")
    manifest = _parse_manifest((folder / MANIFEST).read_bytes(), folder)
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    del found[MANIFEST]
    return manifest, {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def _parse_manifest(text: bytes, path: pathlib.Path) -> dict[str, Any]:
    foreign = f"{path} has a {MANIFEST} of another program or version; pack it again with this one"
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(foreign) from None
    if not isinstance(manifest, dict) or manifest.get("schema_version") != 1:
        raise ValueError(foreign)
    if not all(key in manifest and isinstance(manifest[key], kind) for key, kind in _KEYS.items()):
        raise ValueError(foreign)
    if not all(isinstance(entry, dict) and "sha256" in entry for entry in manifest["files"].values()):
        raise ValueError(foreign)
    if not all(isinstance(place, str) for place in manifest["own_code"]):
        raise ValueError(foreign)
    if not (_is_score(manifest["tests"]) and _is_count(manifest["answers"])):
        raise ValueError(foreign)
    return manifest


def _is_score(tests: dict[str, Any] | None) -> bool:
    """Whether this can be what the tests gave; None when they were not run."""
    keys = ("points", "earned", "pending", "lost")
    return tests is None or (
        isinstance(tests.get("time_utc"), str)
        and isinstance(tests.get("scores"), list)
        and all(isinstance(score, dict) and _are_numbers(score, keys) for score in tests["scores"])
    )


def _is_count(answers: dict[str, Any] | None) -> bool:
    return answers is None or _are_numbers(answers, ("filled", "asked"))


def _are_numbers(values: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether all are there, and none is nan, infinite or absurd: Python reads those from JSON too."""
    found = [values.get(key) for key in keys]
    return all(isinstance(value, int | float) and abs(value) <= _LARGEST_NUMBER for value in found)


def _hash(archive: zipfile.ZipFile, name: str) -> str:
    digest = hashlib.sha256()
    with archive.open(name) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
