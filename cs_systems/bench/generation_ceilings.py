"""What this machine can do at most, measured in the same run: bytes and FLOPs a second."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cs_systems.bench.peak import measure_matmul_rate
from cs_systems.device import DTYPES, device_name, gpu_memory_bytes, synchronizer
from cs_systems.estimator.devices import Device, find_device
from cs_systems.estimator.generation import USABLE
from cs_systems.timing.host_memory import available_bytes

_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}  # well over any cache
_REPEATS = 5
_GPU_SIZE = 8192


@dataclass(frozen=True)
class Ceilings:
    """Rates and memory of a device; None where not known."""

    copy_bytes_per_s: float
    """Bytes read and written by a copy."""
    read_bytes_per_s: float
    """Bytes read by a sum, which is what decoding does with weights."""
    flops_per_s: dict[str, float]
    """Of a large matrix product, by precision."""
    datasheet_bytes_per_s: float | None
    datasheet_flops_per_s: dict[str, float | None]
    memory_bytes: int | None
    """What weights, cache and temporaries may take."""
    memory_source: str

    @property
    def bytes_per_s(self) -> float:
        """The faster of the two measured rates: what MBU is a share of."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)


def measure_ceilings(device: torch.device, precisions: Sequence[str]) -> Ceilings:
    """Measure them, in about a second a precision. int8 weights are computed with in bf16."""
    source = torch.zeros(_COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    synchronize = synchronizer(device)
    copy_s = _fastest(lambda: target.copy_(source), synchronize)
    read_s = _fastest(lambda: source.view(-1, 2**16).sum(-1), synchronize)
    known = find_device(device_name(device)) if device.type == "cuda" else None
    kinds = dict.fromkeys("bf16" if precision == "int8" else precision for precision in precisions)
    total = gpu_memory_bytes(device)
    return Ceilings(
        copy_bytes_per_s=2 * source.nbytes / copy_s,
        read_bytes_per_s=source.nbytes / read_s,
        flops_per_s={kind: _matmul_rate(device, DTYPES[kind]) for kind in kinds},
        datasheet_bytes_per_s=known.bandwidth_gb_per_s * 1e9 if known else None,
        datasheet_flops_per_s={kind: _datasheet(known, kind) for kind in kinds},
        memory_bytes=available_bytes() if total is None else int(USABLE * total[1]),
        memory_source="free memory" if total is None else f"{USABLE:.0%} of the GPU's memory",
    )


def _datasheet(known: Device | None, kind: str) -> float | None:
    rate = known.peak_tflops_per_s(kind) if known else None
    return None if rate is None else rate * 1e12


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    if device.type == "cpu":
        return measure_matmul_rate(dtype)[0]
    a, b = (torch.randn(_GPU_SIZE, _GPU_SIZE, device=device).to(dtype) for _ in range(2))
    return 2 * _GPU_SIZE**3 / _fastest(lambda: torch.mm(a, b), synchronizer(device))


def _fastest(run: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Seconds of the fastest of some runs; the first touches the memory and is not counted."""
    run()
    times = []
    for _ in range(_REPEATS):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
