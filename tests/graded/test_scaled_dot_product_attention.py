"""run_scaled_dot_product_attention: softmax(Q K^T / sqrt(d_k)) V, with a mask of the keys that count."""

import torch
from graded_support.model_checks import check_attention, check_unchanged


def random_mask(*shape):
    """Some keys for each query, one at least."""
    mask = torch.rand(shape) < 0.5
    mask[..., 0] |= ~mask.any(-1)
    return mask


def test_softmax_over_the_keys_of_scaled_scores(adapters):
    check_attention(adapters, torch.randn(2, 5, 9), torch.randn(2, 5, 9), torch.randn(2, 5, 9))


def test_queries_keys_and_widths_may_differ(adapters):
    check_attention(adapters, torch.randn(2, 3, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 4))
    check_attention(adapters, torch.randn(2, 7, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 9))


def test_a_key_counts_where_the_mask_is_true(adapters):
    q, k, v = torch.randn(3, 2, 6, 8).unbind()
    check_attention(adapters, q, k, v, random_mask(2, 6, 6))
    check_attention(adapters, q[:, :4], k, v, torch.ones(2, 4, 6, dtype=torch.bool).tril())


def test_any_axes_before_the_last_two(adapters):
    q, k, v = torch.randn(3, 2, 3, 5, 8).unbind()
    check_attention(adapters, q, k, v, random_mask(2, 3, 5, 5))
    check_attention(adapters, q, k, v, random_mask(5, 5))
    check_attention(adapters, q[0, 0], k[0, 0], v[0, 0], random_mask(5, 5))


def test_scores_of_thousands(adapters):
    q, k, v = torch.randn(3, 2, 4, 8).unbind()
    check_attention(
        adapters,
        40 * q,
        40 * k,
        v,
        hint="exp of a large score is infinite: use your softmax, which subtracts the maximum.",
    )


def test_what_a_hidden_key_holds_does_not_matter(adapters):
    q, k, v = torch.randn(3, 2, 5, 8).unbind()
    mask = random_mask(2, 5, 5)
    mask[..., 3] = False
    mask[..., 0] = True
    k[:, 3], v[:, 3] = 1e4 * k[:, 3], 1e4 * v[:, 3]
    check_attention(
        adapters,
        q,
        k,
        v,
        mask,
        hint="A hidden key must have the weight 0 exactly: set its score to -inf before softmax.",
    )


def test_the_arguments_stay_as_they_were(adapters):
    q, k, v = torch.randn(3, 2, 5, 8).unbind()
    mask = random_mask(2, 5, 5)
    arguments = {"Q": q, "K": k, "V": v, "mask": mask}
    before = {name: argument.clone() for name, argument in arguments.items()}
    check_attention(adapters, q, k, v, mask)
    for name, argument in arguments.items():
        check_unchanged(argument, before[name], what="run_scaled_dot_product_attention", name=name)
