"""Other load on the cores, from recorded counters and from this machine."""

import time

import pytest

from cs_systems.timing import contention
from cs_systems.timing.contention import CoreLoad, parse_busy_ticks

RECORDED = """cpu  29285 7 8602 349207 852 11 145 15 400 3
cpu0 5500 0 1991 186380 74 0 34 3 0 0
intr 123
"""


def load_between(before, after):
    readings = iter([before, after])
    return CoreLoad.start(lambda: next(readings)).finish()


def test_busy_ticks_count_steal_and_leave_out_waiting_and_guests():
    assert parse_busy_ticks(RECORDED) == 29285 + 7 + 8602 + 11 + 145 + 15


def test_other_load_is_what_all_did_less_what_we_did():
    # In 10 s all cores worked 17 s, of which 12 s were ours.
    assert load_between((100.0, 50.0, 3.0), (110.0, 67.0, 15.0)) == pytest.approx(0.5)


def test_no_other_load_is_zero_even_when_the_counters_tick_apart():
    assert load_between((0.0, 0.0, 0.0), (10.0, 9.99, 10.0)) == 0.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0.0, 0.0, 0.0), (0.2, 5.0, 0.1)),  # shorter than the counters can resolve
        ((0.0, None, 0.0), (10.0, None, 5.0)),  # not Linux
    ],
)
def test_what_cannot_be_known_is_none_not_zero(before, after):
    assert load_between(before, after) is None


def test_a_system_without_proc_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(contention, "_STAT", tmp_path / "stat")
    assert contention.system_busy_s() is None


@pytest.mark.skipif(contention.system_busy_s() is None, reason="needs /proc/stat")
def test_our_own_work_is_not_other_load():
    own = time.process_time()
    load = CoreLoad.start()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    others = load.finish()
    used = time.process_time() - own
    # The whole machine was at least as busy as we were; what is left for others excludes our share.
    assert others is not None
    assert others >= 0
    assert others * 0.3 <= contention.system_busy_s() - used
