"""What is timed and how it is run; with `ModelConfig` and `TimingConfig` it defines a case."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from cs_systems.model.config import ModelConfig
from cs_systems.timing.timer import TimingConfig

EXPERIMENT = "training_step"
"""Name of this experiment in records."""

Mode = Literal["forward", "forward-backward", "train-step"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]

PASSES: dict[str, tuple[str, ...]] = {
    "forward": ("forward",),
    "forward-backward": ("forward", "backward"),
    "train-step": ("forward", "backward", "optimizer_step"),
}
"""Passes that each mode times, in order."""

TOTAL = {"forward-backward": "forward_backward", "train-step": "train_step"}
"""Name of the sum of the passes, for modes with more than one."""


# BEGIN INSTRUCTOR
KERNELS = ("rmsnorm", "rope", "swiglu", "cross-entropy", "linear-cross-entropy")
"""Triton kernels that can take the place of eager operations, by the name used in flags and tables."""

ALL_KERNELS = KERNELS[:-1]
"""What `all` asks for; the linear cross-entropy saves memory rather than time, so it is asked for by name."""
# END INSTRUCTOR


@dataclass(frozen=True, kw_only=True)
class WorkloadConfig:
    """Everything about a case that is neither the model nor the clock."""

    mode: Mode = "train-step"
    """Passes to time; forward alone runs without a graph, as inference does."""
    batch_size: int = 4
    """Sequences per step."""
    precision: Precision = "fp32"
    """Matrix products: fp32 and tf32 by the matmul setting, bf16 and fp16 by autocast."""
    param_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type in which parameters, gradients and optimizer state are stored."""
    attention: Literal["naive", "sdpa", "flash-torch", "flash"] = "naive"
    """Attention function: ours with all scores in memory, PyTorch's kernel, ours by tiles, ours in Triton."""
    # BEGIN INSTRUCTOR
    kernels: str = "off"
    """Triton kernels: off, all, or names joined by + (rmsnorm+rope+swiglu+cross-entropy)."""
    # END INSTRUCTOR
    compile: bool = False
    """Compile the model with torch.compile."""
    checkpoint_blocks: int = 0
    """Blocks per activation checkpoint (0: keep all activations)."""
    optimizer: Literal[
        "adamw",
        "torch",
        "torch-fused",
        # BEGIN INSTRUCTOR
        "triton",
        # END INSTRUCTOR
    ] = "adamw"
    """AdamW: ours, torch.optim.AdamW, or one whose step is a single kernel."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int = 0
    """CPU threads of one operation (0: torch's choice)."""
    seed: int = 0
    """Seed of weights and tokens."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size} must be at least 1")
        if self.precision in ("bf16", "fp16") and self.param_dtype not in ("fp32", self.precision):
            raise ValueError(
                f"--precision {self.precision} with --param-dtype {self.param_dtype} would cast weights from "
                f"one 16-bit type to the other; use --param-dtype fp32 or {self.precision}"
            )
        # BEGIN INSTRUCTOR
        self._check_kernels()
        # END INSTRUCTOR
        for name in ("checkpoint_blocks", "threads", "seed"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {getattr(self, name)} must not be negative")

    # BEGIN INSTRUCTOR
    def _check_kernels(self) -> None:
        names = self.kernel_names
        unknown = [name for name in names if name not in KERNELS]
        if unknown or len(set(names)) < len(names):
            what = f"{unknown[0]!r} is unknown" if unknown else "a name is given twice"
            raise ValueError(f"--kernels {self.kernels}: {what}; use off, all, or {' + '.join(KERNELS)}")
        if {"cross-entropy", "linear-cross-entropy"} <= set(names):
            raise ValueError(f"--kernels {self.kernels}: choose one of the two losses")

    @property
    def kernel_names(self) -> tuple[str, ...]:
        """The kernels asked for, one by one; what a model has no use for is still among those of `all`."""
        named = {"off": (), "all": ALL_KERNELS}
        return named[self.kernels] if self.kernels in named else tuple(self.kernels.split("+"))

    @property
    def loss_kernel(self) -> str | None:
        """The kernel that computes the loss; None for plain PyTorch."""
        return next((name for name in self.kernel_names if name.endswith("cross-entropy")), None)

    # END INSTRUCTOR


@dataclass(frozen=True)
class Case:
    """One row to be measured: a model with its label, a workload and a clock."""

    label: str
    model: ModelConfig
    workload: WorkloadConfig
    timing: TimingConfig

    def settings(self) -> dict[str, Any]:
        """All settings in one flat dictionary: `BenchmarkRecord.case`."""
        parts = (dataclasses.asdict(part) for part in (self.model, self.workload, self.timing))
        return {"model": self.label} | {name: value for part in parts for name, value in part.items()}
