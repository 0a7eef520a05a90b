"""What the mixed-precision experiments can be asked; flags, defaults and help are made from these classes.

Nothing here imports torch. A flag takes one value or a list; each combination is one case and one record.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class AccumulationConfig:
    """One number, added to a sum many times."""

    EXPERIMENT: ClassVar[str] = "accumulation"

    value: float = 0.01
    """The number that is added."""
    steps: int = 1000
    """How often it is added."""
    dtypes: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the terms, and of the sum unless the method says otherwise."""
    seed: int = 0
    """Seed of stochastic rounding; the seeds after it tell how far it scatters."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or self.value == 0:
            raise ValueError(f"--value {self.value} must be a finite number other than 0")
        if not 1 <= self.steps <= 10_000_000:
            raise ValueError(f"--steps {self.steps} must be between 1 and 10,000,000")


@dataclass(frozen=True, kw_only=True)
class AutocastConfig:
    """A model whose dtypes are looked up under autocast."""

    EXPERIMENT: ClassVar[str] = "autocast"

    model: str = "toy"
    """toy (linear, ReLU, layer norm, linear), or any preset of benchmark.py."""
    dtype: Literal["fp16", "bf16"] = "fp16"
    """Lower precision that autocast may use."""
    policy: Literal["cuda", "cpu"] = "cuda"
    """Whose rules: the GPU's (derived where there is none), or the CPU's, which differ."""
    loss: Literal["cross-entropy", "hand-written", "upcast", "mean", "mse"] = "cross-entropy"
    """torch's cross-entropy, one by hand, one by hand after a cast to fp32, the mean of the logits, mse."""


@dataclass(frozen=True, kw_only=True)
class LayerNormConfig:
    """One layer norm, its operations one by one in a low precision."""

    EXPERIMENT: ClassVar[str] = "layer_norm"

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Type of every operation in the column `low`."""
    d_model: int = 1024
    """Length of the vector that is normalised."""
    scale: float = 1.0
    """Standard deviation of the inputs."""
    offset: float = 0.0
    """Mean of the inputs: digits that the variance loses."""
    eps: float = 1e-5
    """Added to the variance."""
    seed: int = 0
    """Seed of the inputs."""

    def __post_init__(self) -> None:
        if self.d_model < 2:
            raise ValueError(f"--d-model {self.d_model} must be at least 2: one number has no variance")
        if self.d_model > 65536:
            raise ValueError(f"--d-model {self.d_model} must be at most 65536: numbers are added one by one")
        if not 0 < self.scale <= 1e30:
            raise ValueError(f"--scale {self.scale:g} must be above 0 and at most 1e30")
        if abs(self.offset) > 1e30:
            raise ValueError(f"--offset {self.offset:g} must be between -1e30 and 1e30")
        if not 0 < self.eps <= 1:
            raise ValueError(f"--eps {self.eps:g} must be above 0 and at most 1")


TrainingPrecision = Literal["fp32", "bf16", "fp16", "fp16-noscale", "pure-bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A byte-level language model, trained on real text in one precision with one seed."""

    EXPERIMENT: ClassVar[str] = "training_stability"

    precision: TrainingPrecision = "fp32"
    """fp32; autocast in bf16 or fp16 (with a gradient scaler; without: fp16-noscale); all in bf16."""
    seed: int = 0
    """Seed of weights and batches."""
    steps: int = 400
    """Optimizer steps."""
    d_model: int = 64
    """Width of the model."""
    num_layers: int = 2
    """Blocks of the model."""
    num_heads: int = 4
    """Attention heads of a block."""
    context_length: int = 64
    """Bytes in a sequence."""
    batch_size: int = 8
    """Sequences in a step."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this length."""
    growth_interval: int = 50
    """Good steps after which the scaler of fp16 doubles its scale (torch: 2000, for long runs)."""
    eval_every: int = 25
    """Steps between two measurements of the loss on held-out text, and of what the precision lost."""
    text: str = "stdlib"
    """A file or folder of text; stdlib: the sources of Python's standard library."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU when there is one."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "d_model",
            "num_layers",
            "num_heads",
            "context_length",
            "batch_size",
            "growth_interval",
            "eval_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must not be negative")
        if self.learning_rate <= 0 or self.max_grad_norm <= 0:
            raise ValueError("--learning-rate and --max-grad-norm must be above 0")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"--warmup-fraction {self.warmup_fraction} must be at least 0 and below 1")
