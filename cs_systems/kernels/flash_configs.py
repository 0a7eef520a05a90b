"""Tiles of the attention kernels: what runs without measuring, and what is worth measuring.

A tile is too small when a program loads more than it computes, and too large when its numbers no longer fit
into registers: the compiler then spills them to memory in silence, and a kernel may run several times slower.
So everything here was compiled for its architecture under Triton 3.6.0 and 3.7.1, with and without the causal
mask, and with ALiBi and shared key heads, and does not spill. (3.9.0 spills a few registers in some.) Which
of these is the fastest only a GPU can tell: a launch takes what `tune.py` measured there, else the first.
"""

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TileConfig:
    """How a kernel is compiled: BLOCK_M queries by BLOCK_N keys at a time, by so many warps of 32 threads."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    """Tiles in shared memory: one in use, the others on their way."""


INTERPRETED = TileConfig(64, 64, num_warps=4, num_stages=1)
"""In the interpreter, where the number of tiles is what takes time."""

_Tiles = dict[int, list[tuple[int, int, int, int]]]
"""By head size, up to and with the key: block_m, block_n, num_warps, num_stages."""

# wgmma reads its second factor from shared memory, of which there are 227 KiB: large tiles.
_SM_90_16_BIT: dict[str, _Tiles] = {
    "forward": {
        64: [(128, 64, 4, 3), (128, 64, 4, 2), (128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 3),
             (128, 32, 4, 4), (64, 128, 4, 2), (64, 64, 4, 3)],
        96: [(128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 128, 8, 3), (128, 32, 4, 4),
             (64, 64, 4, 3)],
        128: [(128, 64, 8, 3), (128, 128, 8, 2), (128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 3),
              (64, 64, 4, 2)],
    },
    "dq": {
        64: [(128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 32, 4, 3), (64, 64, 4, 3),
             (64, 64, 4, 2)],
        96: [(128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 3)],
        128: [(128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 4, 3)],
    },
    "dkdv": {
        64: [(64, 128, 8, 3), (64, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (32, 128, 8, 3),
             (32, 64, 4, 3)],
        96: [(64, 128, 8, 3), (32, 128, 8, 3), (32, 64, 4, 3), (64, 64, 8, 2)],
        128: [(32, 128, 8, 3), (32, 128, 8, 2), (32, 64, 8, 3)],
    },
}  # fmt: skip

# mma takes both factors from registers. At most 99 KiB of shared memory, so that RTX cards run it, too.
_SM_80_16_BIT: dict[str, _Tiles] = {
    "forward": {
        64: [(128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 4, 3), (64, 32, 4, 3)],
        96: [(128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 4, 3)],
        128: [(128, 32, 8, 3), (64, 32, 4, 3)],
    },
    "dq": {
        64: [(128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2), (64, 32, 4, 3), (64, 32, 4, 2)],
        96: [(128, 32, 8, 2), (64, 32, 4, 2), (32, 32, 4, 2)],
        128: [(128, 32, 8, 2), (64, 64, 8, 2), (64, 32, 4, 3), (64, 32, 4, 2)],
    },
    "dkdv": {
        64: [(32, 128, 8, 2), (32, 64, 8, 2), (16, 64, 4, 2)],
        80: [(32, 128, 8, 2), (32, 32, 4, 2), (16, 64, 4, 2)],
        96: [(16, 64, 4, 2)],
        128: [(64, 64, 8, 2), (32, 64, 8, 2), (16, 64, 4, 2)],
    },
}  # fmt: skip

# Exact products take every factor apart into two numbers of TF32, twice the registers: small tiles.
_SM_90_FP32: dict[str, _Tiles] = {
    "forward": {
        64: [(64, 32, 4, 2), (128, 32, 8, 2), (64, 16, 4, 2), (32, 32, 4, 2)],
        96: [(128, 16, 8, 2)],
        128: [(64, 16, 4, 2), (32, 32, 4, 2)],
    },
    "dq": {
        64: [(64, 16, 4, 2), (64, 32, 8, 2), (32, 32, 4, 2)],
        96: [(16, 16, 2, 2)],
        128: [(64, 16, 4, 2), (16, 16, 2, 2)],
    },
    "dkdv": {
        16: [(16, 32, 4, 2)],
        32: [(16, 16, 4, 2), (32, 16, 4, 2)],
        64: [(16, 32, 4, 2), (16, 16, 4, 2)],
        128: [(16, 16, 4, 2)],
    },
}
_SM_80_FP32: dict[str, _Tiles] = {
    "forward": {
        64: [(32, 32, 4, 2)],
        96: [(16, 16, 2, 2), (16, 16, 4, 2)],
        128: [(64, 16, 4, 2)],
    },
    "dq": {64: [(32, 32, 4, 2), (32, 16, 4, 2)], 128: [(16, 16, 2, 2)]},
    "dkdv": {
        16: [(16, 32, 4, 2)],
        32: [(16, 16, 4, 2), (32, 16, 4, 2)],
        64: [(16, 32, 4, 2), (16, 16, 4, 2)],
        128: [(16, 16, 4, 2)],
    },
}


def candidates(
    kernel: str, head_dim: int, dtype: torch.dtype, capability: tuple[int, int] | None
) -> list[TileConfig]:
    """Tiles that do not spill, for the kernel "forward", "dq" or "dkdv"; the default is the first.

    Args:
        kernel: its name.
        head_dim: from 1 to 128.
        dtype: of the inputs.
        capability: of the GPU, (9, 0) for H100 and H200; None in the interpreter.
    """
    if capability is None:
        return [INTERPRETED]
    large = capability[0] in (9, 10)  # data centre GPUs since Hopper
    if dtype.itemsize == 2:
        tables = _SM_90_16_BIT if large else _SM_80_16_BIT
    else:
        tables = _SM_90_FP32 if large else _SM_80_FP32
    tiles = tables[kernel]
    return [TileConfig(*tile) for tile in tiles[min(width for width in tiles if width >= head_dim)]]


@functools.cache
def choose_config(
    kernel: str, head_dim: int, dtype: torch.dtype, capability: tuple[int, int] | None
) -> TileConfig:
    """The default: what runs where nothing was measured."""
    return candidates(kernel, head_dim, dtype, capability)[0]
