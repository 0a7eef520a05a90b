"""Sweep over batch sizes, column by column, each point in a process of its own, until memory ends. No torch.

A column is everything but the batch size. Before its first point the largest batch that should fit is
predicted; the column ends at the first point that runs out of memory or, where nothing would stop it but the
whole machine, at the first that is predicted to.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cs_systems.bench.generation_case import EXPERIMENT, GenerationCase, predict
from cs_systems.bench.progress import Progress
from cs_systems.bench.record import BenchmarkRecord, Provenance, case_key
from cs_systems.bench.sweep import WorkerError, ask_worker, record_of, store_record
from cs_systems.estimator.flops import forward_flops
from cs_systems.tables import format_bytes

WORKER = (sys.executable, "-m", "cs_systems.bench.generation_worker")
_MARGIN = 1.5
_ADVICE = "try a smaller --batch-size, --prompt-len or --new-tokens"


@dataclass(frozen=True)
class GenerationColumn:
    """Points that differ in nothing but the batch size."""

    cases: Sequence[GenerationCase]
    is_open: bool
    """Whether the batch sizes go on until memory runs out, so that what is beyond is no row."""

    @property
    def label(self) -> str:
        """Model, engine, precision."""
        first = self.cases[0]
        work = first.workload
        return f"{first.label}, {work.engine}, {work.precision}, {work.prompt_len} + {work.new_tokens} tokens"


@dataclass(frozen=True)
class Machine:
    """What the probe said."""

    device_type: str
    ceilings: Mapping[str, Any]
    provenance: Provenance

    def memory_bytes(self, case: GenerationCase) -> int | None:
        """What a point may take: the limit that was typed, or what the machine has."""
        return case.workload.memory_limit_bytes or self.ceilings["memory_bytes"]

    def is_enforced(self, case: GenerationCase) -> bool:
        """Whether a point that takes more fails alone, rather than take the machine down with it."""
        return self.device_type == "cuda" or case.workload.memory_limit_bytes is not None


@dataclass
class GenerationResult:
    """What a sweep brought: records column by column, and how it ended."""

    records: list[BenchmarkRecord] = field(default_factory=list)
    interrupted: bool = False
    problems: list[str] = field(default_factory=list)
    unsupported: str | None = None
    """Why the machine can do nothing of what was asked."""


def run_columns(
    columns: Sequence[GenerationColumn],
    command: str,
    output: pathlib.Path | None,
    finished: Mapping[str, BenchmarkRecord],
    progress: Progress,
    say: Callable[[str], object],
    worker: Sequence[str] = WORKER,
) -> GenerationResult:
    """Measure all columns. Ctrl-C ends it after the generation in progress and keeps what was measured.

    Args:
        columns: what to measure.
        command: what the user typed, for the provenance.
        output: file to append each record to as soon as it exists.
        finished: records by key that are taken as they are instead of measuring their point again.
        progress: told of every point and generation.
        say: told of the prediction for each column, before anything is measured.
        worker: command of the process that measures one point.

    Raises:
        WorkerError: when the measuring process cannot start.
    """
    result = GenerationResult()
    keys = [case_key(EXPERIMENT, case.settings()) for column in columns for case in column.cases]
    if all(key in finished for key in keys):
        result.records = [finished[key] for key in keys]
        return result
    firsts = [column.cases[0] for column in columns]
    answer = ask_worker({"command": command, "probe": [_request(case) for case in firsts]}, progress, worker)
    result.unsupported, result.interrupted = answer.events.get("unsupported"), answer.interrupted
    if result.unsupported or result.interrupted:
        return result
    if "probe" not in answer.events:
        raise WorkerError(answer.tail[-1] if answer.tail else f"it ended with code {answer.code}")
    probe = answer.events["probe"]
    machine = Machine(probe["device_type"], probe["ceilings"], Provenance(**answer.events["provenance"]))
    columns = [
        _trim(column, machine, packed) for column, packed in zip(columns, probe["packed"], strict=True)
    ]
    for column, obstacle, packed in zip(columns, probe["obstacles"], probe["packed"], strict=True):
        if not obstacle:
            say(_forecast(column, machine, packed))
    progress.plan([_work(case) for column in columns for case in column.cases])
    for column, obstacle, packed in zip(columns, probe["obstacles"], probe["packed"], strict=True):
        sweep = _Column(column, machine, packed, command, finished, progress, worker)
        for record in sweep.records(obstacle):
            is_old = record.key in finished
            result.records.append(record)
            if output is not None and not is_old:
                store_record(output, record, result.problems)
        result.interrupted = sweep.interrupted
        if result.interrupted:
            break
    return result


@dataclass
class _Column:
    """One column while it is being measured."""

    column: GenerationColumn
    machine: Machine
    packed: bool
    command: str
    finished: Mapping[str, BenchmarkRecord]
    progress: Progress
    worker: Sequence[str]
    interrupted: bool = False

    def records(self, obstacle: str | None) -> Iterator[BenchmarkRecord]:
        """The records, one by one as they come into being."""
        ended_at: int | None = None
        for case in self.column.cases:
            label = f"{self.column.label}, batch {case.batch_size}"
            record = self._record(case, obstacle, ended_at, label)
            if record is None:
                return
            how = f" ({record.reason})" if record.reason else ""
            self.progress.finish_case(f"{label}: {record.status}{how}")
            if record.status == "oom" or record.metrics.get("predicted_oom"):
                ended_at = ended_at or case.batch_size
            yield record
            if self.interrupted:
                return

    def _record(
        self, case: GenerationCase, obstacle: str | None, ended_at: int | None, label: str
    ) -> BenchmarkRecord | None:
        key = case_key(EXPERIMENT, case.settings())
        if key in self.finished:
            return self.finished[key]
        if obstacle:
            return self._skipped(case, obstacle)
        if ended_at is not None:
            return self._skipped(
                case, f"not run: batch {ended_at} did not fit into memory", predicted_oom=True
            )
        memory, plan = self.machine.memory_bytes(case), predict(case, packed=self.packed)
        needed = plan.peak_bytes(case.batch_size)
        if memory is not None and needed > memory and not self.machine.is_enforced(case):
            reason = (
                f"not run, would not fit: {plan.explain(case.batch_size)}; {format_bytes(memory)} are free; "
                f"batch {plan.largest_batch(memory)} should"
            )
            return self._skipped(
                case, reason, predicted_oom=True, predicted_bytes=needed,
                predicted_largest_batch=plan.largest_batch(memory), memory_bytes=memory,
                memory_source=self.machine.ceilings["memory_source"],
            )  # fmt: skip
        self.progress.start_case(label, 1 + case.workload.warmup_runs + case.workload.runs)
        request = _request(case) | {"command": self.command, "ceilings": self.machine.ceilings}
        answer = ask_worker(request, self.progress, self.worker)
        self.interrupted = answer.interrupted
        return record_of(answer, EXPERIMENT, case.settings(), _ADVICE)

    def _skipped(self, case: GenerationCase, reason: str, **metrics: Any) -> BenchmarkRecord:
        return BenchmarkRecord(
            EXPERIMENT, case.settings(), "skipped", self.machine.provenance, reason=reason, metrics=metrics
        )


def _trim(column: GenerationColumn, machine: Machine, packed: bool) -> GenerationColumn:
    """A ladder without an end is cut where no doubt is left that memory will have run out."""
    memory = machine.memory_bytes(column.cases[0])
    if not column.is_open or memory is None:
        return column
    likely = predict(column.cases[0], packed=packed).largest_batch(round(_MARGIN * memory))
    beyond = [index for index, case in enumerate(column.cases) if case.batch_size > likely]
    return dataclasses.replace(column, cases=column.cases[: beyond[0] + 1] if beyond else column.cases)


def _forecast(column: GenerationColumn, machine: Machine, packed: bool) -> str:
    case = column.cases[0]
    memory, plan = machine.memory_bytes(case), predict(case, packed=packed)
    weights, sequence = format_bytes(plan.weight_bytes), format_bytes(plan.sequence_bytes)
    if memory is None:
        return f"{column.label}: weights {weights}, {sequence} a sequence; free memory is not known"
    return (
        f"{column.label}: predicted largest batch {plan.largest_batch(memory)} in {format_bytes(memory)} "
        f"(weights {weights}, {sequence} a sequence)"
    )


def _request(case: GenerationCase) -> dict[str, Any]:
    return {
        "label": case.label,
        "model": dataclasses.asdict(case.model),
        "workload": dataclasses.asdict(case.workload),
        "batch_size": case.batch_size,
    }


def _work(case: GenerationCase) -> float:
    """FLOPs of all generations of a point, for guessing the time left."""
    num_tokens = case.workload.prompt_len + case.workload.new_tokens
    runs = case.workload.warmup_runs + case.workload.runs
    return runs * forward_flops(case.model, case.batch_size, num_tokens)
