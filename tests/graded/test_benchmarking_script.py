"""run_benchmark: it times the work, which a device is asked for and does later, and nothing but the work.

The device and the clock are made of numbers (`graded_support.fake_device`), so the readings are exact.
"""

from graded_support.fake_device import Costs, check_harness

STEP = {"step_host_s": 0.25, "step_device_s": 4.0}


def check(adapters, warmup_steps, steps, *, num_cold=0, **seconds):
    """On one device, and on another that is half as fast: no constant is right for both."""
    for factor in (1, 2):
        costs = {name: factor * cost_s for name, cost_s in (STEP | seconds).items()}
        check_harness(adapters.run_benchmark, Costs(num_cold=num_cold, **costs), warmup_steps, steps)


def test_the_clock_stops_when_the_work_is_done(adapters):
    check(adapters, 1, 3)


def test_a_step_does_not_pay_for_work_queued_before_it(adapters):
    check(adapters, 1, 3, input_device_s=16.0)


def test_inputs_are_new_for_each_step_and_not_timed(adapters):
    check(adapters, 2, 3, input_host_s=32.0)


def test_warm_up_is_done_and_not_counted(adapters):
    check(adapters, 3, 3, cold_s=64.0, num_cold=3)


def test_each_step_has_a_sample_of_its_own(adapters):
    check(adapters, 0, 4, slower_s=1.0)


def test_work_of_the_host_is_timed_too(adapters):
    """On a CPU nothing is left in the queue: synchronize returns at once."""
    check(adapters, 1, 2, step_host_s=2.0, step_device_s=0.0)
