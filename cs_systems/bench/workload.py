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
    attention: Literal["naive", "sdpa"] = "naive"
    """Attention function: ours with all scores in memory, or PyTorch's fused kernel."""
    compile: bool = False
    """Compile the model with torch.compile."""
    checkpoint_blocks: int = 0
    """Blocks per activation checkpoint (0: keep all activations)."""
    optimizer: Literal["adamw", "torch", "torch-fused"] = "adamw"
    """Ours, torch.optim.AdamW, or torch.optim.AdamW(fused=True)."""
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
        for name in ("checkpoint_blocks", "threads", "seed"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {getattr(self, name)} must not be negative")


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
