"""The reader of nsys' exports: versions, holes, other processes, and files that are broken."""

import os
import sqlite3

import pytest

from cs_systems.tracing import nsys
from cs_systems.tracing.attribute import paths
from cs_systems.tracing.nsys import read_nsys_report, read_sqlite

US = 1000


def summary(trace):
    """What must not depend on the form of the file."""
    kernels = [
        (
            kernel.name,
            kernel.start_ns,
            kernel.end_ns,
            kernel.tid,
            kernel.launch_start_ns,
            kernel.kind,
            kernel.op,
        )
        for kernel in trace.kernels
    ]
    return kernels, sorted((item.name, item.start_ns, item.end_ns, item.tid) for item in trace.ranges)


def test_kernels_have_launch_thread_stream_and_operator(golden, tmp_path):
    trace = read_sqlite(golden.write_sqlite(tmp_path / "a.sqlite"))
    assert (trace.meta["tool"], trace.meta["device"], trace.meta["problems"]) == ("nsys", "cuda", [])
    assert trace.meta["thread_names"] == {(1234, 100): "python", (1234, 101): "pt_autograd_0"}
    assert len(trace.kernels) == 31
    softmax = next(kernel for kernel in trace.kernels if kernel.op == "aten::_softmax")
    assert (softmax.pid, softmax.tid, softmax.stream, softmax.busy_ns) == (1234, 100, 7, 40 * US)
    assert softmax.launch_end_ns - softmax.launch_start_ns == 5 * US
    assert "softmax_warp_forward<float, float, 10>" in softmax.name  # the full name, not the short one


@pytest.mark.parametrize(
    "form",
    [
        {"registered": False}, {"version": "3.0.0"}, {"version": "3.25.0", "extra_columns": "greenContextId"},
        {"without": ["ThreadNames"]}, {"without": ["META_DATA_EXPORT"]},
        {"drop": ["graphNodeId", "sharedMemoryLimitConfig", "jsonText", "endGlobalTid", "callchainId"]},
    ],
)  # fmt: skip
def test_every_form_of_the_export_says_the_same(golden, tmp_path, form):
    usual = read_sqlite(golden.write_sqlite(tmp_path / "a.sqlite"))
    other = read_sqlite(golden.write_sqlite(tmp_path / "b.sqlite", **form))
    assert summary(other) == summary(usual)
    assert paths(other) == paths(usual)


def test_operators_that_torch_annotated_are_no_ranges(golden, tmp_path):
    trace = read_sqlite(golden.write_sqlite(tmp_path / "a.sqlite"))
    assert not any("aten" in item.name for item in trace.ranges)
    assert {kernel.op for kernel in trace.kernels} == {
        "aten::bmm", "aten::mm", "aten::add", "aten::_softmax", None,
    }  # fmt: skip


def test_a_range_may_have_a_comma(make_run, tmp_path):
    run = make_run()
    run.range("forward, seq 4, op_id", 0, 100)
    run.range("a, op_id = 3", 0, 100)
    assert [item.name for item in read_sqlite(run.write_sqlite(tmp_path / "a.sqlite")).ranges] == [
        "forward, seq 4, op_id"
    ]


def test_a_named_domain_stands_before_the_name(make_run, tmp_path):
    run = make_run()
    run.range("forward", 0, 100)
    assert (
        read_sqlite(run.write_sqlite(tmp_path / "a.sqlite", domain="cs336")).ranges[0].name == "cs336:forward"
    )


def test_tables_that_are_missing_are_empty(golden, tmp_path):
    no_launches = read_sqlite(
        golden.write_sqlite(tmp_path / "a.sqlite", without=["CUPTI_ACTIVITY_KIND_RUNTIME"])
    )
    assert len(no_launches.kernels) == 31
    assert "launched 31 of 31" in no_launches.meta["problems"][0]
    assert set(paths(no_launches)) == {()}
    no_kernels = read_sqlite(
        golden.write_sqlite(tmp_path / "b.sqlite", without=["CUPTI_ACTIVITY_KIND_KERNEL"])
    )
    assert no_kernels.kernels == []
    assert no_kernels.meta["device"] == "cpu"
    assert "no kernels" in no_kernels.meta["problems"][0]
    no_ranges = read_sqlite(golden.write_sqlite(tmp_path / "c.sqlite", without=["NVTX_EVENTS"]))
    assert "no ranges" in no_ranges.meta["problems"][0]


def test_start_end_ranges_alone_are_told_of(golden, tmp_path):
    golden.operators.clear()
    trace = read_sqlite(golden.write_sqlite(tmp_path / "a.sqlite", kind_of_range=60))
    assert trace.ranges == []
    assert "start/end" in trace.meta["problems"][0]


def test_ranges_that_never_ended_are_left_out_and_told_of(golden, tmp_path):
    golden.range("open", 5, None)
    trace = read_sqlite(golden.write_sqlite(tmp_path / "a.sqlite"))
    assert "1 ranges had not ended" in trace.meta["problems"][0]
    assert "open" not in {item.name for item in trace.ranges}


def two_ranks(run):
    """Two processes with the same numbers for their launches."""
    for pid in (1, 2):
        run.thread_names[pid, 100] = "python"
        run.range("forward" if pid == 1 else "backward", 0, 50 * US, pid=pid)
        run.kernel(f"of {pid}", 10 * US, US, pid=pid)
    (*_, first), (*rest, _) = run.launches
    run.launches[1] = (*rest, first)
    *rest, _, kind = run.kernels[1]
    run.kernels[1] = (*rest, first, kind)
    return run


def test_numbers_of_launches_belong_to_a_process(make_run, tmp_path):
    trace = read_sqlite(two_ranks(make_run()).write_sqlite(tmp_path / "a.sqlite"))
    assert dict(zip([kernel.name for kernel in trace.kernels], paths(trace), strict=True)) == {
        "of 1": ("forward",), "of 2": ("backward",),
    }  # fmt: skip


def test_a_call_inside_the_launch_call_does_not_take_its_place(make_run, tmp_path):
    """The runtime calls the driver under the same number, and the inner call may stand first."""
    run = make_run()
    run.range("forward", 0, US)
    run.kernel("k", 10 * US, US)
    run.launches.insert(0, ("cuLaunchKernel", 11 * US, 12 * US, 1234, 100, 1))
    (kernel,) = read_sqlite(run.write_sqlite(tmp_path / "a.sqlite")).kernels
    assert (kernel.launch_start_ns, kernel.launch_end_ns) == (10 * US, 15 * US)


def test_without_the_process_of_kernels_a_number_counts_if_it_is_the_only_one(make_run, golden, tmp_path):
    no_process = {"drop": ["globalPid"]}
    usual = read_sqlite(golden.write_sqlite(tmp_path / "a.sqlite"))
    assert summary(read_sqlite(golden.write_sqlite(tmp_path / "b.sqlite", **no_process))) == summary(usual)
    ambiguous = read_sqlite(two_ranks(make_run()).write_sqlite(tmp_path / "c.sqlite", **no_process))
    assert set(paths(ambiguous)) == {()}


def test_one_launch_of_a_graph_launches_all_its_kernels(make_run, tmp_path):
    run = make_run()
    run.range("forward", 0, 100 * US)
    run.kernel("a", 10 * US, US, call="cudaGraphLaunch")
    run.kernels += [("b", 20_000 * US, 20_001 * US, 1234, 1, "kernel")]
    assert paths(read_sqlite(run.write_sqlite(tmp_path / "a.sqlite"))) == [("forward",), ("forward",)]


def test_a_graph_recorded_as_a_whole_is_one_kernel(make_run, tmp_path):
    run = make_run()
    run.range("forward", 0, 100 * US)
    run.kernel("a", 10 * US, US)
    path = run.write_sqlite(tmp_path / "a.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE AS SELECT start, end, streamId, correlationId, "
            "globalPid, 4 AS graphId FROM CUPTI_ACTIVITY_KIND_KERNEL"
        )
        connection.execute("DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL")
    connection.close()
    trace = read_sqlite(path)
    assert [(kernel.name, kernel.kind, kernel.busy_ns) for kernel in trace.kernels] == [
        ("CUDA graph 4", "kernel", US)
    ]
    assert paths(trace) == [("forward",)]
    assert "--cuda-graph-trace=node" in trace.meta["problems"][0]


def test_copies_are_kept_apart(make_run, tmp_path):
    run = make_run()
    run.kernel("Memcpy HtoD (Pageable -> Device)", 0, US, kind="copy", call="cudaMemcpyAsync")
    run.kernel("Memset (Device)", 10, US, kind="fill", call="cudaMemsetAsync")
    kernels = read_sqlite(run.write_sqlite(tmp_path / "a.sqlite")).kernels
    assert [(kernel.name, kernel.kind) for kernel in kernels] == [("Memcpy HtoD", "copy"), ("Memset", "copy")]


def test_memory_is_added_up(golden, tmp_path):
    memory = read_sqlite(golden.write_sqlite(tmp_path / "a.sqlite")).memory
    assert [event.total_bytes for event in memory] == [total for *_, total in golden.memory]
    assert {event.device for event in memory} == {"cuda:0"}
    without_kind = read_sqlite(golden.write_sqlite(tmp_path / "b.sqlite", drop=["memKind"])).memory
    assert without_kind == memory


def test_names_that_are_no_utf8_are_read_all_the_same(golden, tmp_path):
    path = golden.write_sqlite(tmp_path / "a.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE StringIds SET value = CAST(x'66ff67' AS TEXT) WHERE value = 'forward'")
    connection.close()
    assert "f\ufffdg" in {item.name for item in read_sqlite(path).ranges}


# ------------------------------------------------------------------ files that are broken


def refusal(path):
    with pytest.raises(ValueError, match=path.name) as caught:
        read_sqlite(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_an_export_cut_off_says_so(golden, tmp_path, part):
    path = golden.write_sqlite(tmp_path / "a.sqlite")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(part * len(raw))])
    assert "cut off" in refusal(path)
    assert "export it again" in refusal(path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [(b"", "no tables of nsys"), (b"x" * 5000, "not an SQLite file"), (b"{}", "not an SQLite file")],
)
def test_what_is_no_database_is_refused(tmp_path, raw, said):
    path = tmp_path / "a.sqlite"
    path.write_bytes(raw)
    assert said in refusal(path)


def database(path, *statements):
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path


def test_the_database_of_another_program_is_refused(tmp_path):
    assert "no tables of nsys" in refusal(database(tmp_path / "a.sqlite", "CREATE TABLE users (id, name)"))


def test_an_export_without_events_is_refused(tmp_path):
    path = database(tmp_path / "a.sqlite", "CREATE TABLE StringIds (id, value)")
    assert "no kernels and no ranges" in refusal(path)


@pytest.mark.parametrize("value", ["NULL", "'x'", "x'00ff'", "-5", "1e300", "9223372036854775807"])
@pytest.mark.parametrize(
    "column", ["start", "end", "globalPid", "correlationId", "demangledName", "streamId"]
)
def test_any_value_in_any_column_is_survived(golden, tmp_path, column, value):
    path = golden.write_sqlite(tmp_path / "a.sqlite")
    database(path, f'UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET "{column}" = {value}')
    read_sqlite(path)


@pytest.mark.parametrize("column", ["start", "end", "globalTid", "eventType", "textId", "text", "domainId"])
def test_any_value_of_a_range_is_survived(golden, tmp_path, column):
    for value in ("NULL", "'x'", "x'00ff'", "-5", "9223372036854775807"):
        path = golden.write_sqlite(tmp_path / "a.sqlite")
        database(path, f'UPDATE NVTX_EVENTS SET "{column}" = {value}')
        read_sqlite(path)


# ------------------------------------------------------------------ reports


def fake_nsys(folder, script):
    path = folder / "nsys"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for nsys is a shell script")
class TestReports:
    def test_without_nsys_the_reader_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setattr(nsys.shutil, "which", lambda _: None)
        with pytest.raises(ValueError, match=r"nsys export --type=sqlite a\.nsys-rep"):
            read_nsys_report(tmp_path / "a.nsys-rep")

    def test_nsys_converts_and_the_report_keeps_its_name(self, golden, tmp_path, monkeypatch):
        exported = golden.write_sqlite(tmp_path / "ready.sqlite")
        script = f'for a; do case "$a" in --output=*) cp "{exported}" "${{a#--output=}}";; esac; done\n'
        path = fake_nsys(tmp_path, script)
        monkeypatch.setattr(nsys.shutil, "which", lambda _: str(path))
        trace = read_nsys_report(tmp_path / "a.nsys-rep")
        assert len(trace.kernels) == 31
        assert trace.meta["path"].endswith("a.nsys-rep")

    @pytest.mark.parametrize(
        ("script", "said"),
        [
            ("echo first >&2; echo 'version too new' >&2; exit 1", "version too new"),
            ("exit 0", "it said nothing"),
        ],
    )
    def test_what_nsys_says_when_it_fails_is_passed_on(self, tmp_path, monkeypatch, script, said):
        path = fake_nsys(tmp_path, script)
        monkeypatch.setattr(nsys.shutil, "which", lambda _: str(path))
        with pytest.raises(ValueError, match=f"nsys export failed: {said}"):
            read_nsys_report(tmp_path / "a.nsys-rep")
