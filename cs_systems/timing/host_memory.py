"""Memory of the machine we run on: how much this process has used at most, and how much a new case may use.

In a container the machine's free memory is not the limit; the container's (its cgroup's) is. Both are read.
"""

import os
import pathlib
import re
import sys

_ROOT = pathlib.Path("/")


def peak_rss_bytes() -> int | None:
    """Most physical memory this process has held at one time, in bytes; None on Windows.

    Linux tells it in /proc (VmHWM). The portable `ru_maxrss` comes second: on Linux a new process starts with
    the peak of the one that started it.
    """
    peak = _status_bytes("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024  # bytes on macOS, KiB elsewhere


def available_bytes(root: pathlib.Path = _ROOT) -> int | None:
    """Bytes that this process can still use without swapping or being killed; None where that is not known.

    On Linux the smaller of what the machine and what the container has left. Elsewhere all physical memory:
    an upper bound. `root` is where /proc and /sys are looked for.
    """
    meminfo = _read(root / "proc/meminfo")
    free = None if meminfo is None else parse_kib_field(meminfo, "MemAvailable")
    if free is None:
        return _physical_bytes()
    left = cgroup_left_bytes(root)
    return free if left is None else min(free, left)


def parse_kib_field(text: str, name: str) -> int | None:
    """A field such as 'MemAvailable:  123 kB' of /proc/meminfo or /proc/self/status in bytes, or None."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def cgroup_left_bytes(root: pathlib.Path = _ROOT) -> int | None:
    """Limit less use of the tightest memory cgroup around this process; None when no limit is written.

    A limit may stand at any level, so all folders from our own up to the top are asked. File cache that the
    kernel would drop when memory gets short does not count as use. Works for cgroup versions 1 and 2; where
    there is no limit, version 1 writes a number larger than any memory.
    """
    left = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, limit, use, cache = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, use = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        own = pathlib.PurePosixPath(path.lstrip("/"))
        for level in (own, *own.parents):
            folder = root / top / level
            numbers = (_read(folder / limit), _read(folder / use))
            if all(text is not None and text.strip().isdigit() for text in numbers):  # "max" is no limit
                limit_bytes, use_bytes = (int(text) for text in numbers if text)
                left.append(max(0, limit_bytes - use_bytes + _stat_bytes(folder, cache)))
    return min(left, default=None)


def _stat_bytes(folder: pathlib.Path, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", _read(folder / "memory.stat") or "", flags=re.MULTILINE)
    return int(found[1]) if found else 0


def _status_bytes(name: str) -> int | None:
    status = _read(_ROOT / "proc/self/status")
    return None if status is None else parse_kib_field(status, name)


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, other systems may lack the names
        return None


def _read(path: pathlib.Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
