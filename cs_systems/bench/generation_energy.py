"""Energy from the machine's own counters: the GPU's by NVML, the processor's by RAPL. No torch here.

Both count everything that the part does, idle power and neighbours included; an energy per token is that of
the machine while it generated, not of the arithmetic. Where no counter can be read it is not known.
"""

import ctypes
import pathlib
from dataclasses import dataclass

_POWERCAP = pathlib.Path("/sys/class/powercap")

Reading = dict[str, tuple[float, float]]
"""By counter: joules so far, and the joules after which it starts again at 0 (inf: never)."""


@dataclass(frozen=True)
class EnergyMeter:
    """The counters at the start of a window: `meter = EnergyMeter.start(...)`, the work, `meter.finish()`."""

    device_type: str
    before: Reading
    root: pathlib.Path

    @classmethod
    def start(cls, device_type: str, root: pathlib.Path = _POWERCAP) -> "EnergyMeter":
        """Open a window now, on a `cpu` or a `cuda` device."""
        return cls(device_type, _read(device_type, root), root)

    @property
    def source(self) -> str | None:
        """What is read; None when nothing can be."""
        return " and ".join(self.before) or None

    def finish(self) -> float | None:
        """Joules since `start`; None where no counter can be read."""
        after = _read(self.device_type, self.root)
        if not self.before or after.keys() != self.before.keys():
            return None
        total = 0.0
        for name, (joules, span) in self.before.items():
            used = after[name][0] - joules
            total += used + span if used < 0 else used
        return total


def _read(device_type: str, root: pathlib.Path) -> Reading:
    return _read_nvml() if device_type == "cuda" else _read_rapl(root)


def _read_rapl(root: pathlib.Path) -> Reading:
    """The packages of the processor; their parts (intel-rapl:0:1) are in them already."""
    reading = {}
    for folder in sorted(root.glob("*-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            joules = int((folder / "energy_uj").read_text()) / 1e6
            span = int((folder / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError):  # usually only the administrator may read it
            return {}
        reading[f"RAPL {folder.name}"] = joules, span
    return reading


def _read_nvml() -> Reading:
    """The first GPU's counter; NVML comes with the driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    ok = nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) == 0
    if not ok or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
        return {}
    return {"NVML": (millijoules.value / 1e3, float("inf"))}
