"""Limit, reset and read the memory of this process, on Linux. No torch here.

The limit is the kernel's own, on the private data of a process (RLIMIT_DATA): an allocation beyond it fails,
and nothing is killed. Address space would be no measure: libraries reserve gigabytes that they never touch.
"""

import contextlib
import ctypes
import pathlib
import sys

from cs_systems.timing.host_memory import parse_kib_field

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR = pathlib.Path("/proc/self/clear_refs")


def data_bytes() -> int | None:
    """Private data of this process, touched or not: what the limit is about. None outside Linux."""
    return _field("VmData")


def resident_bytes() -> int | None:
    """Physical memory that this process holds now; None outside Linux."""
    return _field("VmRSS")


def limit_data(limit_bytes: int) -> None:
    """Let every allocation fail that would bring `data_bytes` over the limit.

    Raises:
        ValueError: where the system has no such limit.
    """
    if sys.platform != "linux":
        raise ValueError("--memory-limit-gib needs Linux, whose kernel enforces it; leave it out")
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def reset_peak() -> bool:
    """Start a new peak for `host_memory.peak_rss_bytes`; False where that is not allowed."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
        return True
    return False


def release_free_memory() -> None:
    """Give what the C allocator keeps for later back to the system; nothing where it is not glibc's."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _field(name: str) -> int | None:
    try:
        return parse_kib_field(_STATUS.read_text(), name)
    except OSError:
        return None
