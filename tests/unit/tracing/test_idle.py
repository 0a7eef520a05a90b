"""Busy and idle time of made-up timelines, where each gap has a known reason."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.tracing.idle import explain_idle, find_idle, idle_table
from cs_systems.tracing.trace import Kernel, Range, Trace


def kernel(start_ns, end_ns, launch_end_ns=0, *, stream=7, kind="kernel"):
    launch_start_ns = None if launch_end_ns is None else launch_end_ns - 5
    return Kernel(
        "k", start_ns, end_ns, end_ns - start_ns, 1, 1, launch_start_ns, launch_end_ns, stream, kind, None
    )


def parts(trace):
    idle = find_idle(trace)
    return idle.busy_ns, idle.host_wait_ns, idle.kernel_wait_ns, idle.other_ns, idle.tail_ns, idle.span_ns


def test_each_gap_has_its_reason():
    kernels = [
        kernel(1000, 1100),
        kernel(1300, 1400, launch_end_ns=1290),  # launched after the device had run dry
        kernel(1425, 1500, launch_end_ns=1100),  # launched in time, a gap of 25
        kernel(1600, 1700, launch_end_ns=1100),  # launched in time, a gap of 100
        kernel(1750, 1800, launch_end_ns=None),
    ]
    trace = Trace([Range("step", 0, 2000, 1, 1)], kernels)
    assert parts(trace) == (425, 200, 25, 150, 200, 1000)


def test_streams_at_work_at_the_same_time_count_once():
    kernels = [kernel(0, 100), kernel(50, 150, stream=8), kernel(20, 60, stream=9)]
    assert parts(Trace([], kernels)) == (150, 0, 0, 0, 0, 150)


def test_a_launch_counts_as_late_from_the_end_of_all_streams():
    kernels = [kernel(0, 1000), kernel(100, 200, stream=8), kernel(1100, 1200, launch_end_ns=500)]
    assert parts(Trace([], kernels)) == (1100, 0, 0, 100, 0, 1200)


def test_what_was_measured_begins_before_the_first_kernel():
    trace = Trace([Range("measured", 100, 1000, 1, 1), Range("x", 0, 5000, 1, 1)], [kernel(300, 400, 250)])
    assert parts(trace) == (100, 200, 0, 0, 600, 900)


def test_without_kernels_there_is_nothing_to_say():
    assert find_idle(Trace([], [])) is None
    assert idle_table(Trace([], [])).rows == []


def spaced(gap, kind="kernel"):
    """Kernels of 100 ns with `gap` between them, each launched when the last was done."""
    return Trace(
        [],
        [kernel(i * (100 + gap), i * (100 + gap) + 100, i * (100 + gap) - 1, kind=kind) for i in range(50)],
    )


@pytest.mark.parametrize(("gap", "is_launch_bound"), [(0, False), (40, False), (60, True), (900, True)])
def test_the_verdict_turns_at_three_tenths_of_waiting(gap, is_launch_bound):
    trace = spaced(gap)
    idle = find_idle(trace)
    assert idle.is_launch_bound is is_launch_bound
    verdict = explain_idle(trace, idle)[0]
    assert verdict.startswith("launch-bound" if is_launch_bound else "device-bound")


def test_a_device_that_is_idle_and_not_for_want_of_launches_is_neither():
    trace = Trace([], [kernel(i * 1000, i * 1000 + 100) for i in range(50)])
    assert explain_idle(trace, find_idle(trace))[0].startswith("neither")


def test_the_evidence_has_the_length_of_kernels_and_of_the_queue():
    kernels = [kernel(i * 100, i * 100 + 100, launch_end_ns=i * 100 - 76_995) for i in range(800, 850)]
    trace = Trace([], kernels)
    text = " ".join(explain_idle(trace, find_idle(trace)))
    assert "50 kernels and copies; half of them take under 100 ns" in text
    assert "half of them start over 77.0 us after their launch" in text


def test_on_a_cpu_the_words_are_those_of_operators():
    assert explain_idle(spaced(900, "op"), find_idle(spaced(900, "op")))[0].startswith("overhead-bound")
    assert explain_idle(spaced(9, "op"), find_idle(spaced(9, "op")))[0].startswith("compute-bound")
    assert "Python" in idle_table(spaced(9, "op")).rows[1]["state"]


times = st.integers(0, 300)
kernel_lists = st.lists(
    st.builds(
        lambda start, length, launch: kernel(start, start + length, launch),
        times, times, st.none() | st.integers(0, 600),
    ),
    min_size=1,
)  # fmt: skip


@settings(derandomize=True, deadline=None)
@given(
    kernel_lists,
    st.lists(st.builds(lambda start, length: Range("measured", start, start + length, 1, 1), times, times)),
)
def test_the_parts_add_up_to_the_span_and_busy_is_the_union(kernels, ranges):
    trace = Trace(ranges, kernels)
    *pieces, span_ns = parts(trace)
    assert sum(pieces) == span_ns
    assert min(pieces) >= 0
    assert pieces[0] == len({t for each in kernels for t in range(each.start_ns, each.end_ns)})
    rows = idle_table(trace).rows
    if span_ns:
        assert sum(row["share"] for row in rows[:-1]) == pytest.approx(1)
