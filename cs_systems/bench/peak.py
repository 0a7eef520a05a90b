"""The rate that measured FLOP/s are compared with: a datasheet for a known GPU, a measurement on a CPU."""

import time
from dataclasses import dataclass

import torch

from cs_systems.device import DTYPES, device_name
from cs_systems.estimator.devices import find_device

_SIZE = 2048
_REPEATS = 10


@dataclass(frozen=True)
class PeakRate:
    """Dense matrix-product rate in TFLOP/s and where it comes from; None where it is not known."""

    tflops_per_s: int | float | None
    source: str | None


def peak_rate(device: torch.device, precision: str, param_dtype: str) -> PeakRate:
    """Peak rate of matrix products in `precision`, or in a narrower `param_dtype`; never a guess."""
    if precision in ("fp32", "tf32") and param_dtype != "fp32":
        precision = param_dtype
    if device.type == "cuda":
        name = device_name(device)
        known = find_device(name)
        rate = known.peak_tflops_per_s(precision) if known else None
        return PeakRate(rate, f"datasheet of {name}, dense {precision}" if rate else None)
    rate = measure_matmul_rate(DTYPES[precision]) / 1e12
    return PeakRate(
        rate, f"best of {_REPEATS} products of {_SIZE} x {_SIZE} matrices in {precision}, this run"
    )


def measure_matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of ten square matrix products on the CPU, after one to warm up."""
    a, b = (torch.randn(_SIZE, _SIZE).to(dtype) for _ in range(2))
    torch.mm(a, b)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * _SIZE**3 / min(times)
