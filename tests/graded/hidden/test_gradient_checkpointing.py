"""run_checkpointed_blocks with numbers of blocks that nobody knows."""

import random

from graded_support.blocks import Stack, check_values_and_gradients, check_what_is_kept
from graded_support.compare import fail


def test_numbers_of_blocks_that_nobody_knows(adapters, secret_seed):
    draw = random.Random(secret_seed)
    for _ in range(4):
        num_blocks, blocks_per_checkpoint = draw.randint(1, 6), draw.randint(1, 4)
        check_values_and_gradients(Stack(num_blocks), adapters, blocks_per_checkpoint)
        stack = Stack(num_blocks)
        output = stack.run(adapters, blocks_per_checkpoint)
        check_what_is_kept(stack, blocks_per_checkpoint)
        output.sum().backward()
        if len(stack.order()) != 2 * num_blocks:
            fail(f"forward and backward of {num_blocks} blocks ran {len(stack.order())}; expected each twice")
