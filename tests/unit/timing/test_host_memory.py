"""Memory limits, from recorded /proc and /sys files and from this machine."""

import subprocess
import sys

import pytest

from cs_systems.timing import host_memory
from cs_systems.timing.host_memory import (
    available_bytes,
    cgroup_left_bytes,
    parse_kib_field,
    peak_rss_bytes,
)

GIB = 2**30
MEMINFO = """MemTotal:       24684084 kB
MemFree:        20000000 kB
MemAvailable:   16777216 kB
Cached:           100000 kB
"""


@pytest.fixture
def machine(tmp_path):
    """Write files of a made-up machine: machine({"proc/meminfo": text}) returns its root."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def cgroup2(path, limit, use, inactive_file=0):
    folder = f"sys/fs/cgroup/{path}".rstrip("/")
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{use}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {inactive_file}\n",
    }


def test_a_machine_without_limits_offers_what_the_kernel_says(machine):
    assert available_bytes(machine({"proc/meminfo": MEMINFO})) == 16 * GIB


def test_a_container_offers_less_than_its_machine(machine):
    root = machine(
        {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"} | cgroup2("", 8 * GIB, 3 * GIB, GIB)
    )
    assert available_bytes(root) == 6 * GIB  # file cache can be dropped


def test_a_container_may_promise_more_than_its_machine_has(machine):
    root = machine({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"} | cgroup2("", 64 * GIB, GIB))
    assert available_bytes(root) == 16 * GIB


def test_the_tightest_level_counts_and_max_is_no_limit(machine):
    files = {"proc/self/cgroup": "0::/slice/job\n"}
    files |= cgroup2("slice/job", "max", GIB) | cgroup2("slice", 4 * GIB, 3 * GIB)
    assert cgroup_left_bytes(machine(files)) == GIB


def test_cgroup_version_1_is_read_too(machine):
    folder = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/job\n0::/\n",
        f"{folder}/memory.limit_in_bytes": f"{5 * GIB}\n",
        f"{folder}/memory.usage_in_bytes": f"{2 * GIB}\n",
        f"{folder}/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\n",
    }
    assert cgroup_left_bytes(machine(files)) == 4 * GIB


def test_version_1_inside_docker_names_a_path_that_only_the_host_has(machine):
    files = {
        "proc/self/cgroup": "4:memory:/docker/0123abcd\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{5 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GIB}\n",
    }
    assert cgroup_left_bytes(machine(files)) == 3 * GIB


def test_use_over_the_limit_leaves_nothing(machine):
    root = machine({"proc/self/cgroup": "0::/\n"} | cgroup2("", GIB, 2 * GIB))
    assert cgroup_left_bytes(root) == 0


def test_no_cgroup_is_no_limit(machine):
    assert cgroup_left_bytes(machine({})) is None


def test_outside_linux_all_physical_memory_is_the_bound(machine, monkeypatch):
    root = machine({})
    monkeypatch.setattr(host_memory.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_bytes(root) == 4_096_000

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(host_memory.os, "sysconf", unknown)
    assert available_bytes(root) is None


def test_a_field_is_found_by_its_whole_name():
    assert parse_kib_field("VmHWMx:\t 1 kB\nVmHWM:\t  11032 kB\n", "VmHWM") == 11032 * 1024
    assert parse_kib_field(MEMINFO, "Mem") is None


def test_this_machine_has_memory():
    assert available_bytes() > 0


def test_the_peak_grows_with_what_is_held_and_stays_when_it_is_freed():
    before = peak_rss_bytes()
    block = bytearray(b"x") * (before + 64 * 2**20)  # more than ever before, and written to
    size = len(block)
    del block
    assert peak_rss_bytes() >= size


def test_without_proc_the_portable_counter_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory, "_ROOT", tmp_path)
    assert peak_rss_bytes() > 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands the peak on")
def test_a_new_process_does_not_inherit_the_peak_of_its_parent():
    ours = bytearray(b"x") * (200 * 2**20)
    code = "from cs_systems.timing.host_memory import peak_rss_bytes; print(peak_rss_bytes())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < len(ours) / 2
