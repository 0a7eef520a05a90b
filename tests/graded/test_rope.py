"""run_rope: pairs of neighbouring channels, turned by the angle position / theta^(2i / d_k)."""

import torch
from graded_support.compare import check_tensor, rounding_bound
from graded_support.model_checks import check_rope, check_unchanged


def test_neighbouring_channels_turn_together(adapters):
    check_rope(adapters, torch.randn(6, 8), torch.arange(6))
    check_rope(adapters, torch.randn(3, 2), torch.arange(3))


def test_positions_may_start_anywhere_and_repeat(adapters):
    check_rope(adapters, torch.randn(5, 8), torch.tensor([63, 0, 7, 7, 30]))


def test_theta_is_used(adapters):
    check_rope(adapters, torch.randn(7, 12), torch.arange(7), theta=50.0)


def test_any_axes_before_the_sequence(adapters):
    check_rope(adapters, torch.randn(2, 3, 4, 8), torch.arange(4))
    check_rope(adapters, torch.randn(2, 4, 8), torch.tensor([[3, 1, 4, 1]]))
    check_rope(adapters, torch.randn(2, 4, 8), torch.tensor([[0, 1, 2, 3], [9, 8, 5, 5]]))


def test_pairs_keep_their_length_far_from_the_start(adapters):
    x, positions = torch.randn(4, 8), torch.tensor([0, 999, 1000, 1999])
    check_rope(adapters, x, positions, max_seq_len=2000)
    # A row may be a view of a longer one, as a head is of all heads.
    wide_row = torch.randn(4, 3, 8)
    turned = adapters.run_rope(8, 10_000.0, 2000, wide_row[:, 1], positions)
    lengths = wide_row[:, 1].double().unflatten(-1, (-1, 2)).norm(dim=-1)
    check_tensor(
        turned.detach().double().unflatten(-1, (-1, 2)).norm(dim=-1).float(),
        lengths,
        what="the length of each pair after run_rope",
        allowed=rounding_bound(torch.float32, 4, lengths),
        dtype=torch.float32,
        hint="A rotation changes no length: cosine and sine are of one angle, and pairs do not mix.",
    )


def test_sixteen_bits_come_out_as_they_went_in(adapters):
    # At position 999, angles in bf16 would be off by several radians.
    check_rope(adapters, torch.randn(3, 8).bfloat16(), torch.tensor([1, 998, 999]), max_seq_len=1000)
    check_rope(adapters, torch.randn(3, 8).half(), torch.tensor([1, 998, 999]), max_seq_len=1000)


def test_the_input_stays_as_it_was(adapters):
    x = torch.randn(4, 8)
    before = x.clone()
    check_rope(adapters, x, torch.arange(4))
    check_unchanged(x, before, what="run_rope", name="in_query_or_key")
