"""Settings of a whole process that one test can spoil for the next: read them, and put them back.

torch is not imported here: where it is not loaded, nobody can have changed it.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One setting of torch."""

    read: Callable[[Any], Any]
    """From the module torch."""
    write: Callable[[Any, Any], object]
    describe: Callable[[Any], str]
    """A value of it, as it follows "the code left torch"."""


def _set_device(torch: Any, device: Any) -> None:
    """Without one the device is the CPU; to set that would be a setting all the same, and slow."""
    torch.set_default_device(None if device == torch.device("cpu") else device)


SETTINGS = (
    Setting(
        lambda torch: torch.is_grad_enabled(),
        lambda torch, value: torch.set_grad_enabled(value),
        lambda value: f"with gradients switched {'on' if value else 'off'}",
    ),
    Setting(
        lambda torch: torch.get_default_dtype(),
        lambda torch, value: torch.set_default_dtype(value),
        lambda value: f"with the default type {value}",
    ),
    Setting(
        lambda torch: torch.get_default_device(),
        _set_device,
        lambda value: f"with the default device {value}",
    ),
    Setting(
        lambda torch: torch.get_num_threads(),
        lambda torch, value: torch.set_num_threads(value),
        lambda value: f"with set_num_threads({value})",
    ),
    Setting(
        lambda torch: torch.get_float32_matmul_precision(),
        lambda torch, value: torch.set_float32_matmul_precision(value),
        lambda value: f"with set_float32_matmul_precision({value!r})",
    ),
    Setting(
        lambda torch: torch.are_deterministic_algorithms_enabled(),
        lambda torch, value: torch.use_deterministic_algorithms(value),
        lambda value: f"with deterministic algorithms switched {'on' if value else 'off'}",
    ),
)


def read_settings() -> tuple[str, list[Any]]:
    """The working folder, or nothing where it was deleted, and the settings of torch if it is loaded."""
    torch = sys.modules.get("torch")
    return _folder(), [setting.read(torch) for setting in SETTINGS] if torch is not None else []


def put_back(before: tuple[str, list[Any]]) -> str:
    """Restore what `read_settings` read; what the code had changed, in words, or nothing."""
    changed = []
    torch = sys.modules.get("torch")
    for setting, value in zip(SETTINGS, before[1], strict=False):  # none when torch was loaded meanwhile
        found = setting.read(torch)
        if found != value:
            setting.write(torch, value)
            changed.append(f"left torch {setting.describe(found)}")
    if _folder() and before[0] and _folder() != before[0]:
        os.chdir(before[0])
        changed.append("changed the working folder")
    return f"the code {' and '.join(changed)}, which would spoil the tests after this one" if changed else ""


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""
