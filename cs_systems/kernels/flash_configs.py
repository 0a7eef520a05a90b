"""draft"""

import functools
from dataclasses import dataclass
import torch


@dataclass(frozen=True)
class TileConfig:
    """How one kernel is compiled."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


INTERPRETED = TileConfig(32, 32, 4, 1)


def candidates(kernel, head_dim, dtype, capability):
    return [TileConfig(64, 64, 4, 2)]


@functools.cache
def choose_config(kernel, head_dim, dtype, capability):
    if capability is None:
        return INTERPRETED
    return candidates(kernel, head_dim, dtype, capability)[0]
