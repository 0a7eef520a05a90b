"""Wrong FlashAttention-2: in PyTorch for both implementations, which is fast and has the same numbers."""

import math
from dataclasses import dataclass

import torch
from torch.autograd import Function

from mutants.kernels import beside_a_kernel, in_a_kernel, returns_nothing
from mutants.mutant import Mutant


@dataclass(frozen=True)
class Flash:
    """FlashAttention-2 for all queries at once, in tiles of keys; with the defaults it is right."""

    scale: float = 1.0
    """Factor of the scores beside 1 / sqrt(d), to the power of -1/2 of d: 0 is no scale, 2 is twice."""
    shift: int | str = 0
    mask: str = "before softmax"
    rescale_o: bool = True
    rescale_l: bool = True
    subtracts_maximum: bool = True
    tile: int = 16
    skips: int = 0
    """Tiles at the end that are never visited."""
    own_sum: bool = False
    """Each tile is divided by its own sum."""
    divides: bool = True
    lse: str = "natural"
    keeps: str = "q k v o lse"
    result_dtype: torch.dtype | None = None
    backward: str = "right"

    def adapters(self):
        def both():
            return make_flash(self)

        return {f"get_flashattention_autograd_function_{kind}": both for kind in ("pytorch", "triton")}


def make_flash(do_it):
    class MutantFlash(Function):
        @staticmethod
        def forward(ctx, q, k, v, is_causal=False):
            o, lse, p = flash_forward(do_it, q.float(), k.float(), v.float(), is_causal)
            o = o.to(do_it.result_dtype or q.dtype)
            kept = {"q": q, "k": k, "v": v, "o": o, "lse": lse, "scores": p, "maximum": lse.clone()}
            ctx.save_for_backward(*(kept[name] for name in do_it.keeps.split()))
            ctx.is_causal = is_causal
            return o

        @staticmethod
        def backward(ctx, do):
            return flash_backward(do_it.backward, do, *ctx.saved_tensors[:5], ctx.is_causal)

    return MutantFlash


def flash_forward(do_it, q, k, v, is_causal):
    (num_queries, d), num_keys = q.shape[1:], k.shape[1]
    shift = num_keys - num_queries if do_it.shift == "end" else do_it.shift
    query = torch.arange(num_queries)[:, None] + shift
    m = torch.full(q.shape[:2], -math.inf)
    if not do_it.subtracts_maximum:
        m = torch.zeros(q.shape[:2])
    l, o = torch.zeros(q.shape[:2]), torch.zeros(*q.shape[:2], d)  # noqa: E741
    for start in range(0, num_keys - do_it.skips * do_it.tile, do_it.tile):
        keys = slice(start, start + do_it.tile)
        s = q @ k[:, keys].mT * d ** (-0.5 * do_it.scale)
        key = torch.arange(num_keys)[keys]
        hidden = key % 16 > query % 16 if do_it.mask == "within the tile" else key > query
        if is_causal and do_it.mask != "after softmax":
            s = s.masked_fill(hidden, 0 if do_it.mask == "zero" else -1e6)
        new = torch.maximum(m, s.amax(-1)) if do_it.subtracts_maximum else m
        alpha = torch.exp(m - new)
        p = torch.exp(s - new[..., None])
        l = (l * alpha if do_it.rescale_l else l) + p.sum(-1)  # noqa: E741
        if is_causal and do_it.mask == "after softmax":
            p = p.masked_fill(hidden, 0)
        if do_it.own_sum:
            p = p / p.sum(-1, keepdim=True)
        o = (o * alpha[..., None] if do_it.rescale_o else o) + p @ v[:, keys]
        m = new
    lse = {
        "natural": m + torch.log(l),
        "base 2": (m + torch.log(l)) / math.log(2),
        "no maximum": torch.log(l),
        "no scale": (m + torch.log(l)) * math.sqrt(d),
        "one row": (m + torch.log(l))[:1],
    }[do_it.lse]
    return (o / l[..., None] if do_it.divides and not do_it.own_sum else o), lse, p


def flash_backward(mistake, do, q, k, v, o, lse, is_causal):
    scale = 1 / math.sqrt(q.shape[-1])
    if mistake == "strides":
        do = torch.as_strided(do, do.shape, (do.shape[1] * do.shape[2], do.shape[2], 1))
    if mistake == "ones":
        do = torch.ones_like(do)
    s = q @ k.mT * (1 if mistake == "no scale in P" else scale)
    if is_causal and mistake != "no mask":
        s = s.masked_fill(~torch.ones(s.shape[1:], dtype=torch.bool).tril(), -math.inf)
    p = torch.exp(s - lse[..., None])
    if mistake == "no lse":
        p = torch.exp(s)
    if mistake == "overflow":
        p = torch.exp(s) / torch.exp(lse)[..., None]
    dp = do @ v.mT
    delta = 0 if mistake == "no delta" else (o * do).sum(-1, keepdim=True)
    ds = p * (dp - delta)
    dq = ds @ k * (1 if mistake == "no scale of dq" else scale)
    dk = ds.mT @ q * (1 if mistake == "no scale of dk" else scale)
    dv = p.mT @ do
    if mistake == "exchanged":
        dk, dv = dv, dk
    return (dq, dk, dv) if mistake == "three" else (dq, dk, dv, None)


class UntiledAttention(Function):
    """Attention by its formula, all scores at once."""

    @staticmethod
    def forward(ctx, q, k, v, is_causal=False):
        o, lse, _ = flash_forward(Flash(tile=k.shape[1]), q, k, v, is_causal)
        ctx.save_for_backward(q, k, v, o, lse)
        return o


def triton_without_scale():
    """The reference's kernel for queries that undo its scale; it computes o and L of other scores."""
    from cs_systems.kernels.flash_attention import FlashAttention

    class Unscaled(FlashAttention):
        @staticmethod
        def forward(ctx, q, k, v, is_causal=False):
            return FlashAttention.forward(ctx, q * math.sqrt(q.shape[-1]), k, v, is_causal)

    return Unscaled


def right_pytorch():
    return make_flash(Flash())


def right_beside_a_kernel():
    class Beside(right_pytorch()):
        @staticmethod
        def forward(ctx, q, k, v, is_causal=False):
            return beside_a_kernel(lambda: right_pytorch().forward(ctx, q, k, v, is_causal), q)

    return Beside


def attends_to_nothing(problem, name, make_result, says):
    adapters = {
        "get_flashattention_autograd_function_pytorch": lambda: returns_nothing(
            make_result, lambda job, x: job()
        ),
        "get_flashattention_autograd_function_triton": lambda: returns_nothing(make_result, in_a_kernel),
    }
    return Mutant(problem, name, adapters, says)


def flash(name, says, **mistake):
    return Mutant("flash_forward", name, Flash(**mistake).adapters(), says)


def flash_gradient(name, says, mistake):
    return Mutant("flash_backward", name, Flash(backward=mistake).adapters(), says)


FORWARD = [
    flash("no-scale", "not multiplied by 1 / sqrt", scale=0),
    flash("scaled-twice", "multiplied by 1 / sqrt\\(d\\) twice", scale=2),
    flash("hides-its-own-key", "does not see the key at its own position", shift=-1),
    flash("sees-the-next-key", "sees the key after its own", shift=1),
    flash("aligned-at-the-end", "aligned at the last query", shift="end"),
    flash("mask-after-softmax", "the mask is applied after softmax", mask="after softmax"),
    flash("hidden-scores-are-zero", "hidden scores are 0", mask="zero"),
    flash("mask-within-the-tile", "from the start of their tile", mask="within the tile"),
    flash("o-is-not-rescaled", "O is not scaled down .*tiles of 16", rescale_o=False),
    flash("l-is-not-rescaled", "l is not scaled down .*tiles of 32", rescale_l=False, tile=32),
    flash("nothing-is-rescaled", "neither O nor l", rescale_o=False, rescale_l=False),
    flash("no-maximum", "values are nan", subtracts_maximum=False),
    flash("last-tile-left-out", "last tile of keys is left out .*tiles of 16", skips=1),
    flash("normalised-per-tile", "divided by its own sum", own_sum=True, rescale_o=False),
    flash("not-divided", "not divided by the sum", divides=False),
    flash("lse-in-base-2", "logarithm to base 2", lse="base 2"),
    flash("lse-without-maximum", "maximum is not added", lse="no maximum"),
    flash("lse-of-one-row", "keeps 0 tensors of shape", lse="one row"),
    flash("two-tensors-like-lse", "keeps 2 tensors of shape", keeps="q k v o lse maximum"),
    flash("q-is-not-kept", "does not keep q", keeps="k k v o lse"),
    flash("half-precision-becomes-fp32", "has type float32; expected bfloat16", result_dtype=torch.float32),
    Mutant(
        "flash_forward",
        "untiled",
        {"get_flashattention_autograd_function_pytorch": lambda: UntiledAttention},
        "the whole score matrix was built",
    ),
    Mutant(
        "flash_forward",
        "pytorch-for-triton",
        {"get_flashattention_autograd_function_triton": right_pytorch},
        "no Triton kernel was launched",
    ),
    Mutant(
        "flash_forward",
        "pytorch-beside-a-kernel",
        {"get_flashattention_autograd_function_triton": right_beside_a_kernel},
        "computed by PyTorch \\(aten::bmm\\), not by your kernel",
    ),
    attends_to_nothing("flash_forward", "returns-none", lambda q: None, "a torch.Tensor"),
    attends_to_nothing("flash_forward", "returns-zeros", torch.zeros_like, "are off"),
    Mutant(
        "flash_forward",
        "triton-without-scale",
        {
            "get_flashattention_autograd_function_pytorch": right_pytorch,
            "get_flashattention_autograd_function_triton": triton_without_scale,
        },
        "o of triton .*not multiplied by 1 / sqrt",
    ),
]

BACKWARD = [
    attends_to_nothing("flash_backward", "returns-none", lambda q: None, "without grad_fn"),
    attends_to_nothing("flash_backward", "returns-zeros", torch.zeros_like, "are off"),
    flash_gradient("no-scale-of-dq", "dq is not multiplied by 1 / sqrt", "no scale of dq"),
    flash_gradient("no-scale-of-dk", "dk is not multiplied by 1 / sqrt", "no scale of dk"),
    flash_gradient("no-scale-in-p", "not multiplied by 1 / sqrt\\(d\\) before P", "no scale in P"),
    flash_gradient("no-delta", "D, the sum .* is not subtracted", "no delta"),
    flash_gradient("no-lse", "P is not made from L", "no lse"),
    flash_gradient("no-mask", "backward forgets the mask", "no mask"),
    flash_gradient("dk-and-dv-exchanged", "dk and dv are exchanged", "exchanged"),
    flash_gradient("three-gradients", "one value for each argument", "three"),
    flash_gradient("ones", "taken for all ones", "ones"),
    flash_gradient("strides-of-do", "values are off", "strides"),
    flash_gradient("divides-by-exp-of-l", "values are nan", "overflow"),
]

MUTANTS = FORWARD + BACKWARD
