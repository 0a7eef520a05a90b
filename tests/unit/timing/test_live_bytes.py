"""Bytes of living tensors, counted by hand: every float is 4 bytes, and what dies is taken off at once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.timing.live_bytes import LiveBytes


def floats(count):
    return torch.zeros(count)


def test_allocations_and_releases_are_counted_at_once_and_the_peak_stays():
    with LiveBytes() as live:
        a = floats(10)
        assert live.live == 40
        b = a + 1
        c = torch.ones(3, dtype=torch.int64)
        assert live.live == 40 + 40 + 24
        del b
        assert live.live == 40 + 24
        b = floats(1)
        assert (live.live, live.peak) == (40 + 24 + 4, 104)
        del a, b, c
        assert (live.live, live.peak) == (0, 104)


def test_temporaries_are_in_the_peak():
    with LiveBytes() as live:
        a = floats(10)
        b = (a * 2 + 1).sum()
    assert live.live == a.nbytes + b.nbytes == 44
    assert live.peak == 40 + 40 + 40


def test_a_storage_counts_once_however_many_views_it_has_and_lives_as_long_as_the_last():
    with LiveBytes() as live:
        a = floats(12)
        views = [a.view(3, 4), a[2:], *a.split(4), a.view(3, 4).t()]
        a.add_(1)
        assert live.live == live.peak == 48
        del a
        assert live.live == 48
        views = views[1:2]  # 40 bytes of the 48 are seen through it, and the 48 are there
        assert live.live == 48
        views.clear()
        assert live.live == 0


def test_every_result_of_an_operation_counts():
    with LiveBytes() as live:
        values, indices = floats(10).topk(3)
        assert live.live == values.nbytes + indices.nbytes == 12 + 24


def test_what_existed_counts_from_the_start_once_and_by_its_whole_storage():
    a, b, foreign = floats(10), floats(5), floats(100)
    with LiveBytes([a, a.view(2, 5), b[:1]]) as live:
        assert (live.live, live.peak) == (60, 60)
        a.view(5, 2)
        c = foreign + 1
        assert live.live == 60 + 400
        del c, b
        assert (live.live, live.peak) == (40, 460)


def test_what_dies_after_the_end_is_still_taken_off():
    with LiveBytes() as live:
        a = floats(10)
    b = floats(10)  # nobody watches any more
    assert live.live == b.nbytes == 40
    del a
    assert live.live == 0


def test_what_a_graph_keeps_is_alive_until_backward_has_used_it():
    x = floats(10).requires_grad_()
    with LiveBytes([x]) as live:
        y = x.exp()
        loss = y.sum()
        del y
        assert live.live == 40 + 40 + 4
        loss.backward()
        del loss
        assert live.live == x.nbytes + x.grad.nbytes == 80


STEPS = st.lists(st.tuples(st.sampled_from(["new", "view", "drop"]), st.integers(0, 50)), max_size=30)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(STEPS)
def test_any_order_of_allocations_views_and_releases(steps):
    tensors, owners, peak = [], [], 0  # of each tensor the number of its storage
    sizes = {}
    with LiveBytes() as live:
        for number, (kind, choice) in enumerate(steps):
            at = choice % len(tensors) if tensors else 0
            if kind == "new":
                tensors.append(floats(choice))
                owners.append(number)
                sizes[number] = 4 * choice
            elif tensors and kind == "view":
                tensors.append(tensors[at][1:])
                owners.append(owners[at])
            elif tensors:
                del tensors[at], owners[at]
            expected = sum(sizes[owner] for owner in set(owners))
            peak = max(peak, expected)
            assert (live.live, live.peak) == (expected, peak)
