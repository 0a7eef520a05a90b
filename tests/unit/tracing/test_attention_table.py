"""Attention in parts: times of made-up runs, FLOPs counted by torch."""

import pytest

from cs_systems.tracing.attention_table import attention_table
from cs_systems.tracing.trace import Kernel, Range, RunFacts, Trace

US = 1000
FACTS = RunFacts(
    model="tiny", num_layers=2, num_heads=4, d_head=32, batch_size=3, seq_len=64, steps=2, mode="train-step",
    precision="fp32", attention="naive", device="Some GPU", command="python profiling/run.py",
)  # fmt: skip


def rows_of(trace, facts=FACTS):
    return {(row["pass"], row.get("part")): row for row in attention_table(trace, facts).rows}


def make_trace(*pieces):
    """(path, operator, ns): each a kernel in ranges of its own."""
    ranges, kernels = [], []
    for i, (path, op, ns) in enumerate(pieces):
        start = 10_000 * i
        ranges += [Range(name, start, start + 1000, 1, 1) for name in path]
        kernels.append(Kernel("k", start, start + ns, ns, 1, 1, start + 5, start + 9, 7, "kernel", op))
    return Trace(ranges, kernels)


def test_golden_times_and_ratios(golden_trace):
    rows = rows_of(golden_trace)
    scores, softmax, final = (
        rows["forward", f"attention {part}"] for part in ("scores", "softmax", "final matmul")
    )
    assert [row["busy_ns"] for row in (scores, softmax, final)] == [360 * US, 400 * US, 320 * US]
    assert [row["calls"] for row in (scores, softmax, final)] == [4, 4, 4]
    assert [row["matmul_ns"] for row in (scores, softmax, final)] == [360 * US, 0, 320 * US]
    assert (scores["time_ratio"], softmax["time_ratio"]) == (0.9, 1)
    assert (scores["flops_ratio"], softmax["flops_ratio"]) == (2 * 32 / 5, 1)
    assert scores["tflops_per_s"] == pytest.approx(scores["flops"] / 360e-6 / 1e12)
    assert rows["total", None]["busy_ns"] == 1080 * US
    assert len(rows) == 4


@pytest.mark.parametrize("suffix", ["", " (backward)"])
def test_flops_of_the_products_are_those_that_torch_counts(suffix):
    """Torch's counter sees products only, which is why softmax is counted by hand below."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    q, k = (torch.ones(3, 4, 64, 32, requires_grad=True) for _ in range(2))
    with FlopCounterMode(display=False) as forward:
        scores = q @ k.transpose(-1, -2)
    with FlopCounterMode(display=False) as backward:
        scores.sum().backward()
    counted = (backward if suffix else forward).get_total_flops()
    trace = make_trace(
        ((f"attention scores{suffix}",), "aten::bmm", 100),
        ((f"attention final matmul{suffix}",), "aten::bmm", 100),
    )
    rows = rows_of(trace)
    each_pass = "backward" if suffix else "forward"
    assert rows[each_pass, "attention scores"]["flops"] == counted
    assert rows[each_pass, "attention final matmul"]["flops"] == counted


@pytest.mark.parametrize(("suffix", "per_weight"), [("", 5), (" (backward)", 4)])
def test_flops_of_softmax(suffix, per_weight):
    rows = rows_of(make_trace(((f"attention softmax{suffix}",), "aten::mul", 100)))
    (key, *_) = rows
    assert rows[key]["flops"] == per_weight * 3 * 4 * 64 * 64
    assert rows[key]["flops_ratio"] == 1


def test_backward_and_what_backward_repeats_have_rows_of_their_own():
    rows = rows_of(
        make_trace(
            (("forward", "attention", "attention scores"), "aten::bmm", 10),
            (("backward", "attention", "attention scores"), "aten::bmm", 11),
            (("backward", "attention (backward)", "attention scores (backward)"), "aten::bmm", 20),
            (("block (backward)", "attention", "attention scores"), "aten::bmm", 12),
        )
    )
    times = {key[0]: row["busy_ns"] for key, row in rows.items()}
    assert times == {"forward": 10, "recomputed": 23, "backward": 20, "total": 53}
    assert rows["recomputed", "attention scores"]["calls"] == 2
    flops = {key[0]: row.get("flops") for key, row in rows.items()}
    assert flops["recomputed"] == 2 * flops["forward"] == flops["backward"]


def test_what_is_in_attention_and_in_no_part_is_a_row_if_there_is_any():
    rows = rows_of(
        make_trace(
            (("forward", "attention", "attention scores"), "aten::bmm", 10),
            (("forward", "attention"), "aten::copy_", 7),
            (("forward", "feed-forward"), "aten::mm", 1000),
        )
    )
    rest = rows["forward", "attention, the rest"]
    assert (rest["busy_ns"], rest["flops"]) == (7, None)
    assert rows["total", None]["busy_ns"] == 17


def test_attention_in_one_piece_has_the_flops_of_its_parts():
    rows = rows_of(
        make_trace(
            (("forward", "attention"), "flash", 100), (("backward", "attention (backward)"), "flash", 100)
        )
    )
    weights = 3 * 4 * 64 * 64
    assert rows["forward", "attention"]["flops"] == weights * (2 * 32 + 2 * 32 + 5)
    assert rows["backward", "attention"]["flops"] == weights * (4 * 32 + 4 * 32 + 4)
    assert rows["forward", "attention"]["time_ratio"] is None


def test_without_facts_there_are_times_and_a_note(golden_trace):
    table = attention_table(golden_trace, None)
    assert {row.get("flops") for row in table.rows} == {None}
    assert table.rows[0]["busy_ns"] == 360 * US
    assert ".run.json" in table.notes[0]


def test_without_attention_there_are_no_rows():
    assert attention_table(make_trace((("forward",), "aten::mm", 5)), FACTS).rows == []
