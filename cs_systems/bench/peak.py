"""The rate that measured FLOP/s are compared with: a datasheet for a known GPU, a measurement on a CPU."""

import time
from dataclasses import dataclass

import torch

from cs_systems.device import DTYPES, device_name
from cs_systems.estimator.devices import find_device

_SIZES = (256, 512, 1024, 2048)
_REPEATS = 10
_LONGEST_S = 0.3
"""A larger product is tried while it should take no longer: fp16 runs a thousand times slower than fp32 on a
CPU without fp16 arithmetic, where ten products of the largest size would take many minutes."""


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
    rate, size, repeats = measure_matmul_rate(DTYPES[precision])
    source = f"best of {repeats} products of {size} x {size} matrices in {precision}, this run"
    return PeakRate(rate / 1e12, source)


def measure_matmul_rate(dtype: torch.dtype) -> tuple[float, int, int]:
    """FLOP/s of the fastest of some square matrix products on the CPU, their size, and their number."""
    for size in _SIZES:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        _time_product(a, b)  # the first product of a size prepares its kernel
        times = [_time_product(a, b)]
        if 8 * times[0] > _LONGEST_S:
            break
    while len(times) < _REPEATS and sum(times) < _REPEATS * _LONGEST_S:
        times.append(_time_product(a, b))
    return 2 * size**3 / min(times), size, len(times)


def _time_product(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(a, b)
    return time.perf_counter() - start
