"""FlashAttention-2 on a GPU: softmax(q k^T / sqrt(d_head)) v without ever writing the scores to memory.

Eager PyTorch moves each score 8 times forward (product; scale; mask; softmax; product with v) and 11 times
backward. For a head of size 64 with 4096 queries and keys in bf16 that is 268 MB and 369 MB. The kernels read
q, k, v and write o and one fp32 number a query, 2.1 MB; backward reads and writes 6.4 MB. They read k and v
again for each block of queries, mostly from the L2 cache. The price is arithmetic: backward computes the
scores twice, once for dq and once for dk and dv.

Here are the functions that allocate and launch, the `autograd.Function`, and what people call.
"""

# BEGIN INSTRUCTOR
# `flash_kernels.py` holds the kernels, `flash_configs.py` the sizes of their tiles. With the scores computed
# twice, backward has 7 matrix products, where eager has 4.
# END INSTRUCTOR

import functools
import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_systems.device import DTYPES, UnsupportedError, compute_capability
from cs_systems.kernels.flash_configs import TileConfig, choose_config
from cs_systems.kernels.flash_kernels import flash_dkdv_kernel, flash_dq_kernel, flash_forward_kernel
from cs_systems.kernels.language import accumulator
from cs_systems.kernels.launch import Variant, ceil_div, check_runnable, next_power_of_2, operator
from cs_systems.kernels.tuning import cached_config

MAX_HEAD_DIM = 128

# BEGIN SOLUTION flash_forward
_FP32_POINTERS = ("lse_ptr", "lse2_ptr", "delta_ptr", "slopes_ptr")
_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.float64: "fp64"}
_capability = functools.cache(compute_capability)


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, slopes: Tensor | None, is_causal: bool,
    config: TileConfig,
) -> None:  # fmt: skip
    """Fill o and lse. All launches want (batch, heads, rows, d_head) with a last stride of 1."""
    batch_size, num_heads, num_queries, _ = q.shape
    flash_forward_kernel[(batch_size * num_heads * ceil_div(num_queries, config.block_m),)](
        q, k, v, o, lse, slopes,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
        num_heads, num_queries, k.shape[2], **_constants(q, k, is_causal, config),
    )  # fmt: skip


# END SOLUTION


# BEGIN SOLUTION flash_backward
def launch_dq(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, slopes: Tensor | None,
    dq: Tensor, lse2: Tensor, delta: Tensor, is_causal: bool, config: TileConfig,
) -> None:  # fmt: skip
    """Fill dq, and for `launch_dkdv` lse2 and delta, both shaped as lse."""
    batch_size, num_heads, num_queries, _ = q.shape
    flash_dq_kernel[(batch_size * num_heads * ceil_div(num_queries, config.block_m),)](
        q, k, v, o, do, lse, slopes, dq, lse2, delta,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *o.stride()[:3], *do.stride()[:3], *dq.stride()[:3],
        num_heads, num_queries, k.shape[2], **_constants(q, k, is_causal, config),
    )  # fmt: skip


def launch_dkdv(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, lse2: Tensor, delta: Tensor, slopes: Tensor | None,
    dk: Tensor, dv: Tensor, is_causal: bool, config: TileConfig,
) -> None:  # fmt: skip
    """Fill dk and dv."""
    batch_size, num_kv_heads, num_keys, _ = k.shape
    flash_dkdv_kernel[(batch_size * num_kv_heads * ceil_div(num_keys, config.block_n),)](
        q, k, v, do, lse2, delta, slopes, dk, dv,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *do.stride()[:3], *dk.stride()[:3], *dv.stride()[:3],
        num_kv_heads, q.shape[2], num_keys, **_constants(q, k, is_causal, config),
    )  # fmt: skip


# END SOLUTION


# BEGIN SOLUTION flash_forward
def split_head_dim(head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """Widths of the one or two pieces of a row: powers of two from 16 on, 0 for no second piece.

    80 is 64 + 16, and 40 is 32 + 16, of which 8 are masked; where two pieces save nothing, there is one.
    Exact products of fp32 need many registers: there a piece has at most 64 numbers, and a second one at
    least 32, because with 16 the compiled kernels spill.
    """
    is_fp32 = dtype == torch.float32
    whole = max(16, next_power_of_2(head_dim))
    half = whole // 2
    rest = max(32 if is_fp32 else 16, next_power_of_2(head_dim - half))
    saves = half >= 16 and half + rest < whole
    return (half, rest) if saves or (is_fp32 and whole > 64) else (whole, 0)


def _constants(q: Tensor, k: Tensor, is_causal: bool, config: TileConfig) -> dict[str, Any]:
    """What a kernel is compiled for."""
    head_dim = q.shape[3]
    first, second = split_head_dim(head_dim, q.dtype)
    return {
        "GROUP": q.shape[1] // k.shape[1],
        "IS_CAUSAL": is_causal,
        "HEAD_DIM": head_dim,
        "D0": first,
        "D1": second,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "ACC": accumulator(q.dtype),
        "PRECISION": _precision(q.dtype),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def _precision(dtype: torch.dtype) -> str:
    """How fp32 is multiplied, as `torch.set_float32_matmul_precision` wants it; 16-bit types have one way.

    "highest" becomes three TF32 products, whose sum is nearly that of fp32. True fp32 products ("ieee") would
    run without tensor cores, and such large tiles of them do not fit into registers.
    """
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if exact else "tf32"


def _config(kernel: str, q: Tensor, is_causal: bool) -> TileConfig:
    """What was measured on this GPU for "forward", "dq" or "dkdv", else the default."""
    head_dim = q.shape[3]
    key = {"head_dim": head_dim, "dtype": _NAMES[q.dtype], "is_causal": is_causal}
    tuned = cached_config(f"flash_{kernel}", key, q.device)
    return TileConfig(**tuned) if tuned else choose_config(kernel, head_dim, q.dtype, _capability(q.device))


def _like(x: Tensor) -> Tensor:
    """Uninitialised, of the shape of x and in its memory order: (b h s d), or a view of (b s h d)."""
    if x.stride(1) < x.stride(2):
        batch_size, num_heads, num_rows, head_dim = x.shape
        shape = (batch_size, num_rows, num_heads, head_dim)
        return torch.empty(shape, dtype=x.dtype, device=x.device).transpose(1, 2)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _vector(q: Tensor) -> Tensor:
    """Uninitialised, one number a query."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty(q.shape[:3], dtype=wide, device=q.device)


def _rows(x: Tensor) -> Tensor:
    """x, or a copy where the numbers of a row do not lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _fake_forward(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(q), _vector(q)


@operator("flash_forward", fake=_fake_forward)
def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, alibi_slopes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o and the log-sum-exp of the scaled scores, in fp32, from (batch, heads, rows, d_head)."""
    o, lse = _like(q), _vector(q)
    q, k, v = _rows(q), _rows(k), _rows(v)
    launch_forward(q, k, v, o, lse, alibi_slopes, is_causal, _config("forward", q, is_causal))
    return o, lse


# END SOLUTION


# BEGIN SOLUTION flash_backward
def _fake_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _like(k), _like(v)


@operator("flash_backward", fake=_fake_backward)
def flash_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor,
    is_causal: bool, alibi_slopes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients dq, dk, dv from what forward saw and made."""
    dq, dk, dv = _like(q), _like(k), _like(v)
    lse2, delta = _vector(q), _vector(q)
    do, q, k, v, o = (_rows(tensor) for tensor in (do, q, k, v, o))
    config = _config("dq", q, is_causal)
    launch_dq(do, q, k, v, o, lse, alibi_slopes, dq, lse2, delta, is_causal, config)
    config = _config("dkdv", q, is_causal)
    launch_dkdv(do, q, k, v, lse2, delta, alibi_slopes, dk, dv, is_causal, config)
    return dq, dk, dv


# END SOLUTION


class FlashAttention(torch.autograd.Function):
    """Attention of (batch, heads, rows, d_head), or of (batch, rows, d_head); keeps q, k, v, o and lse."""

    @staticmethod
    def forward(ctx, q, k, v, is_causal=False, alibi_slopes=None):
        """o, shaped as q; lse is (batch, heads, queries), or (batch, queries) where there are no heads."""
        _check(q, k, v, is_causal, alibi_slopes)
        # BEGIN SOLUTION flash_forward
        if alibi_slopes is not None:
            alibi_slopes = alibi_slopes.contiguous()
        o, lse = flash_forward(*_with_heads(q, k, v), is_causal, alibi_slopes)
        if q.ndim == 3:
            o, lse = o.squeeze(1), lse.squeeze(1)
        ctx.save_for_backward(q, k, v, o, lse, *(() if alibi_slopes is None else (alibi_slopes,)))
        ctx.is_causal = is_causal
        return o
        # END SOLUTION

    @staticmethod
    @once_differentiable
    def backward(ctx, do):
        """dq, dk, dv."""
        # BEGIN SOLUTION flash_backward
        q, k, v, o, lse, *slopes = ctx.saved_tensors
        do, q4, k, v, o = _with_heads(do, q, k, v, o)
        gradients = flash_backward(
            do, q4, k, v, o, lse.view(q4.shape[:3]), ctx.is_causal, *(slopes or [None])
        )
        if q.ndim == 3:
            gradients = [gradient.squeeze(1) for gradient in gradients]
        return *gradients, None, None
        # END SOLUTION


def flash_attention(
    q: Float[Tensor, "batch *heads queries d_head"],
    k: Float[Tensor, "batch *kv_heads keys d_head"],
    v: Float[Tensor, "batch *kv_heads keys d_head"],
    *,
    is_causal: bool = True,
    alibi_slopes: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch *heads queries d_head"]:
    """Attention in the dtype (under autocast, that of autocast) and the memory order of `q`, for any strides.

    Query heads share key heads in equal groups; keys are not expanded for that. A query without keys gets 0.

    Args:
        q: queries, with or without an axis of heads.
        k: keys; kv_heads divides heads.
        v: values.
        is_causal: hide key j from query i < j, also where there are more queries than keys or fewer.
        alibi_slopes: adds slope * (j - i) to the scaled scores of each head; only when causal. No gradient.

    Raises:
        UnsupportedError: when Triton cannot run on these tensors, or d_head is too large; the message says
            what to do.
        ValueError: when shapes or dtypes do not fit together.
    """
    device_type = q.device.type
    if torch.is_autocast_enabled(device_type) and q.dtype != torch.float64:  # which torch leaves alone, too
        dtype = torch.get_autocast_dtype(device_type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    return FlashAttention.apply(q, k, v, is_causal, alibi_slopes)


def _check(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, alibi_slopes: Tensor | None) -> None:
    check_runnable(q, k, v, *(() if alibi_slopes is None else (alibi_slopes,)))
    head_dim = q.shape[-1]
    fits = k.shape == v.shape and q.ndim == k.ndim and q.ndim in (3, 4)
    if not fits or q.shape[0] != k.shape[0] or head_dim != k.shape[-1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"q, k, v of shapes {shapes}: want (batch, heads, rows, d_head), or no heads")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: convert them to one dtype")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise UnsupportedError(
            f"flash attention takes head sizes from 1 to {MAX_HEAD_DIM}, not {head_dim}; use --attention sdpa"
        )
    num_heads, num_kv_heads = q.shape[1:-2].numel(), k.shape[1:-2].numel()  # 1 where there is no such axis
    if num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key heads in equal groups")
    if alibi_slopes is not None and not is_causal:
        raise ValueError("ALiBi is defined for causal attention: pass is_causal=True")
    if alibi_slopes is not None and alibi_slopes.shape != (num_heads,):
        raise ValueError(f"{num_heads} heads need as many slopes, not {tuple(alibi_slopes.shape)}")


# BEGIN SOLUTION flash_forward
def _with_heads(*tensors: Tensor) -> list[Tensor]:
    return [tensor if tensor.ndim == 4 else tensor.unsqueeze(1) for tensor in tensors]


# END SOLUTION


# BEGIN INSTRUCTOR
def variants(capability: tuple[int, int]) -> list[Variant]:
    """Every default tile of this GPU with each type and mask, and with ALiBi for shared key heads."""
    found = []
    plain = itertools.product(("bf16", "fp16", "fp32"), (16, 32, 64, 80, 96, 128), (False, True), (False,))
    with_alibi = itertools.product(("bf16",), (64, 80, 128), (True,), (True,))
    for dtype, head_dim, is_causal, has_alibi in (*plain, *with_alibi):
        q = torch.empty(1, 4, 16, head_dim, dtype=DTYPES[dtype], device="meta")
        k = q[:, :1] if has_alibi else q
        label = f"{dtype} {head_dim} {'causal' if is_causal else 'full'}{' alibi' if has_alibi else ''}"
        for kernel in (flash_forward_kernel, flash_dq_kernel, flash_dkdv_kernel):
            name = kernel.__name__.removeprefix("flash_").removesuffix("_kernel")
            config = choose_config(name, head_dim, q.dtype, capability)
            constants = _constants(q, k, is_causal, config)
            num_warps, num_stages = constants.pop("num_warps"), constants.pop("num_stages")
            pointers = [argument for argument in kernel.arg_names if argument.endswith("_ptr")]
            types = {
                argument: "*fp32" if argument in _FP32_POINTERS else f"*{dtype}" for argument in pointers
            }
            if not has_alibi:
                constants["slopes_ptr"] = None
                del types["slopes_ptr"]
            divisible = tuple(argument for argument in kernel.arg_names if argument.endswith("_stride"))
            found.append(
                Variant(kernel, label, types, constants, num_warps, num_stages,
                        (*divisible, "num_queries", "num_keys"), uses_tensor_cores=True)
            )  # fmt: skip
    return found


# END INSTRUCTOR
