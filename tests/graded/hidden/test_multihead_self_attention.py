"""Self-attention of sizes and positions that are not in the handout."""

import torch
from graded_support.self_attention_checks import check_self_attention


def test_sizes_and_positions_that_nobody_knows(adapters, secret_seed):
    generator = torch.Generator().manual_seed(secret_seed)
    for _ in range(2):
        batch, seq, num_heads, pairs = torch.randint(2, 5, (4,), generator=generator).tolist()
        d_model = num_heads * 2 * pairs
        weights = [torch.randn(d_model, d_model, generator=generator) / d_model**0.5 for _ in range(4)]
        x = torch.randn(batch, seq, d_model, generator=generator)
        positions = torch.randint(32, (batch, seq), generator=generator)
        theta = float(10 ** (1 + 3 * torch.rand((), generator=generator)))
        check_self_attention(adapters, weights, num_heads, x)
        check_self_attention(adapters, weights, num_heads, x, theta=theta, positions=positions)
