"""run_benchmark with other numbers, and everything at once."""

import random

from graded_support.fake_device import Costs, check_harness


def test_numbers_of_steps_and_costs_that_nobody_knows(adapters, secret_seed):
    draw = random.Random(secret_seed)
    for _ in range(5):
        warmup_steps = draw.randint(0, 4)
        costs = Costs(
            input_host_s=draw.uniform(0, 10),
            input_device_s=draw.uniform(0, 10),
            step_host_s=draw.uniform(0.1, 1),
            step_device_s=draw.uniform(1, 10),
            slower_s=draw.uniform(0.1, 1),
            cold_s=draw.uniform(10, 100),
            num_cold=warmup_steps,
        )
        check_harness(adapters.run_benchmark, costs, warmup_steps, draw.randint(1, 6))
