"""The state of a training run in one file, from which it continues to the last bit.

Bit for bit holds on the same machine with the same torch and number of threads: another library may add up
the terms of a sum in another order. What wrote a file stands in it, so that a difference can be told.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
import struct
from typing import Any

import torch

from cs_systems import device as devices
from cs_systems.mixed_precision.settings import TrainingConfig
from cs_systems.mixed_precision.training import TrainingRun

_FORMAT = "cs_systems training run, version 1"
_PARTS = {"config": dict, "text_sha256": str, "written_by": dict, "state": dict}


def checkpoint_path(folder: pathlib.Path, config: TrainingConfig) -> pathlib.Path:
    """The file of a run: precision and seed for people, and a hash that tells all other settings apart."""
    settings = json.dumps(dataclasses.asdict(config), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return folder / f"{config.precision}-seed{config.seed}-{digest}.pt"


def save_checkpoint(path: pathlib.Path, run: TrainingRun) -> None:
    """Write the state of `run`; at every moment `path` holds the old file or the new one, never half of one.

    Raises:
        ValueError: when the file cannot be written.
    """
    content = {
        "format": _FORMAT,
        "config": dataclasses.asdict(run.config),
        "text_sha256": run.text.sha256,
        "written_by": written_by(run.device),
        "state": run.state(),
    }
    unfinished = path.with_suffix(".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise ValueError(
            f"--checkpoints {path.parent}: cannot write {path.name} ({error.strerror})"
        ) from None


def load_checkpoint(path: pathlib.Path, run: TrainingRun) -> list[str]:
    """Continue `run` from the file; returns remarks about what may keep it from being exact to the bit.

    Nothing in the file is executed.

    Raises:
        ValueError: when the file is damaged, foreign, or of other settings or another text.
    """
    content = _read(path)
    settings = dataclasses.asdict(run.config)
    stored = content["config"]
    differing = [name for name in {**settings, **stored} if stored.get(name) != settings.get(name)]
    if differing:
        was = ", ".join(f"--{name.replace('_', '-')} {stored.get(name)}" for name in differing)
        raise ValueError(f"{path} is of a run with {was}; ask for these, or start again in another folder")
    if content["text_sha256"] != run.text.sha256:
        raise ValueError(
            f"{path} was trained on another text: --text {run.config.text} has changed since (or Python's "
            f"version has); restore it, or start again in another folder"
        )
    run.load_state(content["state"])
    now = written_by(run.device)
    others = [f"{name} {value}" for name, value in content["written_by"].items() if now.get(name) != value]
    if not others:
        return []
    return [f"continued from a checkpoint of {', '.join(others)}: steps may differ in the last bits"]


def written_by(device: torch.device) -> dict[str, Any]:
    """What the last bits of a result depend on."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": devices.device_name(device),
    }


def _read(path: pathlib.Path) -> dict[str, Any]:
    advice = "delete it to start again"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # tensors, numbers, text: no code
    except OSError as error:
        raise ValueError(f"{path}: cannot read ({error.strerror})") from None
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, struct.error, pickle.UnpicklingError):
        raise ValueError(f"{path} is cut off or not a checkpoint; {advice}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is a file of torch, but not a checkpoint of this program; {advice}")
    if not all(isinstance(content.get(name), kind) for name, kind in _PARTS.items()):
        raise ValueError(f"{path} is a checkpoint with missing parts; {advice}")
    return content
