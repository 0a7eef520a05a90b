"""FlashAttention in Triton against the formula: values, gradients, layouts, and what torch expects of it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from cs_systems.device import UnsupportedError
from cs_systems.kernels import reference

HEAD_DIMS = (1, 8, 16, 24, 40, 48, 64, 72, 80, 96, 112, 128)
MASKS = ("full", "causal", "alibi")


@pytest.fixture(scope="module")
def flash(device):
    from cs_systems.kernels import flash_attention

    return flash_attention


@pytest.fixture(scope="module")
def exact(device):
    """A type in which kernel and formula agree to many digits: fp64 in the interpreter, fp32 on a GPU."""
    return torch.float64 if device == "cpu" else torch.float32


@pytest.fixture
def tiles(flash, monkeypatch):
    """A function that lets every kernel run in tiles of so many queries and keys."""
    return lambda block_m, block_n: set_tiles(flash, monkeypatch, block_m, block_n)


def set_tiles(flash, monkeypatch, block_m, block_n):
    config = flash.TileConfig(block_m, block_n, num_warps=4, num_stages=1)
    monkeypatch.setattr(flash, "_config", lambda *_: config)


def make(device, dtype, num_queries, num_keys, head_dim, num_heads=1, num_kv_heads=1, batch_size=1):
    """q, k, v and the gradient of the result."""
    shapes = (
        (num_heads, num_queries),
        (num_kv_heads, num_keys),
        (num_kv_heads, num_keys),
        (num_heads, num_queries),
    )
    return [torch.randn(batch_size, *shape, head_dim, device=device).to(dtype) for shape in shapes]


def mask_options(mask, num_heads, device):
    slopes = 2.0 ** -torch.arange(1, num_heads + 1, device=device) if mask == "alibi" else None
    return {"is_causal": mask != "full", "alibi_slopes": slopes}


def run(function, q, k, v, do, **options):
    """o, dq, dk, dv."""
    q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
    o = function(q, k, v, **options)
    return o.detach(), *torch.autograd.grad(o, (q, k, v), do.to(o.dtype))


def assert_same(ours, truth):
    """Equal up to the rounding of `exact`."""
    tolerance = 1e-10 if ours[0].dtype == torch.float64 else 1e-4
    torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", MASKS)
def test_as_accurate_as_the_formula_in_the_same_precision(
    flash, device, assert_as_accurate, poisoned, dtype, mask
):
    inputs = make(device, dtype, 100, 130, 64)
    options = mask_options(mask, 1, device)
    ours = run(flash.flash_attention, *inputs, **options)
    truth = run(reference.attention, *(tensor.double() for tensor in inputs), **options)
    plain = run(reference.attention, *inputs, **options)
    # On a GPU fp32 is multiplied as three TF32 products, which keep 21 of its 24 bits.
    factors = (16,) * 4 if device == "cuda" and dtype == torch.float32 else (2, 3, 3, 3)
    for result, true, low, factor in zip(ours, truth, plain, factors, strict=True):
        assert result.dtype == dtype
        assert_as_accurate(result, true, low, factor=factor)


@settings(max_examples=10, derandomize=True, deadline=None)
@given(
    num_queries=st.integers(1, 40), num_keys=st.integers(1, 40), head_dim=st.sampled_from(HEAD_DIMS),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]), mask=st.sampled_from(MASKS),
    block_m=st.sampled_from([16, 32, 64]), block_n=st.sampled_from([16, 32, 64]),
)  # fmt: skip
def test_any_shape_mask_and_tile(
    flash, device, exact, num_queries, num_keys, head_dim, heads, mask, block_m, block_n
):
    inputs = make(device, exact, num_queries, num_keys, head_dim, *heads)
    options = mask_options(mask, heads[0], device)
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_tiles(flash, monkeypatch, block_m, block_n)
        ours = run(flash.flash_attention, *inputs, **options)
    assert_same(ours, run(reference.attention, *inputs, **options))


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("tile", [(16, 32), (32, 16)], ids=str)
@pytest.mark.parametrize("lengths", [(31, 33), (32, 32), (33, 31), (64, 1), (1, 64)], ids=str)
def test_edges_of_tiles(flash, device, exact, poisoned, tiles, lengths, tile, mask):
    tiles(*tile)
    inputs = make(device, exact, *lengths, 16)
    options = mask_options(mask, 1, device)
    assert_same(run(flash.flash_attention, *inputs, **options), run(reference.attention, *inputs, **options))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_sizes(flash, device, exact, poisoned, head_dim):
    inputs = make(device, exact, 7, 9, head_dim, batch_size=2)
    assert_same(run(flash.flash_attention, *inputs), run(reference.attention, *inputs))


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(25, 25, 64), (32, 8, 80), (6, 1, 16)])
def test_shapes_of_models(flash, device, exact, num_heads, num_kv_heads, head_dim):
    inputs = make(device, exact, 3, 3, head_dim, num_heads, num_kv_heads)
    assert_same(run(flash.flash_attention, *inputs), run(reference.attention, *inputs))


def test_a_head_size_is_split_without_waste(flash):
    for head_dim, dtype in itertools.product(range(1, 129), (torch.bfloat16, torch.float32)):
        pieces = [width for width in flash.split_head_dim(head_dim, dtype) if width]
        assert all(width >= 16 and width.bit_count() == 1 for width in pieces)
        assert pieces == sorted(pieces, reverse=True)
        assert head_dim <= sum(pieces) <= max(16, 1 << (head_dim - 1).bit_length())
        if dtype == torch.bfloat16 and head_dim > 16:
            assert sum(pieces) < head_dim + 16 or len(pieces) == 1 or pieces[1] // 2 < head_dim - pieces[0]
        else:
            assert max(pieces) <= 64
    sizes = (40, 64, 80, 96, 128)
    assert [flash.split_head_dim(size, torch.bfloat16) for size in sizes] == [
        (32, 16),
        (64, 0),
        (64, 16),
        (64, 32),
        (128, 0),
    ]
    assert [flash.split_head_dim(size, torch.float32) for size in sizes] == [
        (64, 0),
        (64, 0),
        (64, 32),
        (64, 32),
        (64, 64),
    ]


def layouts(shape):
    """The same shape in other memory orders, strides and places, as a model or a caller may bring them."""
    batch_size, num_heads, num_rows, head_dim = shape
    return {
        "of (b s h d)": torch.randn(batch_size, num_rows, num_heads, head_dim).transpose(1, 2),
        "slice with an offset": torch.randn(batch_size + 1, num_heads, num_rows + 5, head_dim + 3)[
            1:, :, 2:-3, 3:
        ],
        "every second number": torch.randn(batch_size, num_heads, num_rows, 2 * head_dim)[..., ::2],
        "transposed": torch.randn(batch_size, num_heads, head_dim, num_rows).mT,
        "one head for all": torch.randn(batch_size, 1, num_rows, head_dim).expand(shape),
        "one row for all": torch.randn(batch_size, num_heads, 1, head_dim).expand(shape),
        "one number for all": torch.randn(1).expand(shape),
    }


@pytest.mark.parametrize("layout", list(layouts((1, 1, 1, 1))))
def test_layouts(flash, device, exact, layout):
    shape = (2, 2, 9, 24)
    q, k, v, do = inputs = [layouts(shape)[layout].to(device, exact) for _ in range(4)]
    before = [tensor.clone() for tensor in inputs]
    results = run(flash.flash_attention, q, k, v, do)
    assert all(map(torch.equal, inputs, before))
    assert_same(results, run(reference.attention, *(tensor.contiguous() for tensor in inputs)))


def test_results_have_the_memory_order_of_their_inputs(flash, device):
    for order in ("b h s d", "b s h d"):
        q, k, v, do = make(device, torch.float32, 4, 6, 16, 2, 2)
        if order == "b s h d":
            q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
        o, *gradients = run(flash.flash_attention, q, k, v, do)
        assert o.stride() == q.stride()
        assert [gradient.stride() for gradient in gradients] == [x.stride() for x in (q, k, v)]


@pytest.mark.parametrize(
    ("shape", "strides"), [((1, 3, 4, 16), (0, 2**30, 16, 1)), ((1, 1, 33, 16), (0, 0, 2**26, 1))]
)
def test_offsets_beyond_32_bits(flash, device, tiles, shape, strides):
    """The last head, or the last row, lies 2^31 numbers away, in memory of which few pages are touched."""
    tiles(16, 16)
    memory = torch.empty(2**31 + 2**10, dtype=torch.float16, device=device)
    inputs = make(device, torch.float16, shape[2], shape[2], 16, shape[1], shape[1])
    far = [memory.as_strided(shape, strides, 64 * i) for i in range(4)]
    for place, tensor in zip(far, inputs, strict=True):
        place.copy_(tensor)
    assert all(map(torch.equal, run(flash.flash_attention, *far), run(flash.flash_attention, *inputs)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, for arithmetic on nan
@pytest.mark.parametrize("position", [0, 1, 20, 39])
def test_nan_in_a_key_is_seen_by_later_queries_only(flash, device, exact, tiles, position):
    tiles(32, 16)
    q, k, v, _ = make(device, exact, 40, 40, 16)
    clean = flash.flash_attention(q, k, v)
    k[0, 0, position] = torch.nan
    o = flash.flash_attention(q, k, v)
    assert torch.equal(o[:, :, :position], clean[:, :, :position])
    assert o[:, :, position:].isnan().all()


@pytest.mark.parametrize("head_dim", [16, 40, 48])
def test_memory_around_the_inputs_does_not_matter(flash, device, exact, head_dim):
    """A number from outside, times a weight of 0, is still nan."""
    inputs = make(device, exact, 35, 37, head_dim)
    inside_nan = []
    for tensor in inputs:
        around = torch.full((1, 1, 150, head_dim + 60), torch.nan, dtype=exact, device=device)
        inside_nan.append(around[:, :, 50 : 50 + tensor.shape[2], 30 : 30 + head_dim].copy_(tensor))
    assert_same(run(flash.flash_attention, *inside_nan), run(reference.attention, *inputs))


def test_large_scores(flash, device, exact, tiles):
    tiles(16, 16)
    for factor in (1e-30, 100.0, 1e4):
        q, k, v, do = make(device, exact, 20, 40, 16)
        inputs = q * factor, k, v, do
        for is_causal in (False, True):
            ours = run(flash.flash_attention, *inputs, is_causal=is_causal)
            truth = run(reference.attention, *inputs, is_causal=is_causal)
            for result, true in zip(ours, truth, strict=True):
                assert (result - true).norm() <= 1e-3 * true.norm() + 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_agree_to_the_last_bit(flash, device, tiles, dtype):
    tiles(16, 16)
    inputs = make(device, dtype, 40, 40, 16, 2, 1)
    assert all(map(torch.equal, run(flash.flash_attention, *inputs), run(flash.flash_attention, *inputs)))


def test_the_order_of_keys_does_not_matter(flash, device, exact, tiles):
    tiles(16, 16)
    q, k, v, do = make(device, exact, 20, 40, 16)
    order = torch.randperm(40, device=device)
    o, dq, dk, dv = run(flash.flash_attention, q, k, v, do, is_causal=False)
    shuffled = run(flash.flash_attention, q, k[:, :, order], v[:, :, order], do, is_causal=False)
    assert_same(shuffled, (o, dq, dk[:, :, order], dv[:, :, order]))


def test_a_shift_of_all_scores_of_a_query_changes_only_the_log_sum_exp(flash, device, exact):
    q, k, v, _ = make(device, exact, 10, 20, 16)
    shift = torch.randn(16, device=device, dtype=exact)
    o, lse = flash.flash_forward(q, k, v, False, None)
    shifted_o, shifted_lse = flash.flash_forward(q, k + shift, v, False, None)
    assert_same((shifted_o, shifted_lse), (o, lse + q @ shift / 4))


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("heads", [(), (2,)], ids=["no heads", "heads"])
def test_the_one_vector_kept_for_backward_is_the_log_sum_exp(flash, device, exact, heads, is_causal):
    q, k, v = (
        torch.randn(3, *heads, n, 16, device=device, dtype=exact, requires_grad=True) for n in (5, 7, 7)
    )
    o = flash.FlashAttention.apply(q, k, v, is_causal)
    (lse,) = (saved for saved in o.grad_fn.saved_tensors if saved.shape == (3, *heads, 5))
    scores = q @ k.mT / 4
    if is_causal:
        scores = scores.masked_fill(torch.ones(5, 7, device=device).triu(1).bool(), -torch.inf)
    assert_same((lse,), (scores.logsumexp(-1),))
    assert lse.dtype == (torch.float64 if exact == torch.float64 else torch.float32)


def test_without_an_axis_of_heads(flash, device, exact):
    q, k, v, do = (tensor.squeeze(1) for tensor in make(device, exact, 5, 7, 16, batch_size=3))
    for is_causal in (False, True):
        ours = (
            run(flash.FlashAttention.apply, q, k, v, do)
            if not is_causal
            else run(flash.flash_attention, q, k, v, do)
        )
        assert_same(ours, run(reference.attention, q, k, v, do, is_causal=is_causal))


@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_those_of_the_function(flash, device, tiles, mask):
    if device == "cuda":
        pytest.skip("fp64 runs in the interpreter only")
    tiles(16, 16)
    q, k, v, _ = make(device, torch.float64, 5, 18, 3, 2, 1)
    options = mask_options(mask, 2, device)

    def function(q, k, v):
        return flash.flash_attention(q, k, v, **options)

    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_a_second_derivative_is_refused(flash, device):
    q, k, v, _ = make(device, torch.float32, 3, 3, 16)
    q.requires_grad_()
    (dq,) = torch.autograd.grad(flash.flash_attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


def test_without_a_gradient(flash, device):
    q, k, v, do = make(device, torch.float32, 3, 3, 16)
    q.requires_grad_()
    with torch.no_grad():
        assert not flash.flash_attention(q, k, v).requires_grad
    o = flash.flash_attention(q, k, v, alibi_slopes=torch.ones(1, device=device, requires_grad=True))
    assert torch.autograd.grad(o, q, do)[0].shape == q.shape


def test_autocast_converts_all_three(flash, device):
    q, k, v, do = make(device, torch.float32, 9, 9, 16)
    k = k.bfloat16().float()
    with torch.autocast(device, torch.bfloat16):
        ours = run(flash.flash_attention, q, k, v, do)
    truth = run(flash.flash_attention, q.bfloat16(), k.bfloat16(), v.bfloat16(), do.bfloat16())
    assert ours[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in ours[1:])
    assert all(map(torch.equal, ours[1:], (gradient.float() for gradient in truth[1:])))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(flash, device, exact, reentrant):
    q, k, v, do = make(device, exact, 9, 9, 16)
    truth = run(flash.flash_attention, q, k, v, do)
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    checkpoint(flash.flash_attention, *leaves, use_reentrant=reentrant).backward(do)
    assert_same([leaf.grad for leaf in leaves], truth[1:])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch does it itself
@pytest.mark.parametrize("kind", ["heads", "no heads", "alibi under autocast"])
def test_compiled_into_one_graph(flash, device, no_shape_checks, kind):
    q, k, v, do = make(device, torch.float32, 5, 7, 16, 2, 2)
    options = {}
    if kind == "no heads":
        q, k, v, do = (tensor[:, 0] for tensor in (q, k, v, do))
    elif kind == "alibi under autocast":
        options = mask_options("alibi", 2, device)
    compiled = torch.compile(flash.flash_attention, fullgraph=True, backend="aot_eager")
    with torch.autocast(device, torch.bfloat16, enabled=bool(options)):
        ours = run(compiled, q, k, v, do, **options)
        truth = run(flash.flash_attention, q, k, v, do, **options)
        with torch.no_grad():
            assert torch.equal(compiled(q, k, v, **options), truth[0])
    assert all(map(torch.equal, ours, truth))


@pytest.mark.parametrize("mask", ["causal", "alibi"])
def test_operators_are_what_torch_expects(flash, device, no_shape_checks, mask):
    q, k, v, do = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in make(device, torch.bfloat16, 5, 7, 16, 2, 2)
    )
    is_causal, slopes = mask_options(mask, 2, device).values()
    o, lse = flash.flash_forward(q, k, v, is_causal, slopes)
    torch.library.opcheck(flash.flash_forward.custom_op, (q, k, v, is_causal, slopes))
    torch.library.opcheck(flash.flash_backward.custom_op, (do, q, k, v, o, lse, is_causal, slopes))


@pytest.mark.parametrize("sizes", [(0, 3, 3), (1, 0, 3), (1, 3, 0), (1, 0, 0)], ids=str)
def test_empty(flash, device, sizes):
    batch_size, num_queries, num_keys = sizes
    inputs = make(device, torch.float32, num_queries, num_keys, 16, 2, 1, batch_size)
    ours = run(flash.flash_attention, *inputs, is_causal=False)
    assert [result.shape for result in ours] == [tensor.shape for tensor in (inputs[0], *inputs[:3])]
    assert not any(result.any() for result in ours)


@pytest.mark.parametrize(
    ("shapes", "options", "said"),
    [
        (((1, 2, 3, 16), (1, 2, 5, 16), (1, 2, 6, 16)), {}, r"\(1, 2, 5, 16\), \(1, 2, 6, 16\)"),
        (((1, 2, 3, 16), (2, 2, 3, 16), (2, 2, 3, 16)), {}, r"\(2, 2, 3, 16\)"),
        (((1, 2, 3, 16), (1, 2, 3, 32), (1, 2, 3, 32)), {}, r"\(1, 2, 3, 32\)"),
        (((1, 3, 16), (1, 1, 3, 16), (1, 1, 3, 16)), {}, r"\(1, 3, 16\)"),
        (((3, 16), (3, 16), (3, 16)), {}, "want"),
        (((1, 3, 3, 16), (1, 2, 3, 16), (1, 2, 3, 16)), {}, "3 query heads cannot share 2"),
        (((1, 3, 3, 16), (1, 0, 3, 16), (1, 0, 3, 16)), {}, "3 query heads cannot share 0"),
        (((1, 2, 3, 129),) * 3, {}, "--attention sdpa"),
        (((1, 2, 3, 0),) * 3, {}, "from 1 to 128, not 0"),
        (((1, 2, 3, 16),) * 3, {"alibi_slopes": torch.ones(3)}, r"2 heads .*\(3,\)"),
        (((1, 2, 3, 16),) * 3, {"alibi_slopes": torch.ones(2), "is_causal": False}, "is_causal=True"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(flash, device, no_shape_checks, shapes, options, said):
    options = {name: value.to(device) if name == "alibi_slopes" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=said) as caught:
        flash.flash_attention(*(torch.randn(shape, device=device) for shape in shapes), **options)
    assert "\n" not in str(caught.value)


def test_other_types_are_refused(flash, device, no_shape_checks):
    q, k, v, _ = make(device, torch.float32, 3, 3, 16)
    with pytest.raises(ValueError, match=r"float32.*bfloat16"):
        flash.flash_attention(q, k, v.bfloat16())
    with pytest.raises(UnsupportedError, match="int64"):
        flash.flash_attention(q.long(), k.long(), v.long())


def test_lse_is_kept_in_fp32(flash, device):
    q, k, v, _ = make(device, torch.bfloat16, 3, 3, 16)
    o, lse = flash.flash_forward(q, k, v, True, None)
    assert (o.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(lse[0, 0, 0], (q[0, 0, 0].float() @ k[0, 0, 0].float()) / math.sqrt(16))


def test_fp32_products_are_as_exact_as_torch_was_told(flash):
    found = []
    for wanted in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(wanted)
        found.append((flash._precision(torch.float32), flash._precision(torch.bfloat16)))
    assert found == [("tf32x3", "tf32"), ("tf32", "tf32"), ("tf32", "tf32")]


KERNELS = ("forward", "dq", "dkdv")


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (7, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_gpu_has_candidates_and_the_default_is_the_first(flash, capability, dtype):
    from cs_systems.kernels.flash_configs import candidates, choose_config

    for kernel in KERNELS:
        for head_dim in HEAD_DIMS:
            found = candidates(kernel, head_dim, dtype, capability)
            assert choose_config(kernel, head_dim, dtype, capability) == found[0]
            assert len(set(found)) == len(found)
            for config in found:
                assert config.block_m >= 16
                assert config.block_n >= 16


def test_a_measured_configuration_replaces_the_default(flash, device, monkeypatch):
    asked = []
    found = {"block_m": 16, "block_n": 32, "num_warps": 4, "num_stages": 1}

    def cached_config(kernel, key, device):
        asked.append((kernel, key["head_dim"], key["dtype"], key["is_causal"], device.type))
        return found

    monkeypatch.setattr(flash, "cached_config", cached_config)
    launched = []
    for name in KERNELS:
        launch = getattr(flash, f"launch_{name}")
        monkeypatch.setattr(
            flash, f"launch_{name}", lambda *args, launch=launch: (launched.append(args[-1]), launch(*args))
        )
    inputs = make(device, torch.bfloat16, 5, 5, 24)
    ours = run(flash.flash_attention, *inputs)
    assert asked == [(f"flash_{kernel}", 24, "bf16", True, device) for kernel in KERNELS]
    assert launched == [flash.TileConfig(**found)] * 3
    torch.testing.assert_close(ours[0], reference.attention(*inputs[:3]), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_variants_are_the_defaults(flash, capability):
    variants = flash.variants(capability)
    names = [(variant.kernel.__name__, variant.label) for variant in variants]
    assert len(set(names)) == len(names)
    for variant in variants:
        kernel = variant.kernel.__name__.removeprefix("flash_").removesuffix("_kernel")
        dtype = getattr(
            torch, {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[variant.types["q_ptr"][1:]]
        )
        config = flash.choose_config(kernel, variant.constants["HEAD_DIM"], dtype, capability)
        assert (variant.constants["BLOCK_M"], variant.constants["BLOCK_N"]) == (
            config.block_m,
            config.block_n,
        )
        assert (variant.num_warps, variant.num_stages) == (config.num_warps, config.num_stages)
        assert variant.uses_tensor_cores
