"""run_checkpointed_blocks: the same values and gradients, less memory before backward, more work in it."""

from graded_support.blocks import LATE, NOT_AGAIN, Stack, check_values_and_gradients, check_what_is_kept
from graded_support.compare import fail


def test_values_and_gradients_are_those_of_the_blocks(adapters):
    for blocks_per_checkpoint in (0, 1, 2):
        check_values_and_gradients(Stack(2), adapters, blocks_per_checkpoint)


def test_weights_get_gradients_when_the_input_needs_none(adapters):
    """As the output of an embedding that is not trained."""
    check_values_and_gradients(Stack(2, input_needs_grad=False), adapters, 1)


def test_groups_need_not_divide_the_blocks(adapters):
    check_values_and_gradients(Stack(3), adapters, 2)
    check_values_and_gradients(Stack(2), adapters, 7)


def test_backward_runs_each_block_once_more(adapters):
    for blocks_per_checkpoint in (1, 2, 4):
        stack = Stack(4)
        output = stack.run(adapters, blocks_per_checkpoint)
        if stack.order() != [0, 1, 2, 3]:
            fail(f"forward of 4 blocks ran them in the order {stack.order()}; expected each once, in order")
        output.sum().backward()
        again = stack.order()[4:]
        if not again:
            fail(NOT_AGAIN)
        if set(again) != {0, 1, 2, 3}:
            others = "the others kept what they computed"
            if len(again) > len(set(again)):
                others = f"perhaps {LATE}"
            fail(
                f"with blocks_per_checkpoint={blocks_per_checkpoint} backward ran of 4 blocks {again} again; "
                f"expected each once: {others}"
            )
        if len(again) > 4:
            fail(
                f"with blocks_per_checkpoint={blocks_per_checkpoint} backward ran the blocks {again} again; "
                f"expected each of the 4 once: checkpoints inside of one another run some more often"
            )


def test_only_the_inputs_of_groups_are_kept(adapters):
    for num_blocks, blocks_per_checkpoint in ((4, 2), (4, 1), (5, 3)):
        stack = Stack(num_blocks)
        output = stack.run(adapters, blocks_per_checkpoint)
        check_what_is_kept(stack, blocks_per_checkpoint)
        del output  # alive until here, and with it the graph


def test_zero_keeps_everything_and_runs_each_block_once(adapters):
    stack = Stack(3)
    output = stack.run(adapters, 0)
    if stack.kept() != ([0, 1, 2], 3):
        fail("with blocks_per_checkpoint=0 values were thrown away: 0 keeps everything, without checkpoints")
    output.sum().backward()
    if stack.order() != [0, 1, 2]:
        fail(f"with blocks_per_checkpoint=0 the blocks ran in the order {stack.order()}; expected each once")
    other = Stack(3)  # which 0 is told apart from
    output = other.run(adapters, 1)
    check_what_is_kept(other, 1)
    del output
