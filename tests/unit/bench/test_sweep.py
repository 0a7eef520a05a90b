"""The parent process: every way in which a measuring process can end becomes a row, and nothing is lost."""

import io
import json
import pathlib
import signal
import sys
import textwrap

import pytest

from cs_systems.bench.progress import Progress
from cs_systems.bench.record import read_records
from cs_systems.bench.sweep import WorkerError, finished_cases, run_sweep
from cs_systems.bench.workload import Case, WorkloadConfig
from cs_systems.model.config import ModelConfig
from cs_systems.timing.timer import TimingConfig

PROVENANCE = {
    "command": "python benchmark.py", "commit": None, "dirty": None, "time_utc": "2026-01-01T00:00:00+00:00",
    "device": "test", "device_type": "cpu", "threads": 1, "versions": {"torch": "0"},
}  # fmt: skip

GOOD = """
    say(provenance=PROVENANCE)
    say(step=["warmup", 1, 1])
    settings = {"model": request["label"]} | request["model"] | request["workload"] | request["timing"]
    say(record={"experiment": "training_step", "case": settings, "status": "ok", "provenance": PROVENANCE,
                "samples_s": {"forward": [1.0]}, "schema_version": 1})
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make_case(label: str = "tiny", **timing) -> Case:
    return Case(label, ModelConfig(d_model=64, num_layers=1), WorkloadConfig(), TimingConfig(**timing))


def sweep(cases, body: str, output: pathlib.Path | None = None, finished=None):
    """Run the cases with a worker that executes `body`; returns the result and what progress printed."""
    program = (
        "import json, os, signal, sys\n"
        f"PROVENANCE = json.loads({json.dumps(json.dumps(PROVENANCE))})\n"
        "request = json.load(sys.stdin)\n"
        "def say(**event): print(json.dumps(event), flush=True)\n" + textwrap.dedent(body)
    )
    shown = io.StringIO()
    worker = (sys.executable, "-c", program)
    return run_sweep(
        cases, "python benchmark.py", output, finished or {}, Progress(shown), worker
    ), shown.getvalue()


def test_a_good_case_becomes_its_record():
    result, shown = sweep([make_case()], GOOD)
    assert [record.status for record in result.records] == ["ok"]
    assert result.records[0].samples_s == {"forward": [1.0]}
    assert "[1/1] tiny: ok" in shown


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("say(provenance=PROVENANCE); os.kill(os.getpid(), signal.SIGKILL)", "oom", "memory runs out"),
        ("say(provenance=PROVENANCE); os.kill(os.getpid(), signal.SIGSEGV)", "failed", "SIGSEGV"),
        (
            "say(provenance=PROVENANCE); raise RuntimeError('no compiler')",
            "failed",
            "RuntimeError: no compiler",
        ),
        ("say(provenance=PROVENANCE); os._exit(0)", "failed", "code 0 and no message"),
        ("say(provenance=PROVENANCE); print('{\"record\": ', end='', flush=True)", "failed", "no message"),
    ],
)
def test_a_process_that_dies_becomes_a_row_and_the_next_case_runs(body, status, reason):
    cases = [make_case("first"), make_case("second")]
    otherwise = textwrap.indent(textwrap.dedent(GOOD), "    ")
    program = f"if request['label'] == 'first':\n    {body}\nelse:\n{otherwise}"
    result, _ = sweep(cases, program)
    assert [record.status for record in result.records] == [status, "ok"]
    assert reason in result.records[0].reason


def test_a_worker_that_cannot_start_ends_the_sweep_with_its_own_words():
    with pytest.raises(WorkerError, match="No module named 'nonesuch'"):
        sweep([make_case()], "import nonesuch")


def test_every_record_is_on_disk_before_the_next_case_starts(tmp_path):
    output = tmp_path / "runs.jsonl"
    body = (
        textwrap.dedent(GOOD)
        + f"\nif request['label'] == 'second': assert len(open({str(output)!r}).readlines()) == 1\n"
    )
    result, _ = sweep([make_case("first"), make_case("second")], body, output)
    assert [record.status for record in result.records] == ["ok", "ok"]
    assert [record.case["model"] for record in read_records(output)[0]] == ["first", "second"]


def test_resume_measures_only_what_is_missing_or_failed(tmp_path):
    output = tmp_path / "runs.jsonl"
    sweep([make_case("first")], GOOD, output)
    sweep([make_case("second")], "say(provenance=PROVENANCE); sys.exit('broken')", output)
    cases = [make_case("first"), make_case("second"), make_case("first", steps=11)]
    result, shown = sweep(cases, GOOD, output, finished_cases(output)[0])
    assert [record.status for record in result.records] == ["ok", "ok", "ok"]
    assert len(read_records(output)[0]) == 4  # first, failed second, good second, first with 11 steps
    assert "first, steps 10: finished before" in shown


def test_a_full_disk_costs_the_file_but_not_the_measurement():
    result, _ = sweep([make_case("first"), make_case("second")], GOOD, pathlib.Path("/dev/full"))
    assert [record.status for record in result.records] == ["ok", "ok"]
    assert "No space left" in result.problems[0]


def test_unsupported_cases_are_counted():
    body = GOOD.replace('"status": "ok"', '"status": "skipped", "reason": "no"').replace(
        '"schema_version": 1})', '"schema_version": 1}, unsupported=True)'
    )
    result, _ = sweep([make_case()], body)
    assert result.num_unsupported == 1
    assert result.records[0].status == "skipped"


def test_time_left_follows_from_the_work_done():
    now = [0.0]
    shown = Terminal()
    progress = Progress(shown, clock=lambda: now[0])
    progress.plan([100.0, 300.0])
    progress.start_case("first", num_steps=10)
    now[0] = 5.0
    for _ in range(5):
        progress.step("measure")
    # Half of 100 took 5 s, so the other 50 and the next 300 take 35 s.
    assert "step 5/10, about 35 s left" in shown.getvalue()
    now[0] = 10.0
    progress.finish_case("first: ok")
    progress.start_case("second", num_steps=10)
    now[0] = 13.0
    progress.step("measure")
    # 130 units took 13 s; 270 are left.
    assert "[2/2] second: measure, step 1/10, about 27 s left" in shown.getvalue()


def test_interrupt_keeps_the_samples_of_the_running_case_and_stops(tmp_path):
    """A worker that asks its parent to interrupt stands in for Ctrl-C; e2e is in test_benchmark.py."""
    body = """
    say(provenance=PROVENANCE)
    try:
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
    except KeyboardInterrupt:
        pass
    """ + GOOD.replace('"status": "ok"', '"status": "failed", "reason": "interrupted after 1 of 10 steps"')
    output = tmp_path / "runs.jsonl"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    result, _ = sweep([make_case("first"), make_case("second")], textwrap.dedent(body), output)
    assert result.interrupted
    assert [record.reason for record in result.records] == ["interrupted after 1 of 10 steps"]
    assert read_records(output)[0][0].samples_s == {"forward": [1.0]}
