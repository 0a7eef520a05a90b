"""Reading by the name of the file, and cutting down to what was measured."""

import pytest

from cs_systems.tracing.read import read_trace

US = 1000


@pytest.mark.parametrize("name", ["run.txt", "run", "run.json.zip", "run.qdstrm"])
def test_another_suffix_is_refused_and_those_that_work_are_named(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"\.json, \.json\.gz, \.sqlite, \.nsys-rep"):
        read_trace(tmp_path / name)


@pytest.mark.parametrize("name", ["run.json", "run.json.gz", "run.sqlite", "run.nsys-rep"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="no such file"):
        read_trace(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        read_trace(tmp_path / name)


def test_a_path_may_be_text(golden, tmp_path):
    assert len(read_trace(str(golden.write_chrome(tmp_path / "a.json"))).kernels) == 31


@pytest.mark.parametrize("suffix", [".json", ".sqlite"])
def test_warm_up_is_cut_off(make_run, tmp_path, suffix):
    run = make_run()
    run.range("warm-up", 0, 90 * US)
    run.kernel("warm", 10 * US, 500 * US)  # still runs when measuring begins
    run.allocate(20 * US, 100)
    run.range("measured", 100 * US, 300 * US)
    run.range("step", 110 * US, 200 * US)
    run.kernel("counted", 120 * US, 5 * US)
    run.allocate(130 * US, 50)
    run.range("cool-down", 310 * US, 400 * US)
    run.kernel("late", 320 * US, 5 * US)
    path = tmp_path / f"a{suffix}"
    trace = read_trace(run.write_chrome(path) if suffix == ".json" else run.write_sqlite(path))
    assert [kernel.name for kernel in trace.kernels] == ["counted"]
    assert [item.name for item in trace.ranges] == ["measured", "step"]
    assert [event.total_bytes for event in trace.memory] == [150]
    assert "2 kernels and copies outside the range 'measured'" in trace.meta["problems"][-1]
