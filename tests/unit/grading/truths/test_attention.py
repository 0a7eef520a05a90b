"""Tiles, kept bytes and gradients of attention against counting and autograd."""

import json
import pathlib

import pytest

from cs_systems.grading.evidence import Evidence
from cs_systems.grading.truths.attention import visible_tiles
from cs_systems.grading.truths.find import find_truth

NOTHING = Evidence(pathlib.Path("nowhere"))

RECORDS = pathlib.Path(__file__).parents[4] / "results" / "amd-epyc-2-cores" / "attention.jsonl"


def value(name):
    part, key = name.split()
    return find_truth(part, key, {}, NOTHING).value


@pytest.mark.parametrize(
    ("seq_len", "rows", "columns"), [(8, 2, 2), (16, 4, 2), (16, 2, 8), (12, 4, 4), (6, 3, 2)]
)
def test_tiles_are_those_of_a_mask_cut_up(seq_len, rows, columns):
    mask = [[key <= query for key in range(seq_len)] for query in range(seq_len)]
    tiles = [
        [mask[query][key] for query in range(top, top + rows) for key in range(left, left + columns)]
        for top in range(0, seq_len, rows) for left in range(0, seq_len, columns)
    ]  # fmt: skip
    visible = [tile for tile in tiles if any(tile)]
    assert visible_tiles(seq_len, rows, columns) == (len(visible), sum(not all(tile) for tile in visible))


def test_tiles_of_the_question():
    assert [value(f"flash_forward.b {key}") for key in ("programs", "tiles", "visible", "masked")] == [
        128, 128 * 256, sum(2 * (row + 1) for row in range(128)), 2 * 128,
    ]  # fmt: skip


def test_flash_keeps_what_was_measured():
    """Records hold what forward leaves besides its three inputs, of 4 x 12 heads."""
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    found = 0
    for record in records:
        case = record["case"]
        if case["implementation"] in ("flash-torch", "sdpa") and case["precision"] == "fp32":
            shape = {"B": case["batch_size"] * case["num_heads"], "S": case["seq_len"], "d": case["d_head"]}
            inputs = 3 * 4 * shape["B"] * shape["S"] * shape["d"]
            assert eval(value("flash_forward.a kept"), {}, shape) == record["metrics"]["held_bytes"] + inputs
            found += 1
    assert found == 4


def test_naive_attention_keeps_two_arrays_of_scores():
    assert eval(value("pytorch_attention.b kept"), {}, {"B": 8, "S": 16384}) == 16 * 2**30
    assert value("pytorch_attention.b score_array") == 8 * 2**30


def test_lengths_that_fail():
    """Backward was published to hold eight arrays of 2 GiB at 8192 positions, or six where less is kept."""
    assert value("pytorch_attention.b fails_8") == 8192
    assert value("pytorch_attention.b fails_24") == 16384


def test_gradient_of_a_score_is_that_of_autograd():
    import torch

    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    weights = scores.softmax(-1)
    gradient = torch.randn(5, dtype=torch.float64)
    [expected] = torch.autograd.grad(weights, scores, gradient)
    p = weights.detach()
    found = eval(value("flash_backward.a dS"), {}, {"P": p, "dP": gradient, "D": (p * gradient).sum()})
    torch.testing.assert_close(found, expected)


def test_products_of_backward():
    """S = Q K^T again, dP = dO V^T, dV = P^T dO, dQ = dS K, dK = dS^T Q."""
    assert value("flash_backward.a products") == 5
    assert value("flash_backward.a flops_ratio") == 5 / 2
