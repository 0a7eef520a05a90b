"""Rotations of sizes and positions that are not in the handout."""

import torch
from graded_support.model_checks import check_rope


def test_sizes_and_positions_that_nobody_knows(adapters, secret_seed):
    generator = torch.Generator().manual_seed(secret_seed)
    for _ in range(3):
        batch, heads, seq, pairs = torch.randint(1, 7, (4,), generator=generator).tolist()
        x = torch.randn(batch, heads, seq, 2 * pairs, generator=generator)
        positions = torch.randint(500, (seq,), generator=generator)
        theta = float(10 ** (1 + 4 * torch.rand((), generator=generator)))
        check_rope(adapters, x, positions, theta=theta, max_seq_len=500)
