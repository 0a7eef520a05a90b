"""A model of sizes that are not in the handout."""

import torch
from graded_support.model_checks import check_model
from graded_support.model_truth import random_model


def test_a_model_that_nobody_knows(adapters, secret_seed):
    generator = torch.Generator().manual_seed(secret_seed)
    num_layers, num_heads, pairs, batch = torch.randint(2, 5, (4,), generator=generator).tolist()
    vocab_size, d_ff, seq, spare = torch.randint(5, 30, (4,), generator=generator).tolist()
    weights = random_model(vocab_size, num_heads * 2 * pairs, d_ff, num_layers, generator=generator)
    ids = torch.randint(vocab_size, (batch, min(seq, 10)), generator=generator)
    theta = float(10 ** (1 + 3 * torch.rand((), generator=generator)))
    check_model(
        adapters, weights, num_layers, num_heads, ids, context_length=min(seq, 10) + spare, theta=theta
    )
