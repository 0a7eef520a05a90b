"""benchmark.py as its users run it: whole processes, real output, every kind of bad input."""

import json
import os
import pathlib
import pty
import signal
import subprocess
import sys

import pytest

from cs_systems.bench.record import read_records

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--model", "tiny", "--context-length", "16", "--warmup-steps", "1", "--steps", "2", "--threads", "1"]


def benchmark(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "benchmark.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip


def test_a_sweep_prints_a_table_and_ends_with_json_and_stores_records(tmp_path):
    output = tmp_path / "runs.jsonl"
    run = benchmark(*TINY, "--attention", "naive,sdpa", "--output", output)
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    assert [row["status"] for row in summary["cases"]] == ["ok", "ok"]
    assert "Median" in run.stdout
    assert "sdpa" in run.stdout
    records, problems = read_records(output)
    assert problems == []
    assert [record.case["attention"] for record in records] == ["naive", "sdpa"]
    assert all(len(record.samples_s["train_step"]) == 2 for record in records)
    assert records[0].provenance.command.startswith("python benchmark.py --model tiny")

    again = benchmark(*TINY, "--attention", "naive,sdpa", "--output", output, "--resume", timeout_s=20)
    assert again.returncode == 0
    assert again.stderr.count("finished before") == 2
    assert len(read_records(output)[0]) == 2


@pytest.mark.parametrize("style", ["md", "csv", "latex", "json"])
def test_other_formats_hold_nothing_but_the_format(style, tmp_path):
    output = tmp_path / "runs.jsonl"
    benchmark(*TINY, "--mode", "forward", "--output", output)
    run = benchmark(*TINY, "--mode", "forward", "--output", output, "--resume", "--format", style)
    assert run.returncode == 0, run.stderr
    if style == "json":
        assert json.loads(run.stdout)
    else:
        assert not any(line.startswith("{") for line in run.stdout.splitlines())


def test_a_model_that_cannot_fit_is_a_row_and_not_an_error():
    run = benchmark(
        "--model", "bloom-176b,tiny", "--steps", "1", "--warmup-steps", "0", "--context-length", "8"
    )
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    assert [row["status"] for row in summary["cases"]] == ["skipped", "ok"]
    assert "GiB free" in run.stdout
    assert run.stdout.count("skipped") >= 4  # a row for each pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--d-model", "100", "--num-heads", "12"], "not divisible by --num-heads 12; try --num-heads 10"),
        (["--d-model", "66", "--num-heads", "2"], "rope rotates pairs"),
        (["--num-layers", "0"], "--num-layers 0 must be at least 1"),
        (["--steps", "-5"], "--steps -5 must be at least 1"),
        (["--warmup-steps", "-1"], "--warmup-steps -1"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--model", "smal"], "did you mean small?"),
        (["--precision", "fp16", "--param-dtype", "bf16"], "use --param-dtype fp32 or fp16"),
        (["--model", "gpt2-mha-1.3b", "--context-length", "4096"], "over the 2048 learned positions"),
        (["--precision", "bf61"], "did you mean bf16?"),
        (["--d-modle", "100"], "did you mean --d-model?"),
        (["--d_model", "100"], "did you mean --d-model?"),
        (["--steps", "many"], "not a whole number"),
        (["--steps", "1,,2"], "empty entry"),
        (["--max-seconds", "nan"], "nan"),
        (["--output", "no/such/folder/x.jsonl"], "does not exist"),
        (["--output", "."], "cannot write"),
        (["--resume"], "--resume needs --output"),
        (["--output", "README.md"], "holds no benchmark records"),
    ],
)
def test_bad_usage_is_one_line_on_stderr_and_exit_code_2(arguments, words):
    run = benchmark(*arguments, timeout_s=20)
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert words in run.stderr
    assert run.stdout == ""


def test_resuming_a_foreign_file_is_refused_and_the_file_is_left_alone(tmp_path):
    output = tmp_path / "notes.txt"
    output.write_text("my diary\n")
    run = benchmark(*TINY, "--output", output, "--resume", timeout_s=20)
    assert run.returncode == 2
    assert "holds no benchmark records" in run.stderr
    assert output.read_text() == "my diary\n"


def test_a_broken_last_line_is_reported_and_the_rest_is_used(tmp_path):
    output = tmp_path / "runs.jsonl"
    benchmark(*TINY, "--mode", "forward", "--output", output)
    whole = output.read_text()
    output.write_text(whole + whole[:100])
    run = benchmark(*TINY, "--mode", "forward", "--output", output, "--resume")
    assert run.returncode == 0
    assert "line 2 ignored: not JSON, or cut off" in run.stderr
    assert "finished before" in run.stderr


def test_what_no_machine_of_this_kind_can_do_exits_2_alone_and_is_a_row_beside_others():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU and can do tf32")
    alone = benchmark("--model", "tiny", "--precision", "tf32")
    assert alone.returncode == 2
    assert "use fp32 or bf16" in alone.stderr
    mixed = benchmark(*TINY, "--precision", "tf32,fp32", "--mode", "forward")
    assert mixed.returncode == 0
    rows = json.loads(mixed.stdout.splitlines()[-1])["cases"]
    assert [row["status"] for row in rows] == ["skipped", "ok"]


def test_threads_beyond_the_machine_are_refused_at_once():
    run = benchmark("--model", "tiny", "--threads", "9999", timeout_s=60)
    assert run.returncode == 2
    assert "use " in run.stderr.splitlines()[-1]


def test_a_full_disk_is_a_failure_that_still_prints_the_table():
    run = benchmark(*TINY, "--mode", "forward", "--output", "/dev/full")
    assert run.returncode == 1
    assert "No space left" in run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["cases"][0]["status"] == "ok"


def test_help_and_list_models_answer_without_torch():
    code = "import sys, benchmark; benchmark.main(['--list-models']); assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert run.returncode == 0, run.stderr
    assert "3,406,809,600" in run.stdout
    shown = benchmark("--help", timeout_s=20)
    assert shown.returncode == 0
    assert "--checkpoint-blocks" in shown.stdout


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    output = tmp_path / "runs.jsonl"
    arguments = ["--model", "tiny", "--context-length", "16", "--warmup-steps", "0,1", "--steps", "100000"]
    screen, terminal = pty.openpty()  # on a terminal, progress tells when a step has been measured
    with subprocess.Popen(
        [sys.executable, "benchmark.py", *arguments, "--output", output],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal, text=True,
    ) as process:  # fmt: skip
        os.close(terminal)
        stderr = ""
        while "measuring, step 3/100000" not in stderr:
            stderr += os.read(screen, 1000).decode()
        os.kill(process.pid, signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
    stderr = os.read(screen, 100_000).decode()
    os.close(screen)
    assert process.returncode == 130, stderr
    assert "0 of 2 cases are complete" in stderr
    record = read_records(output)[0][0]
    assert record.status == "failed"
    assert record.reason.startswith("interrupted after")
    assert len(record.samples_s["forward"]) > 1
    assert json.loads(stdout.splitlines()[-1])["cases"]
