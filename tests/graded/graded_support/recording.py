"""What torch.profiler recorded: named ranges, and the operators that ran while they were open."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from graded_support.numbers import fail

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
EXPONENTIALS = ("aten::exp", "aten::exp_", "aten::_softmax", "aten::_safe_softmax")
MASKS = ("aten::masked_fill", "aten::masked_fill_", "aten::where")
SCALES = ("aten::mul", "aten::mul_", "aten::div", "aten::div_")


@dataclass(frozen=True)
class Event:
    """An operator or a range, in microseconds."""

    name: str
    start_us: float
    end_us: float

    def holds(self, other: "Event") -> bool:
        """Whether the other began and ended inside of this one."""
        return self.start_us <= other.start_us and other.end_us <= self.end_us


def record(run: Callable[[], object]) -> list[Event]:
    """Run something on the CPU under torch.profiler, and return all events in the order of their starts."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    events = [
        Event(event.name, event.time_range.start, event.time_range.end) for event in profiler.events() or ()
    ]
    return sorted(events, key=lambda event: event.start_us)


def find_range(events: list[Event], name: str) -> Event:
    """The one range of a name; several, or none, is a failure that says what may be the reason."""
    found = [event for event in events if event.name == name]
    if not found:
        others = sorted({event.name for event in events if not event.name.startswith("aten::")})
        seen = f"; it shows {', '.join(others[:8])}" if others else ", and no other range"
        fail(
            f"torch.profiler shows no range {name!r}{seen}. It sees torch.profiler.record_function, but not "
            f"NVTX, nor a range that is never closed."
        )
    if len(found) > 1:
        fail(f"torch.profiler shows {len(found)} ranges {name!r}; expected one")
    return found[0]


def names_inside(events: list[Event], outer: Event) -> list[str]:
    """Names of all that ran in a range."""
    return [event.name for event in events if event is not outer and outer.holds(event)]


def find_outside(events: list[Event], ranges: list[Event], names: tuple[str, ...]) -> list[str]:
    """Which of some operators ran in none of the ranges."""
    return [event.name for event in events if event.name in names and not any(r.holds(event) for r in ranges)]
