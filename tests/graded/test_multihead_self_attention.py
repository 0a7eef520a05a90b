"""Causal self-attention with several heads, without and with rotated queries and keys."""

import torch
from graded_support.model_checks import check_causal
from graded_support.self_attention_checks import check_self_attention


def projections(d_model):
    """Weights of queries, keys, values and output that keep numbers near 1."""
    return [torch.randn(d_model, d_model) / d_model**0.5 for _ in range(4)]


def test_rows_of_a_projection_are_ordered_by_head(adapters):
    check_self_attention(adapters, projections(12), 3, torch.randn(2, 5, 12))
    check_self_attention(adapters, projections(16), 4, torch.randn(2, 4, 16))  # as many heads as tokens


def test_one_head(adapters):
    check_self_attention(adapters, projections(6), 1, torch.randn(3, 4, 6))


def test_no_token_sees_the_next_one(adapters):
    weights, x = projections(8), torch.randn(2, 6, 8)
    changed = x.clone()
    changed[:, 4] += 1
    results = [adapters.run_multihead_self_attention(8, 2, *weights, given) for given in (x, changed)]
    check_causal(
        *results,
        first_changed=4,
        shape=(2, 6, 8),
        what="run_multihead_self_attention",
        hint="What stands later must not count: hide key j from query i where j > i.",
    )


def test_queries_and_keys_are_rotated_and_values_are_not(adapters):
    check_self_attention(adapters, projections(16), 2, torch.randn(2, 6, 16), theta=10_000.0)
    check_self_attention(adapters, projections(12), 3, torch.randn(1, 5, 12), theta=100.0, max_seq_len=5)


def test_positions_are_used_where_given(adapters):
    weights, x = projections(16), torch.randn(2, 4, 16)
    # Positions that decrease: what is causal is the place in the sequence.
    for positions in ([[0, 5, 6, 20]], [[3, 2, 1, 0], [2, 9, 9, 31]]):
        check_self_attention(adapters, weights, 4, x, theta=10_000.0, positions=torch.tensor(positions))
