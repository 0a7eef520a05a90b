"""get_ddp_bucketed: the same gradients, sent together in few collectives."""

import pytest
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

# The parameters of the toy have, from the last to the first, 24, 4, 20, 5, 20 and 24 values of 4 bytes.
ONE_BUCKET = None
EACH_ITS_OWN = 1e-6
SMALL = 28 * 4e-6
"""From the last parameter on 28, 25, 20 and 24 values; from the first on it would be 24, 25, 24 and 24."""
LARGE = 51 * 4e-6
"""48 and 49 values. With 2^20 bytes to the MB it would be 53 and 44."""


@pytest.mark.parametrize("bucket_size_mb", [ONE_BUCKET, EACH_ITS_OWN, LARGE], ids=["one", "tiny", "large"])
def test_gradients_are_those_of_the_whole_batch(bucket_size_mb):
    results = run_on_ranks(train, kind=Kind(), bucket_size_mb=bucket_size_mb)
    check_start(results, Kind())
    check_gradients(results, Kind())
    check_end(results, Kind())


def buckets_of(kind, bucket_size_mb):
    """Number of values in each bucket, filled from the last parameter to the first."""
    buckets = []
    for parameter in reversed(list(Toy(kind, 0).parameters())):
        fits = bucket_size_mb is None or 4 * (sum(buckets[-1:]) + parameter.numel()) <= bucket_size_mb * 1e6
        if buckets and fits:
            buckets[-1] += parameter.numel()
        else:
            buckets.append(parameter.numel())
    return buckets


def test_buckets_are_as_full_as_they_may_be():
    for bucket_size_mb in (ONE_BUCKET, SMALL, LARGE, EACH_ITS_OWN):
        expected = buckets_of(Kind(), bucket_size_mb)
        for result in run_on_ranks(train, kind=Kind(), bucket_size_mb=bucket_size_mb):
            sent = [c["numel"] for c in result["collectives"] if "backward" in c["phase"]]
            if sorted(sent) != sorted(expected):
                sizes = [parameter.numel() for parameter in Toy(Kind(), 0).parameters()]
                fail(
                    f"with bucket_size_mb={bucket_size_mb} collectives of {sent} values were called; "
                    f"parameters of {sizes} fp32 values, taken from the last to the first, fill buckets of "
                    f"{expected}{_guess(sent, expected, bucket_size_mb)}"
                )


def _guess(sent, expected, bucket_size_mb):
    sizes = [parameter.numel() for parameter in Toy(Kind(), 0).parameters()]
    if len(sent) == len(sizes) != len(expected):
        return ": here every parameter is sent on its own"
    if max(sent) > max(max(sizes), (bucket_size_mb or 1) * 1e6 / 4):
        return ": a bucket holds more than bucket_size_mb (1 MB is 10^6 bytes, a value of fp32 has 4)"
    if sum(sent) == sum(expected):
        return ": close a bucket when the next parameter does not fit, and begin with the last parameter"
    return ""


def test_communication_starts_during_backward():
    check_overlap(run_on_ranks(train, kind=Kind(), bucket_size_mb=SMALL))


def test_backward_does_not_wait_and_the_update_does():
    results = run_on_ranks(train, kind=Kind(), bucket_size_mb=SMALL, rank_1_is_late=True)
    if not results[1]["ended_alone"]:
        fail(
            "backward of rank 0 waits for rank 1, so nothing overlaps: start a bucket's collective with "
            "async_op=True and wait for it in finish_gradient_synchronization"
        )
    check_gradients(results, Kind())


def test_a_bucket_with_a_parameter_without_a_gradient():
    kind = Kind(unused=True, frozen=True)
    advice = (
        "One parameter is frozen and one is not used, so its grad is None and its bucket never becomes full"
    )
    results = run_on_ranks(train, kind=kind, bucket_size_mb=LARGE, advice=advice)
    check_gradients(results, kind)
    check_end(results, kind)


def test_a_second_batch():
    results = run_on_ranks(train, kind=Kind(), bucket_size_mb=SMALL, num_batches=2)
    check_gradients(results, Kind(), number=1)
    check_end(results, Kind(), number=1)
