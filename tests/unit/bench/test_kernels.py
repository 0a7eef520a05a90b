"""The kernel comparison as users run it, and its formulas."""

import itertools
import json
import pathlib
import subprocess
import sys

import pytest

from cs_systems.bench import kernels
from cs_systems.bench.kernel_case import (
    AXES,
    DEFAULTS,
    IMPLEMENTATIONS_OF,
    KERNELS,
    PASSES,
    KernelConfig,
    case_settings,
    moved_bytes,
    peak_bytes,
)
from cs_systems.bench.record import BenchmarkRecord, Provenance, read_records
from cs_systems.tables import render_table

ROOT = pathlib.Path(__file__).parents[3]
SHAPE = {
    "num_tokens": 8, "num_columns": 48, "d_model": 32, "d_head": 16, "d_ff": 40, "vocab_size": 50,
    "num_parameters": 16 * 24,
}  # fmt: skip
TINY = [
    *itertools.chain(*((f"--{name.replace('_', '-')}", str(size)) for name, size in SHAPE.items())),
    *("--rounds", "2", "--device", "cpu"),
]


def make_config(kernel, **settings):
    return KernelConfig(**{"kernel": kernel, "precision": "fp32"} | SHAPE | settings)


@pytest.fixture(autouse=True)
def small_copy(monkeypatch):
    """Copying 128 MiB in every round would be most of the time."""
    from cs_systems.bench import kernel_run

    monkeypatch.setattr(kernel_run, "_COPY_BYTES", {"cpu": 4096, "cuda": 2**20})


def run_main(arguments, capsys):
    """Exit code, standard output and standard error of the command."""
    try:
        code = kernels.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def last_records(out):
    return json.loads(out.splitlines()[-1])["records"]


def replace_torch(monkeypatch, kernel, function):
    """Put `function` in the place of PyTorch's own for one kernel."""
    import dataclasses

    from cs_systems.bench import kernel_run

    changed = dataclasses.replace(kernel_run.OPERATIONS[kernel], torch=function)
    monkeypatch.setattr(kernel_run, "OPERATIONS", kernel_run.OPERATIONS | {kernel: changed})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_kernel_agrees_with_its_formula_and_is_timed(precision, tmp_path, capsys):
    pytest.importorskip("triton", reason="needs Triton (Linux)")
    output = tmp_path / "runs.jsonl"
    flags = [*TINY, "--precision", precision, "--implementation", "eager,torch,triton", "--output", output]
    code, out, err = run_main(flags, capsys)
    assert code == 0, out
    rows = {(row["kernel"], row["implementation"]): row["status"] for row in last_records(out)}
    assert rows == {
        (kernel, name): "ok" if name in IMPLEMENTATIONS_OF[kernel] else "skipped"
        for kernel in KERNELS
        for name in ("eager", "torch", "triton")
    }
    records, problems = read_records(output)
    assert problems == []
    for record in records:
        if record.status == "skipped":
            continue
        passes = record.case["passes"].split("+")
        assert record.case["precision"] == ("fp32" if record.case["kernel"] == "adamw" else precision)
        assert passes == (["step"] if record.case["kernel"] == "adamw" else list(PASSES))
        for name in passes:
            assert len(record.samples_s[name]) == 2
            seconds, rate = record.metrics["median_s"][name], record.metrics["gb_per_s"][name]
            config = make_config(record.case["kernel"], precision=precision)
            assert seconds * rate * 1e9 == pytest.approx(moved_bytes(config)[name])
            share = record.metrics["fraction_of_copy"][name]
            assert share == pytest.approx(rate / record.metrics["copy_gb_per_s"][name])
        assert ("ratio" in record.metrics) == (record.case["implementation"] != "eager")
    assert "run by Triton's interpreter" in out

    code, out, err = run_main([*flags, "--resume", "--format", "csv"], capsys)
    assert code == 0
    assert err.count("finished before") == len(KERNELS)
    assert len(read_records(output)[0]) == len(records)


def test_without_the_interpreter_triton_is_skipped_with_the_reason(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    flags = [*TINY, "--kernel", "softmax", "--implementation", "eager,triton", "--pass", "forward"]
    code, out, err = run_main(flags, capsys)
    assert code == 0
    assert "1 ok, 1 skipped" in err
    eager, triton = last_records(out)
    assert (eager["status"], triton["status"]) == ("ok", "skipped")
    assert "TRITON_INTERPRET=1" in triton["reason"]
    assert "softmax, triton: Triton kernels need an NVIDIA GPU" in out


def test_a_wrong_result_gets_no_time_and_the_others_go_on(monkeypatch, capsys):
    replace_torch(monkeypatch, "softmax", lambda x: x.sigmoid())
    flags = [*TINY, "--kernel", "softmax,weighted-sum", "--implementation", "eager,torch"]
    code, out, _ = run_main(flags, capsys)
    assert code == 1
    assert [row["status"] for row in last_records(out)] == ["ok", "failed", "ok", "ok"]
    assert "wrong result" in last_records(out)[1]["reason"]
    assert "median_s" not in last_records(out)[1]["metrics"]


def test_an_optimizer_that_is_wrong_gets_no_time(monkeypatch, capsys):
    from cs_systems.bench import kernel_run

    monkeypatch.setattr(
        kernel_run, "_resolve_optimizer", lambda name: lambda weights: kernel_run.AdamW(weights, lr=2e-3)
    )
    code, out, _ = run_main([*TINY, "--kernel", "adamw", "--implementation", "eager"], capsys)
    assert (code, last_records(out)[0]["status"]) == (1, "failed")


def test_running_out_of_memory_is_a_row(monkeypatch, capsys):
    import torch

    def hungry(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replace_torch(monkeypatch, "softmax", hungry)
    flags = [*TINY, "--kernel", "softmax", "--implementation", "eager,torch"]
    code, out, _ = run_main(flags, capsys)
    assert (code, [row["status"] for row in last_records(out)]) == (0, ["ok", "oom"])


def test_what_cannot_fit_is_not_started(monkeypatch, capsys):
    from cs_systems.bench import kernel_run

    monkeypatch.setattr(kernel_run, "free_memory_bytes", lambda device: 20_000)
    flags = [*TINY, "--kernel", "softmax,rmsnorm", "--implementation", "eager"]
    code, out, _ = run_main(flags, capsys)
    assert (code, [row["status"] for row in last_records(out)]) == (0, ["skipped", "ok"])
    assert "about 22.5 KiB are needed, 19.5 KiB are free" in last_records(out)[0]["reason"]


def test_ctrl_c_keeps_complete_rounds(monkeypatch, tmp_path, capsys):
    calls = itertools.count(1)

    def impatient(x):
        if next(calls) == 4:  # check, warm-up, first round, and in the middle of the second
            raise KeyboardInterrupt
        return x.softmax(-1)

    replace_torch(monkeypatch, "softmax", impatient)
    output = tmp_path / "runs.jsonl"
    flags = [*TINY, "--implementation", "eager,torch", "--pass", "forward", "--output", output]
    code, _, err = run_main(flags, capsys)
    assert code == 130
    assert "interrupted; 0 of 18 rows are complete" in err
    records, _ = read_records(output)
    assert [record.reason for record in records] == ["interrupted after 1 of 2 rounds"] * 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--kernels", "softmax"], "did you mean --kernel"),
        (["--kernel", "sofmax"], "did you mean softmax"),
        (["--pass", "backward"], "not one of forward, forward-backward"),
        (["--num-tokens", "0"], "--num-tokens 0 must be at least 1"),
        (["--d-head", "15"], "--d-head 15 must be even and divide --d-model 1024"),
        (["--num-parameters", "3"], "--num-parameters 3 must be 16 or more"),
        (["--rounds", "-2"], "--rounds -2 must not be negative"),
        (["--max-seconds", "-1"], "must be over 0"),
        (["--device", "cpu,auto"], "take one value"),
        (["--resume"], "--resume needs --output"),
    ],
)
def test_bad_usage_is_one_line_with_advice(flags, words, capsys):
    code, out, err = run_main(flags, capsys)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_help_and_errors_come_before_torch_is_imported():
    program = (
        "import sys; from cs_systems.bench import kernels\n"
        "try: kernels.main(['--num-tokens', '0'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def parse(*words):
    return kernels.make_configs(kernels.make_parser().parse_args(list(words)), "cpu")


def test_a_setting_that_a_kernel_does_not_have_is_not_crossed():
    configs = parse("--kernel", "softmax,swiglu", "--d-ff", "8,16", "--precision", "fp32,bf16")
    assert [(config.kernel, config.precision, config.d_ff) for config in configs] == [
        ("softmax", "fp32", 16), ("softmax", "bf16", 16),
        ("swiglu", "fp32", 8), ("swiglu", "fp32", 16), ("swiglu", "bf16", 8), ("swiglu", "bf16", 16),
    ]  # fmt: skip
    assert len(parse("--precision", "fp32,bf16")) == 2 * len(KERNELS) - 1  # adamw has one precision
    settings = case_settings(configs[0], "eager", PASSES)
    assert settings["num_columns"] == DEFAULTS["cpu"]["num_columns"]
    assert "d_ff" not in settings
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("device_type", DEFAULTS)
def test_the_default_is_every_kernel(device_type):
    configs = kernels.make_configs(kernels.make_parser().parse_args([]), device_type)
    assert [config.kernel for config in configs] == list(KERNELS)
    assert max(peak_bytes(config) for config in configs) < (4 if device_type == "cpu" else 32) * 2**30


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "adamw"])
def test_forward_moves_what_enters_and_what_leaves(kernel):
    import torch

    from cs_systems.bench.kernel_run import OPERATIONS

    inputs = OPERATIONS[kernel].make_inputs(make_config(kernel), torch.randn)
    results = OPERATIONS[kernel].formula(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    tables = inputs[2:] if kernel == "rope" else []
    moved = [
        tensor for tensor in (*inputs, *results) if tensor.dim() and not any(tensor is t for t in tables)
    ]
    assert moved_bytes(make_config(kernel))["forward"] == sum(tensor.nbytes for tensor in moved)


@pytest.mark.parametrize(
    ("kernel", "elements"),
    [
        ("softmax", 5 * 8 * 48),
        ("rmsnorm", 5 * 8 * 32 + 3 * 32),
        ("rmsnorm-residual", 8 * 8 * 32 + 3 * 32),
        ("rope", 8 * 8 * 32),
        ("swiglu", 8 * 8 * 40),
        ("cross-entropy", 2 * 8 * 50 + 2 * 8),  # the targets are of 8 bytes
        ("linear-cross-entropy", 2 * (8 + 50) * 32 + 2 * 8),
        ("adamw", 7 * 16 * 24),
        ("weighted-sum", 3 * 8 * 48 + 3 * 48 + 2 * 8),
    ],
)
def test_least_bytes_of_everything(kernel, elements):
    assert max(moved_bytes(make_config(kernel)).values()) == 4 * elements
    halved = moved_bytes(make_config(kernel, precision="bf16"))
    targets = 8 * 8 if kernel.endswith("cross-entropy") else 0
    expected = 4 * elements if kernel == "adamw" else 2 * elements + targets / 2
    assert max(halved.values()) == expected


def test_the_copy_is_read_and_written():
    import torch

    from cs_systems.bench.contest import Outcome
    from cs_systems.bench.kernel_run import _add_rates

    outcome = Outcome(metrics={"median_s": {"forward": 2.0}})
    copy = Outcome(metrics={"median_s": {"forward": 1e-6}})
    _add_rates(outcome, copy, {"forward": 10 * 10**9}, torch.device("cpu"))
    assert outcome.metrics["gb_per_s"] == {"forward": 5.0}
    assert outcome.metrics["copy_gb_per_s"]["forward"] == pytest.approx(2 * 4096 / 1e-6 / 1e9)
    assert outcome.metrics["fraction_of_copy"]["forward"] == pytest.approx(5.0 / 8.192)


def test_the_table_shows_rates_and_the_time_of_the_gpu():
    provenance = Provenance("typed", "abc", True, "2026-01-01", "NVIDIA X", "cuda", 1, {"torch": "2.11"})
    metrics = {
        "median_s": {"forward": 2e-3}, "device_median_s": {"forward": 1e-3}, "gb_per_s": {"forward": 4000.0},
        "fraction_of_copy": {"forward": 0.93}, "max_error": 0.0,
    }  # fmt: skip
    case = case_settings(make_config("softmax", device="cuda"), "triton", ("forward",))
    record = BenchmarkRecord("kernels", case, "ok", provenance, metrics=metrics)
    text = render_table(kernels.kernel_table([record]), "table")
    row = text.splitlines()[3]
    words = ["softmax", "num_tokens", "8,", "num_columns", "48", "fp32", "forward", "triton"]
    assert row.split() == [*words, "2.000", "1.000", "4000", "93.0%", "0", "ok"]
    assert "GPU (ms)" in text
    assert "NVIDIA X, torch 2.11, commit abc with changes" in text


def test_axes_name_settings_that_exist():
    names = {name for axes in AXES.values() for name in axes}
    assert names == set(SHAPE)


@pytest.mark.gpu
def test_kernels_run_on_a_gpu(capsys):
    flags = [*TINY[:-2], "--implementation", "eager,torch,triton", "--precision", "bf16"]
    code, out, err = run_main(flags, capsys)
    assert code == 0, err
    rows = [row for row in last_records(out) if row["implementation"] == "triton"]
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["metrics"]["device_median_s"] for row in rows)
