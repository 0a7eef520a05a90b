"""The reader of torch.profiler's traces, on made-up GPU runs, a real CPU run, and files that are broken."""

import gzip
import json
import os
import subprocess
import sys

import pytest

from cs_systems.tracing.attribute import paths
from cs_systems.tracing.chrome import read_chrome

US = 1000


def write(path, events, **rest):
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": events, **rest}))
    return path


def event(name, start_us, length_us, category="cpu_op", tid=1, pid=9, **args):
    return {
        "ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, "ts": start_us, "dur": length_us,
        "args": args,
    }  # fmt: skip


def self_times(path):
    return {kernel.name: kernel.busy_ns for kernel in read_chrome(path).kernels}


def test_kernels_are_joined_to_their_launch_and_operator(golden, tmp_path):
    trace = read_chrome(golden.write_chrome(tmp_path / "a.json"))
    assert (trace.meta["tool"], trace.meta["device"], trace.meta["problems"]) == (
        "torch.profiler",
        "cuda",
        [],
    )
    assert len(trace.kernels) == 31
    assert len(trace.ranges) == 24  # those of the CPU, not their projections to the device
    first = next(kernel for kernel in trace.kernels if kernel.op == "aten::_softmax")
    assert (first.kind, first.stream, first.pid, first.tid) == ("kernel", 7, 1234, 100)
    assert first.busy_ns == first.end_ns - first.start_ns == 40 * US
    assert first.launch_end_ns - first.launch_start_ns == 5 * US
    assert first.start_ns - first.launch_start_ns > 10_000 * US
    assert min(item.start_ns for item in trace.ranges) == 1000 * US  # times count from the first event
    assert {kernel.op for kernel in trace.kernels if "adamw" in kernel.name} == {None}


def test_times_are_exact_to_the_nanosecond(tmp_path):
    """A float of this size in microseconds is off by half a nanosecond, and so is a product with 1000."""
    base = 9_007_199_254_740
    times = [f"{base + i // 1000}.{i % 1000:03}" for i in range(0, 5000, 7)]
    body = ", ".join(
        f'{{"ph": "X", "cat": "cpu_op", "name": "x", "pid": 1, "tid": 1, "ts": {ts}, "dur": 0.001}}'
        for ts in times
    )
    path = tmp_path / "a.json"
    path.write_text(f'{{"traceEvents": [{body}]}}')
    kernels = read_chrome(path).kernels
    assert [kernel.start_ns for kernel in kernels] == list(range(0, 5000, 7))
    assert {kernel.end_ns - kernel.start_ns for kernel in kernels} == {1}


@pytest.mark.parametrize(("ts", "expected_ns"), [("12", 12_000), ("12.5", 12_500), ("1.25e1", 12_500)])
def test_times_in_other_forms_are_read(tmp_path, ts, expected_ns):
    path = tmp_path / "a.json"
    ops = [f'{{"ph":"X","cat":"cpu_op","name":"x","pid":1,"tid":1,"ts":{at},"dur":1}}' for at in ("0", ts)]
    path.write_text(f'{{"traceEvents": [{",".join(ops)}]}}')
    assert read_chrome(path).kernels[-1].start_ns == expected_ns


def test_a_copy_and_a_fill_are_copies_named_by_direction(make_run, tmp_path):
    run = make_run()
    run.kernel("Memcpy HtoD (Pageable -> Device)", 0, US, kind="copy", call="cudaMemcpyAsync")
    run.kernel("Memset (Device)", 10, US, kind="fill", call="cudaMemsetAsync")
    kernels = read_chrome(run.write_chrome(tmp_path / "a.json")).kernels
    assert [(kernel.name, kernel.kind) for kernel in kernels] == [("Memcpy HtoD", "copy"), ("Memset", "copy")]


def test_a_kernel_without_launch_is_kept_and_told_of(make_run, tmp_path):
    run = make_run()
    run.kernel("a", 0, US, launched=False)
    run.kernel("b", 10, US)
    trace = read_chrome(run.write_chrome(tmp_path / "a.json"))
    assert [kernel.tid for kernel in trace.kernels] == [None, 100]
    assert "launched 1 of 2 kernels" in trace.meta["problems"][0]


def test_one_launch_of_a_graph_launches_all_its_kernels(make_run, tmp_path):
    run = make_run()
    run.range("forward", 0, 100 * US)
    run.kernel("a", 10 * US, US, call="cudaGraphLaunch")
    run.kernels += [("b", 20_000 * US, 20_001 * US, 1234, 1, "kernel")]
    assert paths(read_chrome(run.write_chrome(tmp_path / "a.json"))) == [("forward",), ("forward",)]


def test_a_call_inside_the_launch_call_does_not_take_its_place(tmp_path):
    """The runtime calls the driver under the same number; events without any number launch nothing."""
    events = [
        event("cuLaunchKernel", 12, 1, "cuda_driver", correlation=5),
        event("cudaLaunchKernel", 10, 9, "cuda_runtime", correlation=5),
        event("cudaFree", 0, 1, "cuda_runtime"),
        event("joined", 50, 1, "kernel", correlation=5), event("alone", 60, 1, "kernel"),
    ]  # fmt: skip
    joined, alone = read_chrome(write(tmp_path / "a.json", events)).kernels
    assert (joined.launch_start_ns, joined.launch_end_ns) == (10 * US, 19 * US)
    assert alone.launch_start_ns is None


def test_launches_without_any_kernel_are_told_of(tmp_path):
    launch = event("cudaLaunchKernel", 1, 1, "cuda_runtime", correlation=5)
    trace = read_chrome(write(tmp_path / "a.json", [launch, event("aten::mm", 0, 5)]))
    assert trace.meta["device"] == "cpu"
    assert "none was recorded" in trace.meta["problems"][0]


def test_self_time_is_what_inner_operators_leave(tmp_path):
    events = [
        event("outer", 0, 100), event("first", 10, 30), event("inner", 15, 5), event("second", 50, 20),
        event("elsewhere", 20, 30, tid=2), event("after", 100, 10), event("no time", 60, 0),
    ]  # fmt: skip
    assert self_times(write(tmp_path / "a.json", events)) == {
        "outer": 50 * US, "first": 25 * US, "inner": 5 * US, "second": 20 * US, "elsewhere": 30 * US,
        "after": 10 * US, "no time": 0,
    }  # fmt: skip


def test_operators_that_overlap_without_nesting_do_not_count_a_moment_twice(tmp_path):
    events = [event("a", 0, 10), event("b", 5, 10), event("c", 12, 1), event("d", 30, 5)]
    found = self_times(write(tmp_path / "a.json", events))
    assert found == {"a": 5 * US, "b": 9 * US, "c": 1 * US, "d": 5 * US}


def test_other_events_are_left_out(tmp_path):
    events = [
        event("aten::mm", 0, 5), event("f.py(3): g", 0, 9, "python_function"), event("x", 0, 9, "Trace"),
        {"ph": "s", "id": 1, "cat": "fwdbwd", "name": "fwdbwd", "pid": 9, "tid": 1, "ts": 1},
        {"ph": "X", "cat": "Trace", "name": "PyTorch Profiler (0)", "pid": "Spans", "tid": "x", "ts": 1,
        "dur": 3},
        {"ph": "M", "name": "process_name", "pid": 9, "tid": 0, "args": {"name": "python"}},
        {"ph": "M", "name": "thread_name", "pid": "Spans", "tid": "x", "args": {"name": "spans"}}, 7, None,
        "x",
    ]  # fmt: skip
    trace = read_chrome(write(tmp_path / "a.json", events, deviceProperties=[{"id": 0, "name": "GPU"}]))
    assert [kernel.name for kernel in trace.kernels] == ["aten::mm"]
    assert (trace.ranges, trace.memory) == ([], [])


def test_memory_has_its_device(tmp_path):
    """The CPU's total is added up from 0: torch's own goes on from earlier recordings of the process."""

    def memory(at, num_bytes, kind, index):
        args = {"Bytes": num_bytes, "Total Allocated": 24, "Device Type": kind, "Device Id": index}
        return {"ph": "i", "name": "[memory]", "pid": 9, "tid": 1, "ts": at, "args": args}

    events = [memory(5, 8, 1, 3), memory(7, -2, 0, -1), memory(2, 8, 0, -1)]
    trace = read_chrome(write(tmp_path / "a.json", events))
    found = [(item.time_ns, item.delta_bytes, item.total_bytes, item.device) for item in trace.memory]
    assert found == [(0, 8, 8, "cpu"), (3 * US, 8, 24, "cuda:3"), (5 * US, -2, 6, "cpu")]


# ------------------------------------------------------------------ a real run


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Two steps of a small network under torch.profiler, with the counts that the profiler itself reports."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    path = tmp_path_factory.mktemp("real") / "a.json.gz"
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Softmax(-1), torch.nn.Linear(64, 1))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(2):
            with record_function("forward"):
                loss = network(torch.ones(32, 64)).sum()
            with record_function("backward"):
                loss.backward()
    averages = {each.key: (each.count, each.self_cpu_time_total) for each in profiler.key_averages()}
    profiler.export_chrome_trace(str(path))
    return read_chrome(path), averages


def test_a_real_cpu_run_has_the_operators_of_the_profilers_own_table(profiled):
    trace, averages = profiled
    counts = {name: sum(kernel.name == name for kernel in trace.kernels) for name in averages}
    assert counts["aten::addmm"] == 4
    assert counts["aten::_softmax"] == 2
    # Its table counts an operator that calls itself, as aten::sum does here, only once.
    assert {name for name, (count, _) in averages.items() if "::" in name and count != counts[name]} <= {
        "aten::sum"
    }


def test_self_times_of_a_real_run_add_up_to_the_time_that_operators_ran(profiled):
    trace, averages = profiled
    assert {kernel.kind for kernel in trace.kernels} == {"op"}
    covered, free_from = 0, 0
    for kernel in trace.kernels:  # in the order of their starts, all on one thread
        covered += max(0, kernel.end_ns - max(free_from, kernel.start_ns))
        free_from = max(free_from, kernel.end_ns)
    assert len({kernel.tid for kernel in trace.kernels}) == 1
    assert sum(kernel.busy_ns for kernel in trace.kernels) == covered
    ours = sum(kernel.busy_ns for kernel in trace.kernels if kernel.name == "aten::addmm")
    assert ours / 1000 == pytest.approx(averages["aten::addmm"][1], rel=0.02, abs=2)


def test_ranges_of_a_real_run_hold_its_operators(profiled):
    trace, _ = profiled
    assert [item.name for item in trace.ranges] == ["forward", "backward"] * 2
    found = [(kernel.name, path) for kernel, path in zip(trace.kernels, paths(trace), strict=True)]
    assert {path for name, path in found if name == "aten::_softmax"} == {("forward",)}
    assert {path for name, path in found if name == "aten::_softmax_backward_data"} == {("backward",)}


def test_a_real_run_has_memory(profiled):
    memory = profiled[0].memory
    assert {event.device for event in memory} == {"cpu"}
    assert memory[-1].total_bytes == memory[0].total_bytes + sum(event.delta_bytes for event in memory[1:])


# ------------------------------------------------------------------ files that are broken


@pytest.fixture
def whole(golden, tmp_path):
    """The bytes of a good trace."""
    return golden.write_chrome(tmp_path / "whole.json").read_bytes()


def refusal(path):
    with pytest.raises(ValueError, match="broken") as caught:
        read_chrome(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("part", [0.001, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_cut_off_anywhere_says_so(whole, tmp_path, part, packed):
    path = tmp_path / "broken.json"
    raw = gzip.compress(whole) if packed else whole
    path.write_bytes(raw[: max(15, int(part * len(raw)))])
    assert "cut off" in refusal(path)
    assert "record it again" in refusal(path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"\x1f\x8b" + b"x" * 50, "cannot be read"),
        (b'{"traceEvents": [{"name": "\xff\xfe"}]}', "not text in UTF-8"),
        (b"<html><body>404</body></html>", "is not JSON"),
        (b'{"traceEvents": [}, 1, 2, 3, 4, 5]}', "is not JSON"),
        (b"[" * 200_000, "not a trace"),
        (b"12", "no 'traceEvents'"),
        (b"[]", "no 'traceEvents'"),
        (b'{"model": "tiny"}', "no 'traceEvents'"),
        (b'{"traceEvents": {}}', "no 'traceEvents'"),
        (b'{"traceEvents": []}', "no operators"),
        (b'{"traceEvents": [{"ph": "X", "cat": "v8", "name": "x", "ts": 1, "dur": 1}]}', "no operators"),
        (b'{"traceEvents": ["x", 3, {"ph": {}}]}', "no operators"),
    ],
)
def test_what_is_not_a_trace_is_refused(tmp_path, raw, said):
    path = tmp_path / "broken.json"
    path.write_bytes(raw)
    assert said in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"ts": None}, {"ts": "soon"}, {"ts": [1]}, {"ts": {}}, {"dur": None}, {"dur": "x"}, {"pid": "x"},
        {"tid": None},
        {"tid": 1.5}, {"args": [1]}, {"args": 3}, {"ts": float("nan")}, {"ts": float("inf")}, {"ts": 1e308},
    ],
)  # fmt: skip
def test_events_of_another_form_are_refused(tmp_path, change):
    path = write(tmp_path / "broken.json", [event("aten::mm", 0, 1) | change])
    assert "not a trace of torch.profiler" in refusal(path)


def test_a_category_that_is_not_a_text_is_left_out(tmp_path):
    path = write(
        tmp_path / "broken.json", [event("x", 0, 1, category=["cpu_op"]), event("y", 0, 1, category=None)]
    )
    assert "no operators" in refusal(path)


def test_names_of_any_length_and_letters_are_read(tmp_path):
    names = ["x" * 100_000, "<" * 100_000, "a\n\tb", "\u0000", "\ud800", "", "日本"]
    trace = read_chrome(write(tmp_path / "a.json", [event(name, i, 1) for i, name in enumerate(names)]))
    assert [kernel.name for kernel in trace.kernels] == names


LARGE = """
import pathlib, re, sys, time
from cs_systems.tracing.read import read_trace
from cs_systems.tracing.tables import all_tables
start = time.perf_counter()
trace = read_trace(sys.argv[1])
read_s = time.perf_counter() - start
tables = all_tables(trace)
total_s = time.perf_counter() - start
peak_kib = re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
print(len(trace.kernels), read_s, total_s, int(peak_kib) / 2**20)
"""


def write_large(path, megabytes):
    """A trace of a GPU run with as many steps as fill the file, in the form and size of real events."""
    shapes = {"Input Dims": [[4, 12, 256, 64], [4, 12, 64, 256]], "Input type": ["float", "float"],
              "Input Strides": [[196608, 64, 768, 1], [196608, 64, 1, 768]],
              "Concrete Inputs": ["", ""]}  # fmt: skip
    resources = {"registers per thread": 122, "shared memory": 16384, "blocks per SM": 1.5,
    "warps per SM": 12.0,
                 "grid": [12, 4, 1], "block": [128, 1, 1], "est. achieved occupancy %": 19,
                 "queued": 0}  # fmt: skip
    kernel = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)"
    with open(path, "w") as file:
        file.write('{"traceEvents": [')
        at, number = 1_000_000.125, 0
        while file.tell() < megabytes * 1e6:
            start = at
            for _ in range(100):
                number += 1
                events = [
                    event("aten::matmul", at, 30, **shapes), event("aten::bmm", at + 2, 20, **shapes),
                    event("cudaLaunchKernel", at + 5, 6, "cuda_runtime", correlation=number, cbid=211),
                    event(kernel, at + 500, 25.5, "kernel", tid=7, pid=0, correlation=number, stream=7,
                    **resources),
                    {"ph": "i", "name": "[memory]", "pid": 9, "tid": 1, "ts": at + 3,
                    "args": {"Total Allocated": number,
                     "Bytes": 1, "Device Type": 1, "Device Id": 0, "Addr": 140000000000000,
                     "Total Reserved": 0}},
                ]  # fmt: skip
                file.write(", ".join(json.dumps(each, indent=2) for each in events) + ", ")
                at += 40
            ranges = [("step", 0), ("forward", 1), ("block", 2), ("attention", 3), ("attention scores", 4)]
            for name, inside in ranges:
                each = event(name, start + inside, at - start - 2 * inside, "user_annotation")
                file.write(json.dumps(each) + ", ")
        file.write(json.dumps(event("aten::add", at, 1)) + "]}")


SLOW = pytest.mark.skipif(
    os.environ.get("CS_SYSTEMS_SLOW") != "1", reason="takes 15 s; set CS_SYSTEMS_SLOW=1 to run it"
)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc (Linux)")
@pytest.mark.parametrize("megabytes", [10, pytest.param(100, marks=SLOW)])
def test_a_large_trace_is_read_within_its_limits(tmp_path, megabytes):
    """100 MB are read, and all tables made of them, in 20 s and 2 GB; smaller ones in proportion."""
    path = tmp_path / "large.json"
    write_large(path, megabytes)
    result = subprocess.run([sys.executable, "-c", LARGE, path], capture_output=True, text=True, check=True)
    kernels, read_s, total_s, peak_gib = map(float, result.stdout.split())
    print(f"{megabytes} MB: read {read_s:.1f} s, with tables {total_s:.1f} s, {peak_gib:.2f} GiB")
    assert kernels > 100 * megabytes
    assert total_s < 20 * max(megabytes, 50) / 100  # a small one may share its core with other tests
    assert peak_gib < 2 * megabytes / 100 + 0.1
