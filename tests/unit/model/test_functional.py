"""Softmax, cross-entropy, rotary embedding and ALiBi against float64 formulas and PyTorch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.model.functional import (
    alibi_bias,
    alibi_slopes,
    apply_rope,
    cross_entropy,
    rope_tables,
    softmax,
)

SHAPES = [((7,), 0), ((3, 5), 0), ((3, 5), -1), ((2, 1, 4), 1), ((2, 3, 4, 5), 2), ((0, 4), -1)]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other longer than these tests take


# --- softmax ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax_is_torchs(shape, dim, scale):
    x = scale * torch.randn(shape)
    torch.testing.assert_close(softmax(x, dim), torch.softmax(x, dim), rtol=1e-6, atol=1e-30)
    double = x.double()
    torch.testing.assert_close(softmax(double, dim), torch.softmax(double, dim), rtol=1e-14, atol=0)


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    st.sampled_from([-1e3, -1.0, 0.0, 0.5, 1e3]),
)
def test_softmax_is_a_distribution_that_a_shift_does_not_change(row, shift):
    x = torch.tensor(row, dtype=torch.float64)
    weights = softmax(x, 0)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(softmax(x + shift, 0), weights, rtol=1e-9, atol=1e-15)
    assert int(weights.argmax()) == int(torch.stack([weights, x]).argmax(1)[0])
    assert weights[x.argmax()] == weights.max()


def test_softmax_gives_hidden_entries_exactly_zero_weight():
    x = torch.tensor([0.0, -math.inf, 0.0, -math.inf])
    assert softmax(x, 0).tolist() == [0.5, 0.0, 0.5, 0.0]
    assert softmax(torch.full((2,), -math.inf), 0).isnan().all()  # nothing to attend to: documented


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_in_low_precision_is_no_worse_than_its_formula(dtype):
    x = torch.randn(64, 100).to(dtype)
    exact = torch.softmax(x.double(), -1)
    low = x.exp() / x.exp().sum(-1, keepdim=True)  # the same formula without the maximum
    ours = softmax(x, -1)
    assert ours.dtype == dtype
    assert (ours.double() - exact).abs().max() <= 2 * (low.double() - exact).abs().max()


def test_softmax_gradients():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: softmax(t, -1), x)
    assert torch.autograd.gradcheck(lambda t: softmax(t, 0), x)
    assert torch.autograd.gradgradcheck(lambda t: softmax(t, -1), x)
    tie = torch.tensor([[2.0, 2.0, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    softmax(tie, -1)[0, 0].backward()  # two largest entries: the maximum itself has no gradient there
    other = tie.detach().clone().requires_grad_()
    torch.softmax(other, -1)[0, 0].backward()
    torch.testing.assert_close(tie.grad, other.grad)


# --- cross-entropy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
def test_cross_entropy_is_torchs(shape, scale, ids):
    logits, targets = scale * torch.randn(*shape, 11), torch.randint(11, shape).to(ids)
    expected = F.cross_entropy(logits.double().reshape(-1, 11), targets.long().reshape(-1))
    loss = cross_entropy(logits, targets)
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(cross_entropy(logits.double(), targets), expected, rtol=1e-12, atol=1e-12)


def test_cross_entropy_of_equal_logits_is_the_log_of_the_vocabulary():
    targets = torch.arange(5)
    for value in (0.0, 1e4, -1e4):
        assert cross_entropy(torch.full((5, 1000), value), targets).item() == pytest.approx(math.log(1000))


@settings(deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=9), st.floats(-1e4, 1e4))
def test_cross_entropy_is_never_negative_and_a_shift_does_not_change_it(row, shift):
    logits = torch.tensor([row], dtype=torch.float64)
    loss = cross_entropy(logits, torch.tensor([0]))
    assert loss >= 0
    assert float(cross_entropy(logits + shift, torch.tensor([0]))) == pytest.approx(float(loss), abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cross_entropy_of_low_precision_logits_is_computed_in_fp32(dtype):
    logits, targets = torch.randn(8, 10_000).to(dtype), torch.randint(10_000, (8,))
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(logits.double(), targets)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_cross_entropy_gradients():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets), logits)
    cross_entropy(logits, targets).backward()
    expected = (torch.softmax(logits.detach(), -1) - F.one_hot(targets, 6)) / 4
    torch.testing.assert_close(logits.grad, expected)


def test_cross_entropy_of_a_transposed_view():
    logits, targets = torch.randn(5, 3, 7).transpose(0, 1), torch.randint(7, (5, 3)).T
    expected = F.cross_entropy(logits.reshape(-1, 7), targets.reshape(-1))
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


@pytest.mark.parametrize("target", [7, -1, -100])
def test_a_target_outside_the_vocabulary_is_an_error_and_not_another_token(target):
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(torch.randn(2, 7), torch.tensor([0, target]))


def test_cross_entropy_keeps_one_tensor_of_the_size_of_the_logits():
    logits = torch.randn(4, 50, requires_grad=True)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x
    ):
        cross_entropy(logits, torch.randint(50, (4,)))
    assert sum(tensor.numel() == logits.numel() for tensor in kept.values()) == 1


# --- rotary embedding -------------------------------------------------------------------------------------


def exact_rope(x, positions, rotary_dim, theta):
    """Pairs (2i, 2i+1) as complex numbers times exp(i * position * theta**(-2i/dim)), in double precision."""
    out = x.detach().double().clone()
    for i in range(rotary_dim // 2):
        angle = positions.double() * theta ** (-2 * i / rotary_dim)
        turned = torch.complex(out[..., 2 * i].clone(), out[..., 2 * i + 1].clone())
        turned = turned * torch.complex(angle.cos(), angle.sin())
        out[..., 2 * i], out[..., 2 * i + 1] = turned.real, turned.imag
    return out


@pytest.mark.parametrize(("d_head", "rotary_dim"), [(8, 8), (8, 4), (10, 2), (7, 4), (2, 2)])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rope_turns_interleaved_pairs_and_passes_the_rest_through(d_head, rotary_dim, theta):
    x = torch.randn(2, 3, 50, d_head)
    turned = apply_rope(x, *rope_tables(50, rotary_dim, theta))
    expected = exact_rope(x, torch.arange(50), rotary_dim, theta)
    torch.testing.assert_close(turned.double(), expected, rtol=0, atol=5e-5)
    assert torch.equal(turned[..., rotary_dim:], x[..., rotary_dim:])
    assert torch.equal(turned[..., 0, :], x[..., 0, :])  # position 0 is not turned


def test_rope_tables_are_exact_to_the_rounding_of_the_angle():
    length, dim = 4096, 16
    cos, sin = rope_tables(length, dim, 10_000.0)
    assert cos.shape == sin.shape == (length, dim // 2)
    positions = torch.arange(length, dtype=torch.float64)
    angles = positions[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    bound = (positions[:, None] + 1) * 2**-22
    assert ((cos.double() - angles.cos()).abs() <= bound).all()
    assert ((sin.double() - angles.sin()).abs() <= bound).all()


def test_rope_keeps_the_length_of_every_pair():
    x = torch.randn(4, 30, 12)
    turned = apply_rope(x, *rope_tables(30, 12, 10_000.0))
    pairs = [t.unflatten(-1, (6, 2)).norm(dim=-1) for t in (x, turned)]
    torch.testing.assert_close(*pairs)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_a_turned_score_depends_on_the_distance_alone(query, key, shift):
    cos, sin = (table.double() for table in rope_tables(128, 16, 10_000.0))
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 1, 16, dtype=torch.float64, generator=generator)

    def score(i, j):
        return apply_rope(q, cos[i : i + 1], sin[i : i + 1]) @ apply_rope(k, cos[j : j + 1], sin[j : j + 1]).T

    torch.testing.assert_close(score(query, key), score(query + shift, key + shift), rtol=0, atol=2e-4)


def test_a_turned_score_does_depend_on_the_distance():
    cos, sin = rope_tables(8, 16, 10_000.0)
    q = torch.randn(16).expand(8, 16)
    scores = apply_rope(q, cos, sin) @ apply_rope(q, cos, sin).T
    assert (scores[0, 0] - scores[0, 1:] > 1e-3).all()


def test_rope_takes_tables_per_batch_entry():
    x, (cos, sin) = torch.randn(2, 3, 4, 8), rope_tables(20, 8, 10_000.0)
    positions = torch.tensor([[0, 1, 2, 3], [9, 3, 17, 3]])
    turned = apply_rope(x, cos[positions].unsqueeze(1), sin[positions].unsqueeze(1))
    torch.testing.assert_close(
        turned.double(), exact_rope(x, positions[:, None], 8, 10_000.0), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("view", ["transposed", "offset", "expanded", "strided"])
def test_rope_of_a_view_is_rope_of_its_copy(view):
    x = {
        "transposed": torch.randn(2, 6, 3, 8).transpose(1, 2),
        "offset": torch.randn(2, 3, 6, 9)[..., 1:],
        "expanded": torch.randn(1, 1, 6, 8).expand(2, 3, 6, 8),
        "strided": torch.randn(2, 3, 6, 16)[..., ::2],
    }[view]
    tables = rope_tables(6, 8, 10_000.0)
    copy = x.clone(memory_format=torch.contiguous_format)
    torch.testing.assert_close(apply_rope(x, *tables), apply_rope(copy, *tables))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rope_returns_the_dtype_it_was_given_and_rounds_once(dtype):
    x, tables = torch.randn(2, 10, 8).to(dtype), rope_tables(10, 8, 10_000.0)
    turned = apply_rope(x, *tables)
    assert turned.dtype == dtype
    wide = apply_rope(x.double(), *tables)
    torch.testing.assert_close(turned, wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_rope_gradients():
    tables = [table.double() for table in rope_tables(4, 4, 10_000.0)]
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: apply_rope(t, *tables), x)


@pytest.mark.parametrize("d_head", [8, 7])
def test_the_compiled_rope_is_the_eager_one(no_shape_checks, d_head):
    x, tables = torch.randn(2, 3, 6, d_head), rope_tables(6, 4, 10_000.0)
    compiled = torch.compile(apply_rope, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, *tables), apply_rope(x, *tables))


# --- ALiBi ------------------------------------------------------------------------------------------------


def slopes_of_the_reference_code(num_heads):
    """`get_slopes` of github.com/ofirpress/attention_with_linear_biases, fairseq/models/transformer.py."""

    def of_power_of_two(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(num_heads).is_integer():
        return of_power_of_two(num_heads)
    closest = 2 ** math.floor(math.log2(num_heads))
    return of_power_of_two(closest) + slopes_of_the_reference_code(2 * closest)[0::2][: num_heads - closest]


def test_alibi_slopes_of_8_heads_are_those_in_the_paper():
    assert alibi_slopes(8).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


@pytest.mark.parametrize("num_heads", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 25, 32, 112])
def test_alibi_slopes_of_any_number_of_heads_are_those_of_the_reference_code(num_heads):
    slopes = alibi_slopes(num_heads)
    assert slopes.shape == (num_heads,)
    assert slopes.tolist() == pytest.approx(slopes_of_the_reference_code(num_heads), rel=1e-6)


def test_alibi_slopes_do_not_follow_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    assert alibi_slopes(6).dtype == torch.float32


def test_alibi_bias_falls_by_the_slope_per_token_and_hides_later_keys():
    bias = alibi_bias(torch.tensor([0.5, 0.25]), 4)
    hidden = -math.inf
    assert bias[0].tolist() == [
        [0.0, hidden, hidden, hidden],
        [-0.5, 0.0, hidden, hidden],
        [-1.0, -0.5, 0.0, hidden],
        [-1.5, -1.0, -0.5, 0.0],
    ]
    assert torch.equal(bias[1], bias[0] / 2)
