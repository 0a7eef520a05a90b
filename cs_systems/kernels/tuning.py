"""Which configuration of a kernel was measured to be the fastest on this GPU: a file of winners.

`tune.py` fills it, launches read it. The file is $CS_SYSTEMS_TUNING, else cs_systems/tuning.json in
$XDG_CACHE_HOME or ~/.cache: JSON, one entry for each device, version of Triton, kernel and key (head width,
dtype, ...). Without an entry a kernel runs with the configuration that its authors chose.
"""

import functools
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
import triton

from cs_systems.device import device_name

FORMAT = "cs_systems tuning 1"

Key = Mapping[str, str | int | bool]
Config = dict[str, int]


def tuning_path() -> pathlib.Path:
    """The file of measured configurations; it need not exist."""
    named = os.environ.get("CS_SYSTEMS_TUNING")
    if named:
        return pathlib.Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "cs_systems" / "tuning.json"


def cached_config(kernel: str, key: Key, device: torch.device) -> Config | None:
    """The stored configuration of `kernel` for `key` on `device`; None when there is none, and on a CPU.

    Called by every launch: the file is read once a process. The result must not be changed.
    """
    if device.type != "cuda":
        return None
    return _configs(device).get((kernel, frozenset(key.items())))


@functools.cache
def _configs(device: torch.device) -> dict[tuple[str, frozenset], Config]:
    """What was measured on this device with this Triton; nothing, after a warning, if it cannot be read."""
    try:
        entries = _read_entries(tuning_path())
    except ValueError as error:
        logging.getLogger(__name__).warning("%s; kernels run with their default configurations", error)
        return {}
    here = {"device": device_name(device), "triton": triton.__version__}
    return {
        (entry["kernel"], frozenset(entry["key"].items())): entry["config"]
        for entry in entries
        if all(entry[name] == value for name, value in here.items())
    }


def store_config(kernel: str, key: Key, device: torch.device, config: Mapping[str, int]) -> None:
    """Keep `config` for later launches, in place of what was stored for the same kernel, key and device.

    Raises:
        ValueError: when the file cannot be written, or is no file of ours; the message says what to do.
    """
    path = tuning_path()
    name = {"device": device_name(device), "triton": triton.__version__, "kernel": kernel, "key": dict(key)}
    others = [entry for entry in _read_entries(path) if any(entry[part] != name[part] for part in name)]
    _write_entries(path, [*others, name | {"config": dict(config)}])
    _configs.cache_clear()


def check_storable() -> None:
    """Raise the ValueError of `store_config` now, rather than after minutes of measuring."""
    path = tuning_path()
    _write_entries(path, _read_entries(path))


def _read_entries(path: pathlib.Path) -> list[dict[str, Any]]:
    """All entries; none if there is no file yet."""
    advice = "delete it, or name another file with CS_SYSTEMS_TUNING"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"cannot read the tuning file {path} ({error.strerror}); {advice}") from error
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ValueError(f"the tuning file {path} is damaged; {advice}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path} is no tuning file of this version ({FORMAT!r}); {advice}")
    entries = document.get("entries")
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise ValueError(f"the tuning file {path} is damaged; {advice}")
    return entries


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(part), dict) for part in ("key", "config")
    ):
        return False
    texts = (entry.get(part) for part in ("device", "triton", "kernel"))
    scalars = (isinstance(value, str | int) for value in entry["key"].values())
    numbers = (type(value) is int for value in entry["config"].values())
    return all(isinstance(text, str) for text in texts) and all(scalars) and all(numbers)


def _write_entries(path: pathlib.Path, entries: list[dict[str, Any]]) -> None:
    """Replace the file as a whole, so that whoever reads it meanwhile sees the old or the new one."""
    text = json.dumps({"format": FORMAT, "entries": entries}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=path.name) as folder:
            complete = pathlib.Path(folder, path.name)
            complete.write_text(text, encoding="utf-8")
            complete.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot write the tuning file {path} ({error.strerror}); name another with CS_SYSTEMS_TUNING"
        ) from error
