"""Bytes of 2.7B against counts and published measurements, nested checkpoints against recurrences."""

import math
import pathlib

import pytest

from cs_systems.grading.evidence import Evidence
from cs_systems.grading.symbolic import compare
from cs_systems.grading.truths.find import find_truth
from cs_systems.grading.truths.memory import growth_of, halving, kinds_of_saved, largest_of_forward

NOTHING = Evidence(pathlib.Path("nowhere"))

MIB, GIB = 2**20, 2**30
HIDDEN_512 = 4 * 4 * 512 * 10240


def value(name):
    part, key = name.split()
    return find_truth(part, key, {}, NOTHING).value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("memory_profiling.b training_state", 50.77 * GIB),
        ("memory_profiling.c weight_copies", 2 * (32 * (4 * 2560**2 + 3 * 2560 * 10240) + 2560 * 10_000)),
        ("memory_profiling.d at_128", 5 * MIB),
        ("memory_profiling.d at_512", 20 * MIB),
        ("memory_profiling.d at_2048", 80 * MIB),
        ("memory_profiling.e flips_at", 10240 / 32),
        ("memory_profiling.f gradients", 400.02 * MIB),
    ],
)
def test_closed_forms(name, expected):
    assert value(name) == pytest.approx(expected, rel=1e-3)


def test_a_block_keeps_what_was_measured_on_the_courses_model_less_the_sigmoid():
    """857.2 MiB were measured where SiLU is x * sigmoid(x), which keeps one more hidden tensor."""
    assert value("memory_profiling.f saved") + HIDDEN_512 == pytest.approx(857.2 * MIB, rel=1e-3)


def test_a_second_block_in_a_checkpoint_costs_what_was_published_less_the_sigmoid():
    """63.60 and 69.56 GiB were published for one and two blocks at context 2048."""
    assert value("gradient_checkpointing.b gap") + 4 * HIDDEN_512 == pytest.approx(5.96 * GIB, rel=2e-3)
    assert value("memory_profiling.f change") == pytest.approx(
        value("gradient_checkpointing.b gap"), rel=1e-3
    )
    assert value("gradient_checkpointing.b best_size") == 1


def test_the_formula_of_saved_bytes_has_all_but_a_thousandth():
    names = {"B": 4, "S": 512, "d": 2560, "f": 10240, "H": 32}
    by_formula = eval(value("memory_profiling.f formula"), {}, names)
    assert by_formula == pytest.approx(value("memory_profiling.f saved"), rel=2e-3)
    counts = {kind: len(tensors) for kind, tensors in kinds_of_saved().items()}
    assert counts == {"feed-forward": 4, "scores": 2, "stream": 10}


def test_the_formula_of_the_stream():
    assert compare(value("memory_profiling.d formula"), "d*S*B*4", ("B", "S", "d")).same


@pytest.mark.parametrize(
    ("seq_len", "kind", "mib"), [(128, "feed-forward", 20), (512, "scores", 128), (2048, "scores", 2048)]
)
def test_the_largest_tensor(seq_len, kind, mib):
    assert value(f"memory_profiling.e largest_{seq_len}") == kind
    assert largest_of_forward(seq_len)[kind] == mib * MIB


def test_the_order_is_of_sums():
    assert value("memory_profiling.f order") == ("feed-forward", "scores", "stream")


@pytest.mark.parametrize("levels", range(1, 9))
def test_halving_follows_its_recurrence(levels):
    """T(N) = 2 T(N / 2) + N / 2 recomputed blocks, each once more at the end; one input is kept a level."""
    num = 2**levels
    assert halving(num) == (1, levels + 1, num + num // 2 * levels + num)


@pytest.mark.parametrize("num", [3, 5, 6, 7, 11])
def test_halving_of_uneven_numbers(num):
    def computed(size):
        """To run so many blocks backward: the first, larger half to get to the second, then both halves."""
        return 1 if size == 1 else -(-size // 2) + computed(size // 2) + computed(-(-size // 2))

    assert halving(num)[2] == num + computed(num)


@pytest.mark.parametrize(
    ("count", "growth"),
    [(lambda n: 7, "1"), (lambda n: math.isqrt(n) + 1, "sqrt N"), (lambda n: 3 * n + 2, "N"),
     (lambda n: n * n, "N^2"),
     (lambda n: 5 * n * (n.bit_length() + 1), "N log N"), (lambda n: 2 * n.bit_length(), "log N")],
)  # fmt: skip
def test_growth_is_recognised(count, growth):
    assert growth_of(count) == growth
