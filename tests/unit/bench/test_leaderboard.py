"""The leaderboard: an honest submission gets a place, a cheat a reason, and times are sorted as numbers."""

import csv
import dataclasses
import functools
import importlib.util
import io
import json
import os
import random
import re
import sys
import textwrap
import time
import types

import numpy as np
import pytest
import torch
from graded_support import timed_calls, timed_results
from graded_support.timed_calls import RejectedError, Shape, prepare, race
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cs_systems.bench import leaderboard, leaderboard_worker
from cs_systems.bench.leaderboard import choose_entry, main
from cs_systems.bench.leaderboard_table import boards, latest_of_each_name, make_metrics
from cs_systems.bench.leaderboard_worker import KIT, run_worker
from cs_systems.bench.record import BenchmarkRecord, Provenance, append_record, read_records
from cs_systems.kernels.flash_attention import FlashAttention
from cs_systems.tables import render_table

SMALL = Shape(heads=2, seq=130, d_head=16, dtype=torch.float32, device=torch.device("cpu"))

# A submission: attention by its formula from a package of its own, with a place for a trick.
ADAPTERS = """
from cs_systems import attend
import torch

class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, is_causal):
        ctx.save_for_backward(q, k, v)
        return attend.forward(q, k, v)

    @staticmethod
    def backward(ctx, do):
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return *torch.autograd.grad(attend.forward(*leaves), leaves, do), None

def get_flashattention_autograd_function_pytorch():
    return Attention
"""
ATTEND = """
import torch

def forward(q, k, v):
    hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1)
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf")).softmax(-1) @ v
"""


def make_submission(folder, trick=""):
    """A folder as a student would hand it in; `trick` runs when the package is imported."""
    (folder / "tests").mkdir(parents=True)
    (folder / "cs_systems").mkdir()
    (folder / "tests/adapters.py").write_text(ADAPTERS)
    (folder / "cs_systems/__init__.py").touch()
    (folder / "cs_systems/attend.py").write_text(ATTEND + textwrap.dedent(trick))
    return folder


class Honest(torch.autograd.Function):
    """Attention by its formula; subclasses change one thing."""

    @staticmethod
    def forward(ctx, q, k, v, is_causal):
        ctx.save_for_backward(q, k, v)
        return timed_calls.formula(q, k, v, torch.zeros_like(q))[0]

    @staticmethod
    def backward(ctx, do):
        return *timed_calls.formula(*ctx.saved_tensors, do)[1:], None


def applying(change):
    """A function whose apply is that of `Honest` passed through `change(apply, number of the call)`."""
    calls = []

    class Changed:
        @staticmethod
        def apply(q, k, v, is_causal):
            calls.append(None)
            return change(functools.partial(Honest.apply, q, k, v, is_causal), len(calls))

    return Changed


def test_an_honest_function_is_timed_and_checked():
    result = race(prepare(SMALL, seed=1, calls=4), Honest, "pytorch")
    assert result["checked_calls"] == 4
    assert result["error"] < 0.5
    assert [len(values) for values in result["samples_s"].values()] == [4, 4]
    assert result["warmup_samples_s"].keys() == result["samples_s"].keys()


def test_the_formula_agrees_with_pytorch_in_float64():
    q, k, v, do = (tensor.double() for tensor in timed_calls.make_inputs(SMALL, 3))
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    o = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
    expected = [o.detach(), *torch.autograd.grad(o, leaves, do)]
    for found, right in zip(timed_calls.formula(q, k, v, do), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_heads_that_are_computed_one_after_the_other_give_the_same(monkeypatch):
    inputs = timed_calls.make_inputs(SMALL, 4)
    together = timed_calls.formula(*inputs)
    monkeypatch.setattr(timed_results, "_SCORES", SMALL.seq**2)
    torch.testing.assert_close(timed_calls.formula(*inputs), together)


class Lazy(torch.Tensor):
    """A tensor that could compute when it is looked at."""


def keep_first(kept):
    def change(apply, number):
        if number == 1:
            kept.append(apply())
        # Part of the new graph, so that gradients exist; the values are those of the first call.
        return apply().mul(0).add(kept[0].detach())

    return change


class SkipsBackward(Honest):
    """Zeros instead of gradients."""

    @staticmethod
    def backward(ctx, do):
        return *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors), None


class LazyGradient(Honest):
    """The right gradients, one in a type of its own."""

    @staticmethod
    def backward(ctx, do):
        dq, dk, dv = timed_calls.formula(*ctx.saved_tensors, do)[1:]
        return dq, dk.as_subclass(Lazy), dv, None


class OneHead(Honest):
    """A head that is not computed keeps what the memory held."""

    @staticmethod
    def forward(ctx, q, k, v, is_causal):
        o = torch.full_like(q, torch.nan)
        o[:1] = Honest.forward(ctx, q, k, v, is_causal)[:1]
        return o


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (applying(keep_first([])), "o of timed call 1 is the same as that of call 2, which had other inputs"),
        (applying(lambda apply, number: apply() * (1 + (number > 4) / 100)), "o of .* 1 is wrong: off by 1"),
        (applying(lambda apply, number: apply() * (number != 6)), "o of .* 2 is wrong: off by 100.0%"),
        (applying(lambda apply, number: apply().as_subclass(Lazy)), "o is a Lazy; expected a plain"),
        (applying(lambda apply, number: apply().half()), "o has type torch.float16; expected torch.float32"),
        (applying(lambda apply, number: apply()[:, :-1]), r"o has shape \(2, 129, 16\); expected"),
        (applying(lambda apply, number: None), "o is a NoneType"),
        (SkipsBackward, "dq of timed call 1 is the same as that of call 2"),
        (LazyGradient, "dk is a Lazy"),
        (OneHead, "o of timed call 1 holds nan: memory that was never written to?"),
    ],
    ids=["keeps", "wrong later", "wrong once", "lazy", "type", "shape", "none", "no backward",
         "lazy gradient", "nan"],
)  # fmt: skip
def test_a_cheat_gets_a_reason_and_no_time(function, reason):
    with pytest.raises(RejectedError, match=reason):
        race(prepare(SMALL, seed=1, calls=3), function, "pytorch")


def test_work_that_is_finished_after_the_clock_stopped_comes_too_late():
    unfinished = []

    def zero_for_now(apply, number):
        o = apply()
        unfinished.append((o, o.detach().clone()))
        o.data.zero_()
        return o

    def finish(stage):
        for o, right in unfinished:
            o.data.copy_(right)

    with pytest.raises(RejectedError, match="o of timed call 1 is"):
        race(prepare(SMALL, seed=1, calls=3), applying(zero_for_now), "pytorch", finish)


def test_a_wrong_block_of_one_head_is_seen():
    plan = prepare(SMALL, seed=1, calls=1)
    (number,) = plan.kept
    results = {number: timed_calls.formula(*timed_calls.make_inputs(SMALL, plan.seeds[0]))}
    seeds = {number: plan.seeds[0]}
    timed_calls.check_results(SMALL, seeds, results)
    results[number][3][1, 64:128] *= 1.001
    with pytest.raises(RejectedError, match=r"dv of timed call 1 is wrong: off by 0\.1%"):
        timed_calls.check_results(SMALL, seeds, results)


@pytest.mark.parametrize("peak", ["bytes_per_s", "flops_per_s"])
def test_a_time_that_no_machine_like_this_one_reaches_is_refused(peak):
    plan = prepare(SMALL, seed=1, calls=2)
    assert 0 < plan.floor_s < 1e-3
    with pytest.raises(RejectedError, match="something else was timed"):
        race(dataclasses.replace(plan, **{peak: 1.0}), Honest, "pytorch")


class LibraryAttention(torch.autograd.Function):
    """PyTorch's own attention under another name."""

    @staticmethod
    def forward(ctx, q, k, v, is_causal):
        ctx.leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        with torch.enable_grad():
            ctx.o = torch.nn.functional.scaled_dot_product_attention(
                *(tensor[None] for tensor in ctx.leaves), is_causal=is_causal
            )[0]
        return ctx.o.detach()

    @staticmethod
    def backward(ctx, do):
        return *torch.autograd.grad(ctx.o, ctx.leaves, do), None


class LibraryGradient(Honest):
    """Only the gradients are PyTorch's, which wants L for them."""

    @staticmethod
    def backward(ctx, do):
        q, k, v = (tensor[None] for tensor in ctx.saved_tensors)
        aten = torch.ops.aten
        o, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        back = aten._scaled_dot_product_flash_attention_for_cpu_backward
        return *(tensor[0] for tensor in back(do[None], q, k, v, o, lse, 0.0, True)), None


def launch_nothing(x):
    """A kernel that does nothing."""
    import triton  # late: conftest says first that kernels are interpreted

    @triton.jit
    def kernel(x):
        pass

    kernel[(1,)](x)


class BesideAKernel(Honest):
    """The formula, and a kernel that does nothing."""

    @staticmethod
    def forward(ctx, q, k, v, is_causal):
        launch_nothing(q)
        return Honest.forward(ctx, q, k, v, is_causal)


class NumPyBesideAKernel(Honest):
    """The formula in another library, and a kernel that does nothing."""

    @staticmethod
    def forward(ctx, q, k, v, is_causal):
        launch_nothing(q)
        ctx.save_for_backward(q, k, v)
        scores = q.numpy() @ k.mT.numpy() * q.shape[-1] ** -0.5
        weights = np.exp(scores) * np.tri(q.shape[1], dtype=np.float32)
        return torch.from_numpy(weights / weights.sum(-1, keepdims=True) @ v.numpy())


@pytest.mark.parametrize(
    ("function", "implementation", "reason"),
    [
        (LibraryAttention, "pytorch", "PyTorch computed aten::.*attention.* in forward or backward; write"),
        (LibraryGradient, "pytorch", "PyTorch computed aten::.*attention.* in forward or backward"),
        (Honest, "triton", "no Triton kernel was launched in forward"),
        (LibraryAttention, "triton", "no Triton kernel was launched in forward"),
        (BesideAKernel, "triton", "PyTorch computed aten::bmm in forward; put it into the kernel"),
        (NumPyBesideAKernel, "triton", "o is the same when its Triton kernels do not run"),
    ],
)
def test_nobody_gets_a_time_for_work_of_somebody_else(function, implementation, reason):
    with pytest.raises(RejectedError, match=reason):
        race(prepare(SMALL, seed=1, calls=1), function, implementation)


def load_graded_test():
    """The function of the kit that needs a GPU, for a plan of a CPU."""
    spec = importlib.util.spec_from_file_location("graded_leaderboard", KIT / "test_leaderboard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.test_forward_and_backward_are_faster_than_the_formula


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            FlashAttention,
            r"forward and backward took [\d.]+ ms, the formula in PyTorch [\d.]+ ms: 0\.\d\d times as fast",
        ),
        (SkipsBackward, "flash attention was not timed: no Triton kernel was launched in forward: this is"),
    ],
)
def test_the_graded_test_says_what_is_missing(function, said):
    adapters = types.SimpleNamespace(get_flashattention_autograd_function_triton=lambda: function)
    with pytest.raises(pytest.fail.Exception, match=said):
        load_graded_test()(prepare(dataclasses.replace(SMALL, seq=64), seed=1, calls=1), adapters)


def test_a_replaced_function_is_named(monkeypatch):
    plan = prepare(SMALL, seed=1, calls=1)
    monkeypatch.setattr(torch, "allclose", lambda *args: True)
    with pytest.raises(RejectedError, match=r"the submission replaced torch\.allclose; leave"):
        race(plan, Honest, "pytorch")


def test_calls_that_are_checked_are_drawn_at_random_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(timed_calls, "_KEPT_BYTES_CPU", 2 * 4 * SMALL.bytes_of_array)
    drawn = {prepare(SMALL, seed=seed, calls=8).kept for seed in range(6)}
    assert {len(kept) for kept in drawn} == {2}
    assert len(drawn) > 1
    assert set().union(*drawn) <= set(range(1, 9))
    assert race(prepare(SMALL, seed=1, calls=8), Honest, "pytorch")["checked_calls"] == 2


def test_every_call_has_inputs_of_its_own():
    seen = []

    class Spy:
        @staticmethod
        def apply(q, k, v, is_causal):
            seen.append(q.detach().clone())
            return Honest.apply(q, k, v, is_causal)

    race(prepare(SMALL, seed=1, calls=3), Spy, "pytorch")
    race(prepare(SMALL, seed=2, calls=3), Spy, "pytorch")
    assert len({q.numpy().tobytes() for q in seen}) == len(seen) == 14


def request(folder, **changes):
    return {
        "seed": 7, "submission": str(folder), "implementation": "pytorch", "heads": 1, "seq": 64, "d_head": 8,
        "dtype": "float32", "device": "cpu", "calls": 2,
    } | changes  # fmt: skip


FORGERY = """
import json, os
from time import perf_counter
line = json.dumps({"seed": 0, "samples_s": {"forward-backward": [1e-9], "formula": [1.0]}}) + "\\n"
for descriptor in range(1, 20):
    try:
        os.write(descriptor, line.encode())
    except OSError:
        pass
os._exit(0)
"""


@pytest.mark.parametrize(
    ("trick", "reason"),
    [
        (
            "import time; time.perf_counter = lambda start=[0]: 1.0",
            "the submission replaced time.perf_counter; leave",
        ),
        (FORGERY, "the process ended while it was imported, with exit code 0 and no result"),
        ("forward = lambda q, k, v: exit(3)", r"SystemExit: 3 \(cs_systems/attend.py, line \d+\)"),
    ],
    ids=["clock", "exit", "SystemExit"],
)
def test_what_a_submission_does_to_its_process_is_found_out(tmp_path, trick, reason):
    folder = make_submission(tmp_path / "it", trick)
    assert re.match(reason, run_worker(request(folder), max_seconds=100)["reason"])


SECONDS = {"forward-backward": [1.0], "formula": [1.0]}
RESULT = {
    "samples_s": SECONDS, "warmup_samples_s": SECONDS, "checked_calls": 1, "error": 0.1, "floor_s": 0.1,
    "bytes_per_s": 1.0, "flops_per_s": 1.0, "seed": 7, "reason": None,
}  # fmt: skip
NO_RESULT = "the process ended in the warm-up, with exit code 0 and no result"
STAGE = 'import sys, time, os, signal; print(\'{"stage": "in the warm-up"}\', flush=True); '


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("time.sleep(60)", "did not end within 1.50 s and was stopped in the warm-up"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process was killed by SIGSEGV in the warm-up"),
        ("sys.exit(0)", NO_RESULT),
        ("os._exit(255)", NO_RESULT.replace("0", "255")),
        (f"print({json.dumps(RESULT | {'samples_s': {'forward-backward': [-1.0], 'formula': [1.0]}})!r})",
         "the result holds times that cannot be"),
        (f"print({json.dumps(RESULT | {'samples_s': {}})!r})", "the result holds times that cannot be"),
        ("print('{\"seed\": 8, \"reason\": null}')", NO_RESULT),
        ("print('{\"seed\": 7, \"rea', end='')", NO_RESULT),
    ],
    ids=["hangs", "crashes", "says nothing", "exit code 255", "impossible", "no times", "forged", "cut off"],
)  # fmt: skip
def test_however_the_worker_ends_there_is_a_reason(tmp_path, monkeypatch, program, reason):
    monkeypatch.setattr(leaderboard_worker, "_START", STAGE + program)
    seconds = 1.5 if "sleep" in program else 60
    assert run_worker(request(tmp_path), max_seconds=seconds) == {"reason": reason}


def test_a_result_with_the_seed_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(leaderboard_worker, "_START", STAGE + f"print({json.dumps(RESULT)!r})")
    assert run_worker(request(tmp_path), max_seconds=60) == RESULT


def test_children_of_a_stopped_worker_are_stopped_too(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(1); pathlib.Path({str(mark)!r}).touch()"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    monkeypatch.setattr(leaderboard_worker, "_START", start)
    run_worker(request(tmp_path), max_seconds=60)
    time.sleep(1.5)
    assert not mark.exists()


def test_the_environment_of_the_caller_does_not_reach_the_worker(tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "CS_SYSTEMS_ADAPTERS", "PYTEST_ADDOPTS", "TRITON_CACHE_DIR", "MY_OWN"):
        monkeypatch.setenv(name, "x")
    found = leaderboard_worker._environment(tmp_path, "cpu")
    assert {name for name in found if found[name] == "x"} == {"MY_OWN"}
    assert found["HOME"] == str(tmp_path)
    assert found["TRITON_INTERPRET"] == "1"
    assert "TRITON_INTERPRET" not in leaderboard_worker._environment(tmp_path, "cuda")


def test_a_submission_is_timed_recorded_and_shown(tmp_path, capsys):
    folder, records = make_submission(tmp_path / "ada"), tmp_path / "new/board.jsonl"
    flags = ["--records", str(records), "--shape", "1,2,64,8", "--repeats", "2"]
    assert main(["--submission", str(folder), *flags]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out.splitlines()[-1])["status"] == "ok"
    (record,), _ = read_records(records)
    assert (record.status, record.case["name"], record.metrics["checked_calls"]) == ("ok", "ada", 2)
    assert len(record.case["code"]) == 64

    (folder / "cs_systems/attend.py").write_text(ATTEND.replace("triu(1)", "triu(2)"))
    assert main(["--submission", str(folder), *flags]) == 1
    out, err = capsys.readouterr()
    assert "ada was rejected: o of timed call 1 is wrong" in err
    assert main(["--show", "--records", str(records), "--format", "json"]) == 0
    (board,) = json.loads(capsys.readouterr().out)
    first, second = board["rows"]
    assert (first["rank"], first["status"]) == (1, "ok")
    assert (second["rank"], second["status"]) == (None, "failed")
    assert second["reason"].startswith("o of timed call 1 is wrong")
    assert first["code"] != second["code"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shape", "gpu"], "there is no GPU here, and a CPU would take hours"),
        (["--shape", "1,2,3"], "nor sequences, heads, positions, d_head such as 1,4,512,64"),
        (["--shape", "1,4,32,64"], "64 positions and a d_head of 1; for example 1,4,512,64"),
        (["--repeats", "0"], "must be over 0, for example 20"),
        (["--max-seconds", "9"], "must be at least 10: torch alone takes seconds to import"),
        (["--max-seconds", "nan"], "must be at least 10"),
        (["--shape", "99999,99999,99999,99999"], "checking results of this size takes at least"),
        (["--shape", "1,1,9999999,1"], "are free here; choose fewer heads or positions"),
        (["--name", "a\nb"], "choose one of at most 40 characters, in one line"),
        (["--submission", "nowhere"], "has no tests/adapters.py"),
        (["--submission", __file__], "is a file; unpack it"),
        (["--show"], "nobody was timed yet; make leaderboard does"),
        (["--implementation", "tritn"], "did you mean triton?"),
    ],
)
def test_a_bad_flag_is_one_line(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.setattr("cs_systems.device.torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main([*words, "--records", str(tmp_path / "board.jsonl")])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def make_record(name, median_ms=None, when="2026-01-01T00:00:00+00:00", reason=None, **changes):
    provenance = Provenance(
        command="x", commit="abc", dirty=False, time_utc=when, device=changes.pop("device", "GPU A"),
        device_type="cuda", threads=changes.pop("threads", 4), versions={},
    )  # fmt: skip
    entry = choose_entry((1, 16, 16384, 64), "cuda")
    case = entry.case(name, "triton", "0" * 64) | changes
    if median_ms is None:
        return BenchmarkRecord("leaderboard", case, "failed", provenance, reason=reason)
    seconds = [median_ms / 1e3] * 3
    samples = {"forward-backward": seconds, "formula": [4 * value for value in seconds]}
    return BenchmarkRecord(
        "leaderboard", case, "ok", provenance, samples_s=samples, metrics=make_metrics(samples, entry.flops)
    )


def test_places_follow_the_number_and_not_its_text():
    times = [9500.0, 10250.0, 100.0, 6.5, 5.75, 0.05]  # as text 10.25 s is less than 9.5 s
    records = [make_record(f"team {time}", time) for time in random.Random(0).sample(times, len(times))]
    (table,) = boards([make_record("broken", reason="dq is wrong"), *records])
    rows = list(csv.DictReader(io.StringIO(render_table(table, "csv"))))
    assert [row["name"] for row in rows] == [*(f"team {time}" for time in sorted(times)), "broken"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6", ""]
    assert float(rows[0]["tflops_per_s"]) == pytest.approx(7 * 16 * 16384**2 * 64 / 0.05e-3 / 1e12)
    assert float(rows[0]["times_as_fast"]) == pytest.approx(4)
    assert "broken (2026-01-01T00:00:00+00:00): dq is wrong" in render_table(table, "table")


def test_boards_that_differ_in_shape_type_or_processor_stand_apart():
    changes = [{}, {"seq_len": 512}, {"precision": "fp16"}, {"device": "GPU B"}, {"threads": 8}]
    tables = boards([make_record("a", 1.0, **change) for change in changes])
    # Threads of the CPU do not matter where a GPU works.
    assert sorted(len(table.rows) for table in tables) == [1, 1, 1, 1]
    on_cpu = [make_record("a", 1.0, device_type="cpu", threads=count) for count in (1, 2)]
    assert len(boards([make_record("a", 1.0), *on_cpu])) == 2


def test_of_each_name_the_last_that_counts_and_a_later_failure_are_shown():
    days = [f"2026-01-0{day}T00:00:00+00:00" for day in range(1, 6)]
    records = [
        make_record("a", 5.0, days[0]),
        make_record("a", 7.0, days[1]),
        make_record("a", None, days[2], "wrong"),
        make_record("b", None, days[0], "wrong"),
        make_record("b", 6.0, days[3]),
    ]
    chosen = latest_of_each_name(records[::-1])
    assert sorted((each.case["name"], each.status, each.provenance.time_utc) for each in chosen) == [
        ("a", "failed", days[2]), ("a", "ok", days[1]), ("b", "ok", days[3]),
    ]  # fmt: skip


def test_records_of_other_experiments_are_passed_over(tmp_path, capsys):
    path = tmp_path / "board.jsonl"
    record = make_record("a", 5.0)
    append_record(path, BenchmarkRecord("attention", {}, "ok", record.provenance))
    append_record(path, record)
    assert main(["--show", "--records", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "Leaderboard of flash attention: 16 heads, 16384 positions, d_head 64, bf16, causal; GPU A\n"
    )
    assert json.loads(out.splitlines()[-1]) == {"experiment": "leaderboard", "num_records": 1}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere orphans are given to nobody")
@pytest.mark.parametrize("hangs", [False, True])
def test_children_in_sessions_of_their_own_are_stopped_too(tmp_path, monkeypatch, hangs):
    note = tmp_path / "note"
    child = "import os, time, pathlib\n"
    child += f"pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(60)"
    start = (
        "import os, subprocess, sys, time, pathlib\n"
        "if os.fork() == 0:\n"  # a daemon: its parent is gone
        f"    subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "    os._exit(0)\n"
        f"while not pathlib.Path({str(note)!r}).exists(): time.sleep(0.05)\n" + "time.sleep(60)\n" * hangs
    )
    monkeypatch.setattr(leaderboard_worker, "_START", start)
    run_worker(request(tmp_path), max_seconds=3 if hangs else 60)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_a_time_that_is_over_before_the_submission_began_is_not_its_fault(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(leaderboard_worker, "_START", "import time; time.sleep(60)")
    monkeypatch.setattr("cs_systems.bench.leaderboard._LEAST_SECONDS", 0.5)
    folder, records = make_submission(tmp_path / "ada"), tmp_path / "board.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(["--submission", str(folder), "--records", str(records), "--max-seconds", "0.5"])
    assert ended.value.code == 2
    assert "--max-seconds 0.5 was over before the submission was even imported" in capsys.readouterr().err
    assert not records.exists() or not records.read_text()


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that were alive at one time."""

    def __init__(self):
        super().__init__()
        self.storages, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for ref, size in self.storages.values() if not ref.expired()))
        return output


@pytest.mark.parametrize("heads", [1, 4])
def test_the_memory_that_is_predicted_is_what_the_formula_takes(heads):
    entry = choose_entry((1, heads, 512, 16), "cpu")
    inputs = timed_results.make_inputs(Shape(heads, 512, 16, torch.float64, torch.device("cpu")), 0)
    with LiveBytes() as live:
        timed_results.formula(*inputs)
    assert 0.7 * live.peak < entry.least_memory_bytes < 1.3 * live.peak
    assert timed_results._SCORES == leaderboard._SCORES_AT_A_TIME
