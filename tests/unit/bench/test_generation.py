"""The sweep as users run it: columns that end, processes that die, Ctrl-C, resuming, and one real point."""

import io
import json
import pathlib
import subprocess
import sys
import textwrap

import pytest

from cs_systems.bench import generation, generation_sweep
from cs_systems.bench.generation_case import GIB, GenerationCase, GenerationWorkload
from cs_systems.bench.generation_sweep import GenerationColumn, run_columns
from cs_systems.bench.progress import Progress
from cs_systems.bench.record import read_records
from cs_systems.bench.sweep import WorkerError
from cs_systems.model.presets import PRESETS

ROOT = pathlib.Path(__file__).parents[3]
PROVENANCE = {
    "command": "python", "commit": None, "dirty": None, "time_utc": "2026-01-01T00:00:00+00:00",
    "device": "test", "device_type": "cpu", "threads": 1, "versions": {"torch": "0"},
}  # fmt: skip
MEMORY = 100_000_000

PROBE = """
    say(provenance=PROVENANCE)
    if "probe" in request:
        ceilings = {"memory_bytes": MEMORY, "memory_source": "free memory"}
        num = len(request["probe"])
        say(probe={"device_type": "cpu", "ceilings": ceilings, "obstacles": [None] * num,
                   "packed": [False] * num})
        sys.exit()
    settings = {"model": request["label"]} | request["model"] | request["workload"]
    settings["batch_size"] = batch = request["batch_size"]
    def record(status, reason=None, **fields):
        say(record={"experiment": "generation", "case": settings, "status": status, "reason": reason,
                    "provenance": PROVENANCE, "schema_version": 1, **fields})
"""
GOOD = (
    PROBE
    + """
    say(step=["measuring", 0, 0])
    record("ok", samples_s={"end_to_end": [1.0]})
"""
)
ENDS_AT_4 = (
    PROBE
    + """
    record("oom", "out of memory: weights") if batch >= 4 else record("ok", samples_s={"end_to_end": [1.0]})
"""
)


def make_column(*sizes, is_open=False, label="tiny", **settings):
    work = GenerationWorkload(**({"prompt_len": 16, "new_tokens": 4, "memory_limit_gib": 1.0} | settings))
    cases = [GenerationCase(label, PRESETS["tiny"].config, work, size) for size in sizes]
    return GenerationColumn(cases, is_open)


def sweep(columns, body, output=None, finished=None):
    """Run the columns with a worker that executes `body`; returns result, forecasts and progress."""
    program = (
        "import json, os, signal, sys\n"
        f"PROVENANCE, MEMORY = json.loads({json.dumps(json.dumps(PROVENANCE))}), {MEMORY}\n"
        "request = json.load(sys.stdin)\n"
        "def say(**event): print(json.dumps(event), flush=True)\n" + textwrap.dedent(body)
    )
    shown, said = io.StringIO(), []
    result = run_columns(
        columns,
        "python",
        output,
        finished or {},
        Progress(shown),
        said.append,
        (sys.executable, "-c", program),
    )
    return result, said, shown.getvalue()


def outcomes(result):
    return [(record.case["batch_size"], record.status) for record in result.records]


def test_a_column_ends_at_its_first_out_of_memory_and_the_next_column_starts_anew():
    columns = [make_column(1, 2, 4, 8, 16), make_column(1, engine="hf")]
    result, said, shown = sweep(columns, ENDS_AT_4)
    assert outcomes(result) == [(1, "ok"), (2, "ok"), (4, "oom"), (8, "skipped"), (16, "skipped"), (1, "ok")]
    assert result.records[3].reason == "not run: batch 4 did not fit into memory"
    assert "predicted largest batch" in said[0]
    assert "1.0 GiB" in said[0]
    assert "batch 4: oom (out of memory: weights)" in shown


def test_without_a_limit_what_is_predicted_not_to_fit_is_not_run():
    result, said, _ = sweep([make_column(1, 10, 100_000, memory_limit_gib=0.0)], GOOD)
    assert outcomes(result) == [(1, "ok"), (10, "ok"), (100_000, "skipped")]
    last = result.records[2]
    assert "not run, would not fit: weights" in last.reason
    assert last.metrics["predicted_oom"]
    assert last.metrics["predicted_bytes"] > MEMORY == last.metrics["memory_bytes"]
    assert f"predicted largest batch {last.metrics['predicted_largest_batch']} in 95.4 MiB" in said[0]


def test_under_a_limit_what_is_predicted_not_to_fit_is_tried():
    result, _, _ = sweep([make_column(1, 100_000, memory_limit_gib=0.01)], GOOD)
    assert outcomes(result) == [(1, "ok"), (100_000, "ok")]


def test_a_ladder_without_an_end_is_cut_where_memory_must_have_run_out():
    column = make_column(*(2**power for power in range(18)), is_open=True, memory_limit_gib=0.01)
    result, _, shown = sweep([column], ENDS_AT_4)
    assert outcomes(result)[:3] == [(1, "ok"), (2, "ok"), (4, "oom")]
    assert 3 < len(result.records) < 12
    assert "/18]" not in shown


@pytest.mark.parametrize(
    ("death", "status", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "oom", "try a smaller --batch-size, --prompt-len"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "failed", "SIGSEGV"),
        ("sys.exit('no compiler')", "failed", "no compiler"),
    ],
)
def test_a_process_that_dies_is_a_row(death, status, said):
    result, _, _ = sweep([make_column(1)], PROBE + f"\n    {death}\n")
    assert outcomes(result) == [(1, status)]
    assert said in result.records[0].reason


def test_an_engine_that_is_missing_is_rows_that_say_so():
    body = PROBE.replace('"obstacles": [None] * num', '"obstacles": ["deepspeed is not installed"] * num')
    result, said, _ = sweep([make_column(1, 2, engine="deepspeed")], body)
    assert outcomes(result) == [(1, "skipped"), (2, "skipped")]
    assert result.records[0].reason == "deepspeed is not installed"
    assert said == []


def test_resuming_measures_only_what_is_missing_and_remembers_where_a_column_ended(tmp_path):
    output = tmp_path / "runs.jsonl"
    sweep([make_column(2, 4)], ENDS_AT_4, output)
    stored = {record.key: record for record in read_records(output)[0]}
    result, _, _ = sweep([make_column(1, 2, 4, 8)], GOOD, output, stored)
    assert outcomes(result) == [(1, "ok"), (2, "ok"), (4, "oom"), (8, "skipped")]
    assert [r.case["batch_size"] for r in read_records(output)[0]] == [2, 4, 1, 8]


def test_a_full_disk_and_a_worker_that_cannot_start():
    result, _, _ = sweep([make_column(1, 2)], GOOD, pathlib.Path("/dev/full"))
    assert outcomes(result) == [(1, "ok"), (2, "ok")]
    assert "No space left" in result.problems[0]
    with pytest.raises(WorkerError, match="nonesuch"):
        sweep([make_column(1)], "import nonesuch")


def test_ctrl_c_in_mid_sweep_keeps_what_was_measured(monkeypatch):
    ask, calls = generation_sweep.ask_worker, []

    def ask_and_press(request, progress, worker):
        answer = ask(request, progress, worker)
        calls.append(request)
        pressed = len(calls) == 3  # the probe, batch 1, batch 2
        return generation_sweep_answer(answer, pressed)

    def generation_sweep_answer(answer, pressed):
        return type(answer)(answer.events, answer.code, answer.tail, pressed)

    monkeypatch.setattr(generation_sweep, "ask_worker", ask_and_press)
    result, _, _ = sweep([make_column(1, 2, 4), make_column(1, engine="hf")], GOOD)
    assert result.interrupted
    assert outcomes(result) == [(1, "ok"), (2, "ok")]


def run_main(arguments, capsys):
    """Exit code, standard output and standard error of the command."""
    try:
        code = generation.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt-len", "500"], "--prompt-len 500 is over the context of tiny, 128 tokens"),
        (["--prompt-len", "0"], "--prompt-len 0 must be at least 1"),
        (["--tokenizer", "none.json"], "--tokenizer none.json cannot be read"),
        (["--engine", "tensorrt"], "'tensorrt' is not one of ours"),
        (["--batch-size", "1,..."], "needs three numbers"),
        (["--model", "huge"], "is no preset"),
        (["--precision", "int8", "--d-model", "24", "--num-heads", "3", "--prompt-len", "8"], "rows of 24"),
        (["--memory-limit-gib", "0.01", "--prompt-len", "8"], "--memory-limit-gib 0.01 is below 0.1"),
        (["--resume"], "--resume needs --output"),
        (["--output", "/nonesuch/x.jsonl"], "folder /nonesuch does not exist"),
        (["--compare-published", "bigcod"], "did you mean bigcode"),
        (["--device", "cpu,cuda"], "--device and --threads take one value"),
        (["--records", "/nonesuch.jsonl"], "cannot read"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(arguments, said, capsys):
    code, out, err = run_main(["--model", "tiny", "--prompt-len", "32", *arguments], capsys)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert out == ""


def test_a_real_frontier_under_a_limit_is_measured_printed_stored_and_drawn(tmp_path, capsys):
    output = tmp_path / "runs.jsonl"
    flags = [
        *("--model", "tiny", "--prompt-len", 100, "--new-tokens", 4, "--batch-size", "1,512", "--runs", 1),
        *("--warmup-runs", 0, "--threads", 1, "--memory-limit-gib", 0.1, "--precision", "fp32"),
        *("--output", output, "--layout", "points,memory,frontier,bigcode,bloom,cpu"),
    ]
    code, out, err = run_main([*flags, "--compare-published", "seed-000"], capsys)
    assert code == 0, err
    one, many = read_records(output)[0]
    assert (one.status, many.status) == ("ok", "oom")
    assert "there are 102.4 MiB (--memory-limit-gib)" in many.reason
    assert one.metrics["memory_bytes"] == int(0.1 * GIB)
    assert one.metrics["peak_bytes_per_s"] > 1e8
    for said in (
        "TTFT",
        "Where memory ends",
        "Latency (sec)",
        "Four metrics",
        "Generate time per token per batch",
    ):
        assert said in out
    last = json.loads(out.splitlines()[-1])
    assert [row["status"] for row in last["records"]] == ["ok", "oom"]
    code, out, err = run_main([*flags, "--resume", "--format", "csv"], capsys)
    assert code == 0
    assert len(read_records(output)[0]) == 2
    code, again, err = run_main(["--records", output, "--layout", "bigcode", "--plots", tmp_path], capsys)
    assert code == 0
    assert "oom" in again
    assert "only one batch size" in err


def test_help_answers_without_torch():
    code = "import sys, cs_systems.bench.generation; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("False\n", "")
