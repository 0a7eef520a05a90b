"""run_embedding: a row of the weight for each id. Rows are copied, so results are exact."""

import math

import torch
from graded_support.compare import check_tensor


def check(adapters, weights, token_ids):
    """Compare with rows that are picked one after the other."""
    vocab_size, d_model = weights.shape

    def rows(table):
        picked = [table[i] for i in token_ids.flatten().tolist()]
        return torch.stack(picked).reshape(*token_ids.shape, d_model)

    wide = weights.double()
    mistakes = {
        "the rows are multiplied by sqrt(d_model)": rows(wide * math.sqrt(d_model)),
        "ids are counted from 1": rows(wide.roll(1, 0)),
        "rows are made shorter (max_norm)": rows(wide / wide.norm(dim=-1, keepdim=True)),
    }
    if vocab_size == d_model:
        mistakes["columns are looked up; each id has a row"] = rows(wide.T)
    check_tensor(
        adapters.run_embedding(vocab_size, d_model, weights, token_ids),
        rows(wide),
        what=f"run_embedding of ids {tuple(token_ids.shape)}",
        allowed=0.0,
        dtype=weights.dtype,
        mistakes=mistakes,
        hint="Id i gives weights[i], as it is.",
    )


def test_an_id_picks_a_row_and_no_column(adapters):
    check(adapters, torch.randn(9, 9), torch.tensor([3, 1, 4, 1, 5]))


def test_ids_may_have_any_shape(adapters):
    weights = torch.randn(11, 4)
    for shape in [(2, 3), (5,), (), (2, 3, 2)]:
        check(adapters, weights, torch.randint(11, shape))


def test_first_and_last_row(adapters):
    check(adapters, torch.randn(7, 3), torch.tensor([[0, 6], [6, 0]]))


def test_rows_of_sixteen_bits_keep_their_type(adapters):
    check(adapters, torch.randn(7, 4).bfloat16(), torch.tensor([2, 0, 6]))
    check(adapters, torch.randn(7, 4).half(), torch.tensor([2, 0, 6]))
