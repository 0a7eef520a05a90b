"""Everything that differs between a CPU and an NVIDIA GPU. The only module that says `torch.cuda`."""

import pathlib
import pickle
import platform
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""torch.dtype by the name used in flags and tables."""

_FILLER_BYTES = 2**28  # larger than the L2 cache of any GPU


class UnsupportedError(ValueError):
    """The machine cannot do what was asked, whatever the size: the message says what would work."""


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; `auto` takes a usable GPU when there is one.

    Raises:
        UnsupportedError: when a GPU is asked for and none is usable.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        why = "no GPU is usable" if torch.version.cuda else "this torch was built without CUDA"
        raise UnsupportedError(f"--device cuda: {why}; use --device cpu, or install a CUDA build of torch")
    return torch.device(name)


def check_precision(device: torch.device, precision: str) -> None:
    """Raise UnsupportedError when `device` has no hardware for `precision` (fp32, tf32, bf16, fp16)."""
    if precision == "tf32":
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
            raise UnsupportedError(
                "--precision tf32 needs an NVIDIA GPU of compute capability 8.0 or later; use fp32 or bf16"
            )
    elif precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise UnsupportedError(
            f"--precision bf16: {device_name(device)} has no bf16 arithmetic; use fp16 or fp32"
        )


def set_matmul_precision(precision: str) -> str:
    """Let fp32 matrix products use TF32 only for `precision` tf32; returns torch's name of the setting."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return torch.get_float32_matmul_precision()


def fp32_matmul_bits(device: torch.device) -> int:
    """Significand bits that an fp32 matrix product keeps, measured: 24 in fp32, 11 in TF32, 8 in bf16.

    Settings and environment variables (NVIDIA_TF32_OVERRIDE) can both lower it, so the product is asked:
    entry k of the matrix is 1 + 2^-k, and times the identity it comes back whole or shortened.
    """
    size = 256  # large enough for the kernels of large products
    steps = torch.arange(1, size + 1, dtype=torch.float64).clamp(max=60)
    exact = (1 + 2.0**-steps).float().to(device)
    kept = torch.diag(exact) @ torch.eye(size, device=device)
    survives = (kept.diagonal() == exact).cpu()[:23]
    return 1 + int(survives.cumprod(0).sum())


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast for bf16 and fp16, nothing for fp32 and tf32."""
    if precision in ("bf16", "fp16"):
        return torch.autocast(device.type, DTYPES[precision])
    return nullcontext()


def synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that returns when all work given to `device` is done; on a CPU there is nothing to await."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def device_name(device: torch.device) -> str:
    """The processor's own name, for example 'NVIDIA H200' or 'AMD EPYC 7B13'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        return found[1].strip()
    return platform.processor() or platform.machine()


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Generation of a GPU, (9, 0) for H100 and H200; None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def gpu_memory_bytes(device: torch.device) -> tuple[int, int] | None:
    """(free, total) memory of a GPU as the driver sees it; None for a CPU."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak for `peak_memory_bytes`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most bytes held by tensors on a GPU since the reset; None on a CPU, where torch does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def allocated_bytes(device: torch.device) -> int | None:
    """Bytes held by tensors on a GPU now; None on a CPU, where torch does not count."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def release_cached_memory(device: torch.device) -> None:
    """Give what torch keeps for later tensors back to the driver, so that `gpu_memory_bytes` sees it free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def event_timer(device: torch.device) -> Callable[[Callable[[], object]], float] | None:
    """A function that runs another and returns the seconds that the GPU worked on it; None on a CPU.

    The GPU is first given 1 GiB to clear, which takes it longer than Python takes to ask for a few kernels:
    they queue up, and the time between two marks in the queue is work, not waiting for Python. It also leaves
    the L2 cache without the inputs, as a model that does other things between two calls would.
    """
    if device.type != "cuda":
        return None
    filler = torch.empty(_FILLER_BYTES, dtype=torch.int8, device=device)

    def timer(run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        for _ in range(2**30 // _FILLER_BYTES):
            filler.zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3

    return timer


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or in the CPU allocator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def cuda_version() -> str | None:
    """Version of CUDA that torch was built with."""
    return torch.version.cuda


def driver_version() -> str | None:
    """Version of the NVIDIA kernel driver, read from the system; None where there is none."""
    path = pathlib.Path("/proc/driver/nvidia/version")
    if not path.exists():
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", path.read_text())
    return found[1] if found else None


def push_nvtx_range(name: str) -> None:
    """Open a range that a profiler attached to this process sees; needs a CUDA build of torch."""
    torch.cuda.nvtx.range_push(name)


def pop_nvtx_range() -> None:
    """Close the range that this thread opened last."""
    torch.cuda.nvtx.range_pop()


def start_capture() -> None:
    """Let a profiler that waits for cudaProfilerStart record from now on; nothing without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.profiler.start()


def stop_capture() -> None:
    """Let that profiler stop. Wait for the GPU first: kernels that still run would be missing."""
    if torch.cuda.is_available():
        torch.cuda.profiler.stop()


def start_memory_history(device: torch.device) -> None:
    """Let torch's GPU allocator note every allocation from now on; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.memory._record_memory_history(max_entries=1_000_000)


def save_memory_history(device: torch.device, path: pathlib.Path) -> None:
    """Write what was noted, for PyTorch's memory viewer (pytorch.org/memory_viz), and stop noting."""
    if device.type == "cuda":
        with path.open("wb") as file:
            pickle.dump(torch.cuda.memory._snapshot(), file, protocol=4)  # the viewer reads no newer one
        torch.cuda.memory._record_memory_history(enabled=None)
