"""get_ddp and ddp_on_after_backward: averaged gradients, on processes that begin with different weights."""

from graded_support.data_parallel import Kind, check_end, check_gradients, check_start, train
from graded_support.ranks import run_on_ranks

PLAIN = Kind()


def test_every_rank_starts_from_the_weights_of_rank_0():
    check_start(run_on_ranks(train, kind=PLAIN), PLAIN)


def test_gradients_are_those_of_the_whole_batch():
    check_gradients(run_on_ranks(train, kind=PLAIN), PLAIN)


def test_gradients_on_three_ranks():
    check_gradients(run_on_ranks(train, num_ranks=3, kind=PLAIN), PLAIN)


def test_all_ranks_take_the_same_step():
    check_end(run_on_ranks(train, kind=PLAIN), PLAIN)
