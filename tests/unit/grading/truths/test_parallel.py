"""The formulas about many devices against devices that are simulated one by one."""

import functools
import itertools
import math
import pathlib
from fractions import Fraction

import pytest

from cs_systems.grading.evidence import Evidence
from cs_systems.grading.problems import PROBLEMS
from cs_systems.grading.truths.find import find_truth

NOTHING = Evidence(pathlib.Path("nowhere"))

POINT = {name: Fraction(value) for name, value in {"B": 60, "D": 12, "F": 120, "C": 7, "W": 5}.items()}


def value_of(part, key, **numbers):
    """The formula of an item at a point, in exact fractions."""
    return eval(
        formula_of(part, key), {"sqrt": math.sqrt}, POINT | {k: Fraction(n) for k, n in numbers.items()}
    )


@functools.cache
def formula_of(part, key):
    return compile(find_truth(part, key, {}, NOTHING).value, key, "eval")


class Ring:
    """Devices in a ring that pass pieces of a tensor on; all that each one sends is counted."""

    def __init__(self, contents):
        self.contents = contents  # of each device: {piece: set of the devices whose values are summed in it}
        self.sent = [0] * len(contents)

    def step(self, choose, piece_bytes):
        """Every device sends the piece that `choose(device)` names to the next one, which adds it."""
        num = len(self.contents)
        moving = [(choose(i), self.contents[i][choose(i)]) for i in range(num)]
        for i, (piece, summed) in enumerate(moving):
            self.sent[i] += piece_bytes
            target = self.contents[(i + 1) % num]
            target[piece] = target.get(piece, frozenset()) | summed

    def bytes_out(self):
        [bytes_out] = set(self.sent)
        return Fraction(bytes_out)


def reduce_scatter(num, num_bytes):
    ring = Ring([{piece: frozenset([device]) for piece in range(num)} for device in range(num)])
    for step in range(num - 1):
        ring.step(lambda i, step=step: (i - step) % num, Fraction(num_bytes, num))
    assert all(ring.contents[i][(i + 1) % num] == set(range(num)) for i in range(num))
    return ring.bytes_out()


def all_gather(num, num_bytes):
    ring = Ring([{device: frozenset([device])} for device in range(num)])
    for step in range(num - 1):
        ring.step(lambda i, step=step: (i - step) % num, Fraction(num_bytes, num))
    assert all(len(content) == num for content in ring.contents)
    return ring.bytes_out()


def all_reduce(num, num_bytes):
    return reduce_scatter(num, num_bytes) + all_gather(num, num_bytes)


def pass_whole_tensors(num, num_bytes):
    ring = Ring([{device: frozenset([device])} for device in range(num)])
    for step in range(num - 1):
        ring.step(lambda i, step=step: (i - step) % num, num_bytes)
    assert all(frozenset().union(*content.values()) == set(range(num)) for content in ring.contents)
    return ring.bytes_out()


def products(tokens, width, hidden, phase):
    """Operations of every product that a device does, from the shapes of its matrices."""
    forward = [(tokens, width, hidden), (tokens, width, hidden), (tokens, hidden, width)]
    backward = [(m, n, k) for m, k, n in forward] + [(k, m, n) for m, k, n in forward]
    return sum(2 * m * k * n for m, k, n in (forward if phase == "forward" else backward))


WEIGHT_BYTES = 2 * 3 * 12 * 120
RESULT_BYTES = 2 * 60 * 12
LAYERS = {
    "data_parallel_calcs.a": ("backward", "batch", lambda n: all_reduce(n, WEIGHT_BYTES)),
    "fsdp_calcs.a": ("forward", "batch", lambda n: all_gather(n, WEIGHT_BYTES)),
    "fsdp_calcs.b": (
        "backward", "batch", lambda n: all_gather(n, WEIGHT_BYTES) + reduce_scatter(n, WEIGHT_BYTES),
    ),
    "tp_calcs.b": ("forward", "hidden", lambda n: all_reduce(n, RESULT_BYTES)),
    "tp_calcs.c": ("backward", "hidden", lambda n: all_reduce(n, RESULT_BYTES)),
}  # fmt: skip


@pytest.mark.parametrize("part", LAYERS)
@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_operations_and_time_are_those_of_simulated_devices(part, num):
    phase, split, bytes_out = LAYERS[part]
    tokens, hidden = (Fraction(60, num), 120) if split == "batch" else (60, Fraction(120, num))
    assert value_of(part, "flops", N=num) == products(tokens, 12, hidden, phase)
    assert value_of(part, "time", N=num) == bytes_out(num) / POINT["W"]


@pytest.mark.parametrize("part", LAYERS)
@pytest.mark.parametrize(("c", "w"), [(7, 5), (3, 1), (100, 1), (1, 1)])
def test_the_largest_n_is_the_last_that_hides_its_communication(part, c, w):
    numbers = {"C": c, "W": w}
    hidden = [
        n for n in range(1, 400)
        if value_of(part, "time", N=n, **numbers) <= value_of(part, "flops", N=n, **numbers) / c
    ]  # fmt: skip
    assert hidden == list(range(1, len(hidden) + 1))
    assert len(hidden) == math.floor(value_of(part, "largest_n", **numbers))


@pytest.mark.parametrize("num", [2, 3, 7])
def test_the_two_rings(num):
    part = "alternate_ring_all_reduce.a"
    assert value_of(part, "time", N=num, S=84) == pass_whole_tensors(num, 84) / POINT["W"]
    assert value_of(part, "usual", N=num, S=84) == all_reduce(num, 84) / POINT["W"]


@pytest.mark.parametrize(("nf", "nt"), [(1, 1), (2, 3), (5, 4), (4, 1)])
def test_a_grid_of_devices(nf, nt):
    part = "fsdp_tp_calcs.a"
    assert value_of(part, "flops", NF=nf, NT=nt) == products(
        Fraction(60, nf), 12, Fraction(120, nt), "forward"
    )
    columns = Fraction(WEIGHT_BYTES, nt)
    assert value_of(part, "fsdp_time", NF=nf, NT=nt) == all_gather(nf, columns) / POINT["W"]
    assert value_of(part, "tp_time", NF=nf, NT=nt) == all_reduce(nt, Fraction(RESULT_BYTES, nf)) / POINT["W"]


def grid_times(nf, nt, **numbers):
    part, at = "fsdp_tp_calcs.a", {"NF": nf, "NT": nt, **numbers}
    work = value_of(part, "flops", **at) / numbers["C"]
    return value_of(part, "fsdp_time", **at), value_of(part, "tp_time", **at), work


def test_with_two_networks_every_axis_grows_to_its_own_bound():
    numbers = {"B": 6, "F": 4, "C": 2, "W": 1}
    fitting = [
        nf * nt for nf, nt in itertools.product(range(1, 9), repeat=2)
        for fsdp, tp, work in [grid_times(nf, nt, **numbers)]
        if max(fsdp, tp) <= work
    ]  # fmt: skip
    assert max(fitting) == value_of("fsdp_tp_calcs.b", "overlapped", **numbers) == (1 + 3) * (1 + 3)


def test_with_one_network_no_grid_beats_the_formula_and_one_reaches_it():
    numbers = {"B": 30, "F": 40, "C": 2, "W": 1}
    best = value_of("fsdp_tp_calcs.b", "shared", **numbers)
    products_that_fit = []
    for nf in (Fraction(step, 10) for step in range(10, 400, 6)):
        low, high = Fraction(1), Fraction(400)
        for _ in range(14):  # the largest nt whose communication still fits, by halving
            middle = (low + high) / 2
            fsdp, tp, work = grid_times(nf, middle, **numbers)
            low, high = (middle, high) if fsdp + tp <= work else (low, middle)
        fsdp, tp, work = grid_times(nf, low, **numbers)
        if fsdp + tp <= work:
            products_that_fit.append(nf * low)
    assert 0.99 * best < max(products_that_fit) <= best


def run_buckets(num, num_bytes, rate, call):
    """A step that computes, calls and sends bucket by bucket; returns what it takes beyond computing."""
    compute_s = Fraction(num_bytes, num * rate)
    now = network_free = Fraction(0)
    for _ in range(num):
        now += compute_s + call
        network_free = max(now, network_free) + compute_s
    return network_free - num * compute_s


def test_buckets():
    part, numbers = "ddp_bucketed_benchmarking.b", {"s": 900, "w": 4, "o": Fraction(1)}
    overheads = {num: run_buckets(num, 900, 4, Fraction(1)) for num in range(1, 60)}
    assert all(value_of(part, "overhead", n=num, **numbers) == overheads[num] for num in overheads)
    best = value_of(part, "best_n", **numbers)
    assert best == min(overheads, key=overheads.__getitem__) == 15
    assert value_of(part, "best_bytes", **numbers) == 900 / best


def test_which_gradient_is_summed_over_tensor_parallel_devices():
    import torch
    from torch.nn.functional import silu

    names = ("dx", "dW1", "dW2", "dW3")
    x, w1, w2, w3 = (torch.randn(shape, dtype=torch.float64) for shape in ((5, 4), (4, 6), (4, 6), (6, 4)))

    def gradients(columns):
        tensors = [each.clone().requires_grad_() for each in (x, w1[:, columns], w2[:, columns], w3[columns])]
        inputs, first, second, third = tensors
        result = (silu(inputs @ first) * (inputs @ second)) @ third
        return torch.autograd.grad(result, tensors, torch.ones_like(result))

    whole = gradients(slice(0, 6))
    parts = [gradients(slice(0, 3)), gradients(slice(3, 6))]
    axes = {1: 1, 2: 1, 3: 0}  # W1 and W2 are cut by columns, W3 by rows
    joined = [None, *(torch.cat([part[i] for part in parts], axis) for i, axis in axes.items())]
    partial = [
        name for name, full, cut, part in zip(names, whole, joined, parts[0], strict=True)
        if not torch.allclose(full, part if cut is None else cut)
    ]  # fmt: skip
    assert [find_truth("tp_calcs.a", "reduced", {}, NOTHING).value] == partial == ["dx"]


def test_names_are_those_that_the_question_allows():
    parts = {part.id: part for problem in PROBLEMS for part in problem.parts}
    for part in ("data_parallel_calcs.a", "fsdp_tp_calcs.b", "alternate_ring_all_reduce.a"):
        for item in parts[part].items:
            assert all(name in item.what for name in item.names)
