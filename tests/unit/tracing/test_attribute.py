"""Which ranges a kernel belongs to, against the definition written down plainly, and the golden numbers."""

import dataclasses
import itertools
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.tracing.attribute import (
    attribute,
    cut_to_measured,
    merged,
    named,
    open_at,
    paths,
    phase_of,
    phase_ranges,
    with_operators,
)
from cs_systems.tracing.trace import Kernel, MemoryEvent, Range, Trace

US = 1000
PID, MAIN, AUTOGRAD = 1234, 100, 101
NAMES = {(PID, MAIN): "python", (PID, AUTOGRAD): "thread 101 (pt_autograd_0)"}


def kernel(at_ns, tid=MAIN, pid=PID, kind="kernel"):
    return Kernel("k", at_ns + 1000, at_ns + 1010, 10, pid, tid, at_ns, at_ns + 5, 7, kind, None)


def sums(trace, key=phase_of):
    count, total_ns = Counter(), Counter()
    for item, path in zip(trace.kernels, paths(trace), strict=True):
        count[key(path)] += 1
        total_ns[key(path)] += item.busy_ns
    return {name: (count[name], total_ns[name]) for name in count}


def test_golden_phases(golden_trace):
    assert sums(golden_trace) == {
        "forward": (16, 1_080 * US), "backward": (12, 1_360 * US), "optimizer": (2, 40 * US),
        None: (1, 1 * US),
    }  # fmt: skip
    assert sum(kernel.busy_ns for kernel in golden_trace.kernels) == 2_481 * US


def test_golden_attention(golden_trace):
    found = sums(golden_trace, key=lambda path: path[-1] if "attention" in path else None)
    assert found["attention scores"] == (4, 360 * US)
    assert found["attention softmax"] == (8, 400 * US)
    assert found["attention final matmul"] == (4, 320 * US)


def test_golden_backward_is_lost_when_joined_by_thread_alone(golden_trace):
    """With another thread under autograd's name, the one that launched has nobody who waits for it."""
    meta = golden_trace.meta | {"thread_names": {(PID, 7): "pt_autograd_0"}}
    found = sums(dataclasses.replace(golden_trace, meta=meta))
    assert "backward" not in found
    assert found[None] == (13, 1_361 * US)


def test_the_rule_needs_no_thread_names(golden_trace):
    assert sums(dataclasses.replace(golden_trace, meta={}))["backward"] == (12, 1_360 * US)


def test_paths_go_from_outside_to_inside_and_the_waiting_thread_comes_first():
    ranges = [
        Range("step", 0, 100, PID, MAIN), Range("backward", 10, 90, PID, MAIN),
        Range("block (backward)", 20, 60, PID, AUTOGRAD),
        Range("attention (backward)", 30, 50, PID, AUTOGRAD),
    ]  # fmt: skip
    trace = Trace(
        ranges, [kernel(40, AUTOGRAD), kernel(70, AUTOGRAD), kernel(15)], meta={"thread_names": NAMES}
    )
    assert paths(trace) == [
        ("step", "backward", "block (backward)", "attention (backward)"), ("step", "backward"),
        ("step", "backward"),
    ]  # fmt: skip
    assert named(trace, attribute(trace).range_chains)[3] == paths(trace)[0]


def test_a_range_counts_from_its_start_until_just_before_its_end():
    ranges = [Range("a", 10, 20, PID, MAIN), Range("b", 20, 30, PID, MAIN), Range("empty", 15, 15, PID, MAIN)]
    trace = Trace(ranges, [kernel(at) for at in (9, 10, 15, 19, 20, 29, 30)])
    assert paths(trace) == [(), ("a",), ("a",), ("a",), ("b",), ("b",), ()]
    assert attribute(trace).range_chains == [(0,), (1,), (0, 2)]


def test_the_main_thread_is_the_one_that_steps_even_if_others_have_more_ranges():
    ranges = [
        Range("train step", 0, 100, PID, 1),
        *(Range("load", i, i + 1, PID, 2) for i in range(90)),
        *(Range("attention (backward)", i, i + 1, PID, 3) for i in range(90)),
    ]
    found = paths(Trace(ranges, [kernel(95, tid=3), kernel(95, tid=2), kernel(95, tid=4)]))
    assert found == [("train step",)] * 3


def test_without_a_step_the_main_thread_is_the_one_with_the_most_ranges():
    ranges = [Range("x", 0, 100, PID, 1), Range("y", 0, 100, PID, 2), Range("z", 0, 100, PID, 2)]
    assert paths(Trace(ranges, [kernel(5, tid=3)])) == [("y", "z")]


def test_threads_that_launch_for_themselves_get_nothing_where_autograds_are_known():
    names = NAMES | {(PID, 102): "pt_data_pin"}
    trace = Trace(
        [Range("step", 0, 100, PID, MAIN)],
        [kernel(5, tid=102), kernel(5, tid=AUTOGRAD)],
        meta={"thread_names": names},
    )
    assert paths(trace) == [(), ("step",)]


def test_each_process_has_a_main_thread_of_its_own():
    ranges = [Range("step", 0, 100, 1, 10), Range("step", 200, 300, 2, 20)]
    trace = Trace(ranges, [kernel(5, 11, 1), kernel(205, 11, 1), kernel(205, 21, 2), kernel(205, 31, 3)])
    assert paths(trace) == [("step",), (), ("step",), ()]


def test_operators_of_the_cpu_belong_to_their_thread_alone():
    trace = Trace([Range("step", 0, 100, PID, MAIN)], [kernel(5, kind="op"), kernel(5, tid=9, kind="op")])
    assert paths(trace) == [("step",), ()]


def test_a_kernel_of_unknown_origin_belongs_nowhere():
    unknown = dataclasses.replace(kernel(5), pid=None, tid=None, launch_start_ns=None, launch_end_ns=None)
    assert paths(Trace([Range("step", 0, 10_000, PID, MAIN)], [unknown])) == [()]


@pytest.mark.parametrize(
    ("path", "phase"),
    [
        ((), None), (("step",), None), (("step", "forward", "block"), "forward"),
        (("optimizer", "forward"), "optimizer"),
        (("backward", "forward"), "backward"), (("block (backward)", "forward"), "backward"),
        (("forward pass",), None),
    ],
)  # fmt: skip
def test_the_phase_is_the_outermost(path, phase):
    assert phase_of(path) == phase


def test_a_phase_inside_a_phase_is_no_phase_of_the_step():
    """Such as the forward of a checkpointed block, which backward repeats."""
    ranges = [
        Range("backward", 0, 100, PID, MAIN),
        Range("forward", 10, 20, PID, MAIN),
        Range("loss", 110, 120, PID, MAIN),
    ]
    assert phase_ranges(Trace(ranges, [])) == [("backward", 0), ("loss", 2)]


def test_the_operator_is_the_innermost_at_the_launch():
    operators = [
        Range("aten::linear", 0, 50, PID, MAIN),
        Range("aten::addmm", 10, 40, PID, MAIN),
        Range("other", 0, 90, PID, 9),
    ]
    found = with_operators([kernel(20), kernel(45), kernel(60), kernel(60, tid=9)], operators)
    assert [each.op for each in found] == ["aten::addmm", "aten::linear", None, "other"]


# ------------------------------------------------------------------ against the definition

moments = st.integers(0, 12)
threads = st.sampled_from([(1, 10), (1, 11), (2, 10)])
range_lists = st.lists(
    st.builds(
        lambda name, start, length, thread: Range(name, start, start + length, *thread),
        st.sampled_from(["step", "backward", "x", "y (backward)"]), moments, moments, threads,
    ),
    max_size=9,
)  # fmt: skip
kernel_lists = st.lists(
    st.builds(lambda at, thread: kernel(at, thread[1], thread[0]), moments, threads), max_size=9
)


def by_definition(trace):
    """Section by section, with nothing clever: every range is looked at for every kernel."""
    main = {}
    for pid in {item.pid for item in trace.ranges}:
        tids = {item.tid for item in trace.ranges if item.pid == pid}
        if trace.meta.get("thread_names"):
            tids -= {11}
        own = {
            tid: [item.name for item in trace.ranges if (item.pid, item.tid) == (pid, tid)] for tid in tids
        }
        if own:
            best = max(
                tids, key=lambda tid: (sum(name in ("step", "backward") for name in own[tid]), len(own[tid]))
            )
            main[pid] = best
    found = []
    for each in trace.kernels:

        def open_on(tid, each=each):
            inside = [
                item for item in trace.ranges
                if (item.pid, item.tid) == (each.pid,
                tid) and item.start_ns <= each.launch_start_ns < item.end_ns
            ]  # fmt: skip
            return [item.name for item in sorted(inside, key=lambda item: (item.start_ns, -item.end_ns))]

        waiting = main.get(each.pid)
        known = trace.meta.get("thread_names") and each.pid == 1
        joined = waiting is not None and waiting != each.tid and (each.tid == 11 or not known)
        found.append(tuple((open_on(waiting) if joined else []) + open_on(each.tid)))
    return found


def has_tie(trace):
    """Two threads are main with equal right: which one wins does not matter."""
    for pid in {item.pid for item in trace.ranges}:
        own = {}
        for item in trace.ranges:
            if item.pid == pid and not (trace.meta.get("thread_names") and item.tid == 11 and pid == 1):
                steps, all_ranges = own.get(item.tid, (0, 0))
                own[item.tid] = steps + (item.name in ("step", "backward")), all_ranges + 1
        if len(set(own.values())) < len(own):
            return True
    return False


@settings(derandomize=True, deadline=None, max_examples=150)
@given(range_lists, kernel_lists, st.booleans())
def test_attribution_is_what_the_definition_says(ranges, kernels, with_names):
    meta = {"thread_names": {(1, 10): "python", (1, 11): "pt_autograd_0"}} if with_names else {}
    trace = Trace(ranges, kernels, meta=meta)
    if not has_tie(trace):
        assert paths(trace) == by_definition(trace)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(moments, moments)), st.lists(moments))
def test_open_at_is_what_the_definition_says(starts_and_lengths, times):
    intervals = sorted(
        ((start, start + length) for start, length in starts_and_lengths),
        key=lambda each: (each[0], -each[1]),
    )
    expected = [tuple(i for i, (start, end) in enumerate(intervals) if start <= time < end) for time in times]
    assert open_at(intervals, times) == expected


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(moments, moments)))
def test_merged_is_the_union(starts_and_lengths):
    intervals = [(start, start + length) for start, length in starts_and_lengths]
    union = merged(intervals)
    assert {t for start, end in union for t in range(start, end)} == {
        t for start, end in intervals for t in range(start, end)
    }
    assert all(before[1] < after[0] for before, after in itertools.pairwise(union))


def test_many_kernels_and_ranges_take_little_time():
    """20 000 of each; comparing each with each would take a minute."""
    ranges = [
        Range("step", 0, 10**7, PID, MAIN),
        *(Range("x", 100 * i, 100 * i + 90, PID, MAIN) for i in range(20_000)),
    ]
    trace = Trace(
        ranges, [kernel(100 * i + 50, AUTOGRAD) for i in range(20_000)], meta={"thread_names": NAMES}
    )
    start = time.perf_counter()
    assert set(paths(trace)) == {("step", "x")}
    assert time.perf_counter() - start < 10


# ------------------------------------------------------------------ what was measured


def test_what_is_outside_measured_is_cut_off():
    ranges = [
        Range("all", 0, 400, PID, MAIN), Range("measured", 100, 200, PID, MAIN),
        Range("step", 110, 190, PID, MAIN),
        Range("step", 20, 90, PID, MAIN), Range("backward", 150, 160, PID, AUTOGRAD),
    ]  # fmt: skip
    memory = [MemoryEvent(at, 1, 1, "cuda:0") for at in (50, 150, 250)]
    kernels = [kernel(at) for at in (50, 99, 100, 150, 200, 201)]
    cut = cut_to_measured(Trace(ranges, kernels, memory, {"problems": ["one"]}))
    assert [each.launch_start_ns for each in cut.kernels] == [100, 150, 200]
    assert [item.name for item in cut.ranges] == ["measured", "step", "backward"]
    assert [event.time_ns for event in cut.memory] == [150]
    assert cut.meta["problems"] == [
        "one",
        "3 kernels and copies outside the range 'measured' are left out, as warm-up",
    ]


def test_without_measured_nothing_is_cut_off():
    trace = Trace([Range("step", 0, 10, PID, MAIN)], [kernel(500)])
    assert cut_to_measured(trace) is trace


def test_each_process_is_cut_to_its_own_measured_range():
    ranges = [Range("measured", 0, 100, 1, 1), Range("measured", 200, 300, 2, 2)]
    kernels = [
        kernel(50, 1, 1),
        kernel(250, 1, 1),
        kernel(50, 2, 2),
        kernel(250, 2, 2),
        kernel(250, 3, 3),
        kernel(150, 3, 3),
    ]
    cut = cut_to_measured(Trace(ranges, kernels))
    assert [(each.pid, each.launch_start_ns) for each in cut.kernels] == [(1, 50), (2, 250), (3, 250)]


def test_a_kernel_of_unknown_origin_is_cut_by_its_own_time():
    unknown = dataclasses.replace(kernel(0), pid=None, tid=None, launch_start_ns=None, launch_end_ns=None)
    inside = cut_to_measured(Trace([Range("measured", 900, 1100, PID, MAIN)], [unknown]))
    outside = cut_to_measured(Trace([Range("measured", 0, 900, PID, MAIN)], [unknown]))
    assert (len(inside.kernels), len(outside.kernels)) == (1, 0)
