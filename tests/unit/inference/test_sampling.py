"""Drawn tokens against the distributions that they are drawn from, and against Hugging Face's filters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.inference.sampling import (
    NOT_A_NUMBER,
    Sampler,
    draw,
    keep_top_k,
    keep_top_p,
    token_probabilities,
)
from cs_systems.inference.settings import GenerationConfig

CPU = torch.device("cpu")
LOGITS = [2.0, 1.0, 0.5, 0.0, -1.0, -3.0]
NUM_DRAWS = 20_000


def exact_probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The distribution by its definition, in Python's floats."""
    weights = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    best_first = sorted(weights, key=lambda i: -weights[i])
    kept = best_first[: top_k or None]
    total = sum(weights[i] for i in kept)
    nucleus, share = [], 0.0
    for i in kept:
        if share < top_p:
            nucleus.append(i)
        share += weights[i] / total
    total = sum(weights[i] for i in nucleus)
    return [weights[i] / total if i in nucleus else 0.0 for i in range(len(logits))]


CASES = [
    {"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 3.0}, {"temperature": 1.0, "top_k": 3},
    {"temperature": 0.7, "top_p": 0.8}, {"temperature": 2.0, "top_k": 4, "top_p": 0.7},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_distribution(case):
    """Pearson's chi-square over the tokens that can be drawn stays under its 99.9 % quantile."""
    expected = exact_probabilities(LOGITS, **case)
    sampler = Sampler(GenerationConfig(seed=3, **case), CPU)
    counts = torch.bincount(sampler(torch.tensor(LOGITS).expand(NUM_DRAWS, -1)), minlength=6).tolist()
    possible = [i for i, p in enumerate(expected) if p > 0]
    assert sum(counts[i] for i in possible) == NUM_DRAWS
    chi_square = sum((counts[i] - NUM_DRAWS * expected[i]) ** 2 / (NUM_DRAWS * expected[i]) for i in possible)
    quantiles = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}  # of chi-square, by degrees of freedom
    assert len(possible) > 1
    assert chi_square < quantiles[len(possible) - 1]


@pytest.mark.parametrize("case", CASES)
def test_probabilities_are_their_definition(case):
    probabilities = token_probabilities(torch.tensor([LOGITS]), GenerationConfig(**case))
    torch.testing.assert_close(
        probabilities[0], torch.tensor(exact_probabilities(LOGITS, **case)), rtol=1e-5, atol=1e-7
    )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    logits=st.lists(st.integers(-30, 30), min_size=2, max_size=9, unique=True),
    temperature=st.floats(0.3, 4), top_k=st.integers(0, 12), top_p=st.floats(0.05, 1),
)  # fmt: skip
def test_any_setting_keeps_what_its_definition_keeps(logits, temperature, top_k, top_p):
    config = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    probabilities = token_probabilities(torch.tensor([logits], dtype=torch.float32), config)[0]
    exact = exact_probabilities(logits, temperature, top_k, top_p)
    if any(abs(share - top_p) < 1e-5 for share in torch.tensor(sorted(exact)[::-1]).cumsum(0).tolist()):
        return  # at the very edge, fp32 may round to the other side
    torch.testing.assert_close(probabilities, torch.tensor(exact), rtol=1e-4, atol=1e-6)
    assert probabilities.argmax() == torch.tensor(logits).argmax()


def test_filters_are_those_of_hugging_face():
    transformers = pytest.importorskip(
        "transformers", reason="needs the oracle: pip install 'cs_systems[peers]'"
    )
    logits = torch.randn(40, 31) * 3
    for k in (1, 5, 31):
        assert torch.equal(keep_top_k(logits, k), transformers.TopKLogitsWarper(k)(None, logits))
    for p in (0.1, 0.5, 0.9):
        assert torch.equal(keep_top_p(logits, p), transformers.TopPLogitsWarper(p)(None, logits))


def test_exactly_k_tokens_stay_where_all_are_equal():
    assert keep_top_k(torch.zeros(1, 9), 4).isfinite().sum() == 4


def test_a_seed_gives_the_same_draws_and_another_seed_gives_others():
    logits = torch.zeros(50, 100)
    first, again, other = (
        Sampler(GenerationConfig(temperature=1.0, seed=seed), CPU)(logits) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_draws_do_not_touch_the_global_generator():
    state = torch.get_rng_state()
    draw(torch.full((3, 5), 0.2), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_greedy_takes_the_largest_and_a_low_temperature_nearly_always():
    logits = torch.randn(30, 20)
    greedy = Sampler(GenerationConfig(), CPU)(logits)
    assert torch.equal(greedy, logits.argmax(-1))
    assert torch.equal(Sampler(GenerationConfig(temperature=1e-3), CPU)(logits), greedy)
    assert torch.equal(Sampler(GenerationConfig(temperature=9.0, top_k=1), CPU)(logits), greedy)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_told_by_the_token(temperature):
    logits = torch.zeros(3, 5)
    logits[1, 2] = float("nan")
    tokens = Sampler(GenerationConfig(temperature=temperature), CPU)(logits).tolist()
    assert tokens[1] == NOT_A_NUMBER
    assert tokens[0] >= 0
    assert tokens[2] >= 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": -1}, "--max-new-tokens -1 must not be negative"),
        ({"temperature": -0.1}, "--temperature -0.1 must be 0"),
        ({"temperature": float("nan")}, "--temperature nan must be 0"),
        ({"temperature": float("inf")}, "--temperature inf must be 0"),
        ({"temperature": 1.0, "top_k": -1}, "--top-k -1 must be 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "--top-p 0.0 must be above 0"),
        ({"temperature": 1.0, "top_p": 1.1}, "--top-p 1.1 must be above 0"),
        ({"top_k": 5}, "need a --temperature above 0"),
        ({"top_p": 0.5}, "need a --temperature above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**given)
