"""run_transformer_lm: embedding, blocks, a last norm, and logits."""

import torch
from graded_support.model_checks import check_causal, check_model
from graded_support.model_truth import random_model


def test_logits(adapters):
    check_model(adapters, random_model(13, 16, 24, 3), 3, 2, torch.randint(13, (2, 6)), context_length=6)
    check_model(adapters, random_model(7, 8, 8, 1), 1, 4, torch.randint(7, (1, 5)), context_length=5)


def test_sequences_shorter_than_the_context(adapters):
    weights = random_model(11, 8, 20, 2)
    for seq in (1, 4, 12):
        check_model(adapters, weights, 2, 2, torch.randint(11, (2, seq)), context_length=12)


def test_theta_is_used(adapters):
    check_model(
        adapters, random_model(9, 16, 12, 2), 2, 2, torch.randint(9, (2, 8)), context_length=8, theta=20.0
    )


def test_no_logit_depends_on_a_later_token(adapters):
    weights, ids = random_model(10, 8, 12, 2), torch.randint(10, (2, 6))
    changed = ids.clone()
    changed[:, 4] = (ids[:, 4] + 1) % 10
    results = [
        adapters.run_transformer_lm(10, 8, 8, 2, 2, 12, 10_000.0, weights, given) for given in (ids, changed)
    ]
    check_causal(
        *results,
        first_changed=4,
        shape=(2, 6, 10),
        what="run_transformer_lm",
        hint="A model that sees what it is to predict learns to copy: hide key j from query i where j > i.",
    )
