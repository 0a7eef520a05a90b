"""Run groups of rows, one group after another; the rows of a group take turns, and each becomes a record."""

import os
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cs_systems import device as devices
from cs_systems.bench.command import GroupsResult
from cs_systems.bench.contest import WARMUP_ROUNDS, Outcome, as_outcome, failures
from cs_systems.bench.progress import Progress
from cs_systems.bench.provenance import collect_provenance
from cs_systems.bench.record import BenchmarkRecord, append_record, case_key

OnStep = Callable[[str], object]


@dataclass(frozen=True)
class Group:
    """The implementations of one job."""

    label: str
    """What tells this group from the others, for the progress."""
    cases: Mapping[str, Mapping[str, Any]]
    """`BenchmarkRecord.case` of each row, by implementation."""
    find_obstacle: Callable[[str], str | None]
    """Why an implementation cannot run here and now; None if it can be tried."""
    measure: Callable[[Sequence[str], OnStep], tuple[dict[str, Outcome], bool]]
    """Lets the named implementations take turns; returns their outcomes and whether Ctrl-C ended it."""
    num_passes: int
    rounds: int
    work: float
    """FLOPs or bytes, for guessing the time left."""


def prepare_device(name: str, threads: int) -> torch.device:
    """Choose the device and the number of threads of this process.

    Raises:
        UnsupportedError: when the machine has no such device, or far fewer cores.
    """
    device, cores = devices.choose_device(name), os.cpu_count() or 1
    if threads > 4 * cores:  # they would only wait for one another
        raise devices.UnsupportedError(f"--threads {threads}: this machine has {cores} cores; use {cores}")
    if threads:
        torch.set_num_threads(threads)
    return device


def run_groups(
    experiment: str,
    groups: Sequence[Group],
    command: str,
    device: torch.device,
    output: pathlib.Path | None,
    finished: Mapping[str, BenchmarkRecord],
) -> GroupsResult:
    """Measure the groups in order. Ctrl-C ends it and keeps what was measured.

    A group of which any row is missing in `finished` is measured again as a whole, because its ratios mean
    something only if all took turns. What cannot run here is skipped, and asks for no measurement.
    """
    result, progress = GroupsResult(), Progress(sys.stderr)
    keys = [{name: case_key(experiment, case) for name, case in group.cases.items()} for group in groups]
    progress.plan([0.0 if _is_finished(k, finished) else g.work for k, g in zip(keys, groups, strict=True)])
    for group, names in zip(groups, keys, strict=True):
        obstacles = {name: group.find_obstacle(name) for name in names}
        able = [name for name, obstacle in obstacles.items() if obstacle is None]
        provenance = collect_provenance(command, device)
        outcomes = {name: Outcome("skipped", obstacle) for name, obstacle in obstacles.items() if obstacle}
        known = {name: finished[key] for name, key in names.items() if key in finished and name in able}
        is_finished = bool(able) and len(known) == len(able)
        if able and not is_finished:
            progress.start_case(group.label, len(able) + group.num_passes * (WARMUP_ROUNDS + group.rounds))
            measured, result.interrupted = _measure(group, able, progress)
            outcomes |= measured
        records = known if is_finished else {}
        for name, outcome in outcomes.items():
            records[name] = BenchmarkRecord(
                experiment, group.cases[name], outcome.status, provenance,
                reason=outcome.reason, samples_s=outcome.samples_s, warmup_samples_s=outcome.warmup_samples_s,
                metrics=outcome.metrics, notes=outcome.notes,
            )  # fmt: skip
        result.records += [records[name] for name in names]
        if is_finished:
            progress.finish_case(f"{group.label}: finished before, not measured again")
            continue
        for name in names:
            _store(output, records[name], result)
        counts = Counter(records[name].status for name in names)
        progress.finish_case(f"{group.label}: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
        if result.interrupted:
            break
    return result


def _measure(group: Group, names: Sequence[str], progress: Progress) -> tuple[dict[str, Outcome], bool]:
    """`group.measure`, where an end before the contest (no room for the inputs) is the outcome of all."""
    try:
        return group.measure(names, progress.step)
    except KeyboardInterrupt:
        return {name: Outcome("failed", "interrupted before a round was measured") for name in names}, True
    except failures() as error:
        return {name: as_outcome(error) for name in names}, False


def _is_finished(keys: Mapping[str, str], finished: Mapping[str, BenchmarkRecord]) -> bool:
    return all(key in finished for key in keys.values())


def _store(output: pathlib.Path | None, record: BenchmarkRecord, result: GroupsResult) -> None:
    if output is None:
        return
    try:
        append_record(output, record)
    except OSError as error:
        problem = f"{output}: a record could not be stored ({error.strerror}); make room and repeat"
        result.problems.append(problem)
