"""Attention of sizes and masks that are not in the handout."""

import torch
from graded_support.model_checks import check_attention


def test_sizes_and_masks_that_nobody_knows(adapters, secret_seed):
    generator = torch.Generator().manual_seed(secret_seed)
    for _ in range(3):
        batch, queries, keys, d_k, d_v = torch.randint(2, 12, (5,), generator=generator).tolist()
        q, k, v = (
            torch.randn(batch, *shape, generator=generator)
            for shape in ((queries, d_k), (keys, d_k), (keys, d_v))
        )
        mask = torch.rand(batch, queries, keys, generator=generator) < 0.6
        mask[..., 0] |= ~mask.any(-1)
        check_attention(adapters, q, k, v, mask)
        check_attention(adapters, q, k, v)
