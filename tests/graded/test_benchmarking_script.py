"""run_benchmark: it times the work, which a device is asked for and does later, and nothing but the work.

The device and the clock are made of numbers (`graded_support.fake_device`), so the readings are exact.
"""

from graded_support.fake_device import Costs, check_harness


def test_the_clock_stops_when_the_work_is_done(adapters):
    check_harness(adapters.run_benchmark, Costs(step_host_s=0.25, step_device_s=4.0), 1, 3)


def test_a_step_does_not_pay_for_work_queued_before_it(adapters):
    costs = Costs(input_device_s=16.0, step_host_s=0.25, step_device_s=4.0)
    check_harness(adapters.run_benchmark, costs, 1, 3)


def test_inputs_are_new_for_each_step_and_not_timed(adapters):
    check_harness(adapters.run_benchmark, Costs(input_host_s=32.0), 2, 3)


def test_warm_up_is_done_and_not_counted(adapters):
    check_harness(adapters.run_benchmark, Costs(cold_s=64.0, num_cold=3), 3, 3)


def test_each_step_has_a_sample_of_its_own(adapters):
    check_harness(adapters.run_benchmark, Costs(slower_s=1.0), 0, 4)


def test_work_of_the_host_is_timed_too(adapters):
    """On a CPU nothing is left in the queue: synchronize returns at once."""
    check_harness(adapters.run_benchmark, Costs(step_host_s=2.0, step_device_s=0.0), 1, 2)
