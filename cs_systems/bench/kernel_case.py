"""Which kernels are compared: their shapes, and the bytes that each must move at the least. No torch here."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

EXPERIMENT = "kernels"
"""Name of this experiment in records."""

Kernel = Literal[
    "softmax", "rmsnorm", "rmsnorm-residual", "rope", "swiglu",
    "cross-entropy", "linear-cross-entropy", "adamw", "weighted-sum",
]  # fmt: skip
Implementation = Literal["eager", "compiled", "torch", "triton"]
Pass = Literal["forward", "forward-backward"]
KERNELS: tuple[str, ...] = get_args(Kernel)
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
PASSES: tuple[str, ...] = get_args(Pass)

STEP = "step"
"""The one pass of an optimizer."""

BASELINE = "eager"
"""What the others are divided by."""

ROUNDS = {"cpu": 10, "cuda": 20}
"""Measured rounds where no number is given."""

NUM_PARAMETER_TENSORS = 16
"""Tensors of one size that the parameters of the optimizer are spread over."""

AXES = {
    "softmax": ("num_tokens", "num_columns"),
    "rmsnorm": ("num_tokens", "d_model"),
    "rmsnorm-residual": ("num_tokens", "d_model"),
    "rope": ("num_tokens", "d_model", "d_head"),
    "swiglu": ("num_tokens", "d_ff"),
    "cross-entropy": ("num_tokens", "vocab_size"),
    "linear-cross-entropy": ("num_tokens", "d_model", "vocab_size"),
    "adamw": ("num_parameters",),
    "weighted-sum": ("num_tokens", "num_columns"),
}
"""Settings that give the tensors of each kernel their sizes."""

IMPLEMENTATIONS_OF = {
    kernel: tuple(
        name
        for name in IMPLEMENTATIONS
        if not (name == "torch" and kernel in ("rmsnorm-residual", "rope", "swiglu", "linear-cross-entropy"))
        and not (name == "compiled" and kernel == "adamw")
    )
    for kernel in KERNELS
}
"""Not every operation has a fused function in PyTorch. An optimizer's step number is a Python number, so that
a compiled one would be compiled anew in every step."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "precision": "fp32", "num_tokens": 1024, "num_columns": 4096, "d_model": 1024, "d_head": 64,
        "d_ff": 4096, "vocab_size": 10_000, "num_parameters": 2**22,
    },
    "cuda": {
        "precision": "bf16", "num_tokens": 16_384, "num_columns": 8192, "d_model": 4096, "d_head": 128,
        "d_ff": 16_384, "vocab_size": 32_768, "num_parameters": 2**27,
    },
}  # fmt: skip
"""Values of the flags that were not typed: larger than the caches, and done in seconds."""

_ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_TARGET_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """One kernel on tensors of one size, and how its implementations take turns."""

    kernel: Kernel
    """Operation."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Type of all tensors; adamw always has fp32."""
    num_tokens: int
    """Rows of everything but adamw."""
    num_columns: int
    """Length of a row of softmax and weighted-sum."""
    d_model: int
    """Length of a row of rmsnorm, of all heads of rope, and of the input of linear-cross-entropy."""
    d_head: int
    """Width of a head of rope."""
    d_ff: int
    """Length of a row of swiglu."""
    vocab_size: int
    """Classes of the two cross-entropies."""
    num_parameters: int
    """Parameters that adamw updates, in 16 tensors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int = 0
    """CPU threads of one operation (0: torch's choice)."""
    rounds: int = 0
    """Measured rounds of each pass, in which every implementation has a turn (0: 10, on a GPU 20)."""
    max_seconds: float = 60.0
    """Budget for one kernel; one round of each pass is always done, and a compilation always ends."""

    def __post_init__(self) -> None:
        for name in ("num_tokens", "num_columns", "d_model", "d_head", "d_ff", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.kernel == "rope" and (self.d_head % 2 or self.d_model % self.d_head):
            raise ValueError(f"--d-head {self.d_head} must be even and divide --d-model {self.d_model}")
        if self.num_parameters < NUM_PARAMETER_TENSORS:
            raise ValueError(
                f"--num-parameters {self.num_parameters} must be {NUM_PARAMETER_TENSORS} or more"
            )
        for name in ("threads", "rounds"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)} must not be negative")
        if not self.max_seconds > 0:
            raise ValueError(f"--max-seconds {self.max_seconds:g} must be over 0, for example 60")


def passes_of(kernel: str, asked: Sequence[str]) -> tuple[str, ...]:
    """The passes that a kernel has, of those asked for."""
    return (STEP,) if kernel == "adamw" else tuple(asked)


def moved_bytes(config: KernelConfig) -> dict[str, int]:
    """Bytes that must be read and written at the least in each pass: what enters and what leaves, once each.

    In forward-backward the gradient of the result arrives only after forward has ended, so backward reads the
    inputs (or the result) again. Not so for the losses: their gradient is known but for one factor when
    forward has the logits at hand.
    """
    element = 4 if config.kernel == "adamw" else _ELEMENT_BYTES[config.precision]
    tokens, columns, d_model = config.num_tokens, config.num_columns, config.d_model
    if config.kernel == "adamw":
        return {STEP: 7 * element * config.num_parameters}  # reads w, g, m, v and writes w, m, v
    if config.kernel == "softmax":  # x -> y; y, dy -> dx
        forward, backward = 2 * tokens * columns, 3 * tokens * columns
    elif config.kernel == "weighted-sum":  # x, w -> y; x, w, dy -> dx, dw
        forward, backward = tokens * columns + columns + tokens, 2 * tokens * columns + 2 * columns + tokens
    elif config.kernel == "rmsnorm":  # x, w -> y; x, w, dy -> dx, dw
        forward, backward = 2 * tokens * d_model + d_model, 3 * tokens * d_model + 2 * d_model
    elif config.kernel == "rmsnorm-residual":  # x, r, w -> s, y; s, w, dy, ds -> d(x, r), dw
        forward, backward = 4 * tokens * d_model + d_model, 4 * tokens * d_model + 2 * d_model
    elif config.kernel == "rope":  # q, k -> q', k'; the same back; the tables are small beside them
        forward = backward = 4 * tokens * d_model
    elif config.kernel == "swiglu":  # gate, up -> y; gate, up, dy -> dgate, dup
        forward, backward = 3 * tokens * config.d_ff, 5 * tokens * config.d_ff
    elif config.kernel == "cross-entropy":  # logits -> loss; on the way, dlogits
        forward = backward = tokens * config.vocab_size
    else:  # hidden, weight -> loss; on the way, both gradients
        forward = backward = (tokens + config.vocab_size) * d_model
    targets = _TARGET_BYTES * tokens if config.kernel.endswith("cross-entropy") else 0
    forward = forward * element + targets
    return {"forward": forward, "forward-backward": forward + backward * element}


def peak_bytes(config: KernelConfig) -> int:
    """Memory that the comparison needs, generously: most of it for the formula in fp32, for the check."""
    logits = 4 * config.num_tokens * config.vocab_size if config.kernel.endswith("cross-entropy") else 0
    widening = 1 if config.kernel == "adamw" else 4 // _ELEMENT_BYTES[config.precision]
    return 3 * widening * max(moved_bytes(config).values()) + 6 * logits


def shape_of(config: KernelConfig) -> str:
    """The sizes of a kernel in words, for tables."""
    return ", ".join(f"{name} {getattr(config, name)}" for name in AXES[config.kernel])


def case_settings(config: KernelConfig, implementation: str, passes: Sequence[str]) -> dict[str, Any]:
    """The settings of one row that matter to its kernel, in one flat dictionary: `BenchmarkRecord.case`."""
    settings = dataclasses.asdict(config)
    unused = {axis for axes in AXES.values() for axis in axes} - set(AXES[config.kernel])
    kept = {name: value for name, value in settings.items() if name not in unused}
    kept["precision"] = "fp32" if config.kernel == "adamw" else config.precision
    return kept | {
        "shape": shape_of(config),
        "implementation": implementation,
        "passes": "+".join(passes_of(config.kernel, passes)),
    }
