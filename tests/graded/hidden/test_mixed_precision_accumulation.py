"""run_accumulation with values that nobody knows."""

import random

import torch
from graded_support.accumulation import check_accumulation


def test_values_and_numbers_of_terms_that_nobody_knows(adapters, secret_seed):
    draw = random.Random(secret_seed)
    narrow = (torch.float16, torch.bfloat16)
    for sum_dtype in (*narrow, torch.float32):
        for _ in range(3):
            term_dtype = sum_dtype if sum_dtype in narrow else draw.choice(narrow)
            value = draw.choice((-1, 1)) * draw.uniform(0.001, 1.0)
            check_accumulation(adapters, value, draw.randint(2, 500), sum_dtype, term_dtype)
