"""What the tables of a trace have in common."""

from cs_systems.tables import Column, format_percent, format_seconds
from cs_systems.tracing.trace import Trace

UNATTRIBUTED, TOTAL = "(unattributed)", "total"
"""The last rows: what belongs nowhere, and the sum."""


def time_column(key: str, title: str) -> Column:
    """A column of nanoseconds; people see each in the unit that suits it."""
    return Column(key, title, format=duration)


def share_column(key: str, title: str) -> Column:
    """A column of fractions; people see percentages."""
    return Column(key, title, format=format_percent)


def duration(ns: float) -> str:
    """Nanoseconds for people."""
    return format_seconds(ns / 1e9) if ns else "0"


def share(part: float, whole: float) -> float | None:
    """The fraction, or None of nothing."""
    return part / whole if whole else None


def is_cpu(trace: Trace) -> bool:
    """Whether operators are the work, rather than kernels."""
    return any(kernel.kind == "op" for kernel in trace.kernels)


def work_word(trace: Trace) -> str:
    """Whose time it is that the tables count."""
    return "operators" if is_cpu(trace) else "device"
