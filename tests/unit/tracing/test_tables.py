"""Tables of ranges, classes and comparisons: golden numbers, and sums that must come out."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.tables import Cell, render_table
from cs_systems.tracing.attribute import paths
from cs_systems.tracing.tables import (
    all_tables,
    class_by_phase,
    combined_table,
    compare_tables,
    range_summary,
)
from cs_systems.tracing.trace import Kernel, Range, RunFacts, Trace

US = 1000
FACTS = RunFacts(
    model="tiny", num_layers=2, num_heads=4, d_head=32, batch_size=3, seq_len=64, steps=2, mode="train-step",
    precision="fp32", attention="naive", device="Some GPU", command="python profiling/run.py",
    timer_s={"forward": 0.002},
)  # fmt: skip


def value(cell):
    return cell.value if isinstance(cell, Cell) else cell


def by_first(table):
    key = table.columns[0].key
    return {value(row[key]): {name: value(cell) for name, cell in row.items()} for row in table.rows}


def kernel(at_ns, busy_ns, *, tid=1, kind="kernel", op="aten::mm", name="k", lag_ns=0):
    start = at_ns + lag_ns
    return Kernel(name, start, start + busy_ns, busy_ns, 1, tid, at_ns, at_ns + 5, 7, kind, op)


# ------------------------------------------------------------------ ranges


def test_golden_ranges(golden_trace):
    rows = by_first(range_summary(golden_trace))
    assert rows["step > forward"] == {
        "range": "step > forward", "instances": 2, "wall_ns": 320 * US, "busy_ns": 1_080 * US, "own_ns": 0,
        "span_ns": 1_080 * US, "kernels": 16, "share": 1080 / 2481,
    }  # fmt: skip
    assert rows["step > backward"]["own_ns"] == 1_360 * US
    assert rows["step > forward > attention > attention softmax"]["kernels"] == 8
    assert rows["(unattributed)"]["own_ns"] == 1 * US
    assert rows["total"]["own_ns"] == 2_481 * US
    assert list(rows)[-2:] == ["(unattributed)", "total"]


def test_own_adds_up_to_the_total(golden_trace):
    *rows, total = range_summary(golden_trace).rows
    assert sum(row["own_ns"] for row in rows) == total["own_ns"]


def test_a_range_stands_below_the_one_around_it_in_the_order_of_time():
    ranges = [
        Range("step", 0, 100, 1, 1), Range("loss", 50, 60, 1, 1), Range("forward", 10, 20, 1, 1),
        Range("step", 200, 300, 1, 1), Range("forward", 210, 240, 1, 1), Range("late", 220, 230, 1, 1),
    ]  # fmt: skip
    table = range_summary(Trace(ranges, [kernel(5, 1)]))
    assert list(by_first(table)) == [
        "step", "step > forward", "step > forward > late", "step > loss", "(unattributed)", "total",
    ]  # fmt: skip
    shown = [table.columns[0].show(row["range"]) for row in table.rows]
    assert shown[:3] == ["step", "· forward", "· · late"]


def test_the_span_is_that_of_each_instance():
    ranges = [Range("x", 0, 100, 1, 1), Range("x", 1000, 1100, 1, 1)]
    kernels = [kernel(10, 5, lag_ns=500), kernel(20, 5, lag_ns=600), kernel(1010, 7, lag_ns=500)]
    assert by_first(range_summary(Trace(ranges, kernels)))["x"]["span_ns"] == (625 - 510) + 7


def test_a_range_that_only_launches_is_named_in_a_note():
    ranges = [Range("launches", 0, 100, 1, 1), Range("waits", 200, 2200, 1, 1)]
    kernels = [kernel(10, 1000), kernel(210, 1000)]
    (note,) = range_summary(Trace(ranges, kernels)).notes
    assert "launch in: launches." in note


def test_on_a_cpu_no_range_only_launches():
    trace = Trace([Range("x", 0, 100, 1, 1)], [kernel(10, 1000, kind="op")])
    table = range_summary(trace)
    assert table.notes == []
    assert "Operators" in [column.title for column in table.columns]


def test_ranges_without_kernels_and_kernels_without_ranges():
    assert by_first(range_summary(Trace([Range("x", 0, 10, 1, 1)], [])))["x"]["kernels"] == 0
    assert range_summary(Trace([], [kernel(0, 5)])).rows == []


# ------------------------------------------------------------------ classes


def test_golden_classes(golden_trace):
    rows = by_first(class_by_phase(golden_trace))
    assert list(rows) == ["forward", "backward", "optimizer", "(unattributed)", "total"]
    assert rows["forward"] == {
        "phase": "forward", "total_ns": 1080 * US, "matmul_ns": 680 * US, "softmax_ns": 160 * US,
        "elementwise_ns": 240 * US,
    }  # fmt: skip
    assert rows["backward"]["matmul_ns"] == 1240 * US
    assert rows["(unattributed)"]["other_ns"] == 1 * US
    assert rows["total"]["matmul_ns"] == 1920 * US
    text = render_table(class_by_phase(golden_trace), "table")
    assert "680 us (63.0%)" in text
    assert "3 of 31 kernels are classed by their names" in text


def test_classes_add_up_down_and_across(golden_trace):
    *rows, total = by_first(class_by_phase(golden_trace)).values()
    names = [name for name in total if name.endswith("_ns")]
    assert {name: sum(row.get(name, 0) for row in rows) for name in names} == {
        name: total[name] for name in names
    }
    for row in (*rows, total):
        assert sum(row.get(name, 0) for name in names if name != "total_ns") == row["total_ns"]


def test_attention_in_one_kernel_is_told_of():
    table = class_by_phase(Trace([], [kernel(0, 5000, name="flash_fwd_kernel", op=None)]))
    assert "other: 5.00 us of it is attention in one kernel" in table.notes[1]


# ------------------------------------------------------------------ side by side


def forward_trace(*, lag_ns=0, with_loss=True):
    """Three passes; each forward takes 100 of CPU wall, and its kernels start `lag_ns` after their launch."""
    ranges, kernels = [], []
    for start in (0, 10_000, 20_000):
        ranges.append(Range("forward", start, start + 100, 1, 1))
        kernels.append(kernel(start + 50, 40, lag_ns=lag_ns))
        if with_loss:
            ranges.append(Range("loss", start + 100, start + 150, 1, 1))
            kernels.append(kernel(start + 120, 10, lag_ns=lag_ns))
    return Trace(ranges, kernels, meta={"path": "runs/a.json.gz"})


@pytest.mark.parametrize(
    ("lag_ns", "with_loss", "profiler_ns"),
    [(0, True, 150), (1000, True, 1130), (0, False, 100), (1000, False, 1090)],
)
def test_the_profilers_forward_ends_with_the_last_kernel_of_its_loss(lag_ns, with_loss, profiler_ns):
    facts = dataclasses.replace(FACTS, timer_s={"forward": 1e-6})
    (row,) = combined_table([(forward_trace(lag_ns=lag_ns, with_loss=with_loss), facts)]).rows
    assert (row["passes"], row["wall_ns"], row["busy_ns"]) == (3, 100, 40)
    assert row["profiler_ns"] == profiler_ns
    assert row["ratio"] == pytest.approx(profiler_ns / 1000)
    assert (row["model"], row["seq_len"]) == ("tiny", 64)


def test_runs_stand_below_each_other_with_or_without_facts(golden_trace):
    no_timer = dataclasses.replace(FACTS, seq_len=128, timer_s={})
    table = combined_table(
        [(golden_trace, FACTS), (forward_trace(), no_timer), (forward_trace(), None), (Trace([], []), FACTS)]
    )
    assert [row.get("seq_len") for row in table.rows] == [64, 128, None]
    assert [row.get("timer_ns") for row in table.rows] == [2e6, None, None]
    assert table.rows[2]["run"] == "a.json.gz"


def test_a_trace_compared_with_itself_is_the_same(golden_trace):
    for table in compare_tables(golden_trace, golden_trace):
        assert {row["ratio"] for row in table.rows} == {1}
        assert all(row["a_ns"] == row["b_ns"] for row in table.rows)


def test_a_comparison_is_of_one_step_and_has_the_rows_of_both():
    def steps(count, busy_ns, name):
        ranges = [Range("step", 1000 * i, 1000 * i + 100, 1, 1) for i in range(count)]
        ranges += [Range(name, 1000 * i + 10, 1000 * i + 90, 1, 1) for i in range(count)]
        kernels = [
            kernel(1000 * i + 20, busy_ns, op=f"aten::{'mm' if name == 'a' else 'add'}") for i in range(count)
        ]
        return Trace(ranges, [*kernels, kernel(999_999, 60)], meta={"path": f"{name}.json"})

    ranges, classes = map(by_first, compare_tables(steps(2, 10, "a"), steps(3, 15, "b")))
    assert list(ranges) == ["step", "step > a", "step > b", "(unattributed)", "total"]
    assert ranges["step"] == {"name": "step", "a_ns": 10, "b_ns": 15, "ratio": 1.5}
    assert ranges["step > a"] == {"name": "step > a", "a_ns": 10, "b_ns": None, "ratio": None}
    assert (ranges["(unattributed)"]["a_ns"], ranges["(unattributed)"]["b_ns"]) == (30, 20)
    assert ranges["total"]["ratio"] == pytest.approx(35 / 40)
    assert (classes["matmul"]["a_ns"], classes["matmul"]["b_ns"]) == (40, 20)
    assert (classes["elementwise"]["a_ns"], classes["elementwise"]["b_ns"]) == (None, 15)
    assert list(classes)[-1] == "total"


def test_a_comparison_says_what_is_compared(golden_trace):
    (first, *_) = compare_tables(golden_trace, forward_trace())
    assert first.notes[0].startswith("A: ")
    assert "2 steps" in first.notes[0]
    assert "B: runs/a.json.gz, 3 steps" in first.notes[1]


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("style", ["table", "md", "csv", "json", "latex"])
def test_every_table_can_be_rendered(golden_trace, style):
    tables = all_tables(golden_trace, FACTS)
    assert len(tables) == 10
    assert all(render_table(table, style) for table in tables)
    assert all(
        render_table(table, style)
        for table in (combined_table([(golden_trace, FACTS)]), *compare_tables(golden_trace, golden_trace))
    )


@pytest.mark.parametrize(
    "trace",
    [
        Trace([], []),
        Trace([Range("x", 0, 0, 1, 1)], []),
        Trace([], [kernel(0, 0)]),
        Trace([Range("measured", 5, 5, 1, 1)], [kernel(5, 0)]),
    ],
)
def test_next_to_nothing_makes_no_table_and_no_error(trace):
    for table in (
        *all_tables(trace),
        *all_tables(trace, FACTS),
        combined_table([(trace, None)]),
        *compare_tables(trace, trace),
    ):
        for style in ("table", "json"):
            render_table(table, style)


def test_columns_are_the_keys_of_the_rows(golden_trace):
    for table in (
        *all_tables(golden_trace, FACTS),
        combined_table([(golden_trace, FACTS)]),
        *compare_tables(golden_trace, golden_trace),
    ):
        keys = [column.key for column in table.columns]
        assert len(set(keys)) == len(keys)
        assert all(set(row) <= set(keys) for row in table.rows), table.title


def test_top_and_full_names_reach_the_summaries(golden_trace):
    full = all_tables(golden_trace, top=1, full_names=True)
    summaries = [table for table in full if table.title.startswith("Kernels")]
    assert len(summaries) == 4
    assert summaries[0].rows[0]["name"].startswith("void cutlass::Kernel2<")
    assert len(summaries[0].rows) == 2


moments = st.integers(0, 60)
names = st.sampled_from(
    ["step", "forward", "backward", "x", "x (backward)", "attention", "attention softmax"]
)
range_lists = st.lists(
    st.builds(
        lambda name, at, length, tid: Range(name, at, at + length, 1, tid),
        names,
        moments,
        moments,
        st.integers(1, 2),
    )
)
kernel_lists = st.lists(
    st.builds(
        lambda at, busy, tid, kind, op: kernel(at, busy, tid=tid, kind=kind, op=op),
        moments, moments, st.integers(1, 3), st.sampled_from(["kernel", "copy"]),
        st.sampled_from(["aten::mm", "aten::add", "aten::view", None]),
    )
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=40)
@given(range_lists, kernel_lists)
def test_time_is_neither_lost_nor_counted_twice(ranges, kernels):
    trace = Trace(ranges, kernels)
    total_ns = sum(each.busy_ns for each in trace.kernels)
    if trace.ranges:
        rows = by_first(range_summary(trace))
        total = rows.pop("total")
        assert sum(row["own_ns"] for row in rows.values()) == total["own_ns"] == total_ns
        assert sum(row.get("instances", 0) for row in rows.values()) == len(trace.ranges)
        assert rows["(unattributed)"]["kernels"] == sum(not path for path in paths(trace))
    classes = by_first(class_by_phase(trace))
    if classes:
        assert sum(row["total_ns"] for name, row in classes.items() if name != "total") == total_ns
    for table in all_tables(trace, FACTS):
        render_table(table, "json")
