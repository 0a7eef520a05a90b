"""Numbers of the accounting problems against what was published about them."""

import math
import pathlib

import pytest

from cs_systems.grading.evidence import Evidence
from cs_systems.grading.truths.accounting import tokens_if_traffic_adds_up
from cs_systems.grading.truths.find import find_truth

NOTHING = Evidence(pathlib.Path("nowhere"))

GIB, GB = 2**30, 1e9


def truth(part, key):
    return find_truth(part, key, {}, NOTHING)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("communication_accounting.a", "num_parameters", 219.85e9),
        ("communication_accounting.a", "state", 3518 * GB),
        ("communication_accounting.a", "activations", 17.55e6),
        ("communication_accounting.c", "tokens", 20.44e3),
        ("communication_accounting.c", "tokens_per_device", 319.4),
        ("optimizer_state_sharding_accounting.a", "after_init", 7.444 * GIB),
        ("optimizer_state_sharding_accounting.a", "plain", 29.78 * GIB),
        ("optimizer_state_sharding_accounting.a", "sharded", 22.33 * GIB),
        ("fsdp_accounting.a", "held", 25.38 * GIB),
        ("fsdp_accounting.a", "saved", 12.69 * GIB),
        ("leaderboard.a", "num_parameters", 8_125_698_048),
        ("leaderboard.a", "state", 121.1 * GIB),
        ("leaderboard.a", "logits", 37.1 * GIB),
        ("leaderboard.a", "step_flops", 4.745e15),
        ("leaderboard.a", "baseline_rate", 237.2e12),
    ],
)
def test_a_number_is_the_published_one(part, key, value):
    assert truth(part, key).value == pytest.approx(value, rel=1e-3)


def test_gpus_hold_what_is_asked_and_one_fewer_does_not():
    gpus, state = (truth("communication_accounting.a", key).value for key in ("gpus", "state"))
    assert gpus * 80e9 >= state > (gpus - 1) * 80e9
    assert "41" in truth("communication_accounting.a", "gpus").why  # of 80 GiB
    devices = truth("communication_accounting.b", "devices").value
    assert devices * 95e9 >= state > (devices - 1) * 95e9


def test_bytes_on_a_device_add_up_over_all_devices():
    """N devices hold one copy of what is sharded and N of what is not."""
    formula = truth("communication_accounting.b", "formula").value
    p, a, n = 1000, 300, 7
    on_all = n * eval(formula, {}, {"P": p, "A": a, "N": n})
    assert on_all == pytest.approx((4 + 4 + 8) * p + a / 2 + n * a / 2)


def test_tokens_are_where_both_times_are_equal():
    tokens = truth("communication_accounting.c", "tokens").value
    weights = 2 * 16384 * 53248 / 4  # of a layer on the tensor-parallel rank
    compute_s = 2 * (tokens / 16) * weights / 4.6e14
    gather_s = 2 * weights / (2 * 1.8e11)
    sum_s = 2 * 2 * (tokens / 16) * 16384 / 1.8e11
    assert compute_s == pytest.approx(gather_s)
    more = tokens_if_traffic_adds_up()
    assert compute_s * more / tokens == pytest.approx(gather_s + sum_s * more / tokens)


def test_bytes_sent_by_a_rank_are_passes_through_a_ring():
    """An all-reduce is two passes; each pass sends N - 1 of N pieces."""
    p, n = 840, 4
    one_pass = sum(4 * p / n for _ in range(n - 1))
    for key, passes in (("ours", 2 + 1), ("zero1", 1 + 1)):
        formula = truth("optimizer_state_sharding_accounting.c", key).value
        assert eval(formula, {}, {"P": p, "N": n}) == passes * one_pass


def test_gathering_of_a_block_is_not_hidden():
    """Counted anew from the shape of 2.7B."""
    weights = 4 * 2560**2 + 3 * 2560 * 10240
    gather_s = 2 * weights / 2 / 5e10
    compute_s = (2 * 2048 * weights + 4 * 2048 * 512 * 2560) / 4e14
    assert truth("fsdp_accounting.b", "gather").value == pytest.approx(gather_s)
    assert truth("fsdp_accounting.b", "compute").value == pytest.approx(compute_s)
    assert truth("fsdp_accounting.b", "in_time").value == ("yes" if gather_s <= compute_s else "no")
    assert not math.isclose(gather_s, compute_s, rel_tol=0.2)
