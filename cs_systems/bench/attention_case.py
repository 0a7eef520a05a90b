"""Which attention is compared: shapes, named grids of them, what each costs by formula. No torch here."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cs_systems.tables import format_bytes

EXPERIMENT = "attention"
"""Name of this experiment in records."""

Pass = Literal["forward", "backward", "forward-backward"]
Implementation = Literal[
    "naive", "naive-compiled", "flash-torch", "flash", "sdpa", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient"
]
PASSES: tuple[str, ...] = get_args(Pass)
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

BASELINE = "naive"
"""What the others are divided by and checked against."""

CHOSEN = {
    "cpu": ("naive", "naive-compiled", "flash-torch", "sdpa"),
    "cuda": ("naive", "naive-compiled", "flash", "sdpa", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient"),
}
"""Implementations where none is named: flash-torch would take minutes on a GPU, flash on a CPU."""

ROUNDS = {"cpu": 10, "cuda": 20}
"""Measured rounds where no number is given."""

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

_SCORE_ARRAYS = {"naive": (3, 6), "naive-compiled": (2, 4)}
"""Arrays as large as the scores that exist at one time, without and with backward: the growth of a process
from 128 to 6000 positions. All others work in tiles and have none."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """One shape on which all implementations take turns, and how they do."""

    batch_size: int
    """Sequences."""
    num_heads: int
    """Heads, of queries and of keys alike; 0 for none, as in the course: computed as one head."""
    d_head: int
    """Width of a head."""
    seq_len: int
    """Queries of a sequence, and as many keys."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Type of queries, keys and values; fp32 never uses TF32."""
    causal: bool
    """Hide the keys after each query."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int = 0
    """CPU threads of one operation (0: torch's choice)."""
    rounds: int = 0
    """Measured rounds of each pass, in which every implementation has a turn (0: 10, on a GPU 20)."""
    max_seconds: float = 60.0
    """Budget for one shape; one round of each pass is always done, and a compilation always ends."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "d_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.seq_len < 2:
            raise ValueError(f"--seq-len {self.seq_len} must be at least 2: the weight of a single key is 1")
        for name in ("num_heads", "threads", "rounds"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must not be negative")
        if not self.max_seconds > 0:
            raise ValueError(f"--max-seconds {self.max_seconds:g} must be over 0, for example 60")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of queries, keys and values: (batch, heads, seq, d_head)."""
        return self.batch_size, max(1, self.num_heads), self.seq_len, self.d_head


_POWERS = {"d_head": (16, 32, 64, 128)}

PRESETS: dict[str, Mapping[str, Sequence[Any]]] = {
    "cpu": {
        "batch_size": (4,), "num_heads": (12,), "d_head": (64,), "seq_len": (128, 256, 512),
        "precision": ("fp32", "bf16"), "causal": (True,), "pass": PASSES,
    },
    "gpu": {
        "batch_size": (4,), "num_heads": (16,), "d_head": (64, 128), "seq_len": (1024, 4096, 16384),
        "precision": ("bf16",), "causal": (True,), "pass": PASSES,
    },
    "course-naive": _POWERS | {
        "batch_size": (8,), "num_heads": (0,), "seq_len": (256, 1024, 4096, 8192, 16384),
        "precision": ("fp32",), "causal": (False,), "pass": ("forward", "backward"),
    },
    "course-flash": _POWERS | {
        "batch_size": (1,), "num_heads": (0,), "seq_len": tuple(2**i for i in range(7, 17)),
        "precision": ("bf16", "fp32"), "causal": (True,), "pass": PASSES,
    },
    "leaderboard": {
        "batch_size": (1,), "num_heads": (16,), "d_head": (64,), "seq_len": (16384,),
        "precision": ("bf16",), "causal": (True,), "pass": ("forward-backward",),
    },
}  # fmt: skip
"""Named grids: the values of each flag that was not typed."""


def attention_flops(config: AttentionConfig) -> dict[str, float]:
    """FLOPs of each pass by the usual count: the products with the scores that causal attention needs.

    Forward has two products, q k^T and p v, of 2 * seq^2 * d_head for each head; causal needs half of the
    scores. Backward has five (it computes q k^T again), so 2.5 times as many. Who computes hidden scores too,
    or keeps the weights, is charged the same: the rate says how fast the job is done.
    """
    batch, heads, seq, d_head = config.shape
    forward = 4 * batch * heads * seq**2 * d_head / (2 if config.causal else 1)
    return {"forward": forward, "backward": 2.5 * forward, "forward-backward": 3.5 * forward}


def peak_bytes(config: AttentionConfig, implementation: str, passes: Sequence[str]) -> int:
    """Memory at the worst moment: inputs, results, gradients, and the arrays of scores that exist then."""
    batch, heads, seq, d_head = config.shape
    element = ELEMENT_BYTES[config.precision]
    vectors = batch * heads * seq * d_head * (8 * element + 4 * 4)  # q k v o and gradients; reference in fp32
    scores = batch * heads * seq**2 * element
    mask = seq**2 if config.causal and implementation in _SCORE_ARRAYS else 0
    return vectors + _num_score_arrays(implementation, passes) * scores + mask


def explain_memory(config: AttentionConfig, implementation: str, passes: Sequence[str]) -> str:
    """The account behind `peak_bytes`, in words."""
    batch, heads, seq, d_head = config.shape
    element = ELEMENT_BYTES[config.precision]
    arrays = _num_score_arrays(implementation, passes)
    total = format_bytes(peak_bytes(config, implementation, passes))
    if arrays == 0:
        return f"inputs, results and gradients of {batch} x {heads} x {seq} x {d_head} need {total}"
    one = format_bytes(batch * heads * seq**2 * element)
    return (
        f"about {total} are needed: {arrays} arrays of batch x heads x seq x seq scores at one time, each "
        f"{batch} x {heads} x {seq} x {seq} x {element} B = {one}; flash and sdpa keep no scores"
    )


def case_settings(config: AttentionConfig, implementation: str, passes: Sequence[str]) -> dict[str, Any]:
    """All settings of one row in one flat dictionary: `BenchmarkRecord.case`."""
    return dataclasses.asdict(config) | {"implementation": implementation, "passes": "+".join(passes)}


def grid_of(preset: str, typed: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The values of every flag that spans the grid: what was typed, and the preset's for the rest."""
    return {name: typed.get(name, values) for name, values in PRESETS[preset].items()}


def _num_score_arrays(implementation: str, passes: Sequence[str]) -> int:
    return _SCORE_ARRAYS.get(implementation, (0, 0))[any(name != "forward" for name in passes)]
