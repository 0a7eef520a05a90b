"""Race the tiles of the three attention kernels against each other on a GPU; `tune.py` is the command.

A candidate is timed only after it gave the result of PyTorch's own attention: a compiler's mistake may be
fast. One that does not compile, does not fit or is wrong gets a row that says so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton.testing
from torch import Tensor
from torch.nn import functional as F
from triton.errors import TritonError

from cs_systems.device import DTYPES, compute_capability
from cs_systems.kernels.flash_attention import flash_forward, launch_dkdv, launch_dq, launch_forward
from cs_systems.kernels.flash_configs import TileConfig, candidates
from cs_systems.kernels.tuning import cached_config, store_config

NUM_PRODUCTS = {"forward": 2, "dq": 3, "dkdv": 4}
"""Matrix products of seq_len x seq_len x head_dim in each kernel, by which its speed is counted."""

LARGEST_ERROR = 0.05
"""Of the largest number in the result. Rounding to bf16 costs less than 0.01, a mistake costs about 1."""

Timer = Callable[[Callable[[], None]], float]
"""From something to run to its milliseconds."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One kernel on one kind of input."""

    kernel: str
    head_dim: int
    dtype: str
    is_causal: bool
    batch_size: int
    num_heads: int
    seq_len: int

    @property
    def key(self) -> dict[str, str | int | bool]:
        """Under which the winner is stored, and launches look for it."""
        return {"head_dim": self.head_dim, "dtype": self.dtype, "is_causal": self.is_causal}

    @property
    def flops(self) -> float:
        """Of the matrix products, without the half that a causal mask hides."""
        num_scores = self.batch_size * self.num_heads * self.seq_len**2 * (0.5 if self.is_causal else 1)
        return 2 * NUM_PRODUCTS[self.kernel] * num_scores * self.head_dim

    def __str__(self) -> str:
        mask = "causal" if self.is_causal else "full"
        return f"{self.kernel}, head_dim {self.head_dim}, {self.dtype}, {mask}"


def measure(case: Case, config: TileConfig, device: torch.device, timer: Timer) -> float:
    """Seconds of one launch on random data.

    Raises:
        RuntimeError: when the result is not that of PyTorch.
    """
    shape = (case.batch_size, case.num_heads, case.seq_len, case.head_dim)
    q, k, v, do = (torch.randn(shape, dtype=DTYPES[case.dtype], device=device) for _ in range(4))
    truths = _pytorch_results(case, q, k, v, do)
    o, lse = flash_forward(q, k, v, case.is_causal, None)
    lse2, delta = lse / math.log(2), (o.float() * do.float()).sum(-1)
    ours, ours2 = torch.full_like(q, torch.nan), torch.full_like(q, torch.nan)
    unread, unread2 = torch.empty_like(lse), torch.empty_like(lse)

    def launch() -> None:
        if case.kernel == "forward":
            launch_forward(q, k, v, ours, unread, None, case.is_causal, config)
        elif case.kernel == "dq":
            launch_dq(do, q, k, v, o, lse, None, ours, unread, unread2, case.is_causal, config)
        else:
            launch_dkdv(do, q, k, v, lse2, delta, None, ours, ours2, case.is_causal, config)

    launch()
    for result, truth in zip((ours, ours2), truths, strict=False):
        error = ((result.float() - truth.float()).abs().max() / truth.float().abs().max()).item()
        if not error <= LARGEST_ERROR:  # nan is wrong too
            raise RuntimeError(f"wrong result: {error:.2g} of the largest number away from PyTorch's")
    return timer(launch) / 1e3


def _pytorch_results(case: Case, q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> list[Tensor]:
    """What the kernel must compute: o, or dq, or dk and dv."""
    q, k, v = (tensor.clone().requires_grad_() for tensor in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=case.is_causal)
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), do)
    return {"forward": [o.detach()], "dq": [dq], "dkdv": [dk, dv]}[case.kernel]


def median_ms(call: Callable[[], None]) -> float:
    """Milliseconds of `call` on a GPU, with a cold cache."""
    median = triton.testing.do_bench(call, return_mode="median")
    assert isinstance(median, float)
    return median


def tune_case(case: Case, configs: Sequence[TileConfig], device: torch.device, timer: Timer) -> list[Row]:
    """One row a configuration: its time or why it has none; the fastest is "chosen"."""
    rows = []
    for config in configs:
        row: Row = {"kernel": case.kernel, **case.key, "config": asdict(config), "status": "", "reason": None}
        try:
            row["time_s"] = measure(case, config, device, timer)
            row["flops_per_s"] = case.flops / row["time_s"]
        except (TritonError, RuntimeError, ValueError, AssertionError) as error:  # of any stage of compiling
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            row |= {"status": "failed", "reason": reason[:200]}
        rows.append(row)
    timed = [row for row in rows if row["status"] != "failed"]
    if timed:
        min(timed, key=lambda row: row["time_s"])["status"] = "chosen"
    return rows


def tune_cases(
    cases: Sequence[Case], device: torch.device, timer: Timer, retune: bool, say: Callable[[str], None]
) -> tuple[list[Row], bool]:
    """The rows of all cases without a stored winner (of all, to `retune`), and whether Ctrl-C ended it.

    Each winner is stored as soon as it is known. `say` gets one line a case.
    """
    rows = []
    for number, case in enumerate(cases, 1):
        place = f"[{number}/{len(cases)}] {case}"
        if not retune and cached_config(f"flash_{case.kernel}", case.key, device):
            say(f"{place}: stored before, not measured again")
            continue
        configs = candidates(case.kernel, case.head_dim, DTYPES[case.dtype], compute_capability(device))
        try:
            of_case = tune_case(case, configs, device, timer)
        except KeyboardInterrupt:
            return rows, True
        rows += of_case
        chosen = next((row for row in of_case if row["status"] == "chosen"), None)
        if chosen is None:
            say(f"{place}: none of {len(configs)} candidates runs")
        else:
            store_config(f"flash_{case.kernel}", case.key, device, chosen["config"])
            say(f"{place}: {show_config(chosen['config'])}, {1e3 * chosen['time_s']:.4g} ms")
    return rows, False


def show_config(config: dict[str, int]) -> str:
    """Such as '128x64 w8 s2': queries by keys, warps, stages."""
    return f"{config['block_m']}x{config['block_n']} w{config['num_warps']} s{config['num_stages']}"
