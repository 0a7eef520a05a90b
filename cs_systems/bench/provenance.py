"""Where a measurement comes from: command, commit, machine and versions."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess

import torch

from cs_systems.bench.record import Provenance
from cs_systems.device import cuda_version, device_name, driver_version

_ROOT = pathlib.Path(__file__).parents[2]
_CHANGES = ("status", "--porcelain", "-uno", "--", ":!results")  # a record that is appended changes no code


def collect_provenance(command: str, device: torch.device) -> Provenance:
    """Provenance of a run on `device` that begins now and was started by `command`."""
    return Provenance(
        command=command,
        commit=_git("rev-parse", "--short=12", "HEAD"),
        dirty=None if (changes := _git(*_CHANGES)) is None else bool(changes),
        time_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=device_name(device),
        device_type=device.type,
        threads=torch.get_num_threads(),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _installed("triton"),
            "cuda": cuda_version(),
            "driver": driver_version(),
        },
    )


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", _ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        return None
    return run.stdout.strip()


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
