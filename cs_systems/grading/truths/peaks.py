"""Truths about peaks of memory, as profiles with all allocations say."""

from collections.abc import Callable, Mapping
from typing import Any

from cs_systems.grading.evidence import ProfiledRun
from cs_systems.grading.items import NotMeasuredError, Truth
from cs_systems.grading.truths.profile import (
    CHOSEN,
    SWEEP,
    Wanted,
    chosen_facts,
    not_recorded,
    own,
    runs,
    selector,
)
from cs_systems.grading.truths.question import Finder, Question, under
from cs_systems.grading.truths.records import ROUNDING
from cs_systems.tracing.trace import PHASES

MEMORY = Wanted(memory=True)
SIZES = Wanted({"checkpoint_blocks": SWEEP}, memory=True)
_TIES = 1.01
"""Peaks that differ by less are alike."""


def _peak(mode: str, precision: str) -> tuple[Wanted, Callable[[ProfiledRun], float]]:
    wanted = Wanted({"mode": mode, "precision": precision}, memory=True)
    return wanted, lambda run: peak_of(run)["peak_bytes"]


def peak_of(run: ProfiledRun) -> Mapping[str, Any]:
    """The row of the table of peaks for one run.

    Raises:
        NotMeasuredError: when the trace has no phases.
    """
    if not run.peaks:
        raise NotMeasuredError(
            f"{run.path} has no named phases: record it with python profiling/run.py --memory"
        )
    return run.peaks[0]


def _phase_of_peak(question: Question) -> Truth:
    row = peak_of(runs(question, MEMORY)[0])
    peaks = {phase: row.get(f"{phase}_bytes") or 0 for phase in PHASES}
    highest = max(peaks, key=peaks.__getitem__)
    tied = tuple(phase for phase, peak in peaks.items() if _TIES * peak >= peaks[highest])
    return Truth(highest, also=tied, hint="compare the peaks of the phases, optimizer state included")


def _change_of_peak(mode: str) -> Finder:
    def find(question: Question) -> Truth:
        fp32, bf16 = (
            measure(runs(question, wanted)[0])
            for wanted, measure in (_peak(mode, "fp32"), _peak(mode, "bf16"))
        )
        word = "same" if 1 / _TIES <= bf16 / fp32 <= _TIES else "rises" if bf16 > fp32 else "falls"
        return Truth(word, hint="divide your two peaks of this mode; within 1 % is same")

    return find


def _checkpointed(question: Question) -> dict[int, float]:
    """Peak by number of blocks in a checkpoint; of several runs the newest."""
    found = {
        run.facts.checkpoint_blocks: peak_of(run)["peak_bytes"] for run in reversed(runs(question, SIZES))
    }
    sizes = {size: peak for size, peak in found.items() if size}
    if len(sizes) < 2:
        raise NotMeasuredError(not_recorded(question, SIZES, {**chosen_facts(question), **SIZES.fixed}))
    return sizes


def _own_best_size(question: Question) -> Truth:
    sizes = _checkpointed(question)
    lowest = min(sizes.values())
    tied = [size for size, peak in sizes.items() if peak <= _TIES * lowest]
    best = min(sizes, key=sizes.__getitem__)
    return Truth(
        float(best), float(min(tied)), float(max(tied)), hint="the size with the lowest peak of your runs"
    )


def _own_lowest_peak(question: Question) -> Truth:
    lowest = float(min(_checkpointed(question).values()))
    return Truth(lowest, lowest * (1 - ROUNDING), lowest * (1 + ROUNDING))


_CHOOSES_MEMORY = dict.fromkeys(CHOSEN, selector(MEMORY))

FINDERS: dict[str, Finder] = {
    **under("memory_profiling.a", {**_CHOOSES_MEMORY, "phase": _phase_of_peak}),
    **under(
        "memory_profiling.b",
        {
            **_CHOOSES_MEMORY,
            "forward_peak": own(*_peak("forward", "fp32")),
            "step_peak": own(*_peak("train-step", "fp32")),
        },
    ),
    **under(
        "memory_profiling.c",
        {
            **_CHOOSES_MEMORY,
            "forward_peak": own(*_peak("forward", "bf16")),
            "step_peak": own(*_peak("train-step", "bf16")),
            "forward_change": _change_of_peak("forward"),
            "step_change": _change_of_peak("train-step"),
        },
    ),
    **under(
        "gradient_checkpointing.c",
        {
            **dict.fromkeys(CHOSEN, selector(SIZES)),
            "best_size": _own_best_size,
            "lowest_peak": _own_lowest_peak,
        },
    ),
}
