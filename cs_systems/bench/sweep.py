"""Run cases one by one, each in a process of its own, and keep every result the moment it exists.

In one process the second case would find warm caches, a grown allocator and loaded kernels, which is what the
warm-up experiment is about; and a case that the operating system kills would take the others with it. This
process never imports torch, so it holds no memory that a case may need.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cs_systems.bench.progress import Progress
from cs_systems.bench.record import BenchmarkRecord, Provenance, append_record, case_key, read_records
from cs_systems.bench.workload import EXPERIMENT, Case, WorkloadConfig
from cs_systems.cli import field_names
from cs_systems.estimator.flops import backward_flops, forward_flops
from cs_systems.timing.timer import TimingConfig

_ROOT = pathlib.Path(__file__).parents[2]
_STDERR_LINES = 20
WORKER = (sys.executable, "-m", "cs_systems.bench.worker")
_ADVICE = "try a smaller --batch-size, --context-length or --model, or --checkpoint-blocks 1"


class WorkerError(RuntimeError):
    """The measuring process could not even start; no case can be measured on this machine."""


@dataclass
class SweepResult:
    """What a sweep brought: records in the order of the cases, and how it ended."""

    records: list[BenchmarkRecord] = field(default_factory=list)
    interrupted: bool = False
    num_unsupported: int = 0
    problems: list[str] = field(default_factory=list)
    """Records that could not be stored, and why."""


def run_sweep(
    cases: Sequence[Case],
    command: str,
    output: pathlib.Path | None,
    finished: Mapping[str, BenchmarkRecord],
    progress: Progress,
    worker: Sequence[str] = WORKER,
) -> SweepResult:
    """Measure `cases` in order. Ctrl-C ends the sweep after the step in progress and keeps what was measured.

    Args:
        cases: what to measure.
        command: what the user typed, for the provenance.
        output: file to append each record to as soon as it exists.
        finished: records by key that are taken as they are instead of measuring their case again.
        progress: told of every case and step.
        worker: command of the process that measures one case.

    Raises:
        WorkerError: when the measuring process cannot start.
    """
    result = SweepResult()
    keys = [case_key(EXPERIMENT, case.settings()) for case in cases]
    progress.plan([0.0 if key in finished else _work(case) for key, case in zip(keys, cases, strict=True)])
    for key, label, case in zip(keys, _labels(cases), cases, strict=True):
        if key in finished:
            result.records.append(finished[key])
            progress.finish_case(f"{label}: finished before, not measured again")
            continue
        progress.start_case(label, case.timing.warmup_steps + case.timing.steps)
        record, unsupported, result.interrupted = run_in_process(case, command, progress, worker)
        result.num_unsupported += unsupported
        if record is None:
            break
        result.records.append(record)
        if output is not None:
            store_record(output, record, result.problems)
        progress.finish_case(f"{label}: {record.status}" + (f" ({record.reason})" if record.reason else ""))
        if result.interrupted:
            break
    return result


def finished_cases(output: pathlib.Path) -> tuple[dict[str, BenchmarkRecord], list[str]]:
    """The `ok` records of a file by key, and what was wrong with it. A file that does not exist holds none.

    Raises:
        ValueError: when the file holds something that is not records.
    """
    if not output.exists():
        return {}, []
    stored, problems = read_records(output)
    return {record.key: record for record in stored if record.status == "ok"}, problems


@dataclass(frozen=True)
class Answer:
    """What a measuring process said, and how it ended."""

    events: Mapping[str, Any]
    """The last event of each kind."""
    code: int
    """Its exit code; negative for the signal that ended it."""
    tail: Sequence[str]
    """The last lines of its standard error."""
    interrupted: bool
    """Whether Ctrl-C was pressed meanwhile."""


def run_in_process(
    case: Case, command: str, progress: Progress, worker: Sequence[str]
) -> tuple[BenchmarkRecord | None, bool, bool]:
    """The record of `case`, whether the machine lacks what it needs, and whether Ctrl-C was pressed.

    There is no record when Ctrl-C came before the new process knew what machine it is on.
    """
    request = {"command": command, "label": case.label} | {
        part: dataclasses.asdict(getattr(case, part)) for part in ("model", "workload", "timing")
    }
    answer = ask_worker(request, progress, worker)
    return (
        record_of(answer, EXPERIMENT, case.settings(), _ADVICE),
        "unsupported" in answer.events,
        answer.interrupted,
    )


def ask_worker(request: Mapping[str, Any], progress: Progress, worker: Sequence[str]) -> Answer:
    """Start a measuring process, hand it `request`, and follow it to its end; Ctrl-C is passed on to it."""
    search_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            worker,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=os.environ | {"PYTHONPATH": search_path},
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on exactly once
        )  # fmt: skip
        assert process.stdout is not None
        events: dict[str, Any] = {}
        interrupted = False
        try:
            _hand_over(process, json.dumps(request))
            _follow(process, events, progress)
        except KeyboardInterrupt:
            interrupted = True
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait for the rest
                _follow(process, events, progress)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        tail = errors.read().splitlines()[-_STDERR_LINES:]
    return Answer(events, process.returncode, tail, interrupted)


def record_of(
    answer: Answer, experiment: str, settings: Mapping[str, Any], advice: str
) -> BenchmarkRecord | None:
    """The record in the answer, or a row for a process that left none; None as in `run_in_process`.

    Raises:
        WorkerError: when the process ended before it could say what machine it is on.
    """
    if "record" in answer.events:
        return BenchmarkRecord.from_json(json.dumps(answer.events["record"]))
    if "provenance" in answer.events:
        return _record_of_dead(answer, experiment, settings, advice)
    if answer.interrupted:
        return None
    tail = answer.tail
    raise WorkerError(tail[-1] if tail else f"it ended with code {answer.code} and no message")


def _hand_over(process: subprocess.Popen, request: str) -> None:
    assert process.stdin is not None
    try:
        with process.stdin:
            process.stdin.write(request)
    except BrokenPipeError:
        pass  # it died at once; its exit code and standard error tell why


def _follow(process: subprocess.Popen, events: dict[str, Any], progress: Progress) -> None:
    """Read events until the worker closes its end; only the last of each kind matters."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:  # cut off: it was killed while writing, and wait() will tell how
            break
        if "step" in event:
            progress.step(event["step"][0])
        events.update(event)
    process.wait()


def _record_of_dead(
    answer: Answer, experiment: str, settings: Mapping[str, Any], advice: str
) -> BenchmarkRecord:
    """A row for a process that left no record: killed, crashed, or interrupted before its first step."""
    status, metrics, code, tail = "failed", {}, answer.code, answer.tail
    if answer.interrupted:
        reason = "interrupted before a step was measured"
    elif code == -signal.SIGKILL:
        status = "oom"
        reason = f"killed by the operating system, as it does when memory runs out; {advice}"
    elif code < 0:
        reason = f"the process died of {signal.Signals(-code).name}"
    else:
        reason = tail[-1] if tail else f"the process ended with code {code} and no message"
        metrics = {"stderr_tail": list(tail)}
    provenance = Provenance(**answer.events["provenance"])
    return BenchmarkRecord(experiment, settings, status, provenance, reason=reason, metrics=metrics)


def store_record(output: pathlib.Path, record: BenchmarkRecord, problems: list[str]) -> None:
    """Append the record; a full disk must not cost the cases still to come, so it goes to `problems`."""
    try:
        append_record(output, record)
    except OSError as error:
        problems.append(f"{output}: a record could not be stored ({error.strerror}); make room and repeat")


def _labels(cases: Sequence[Case]) -> list[str]:
    """What tells the cases of a sweep apart: the model, and the other settings that differ."""
    everything = [case.settings() for case in cases]
    names = ["context_length", *field_names(WorkloadConfig, TimingConfig)]
    varying = [name for name in names if len({settings[name] for settings in everything}) > 1]
    return [
        ", ".join([case.label, *(f"{name.replace('_', '-')} {settings[name]}" for name in varying)])
        for case, settings in zip(cases, everything, strict=True)
    ]


def _work(case: Case) -> float:
    """FLOPs of all steps of a case, for guessing the time left."""
    shape = case.model, case.workload.batch_size, case.model.context_length
    flops = forward_flops(*shape) + (0 if case.workload.mode == "forward" else backward_flops(*shape))
    return flops * (case.timing.warmup_steps + case.timing.steps)
