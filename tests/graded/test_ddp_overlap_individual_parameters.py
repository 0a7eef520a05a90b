"""get_ddp: gradients travel while backward still computes others, and models with peculiarities."""

from graded_support.compare import fail
from graded_support.data_parallel import (
    Kind,
    Toy,
    check_end,
    check_gradients,
    check_overlap,
    check_start,
    train,
)
from graded_support.ranks import run_on_ranks


def test_communication_starts_during_backward():
    check_overlap(run_on_ranks(train, kind=Kind()))


def test_backward_does_not_wait_and_the_update_does():
    results = run_on_ranks(train, kind=Kind(), rank_1_is_late=True)
    if not results[1]["ended_alone"]:
        fail(
            "backward of rank 0 waits for rank 1, so nothing overlaps: start the collective with "
            "async_op=True and wait for it in finish_gradient_synchronization"
        )
    check_gradients(results, Kind())


def test_a_tied_weight_is_sent_once():
    kind = Kind(tied=True)
    results = run_on_ranks(train, kind=kind)
    num_values = sum(parameter.numel() for parameter in Toy(kind, 0).parameters())
    for rank, result in enumerate(results):
        after_forward = [c for c in result["collectives"] if "backward" in c["phase"]]
        sent = sum(c["numel"] for c in after_forward if c["name"] == "all_reduce")
        if sent > num_values:
            fail(
                f"rank {rank} sends {sent} values of gradients, the model has {num_values}: a tied weight is "
                "one parameter, found under two names, and is sent once"
            )
    check_gradients(results, kind)


def test_frozen_parameters_come_from_rank_0_and_stay():
    kind = Kind(frozen=True)
    advice = "A frozen parameter (requires_grad False) is sent when the model is wrapped, and has no hook"
    results = run_on_ranks(train, kind=kind, advice=advice)
    check_start(results, kind)
    check_end(results, kind)


def test_a_parameter_without_a_gradient_keeps_nobody_waiting():
    kind = Kind(unused=True)
    advice = "A layer that is not used has a parameter whose grad is None: pass over it, on every rank"
    results = run_on_ranks(train, kind=kind, advice=advice)
    check_gradients(results, kind)
    check_end(results, kind)


def test_buffers_come_from_rank_0():
    check_start(run_on_ranks(train, kind=Kind()), Kind(), only="offset")


def test_a_second_batch():
    results = run_on_ranks(train, kind=Kind(), num_batches=2)
    check_gradients(results, Kind(), number=1)
    check_end(results, Kind(), number=1)
