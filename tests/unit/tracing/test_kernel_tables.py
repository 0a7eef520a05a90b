"""Kernel summaries, against the golden numbers and in the columns of nsys."""

import statistics

import pytest

from cs_systems.tables import render_table
from cs_systems.tracing.kernel_tables import kernel_summary, top_kernel_per_forward
from cs_systems.tracing.trace import Kernel, Range, Trace

US = 1000


def kernel(name, busy_ns, at_ns=0, kind="kernel"):
    return Kernel(name, at_ns, at_ns + busy_ns, busy_ns, 1, 1, at_ns, at_ns + 5, 7, kind, None)


def test_the_golden_top_kernel(golden_trace):
    top = kernel_summary(golden_trace).rows[0]
    assert top["name"] == "cutlass_80_simt_sgemm_128x64_nt"
    assert (top["total_ns"], top["instances"]) == (1_240 * US, 8)
    assert (top["avg_ns"], top["med_ns"], top["min_ns"], top["max_ns"]) == (
        155 * US,
        155 * US,
        150 * US,
        160 * US,
    )
    assert top["stddev_ns"] == pytest.approx(5345.2, abs=0.1)
    assert top["share"] == pytest.approx(0.4998, abs=5e-5)


def test_the_columns_are_those_of_nsys(golden_trace):
    headings = [column.heading for column in kernel_summary(golden_trace).columns]
    assert headings == ["Time %", "Total", "Instances", "Avg", "Med", "Min", "Max", "StdDev", "Name"]


def test_rows_add_up_and_come_in_the_order_of_time(golden_trace):
    rows = kernel_summary(golden_trace).rows
    assert sum(row["total_ns"] for row in rows) == 2_481 * US
    assert sum(row["instances"] for row in rows) == 31
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["total_ns"] for row in rows] == sorted((row["total_ns"] for row in rows), reverse=True)


@pytest.mark.parametrize(
    ("name", "count", "total_us"),
    [
        ("forward", 16, 1_080),
        ("backward", 12, 1_360),
        ("attention softmax", 8, 400),
        ("step", 30, 2_480),
        ("nowhere", 0, 0),
    ],
)
def test_a_range_has_its_kernels_alone(golden_trace, name, count, total_us):
    table = kernel_summary(golden_trace, name)
    assert sum(row["instances"] for row in table.rows) == count
    assert sum(row["total_ns"] for row in table.rows) == total_us * US
    assert name in table.title


def test_what_is_not_at_the_top_is_one_row(golden_trace):
    rows, whole = kernel_summary(golden_trace, top=2).rows, kernel_summary(golden_trace).rows
    assert [row["name"] for row in rows] == [whole[0]["name"], whole[1]["name"], f"({len(whole) - 2} others)"]
    assert sum(row["total_ns"] for row in rows) == 2_481 * US
    assert kernel_summary(golden_trace, top=99).rows == whole


def test_full_names_tell_more_kernels_apart():
    trace = Trace([], [kernel("void f<int>(int)", 3), kernel("void f<float>(float)", 5)])
    assert [row["name"] for row in kernel_summary(trace).rows] == ["f"]
    assert [row["name"] for row in kernel_summary(trace, full_names=True).rows] == [
        "void f<float>(float)",
        "void f<int>(int)",
    ]


def test_the_deviation_is_that_of_a_sample_and_0_for_one():
    values = [3, 5, 9, 9]
    row = kernel_summary(Trace([], [kernel("k", value) for value in values])).rows[0]
    assert row["stddev_ns"] == pytest.approx(statistics.stdev(values))
    assert row["med_ns"] == 7
    assert kernel_summary(Trace([], [kernel("k", 3)])).rows[0]["stddev_ns"] == 0


def test_equal_totals_are_ordered_by_name():
    rows = kernel_summary(Trace([], [kernel("b", 3), kernel("a", 3)])).rows
    assert [row["name"] for row in rows] == ["a", "b"]


def test_copies_are_a_note_and_no_row():
    table = kernel_summary(Trace([], [kernel("k", 3), kernel("Memcpy HtoD", 2000, kind="copy")]))
    assert [row["name"] for row in table.rows] == ["k"]
    assert table.notes == ["besides, 1 copies and fills took 2.00 us"]


def test_people_see_units(golden_trace):
    assert "49.98%" not in render_table(kernel_summary(golden_trace), "table")
    assert " 50.0%  1.24 ms          8   155 us" in render_table(kernel_summary(golden_trace), "table")


def test_the_top_kernel_of_each_phase_and_its_calls(golden_trace):
    rows = {row["phase"]: row for row in top_kernel_per_forward(golden_trace).rows}
    assert list(rows) == ["forward", "backward", "optimizer", "step"]
    forward = rows["forward"]
    assert (forward["name"], forward["class"]) == ("cutlass_80_simt_sgemm_128x64_tn", "matmul")
    assert (forward["passes"], forward["calls_per_pass"], forward["time_per_pass_ns"]) == (2, 2, 180 * US)
    assert forward["share"] == pytest.approx(360 / 1080)
    assert (rows["backward"]["calls_per_pass"], rows["step"]["calls_per_pass"]) == (4, 4)
    assert rows["step"]["share"] == pytest.approx(1240 / 2481)


def test_calls_that_differ_between_passes_are_a_mean():
    ranges = [Range("forward", 0, 100, 1, 1), Range("forward", 200, 300, 1, 1)]
    trace = Trace(ranges, [kernel("k", 5, 10), kernel("k", 5, 20), kernel("k", 5, 210)])
    table = top_kernel_per_forward(trace)
    assert [row["calls_per_pass"] for row in table.rows] == [1.5, 1.5]
    assert table.rows[1]["phase"] == "step"  # which has no range here: as many as there are forwards


def test_without_phases_there_is_no_top_kernel():
    assert top_kernel_per_forward(Trace([], [kernel("k", 5)])).rows == []
