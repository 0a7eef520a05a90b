"""The attention comparison as users run it, its formulas, and contests on a clock made for them."""

import itertools
import json
import math
import pathlib
import subprocess
import sys

import pytest

from cs_systems.bench import attention
from cs_systems.bench.attention_case import (
    IMPLEMENTATIONS,
    PRESETS,
    AttentionConfig,
    attention_flops,
    case_settings,
    explain_memory,
    peak_bytes,
)
from cs_systems.bench.record import BenchmarkRecord, Provenance, read_records
from cs_systems.tables import render_table

ROOT = pathlib.Path(__file__).parents[3]
TINY = [
    *("--batch-size", "1", "--num-heads", "2", "--d-head", "8", "--seq-len", "16", "--precision", "fp32"),
    *("--rounds", "2", "--implementation", "naive,flash-torch,sdpa", "--device", "cpu"),
]


def make_config(**settings):
    shape = {"batch_size": 2, "num_heads": 3, "d_head": 4, "seq_len": 8, "precision": "fp32", "causal": True}
    return AttentionConfig(**(shape | settings))


def run_main(arguments, capsys):
    """Exit code, standard output and standard error of the command."""
    try:
        code = attention.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def last_records(out):
    return json.loads(out.splitlines()[-1])["records"]


def replace_sdpa(monkeypatch, function):
    from cs_systems.bench import attention_run

    replaced = attention_run.ATTENTION | {"sdpa": function}
    monkeypatch.setattr(attention_run, "ATTENTION", replaced)


def test_implementations_are_compared_and_recorded_and_resumed(tmp_path, capsys):
    output = tmp_path / "runs.jsonl"
    flags = [*TINY, "--causal", "on,off", "--output", output]
    code, out, err = run_main(flags, capsys)
    assert code == 0, err
    rows = [(row["causal"], row["implementation"], row["status"]) for row in last_records(out)]
    assert rows == [
        (causal, name, "ok") for causal in (True, False) for name in ("naive", "flash-torch", "sdpa")
    ]
    assert "batch_size 1, num_heads 2, d_head 8, seq_len 16, precision fp32" in out.splitlines()[0]
    records, problems = read_records(output)
    assert problems == []
    for record in records:
        assert record.experiment == "attention"
        assert record.provenance.command.startswith("python -m cs_systems.bench.attention --batch-size 1")
        assert record.case["device"] == "cpu"
        assert record.metrics["max_error"] < 1e-5
        assert record.metrics["held_bytes"] > 0
        assert {name: len(times) for name, times in record.samples_s.items()} == {
            "forward": 2, "backward": 2, "forward-backward": 2,
        }  # fmt: skip
        assert {len(times) for times in record.warmup_samples_s.values()} == {1}
        forward = record.metrics["tflops_per_s"]["forward"] * record.metrics["median_s"]["forward"] * 1e12
        assert forward == pytest.approx(4 * 2 * 16 * 16 * 8 / (2 if record.case["causal"] else 1))
    assert "ratio" not in records[0].metrics
    sdpa, naive = records[2].samples_s["backward"], records[0].samples_s["backward"]
    assert records[2].metrics["ratio"]["backward"] == pytest.approx(sum(sdpa) / sum(naive))
    assert records[2].metrics["ratio_low"]["backward"] <= records[2].metrics["ratio"]["backward"]

    code, out, err = run_main([*flags, "--resume", "--format", "csv"], capsys)
    assert code == 0
    assert err.count("finished before") == 2
    assert len(read_records(output)[0]) == 6
    assert out.count("\n") == 1 + 2 * 3 * 3


def test_a_group_that_lacks_a_row_is_measured_again_as_a_whole(tmp_path, capsys):
    output = tmp_path / "runs.jsonl"
    run_main([*TINY, "--pass", "forward", "--implementation", "naive", "--output", output], capsys)
    flags = [*TINY, "--pass", "forward", "--implementation", "naive,sdpa", "--output", output, "--resume"]
    code, out, err = run_main(flags, capsys)
    assert code == 0
    assert "finished before" not in err
    assert [row["implementation"] for row in last_records(out)] == ["naive", "sdpa"]
    assert len(read_records(output)[0]) == 3
    assert "finished before" in run_main(flags, capsys)[2]


def test_a_wrong_result_gets_no_time_and_the_others_go_on(monkeypatch, capsys):
    replace_sdpa(monkeypatch, lambda q, k, v, *, is_causal: v + 0 * (q + k))
    code, out, _ = run_main([*TINY, "--causal", "on"], capsys)
    assert code == 1
    naive, _, sdpa = last_records(out)
    assert naive["status"] == "ok"
    assert sdpa["status"] == "failed"
    assert "wrong result: off by" in sdpa["reason"]
    assert "median_s" not in sdpa["metrics"]


def test_a_wrong_gradient_is_a_wrong_result(monkeypatch, capsys):
    from cs_systems.model.attention import sdpa_attention

    def wrong(q, k, v, *, is_causal):
        return sdpa_attention(q, k.detach() + 0 * k, v, is_causal=is_causal)

    replace_sdpa(monkeypatch, wrong)
    code, out, _ = run_main([*TINY, "--causal", "on"], capsys)
    assert (code, last_records(out)[2]["status"]) == (1, "failed")
    code, out, _ = run_main([*TINY, "--causal", "on", "--pass", "forward"], capsys)
    assert (code, last_records(out)[2]["status"]) == (0, "ok")


def test_nan_is_a_wrong_result_that_json_can_hold(monkeypatch, capsys):
    replace_sdpa(monkeypatch, lambda q, k, v, *, is_causal: (q + k + v) * math.nan)
    code, out, _ = run_main([*TINY, "--causal", "on"], capsys)
    assert code == 1
    assert last_records(out)[2]["metrics"]["max_error"] is None


def test_running_out_of_memory_is_a_row_that_explains_itself(monkeypatch, tmp_path, capsys):
    import torch

    def hungry(q, k, v, *, is_causal):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replace_sdpa(monkeypatch, hungry)
    flags = [*TINY, "--causal", "on", "--output", tmp_path / "runs.jsonl"]
    code, out, _ = run_main(flags, capsys)
    assert code == 0
    naive, _, sdpa = last_records(out)
    assert (naive["status"], sdpa["status"]) == ("ok", "oom")
    assert "ran out of memory: inputs, results and gradients of 1 x 2 x 16 x 8 need" in sdpa["reason"]
    assert "finished before" in run_main([*flags, "--resume"], capsys)[2]  # it would again


def test_memory_running_out_between_the_turns_ends_the_shape_but_keeps_the_times(monkeypatch, capsys):
    import torch

    calls = itertools.count(1)

    def hungry(q, k, v, *, is_causal):
        if next(calls) == 4:  # check, warm-up, first round, and in the middle of the second
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)

    replace_sdpa(monkeypatch, hungry)
    code, out, _ = run_main([*TINY, "--causal", "on,off", "--pass", "forward"], capsys)
    assert code == 0
    rows = last_records(out)
    assert [row["status"] for row in rows] == ["oom"] * 3 + ["ok"] * 3
    assert "(while taking turns)" in rows[0]["reason"]
    assert rows[0]["metrics"]["median_s"]["forward"] > 0


def test_no_room_for_the_inputs_is_a_row_each(monkeypatch, capsys):
    import torch

    from cs_systems.bench import attention_run

    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention_run, "compute_reference", no_room)
    code, out, _ = run_main([*TINY, "--causal", "on"], capsys)
    assert (code, [row["status"] for row in last_records(out)]) == (0, ["oom"] * 3)


def test_what_cannot_fit_is_not_started(monkeypatch, capsys):
    from cs_systems.bench import attention_run

    monkeypatch.setattr(attention_run, "free_memory_bytes", lambda device: 20_000)
    code, out, err = run_main([*TINY, "--causal", "on"], capsys)
    assert code == 0
    assert "1 skipped, 2 ok" in err
    naive, _, sdpa = last_records(out)
    assert naive["status"] == "skipped"
    assert "19.5 KiB are free, and about 24.2 KiB are needed: 6 arrays" in naive["reason"]
    assert sdpa["status"] == "ok"
    assert "ratio" not in sdpa["metrics"]


def test_what_does_not_exist_here_is_skipped_with_the_reason(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    flags = [*TINY, "--implementation", "flash,sdpa-cudnn", "--causal", "on"]
    code, out, _ = run_main(flags, capsys)
    assert code == 0
    flash, cudnn = last_records(out)
    assert flash["status"] == cudnn["status"] == "skipped"
    assert "TRITON_INTERPRET=1" in flash["reason"]
    assert "PyTorch has no such kernel for fp32, d_head 8 on cpu" in cudnn["reason"]


@pytest.mark.parametrize("during", ["check", "round"])
def test_ctrl_c_keeps_complete_rounds(during, monkeypatch, tmp_path, capsys):
    import torch

    calls = itertools.count(1)

    def impatient(q, k, v, *, is_causal):
        if next(calls) == {"check": 1, "round": 4}[during]:
            raise KeyboardInterrupt
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)

    replace_sdpa(monkeypatch, impatient)
    output = tmp_path / "runs.jsonl"
    flags = [*TINY, "--causal", "on,off", "--pass", "forward", "--output", output]
    code, out, err = run_main(flags, capsys)
    assert code == 130
    assert "interrupted; 0 of 6 rows are complete" in err
    records, _ = read_records(output)
    done = {"check": 0, "round": 1}[during]
    assert [record.reason for record in records] == [f"interrupted after {done} of 2 rounds"] * 3
    assert all(len(record.samples_s.get("forward", [])) == done for record in records)
    assert last_records(out)[2]["status"] == "failed"


def test_ctrl_c_before_the_contest_is_a_row_too(monkeypatch, capsys):
    from cs_systems.bench import attention_run

    def impatient(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(attention_run, "compute_reference", impatient)
    code, out, _ = run_main([*TINY, "--causal", "on"], capsys)
    assert code == 130
    assert last_records(out)[0]["reason"] == "interrupted before a round was measured"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sequence-len", "8"], "did you mean --seq-len"),
        (["--implementation", "flsh"], "did you mean flash"),
        (["--pass", "bakward"], "did you mean backward"),
        (["--preset", "leader"], "did you mean leaderboard"),
        (["--seq-len", "1"], "--seq-len 1 must be at least 2"),
        (["--d-head", "0"], "--d-head 0 must be at least 1"),
        (["--num-heads", "-1"], "--num-heads -1 must not be negative"),
        (["--max-seconds", "0"], "--max-seconds 0 must be over 0"),
        (["--threads", "1,2"], "take one value"),
        (["--threads", "100000"], "this machine has"),
        (["--resume"], "--resume needs --output"),
        (["--output", "/nowhere/x.jsonl"], "does not exist"),
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
        "import sys; from cs_systems.bench import attention\n"
        "try: attention.main(['--preset', 'course-flash', '--seq-len', '1'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_grid_of_shapes(preset):
    num_shapes = {"cpu": 6, "gpu": 6, "course-naive": 20, "course-flash": 80, "leaderboard": 1}
    args = attention.make_parser().parse_args([])
    assert len(attention.make_configs(args, preset)) == num_shapes[preset]
    typed = attention.make_parser().parse_args(["--seq-len", "64,32", "--d-head", "8", "--precision", "fp16"])
    configs = attention.make_configs(typed, preset)
    assert [(config.seq_len, config.d_head, config.precision) for config in configs] == [
        (64, 8, "fp16"), (32, 8, "fp16"),
    ]  # fmt: skip


def test_flops_are_those_of_the_two_products():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cs_systems.model.attention import naive_attention

    config = make_config(causal=False)
    q = torch.randn(config.shape)
    with FlopCounterMode(display=False) as counter:
        naive_attention(q, q, q, is_causal=False)
    flops = attention_flops(config)
    assert flops["forward"] == counter.get_total_flops()
    assert flops["forward-backward"] == flops["forward"] + flops["backward"] == 3.5 * flops["forward"]
    assert attention_flops(make_config(causal=True))["forward"] == flops["forward"] / 2
    leaderboard = make_config(batch_size=1, num_heads=16, d_head=64, seq_len=16384, causal=True)
    assert attention_flops(leaderboard)["forward-backward"] == 3.5 * 2**39


def test_memory_is_accounted_for_in_scores():
    config = make_config(batch_size=8, num_heads=0, seq_len=16384, d_head=64, causal=False, precision="bf16")
    scores, vectors = 8 * 16384**2 * 2, 8 * 16384 * 64 * (8 * 2 + 4 * 4)
    assert peak_bytes(config, "naive", ("forward",)) == 3 * scores + vectors
    assert peak_bytes(config, "naive", ("forward", "backward")) == 6 * scores + vectors
    assert peak_bytes(config, "naive-compiled", ("backward",)) == 4 * scores + vectors
    assert peak_bytes(config, "flash", ("backward",)) == vectors
    assert "8 x 1 x 16384 x 16384 x 2 B = 4.0 GiB" in explain_memory(config, "naive", ("forward",))
    assert explain_memory(config, "naive", ("forward",)).startswith("about 12.2 GiB are needed: 3 arrays")


@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_in_pieces_is_the_formula(causal, monkeypatch):
    import torch

    from cs_systems.bench import attention_run
    from cs_systems.model.attention import naive_attention

    q, k, v, do = (torch.randn(2, 3, 8, 4, dtype=torch.float64) for _ in range(4))
    monkeypatch.setattr(attention_run, "_REFERENCE_SCORES", 2 * 3 * 8 * 3)  # three queries, three, and two
    parts = attention_run.compute_reference((q, k, v), do, causal, True)
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    o = naive_attention(*leaves, is_causal=causal)
    for part, whole in zip(parts, [o, *torch.autograd.grad(o, leaves, do)], strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)


def test_what_is_held_for_backward_is_what_the_formulas_say(capsys):
    flags = [
        *TINY,
        "--causal",
        "on",
        "--seq-len",
        "32",
        "--pass",
        "backward",
        "--implementation",
        "naive,sdpa",
    ]
    naive, sdpa = last_records(run_main(flags, capsys)[1])
    scores, vectors, rows = 2 * 32 * 32 * 4, 2 * 32 * 8 * 4, 2 * 32 * 4
    # exponentials and weights, their sums, the mask, the scaled queries and the result
    assert naive["metrics"]["held_bytes"] == 2 * scores + rows + 32 * 32 + 2 * vectors
    assert sdpa["metrics"]["held_bytes"] >= vectors + rows  # the result and the log-sum-exp
    assert sdpa["metrics"]["held_bytes"] < 2 * vectors + rows


def test_the_case_holds_every_setting():
    settings = case_settings(make_config(), "naive", ("forward", "backward"))
    assert settings["passes"] == "forward+backward"
    assert {"seq_len", "causal", "rounds", "max_seconds", "implementation"} <= settings.keys()
    assert json.loads(json.dumps(settings)) == settings


def fake_record(implementation, status="ok", **metrics):
    provenance = Provenance("typed", "abc", False, "2026-01-01", "NVIDIA X", "cuda", 1, {"torch": "2.11"})
    reason = None if status == "ok" else "no room"
    case = case_settings(make_config(device="cuda", rounds=20), implementation, ("forward", "backward"))
    return BenchmarkRecord("attention", case, status, provenance, reason=reason, metrics=metrics)


def test_the_table_has_the_times_of_the_gpu_beside_those_of_the_caller():
    both = {"forward": 2e-3, "backward": 3e-3}
    records = [
        fake_record("naive", median_s=both, device_median_s=both),
        fake_record("flash", median_s=both, device_median_s={"forward": 1e-3, "backward": 1.5e-3},
                    ratio={"forward": 0.5, "backward": 0.5}, tflops_per_s={"forward": 321.0}),
        fake_record("sdpa-cudnn", "oom"),
    ]  # fmt: skip
    text = render_table(attention.attention_table(records), "table")
    lines = text.splitlines()
    assert "GPU (ms)" in lines[1]
    rows = [line.split() for line in lines[3:8]]
    assert [row[:2] for row in rows[:4]] == [
        ["naive", "forward"], ["flash", "forward"], ["naive", "backward"], ["flash", "backward"],
    ]  # fmt: skip
    assert rows[1][2:] == ["2.000", "1.000", "321.0", "0.500", "ok"]
    assert rows[4] == ["sdpa-cudnn", "oom"]
    assert "sdpa-cudnn: no room" in text
    assert "NVIDIA X, torch 2.11, commit abc" in text


def fake_contest(seconds, timers=("",), rounds=2, max_error=0.0):
    """A contest between functions that take `seconds[name]` on a clock that only they move."""
    from cs_systems.bench.contest import Contestant, Rules, hold_contest
    from cs_systems.bench.turns import Turn

    now, log = [0.0], []

    def take(name):
        log.append(name)
        now[0] += seconds[name]

    def timer(run, power):
        start = now[0]
        run()
        return (now[0] - start) ** power

    contestants = {
        name: Contestant(lambda: {"max_error": max_error}, {"forward": Turn(lambda name=name: take(name))})
        for name in seconds
    }
    clocks = {ending: lambda run, ending=ending: timer(run, 2 if ending else 1) for ending in timers}
    rules = Rules(rounds, 60.0, 1e-3, "naive", clocks)
    outcomes, _ = hold_contest(contestants, rules, lambda phase: None)
    return outcomes, log


def test_turns_go_back_and_forth():
    outcomes, log = fake_contest({"naive": 4.0, "flash": 1.0})
    assert log == ["naive", "flash", *("naive", "flash", "flash", "naive")]  # warm-up; two rounds
    assert outcomes["flash"].samples_s == {"forward": [1.0, 1.0]}
    assert outcomes["flash"].metrics["ratio"] == {"forward": 0.25}
    assert outcomes["naive"].metrics["median_s"] == {"forward": 4.0}


def test_ratios_are_of_the_time_of_the_gpu_where_there_is_one():
    from cs_systems.bench.contest import counted, launch_bound_notes

    outcomes, log = fake_contest({"naive": 1.0, "flash": 0.25}, timers=("", "_device"), rounds=1)
    assert log.count("naive") == 2 * (1 + 1)
    metrics = outcomes["flash"].metrics
    assert outcomes["flash"].samples_s == {"forward": [0.25], "forward_device": [0.0625]}
    assert (metrics["median_s"], metrics["device_median_s"]) == ({"forward": 0.25}, {"forward": 0.0625})
    assert metrics["ratio"] == {"forward": 0.0625}
    assert counted(metrics, "forward") == 0.0625
    assert launch_bound_notes(metrics) == ["launch-bound in forward: the GPU idles over half of the time"]
    assert launch_bound_notes(metrics | {"device_median_s": {"forward": 0.2}}) == []


def test_a_budget_that_is_used_up_leaves_one_round_and_a_note(capsys):
    code, out, _ = run_main([*TINY, "--causal", "on", "--max-seconds", "1e-9"], capsys)
    assert code == 0
    assert "forward: 1 of 2 rounds; its share of --max-seconds was used up" in out


def test_an_error_of_triton_is_an_outcome():
    pytest.importorskip("triton", reason="needs Triton (Linux)")
    from triton.runtime.errors import OutOfResources

    from cs_systems.bench.contest import as_outcome, failures

    error = OutOfResources(300_000, 232_448, "shared memory")
    assert isinstance(error, failures())
    assert as_outcome(error).status == "failed"
    assert "shared memory" in as_outcome(error).reason


@pytest.mark.gpu
def test_the_gpu_timer_times_work_and_not_the_asking():
    import torch

    from cs_systems import device as devices

    device = devices.choose_device("cuda")
    timer = devices.event_timer(device)
    x = torch.randn(2**26, device=device)
    small = torch.randn(16, device=device)
    timer(lambda: x + 1)
    assert timer(lambda: x + 1) > 5 * timer(lambda: small + 1) > 0


@pytest.mark.gpu
def test_implementations_agree_on_a_gpu(capsys):
    flags = ["--batch-size", "1", "--num-heads", "2", "--d-head", "64", "--seq-len", "256", "--rounds", "2"]
    names = ",".join(name for name in IMPLEMENTATIONS if name != "naive-compiled")
    code, out, err = run_main([*flags, "--implementation", names, "--precision", "bf16,fp32"], capsys)
    assert code == 0, err
    ok = [row for row in last_records(out) if row["status"] == "ok"]
    assert {row["implementation"] for row in ok} >= {"naive", "flash-torch", "flash", "sdpa", "sdpa-flash"}
    assert all(row["metrics"]["held_bytes"] > 0 for row in ok)
