"""A byte-level language model trained in one of five precisions, with a record of what the numbers did.

    fp32          everything in fp32
    bf16          weights, gradients and optimizer state in fp32, matrix products in bf16 (autocast)
    fp16          the same in fp16, with the loss multiplied so that small gradients do not become 0
    fp16-noscale  the same without multiplying
    pure-bf16     weights, gradients and optimizer state in bf16 as well

With one seed, all of them start from the same weights and see the same batches.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import functional_call

from cs_systems import device as devices
from cs_systems.mixed_precision.settings import TrainingConfig
from cs_systems.mixed_precision.text import Text, sample_windows, spread_windows
from cs_systems.mixed_precision.underflow import Weights, lost_update_fraction, measure_underflow
from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import cross_entropy
from cs_systems.model.transformer import TransformerLM
from cs_systems.optim import AdamW, clip_gradients, cosine_learning_rate

AUTOCAST = {"bf16": "bf16", "fp16": "fp16", "fp16-noscale": "fp16"}
"""Type that autocast may use, by precision; the other precisions train without it."""

NUM_BYTES = 256
"""A token is a byte."""

MIN_LEARNING_RATE = 0.1
"""The cosine ends at this share of its peak."""

NUM_HELD_OUT_WINDOWS = 32


@dataclass
class Curves:
    """What was seen so far, one entry a step; None stands for inf and nan, which JSON does not have."""

    loss: list[float | None] = field(default_factory=list)
    """Mean over the batch in nats, in fp32 from the logits of the precision."""
    grad_norm: list[float | None] = field(default_factory=list)
    """Length of the gradient before clipping, without the scale."""
    scale: list[float] = field(default_factory=list)
    """What the loss was multiplied by; 1 without a scaler."""
    skipped: list[bool] = field(default_factory=list)
    """Whether the scaler met inf or nan among the gradients and left the weights as they were."""
    step_s: list[float] = field(default_factory=list)
    """Seconds of forward, backward, clipping and optimizer, without the evaluations."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Every eval_every steps and at the end: `step`, `held_out_loss`, and the shares that were lost."""


def model_config(config: TrainingConfig) -> ModelConfig:
    """The model of a run: the preset tiny in another size.

    Raises:
        ValueError: on sizes that do not go together.
    """
    return ModelConfig(
        vocab_size=NUM_BYTES,
        context_length=config.context_length,
        d_model=config.d_model,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
    )


class TrainingRun:
    """Model, optimizer, scaler, batches and curves of one run; `state` holds all of it that changes."""

    def __init__(self, config: TrainingConfig, text: Text, device: torch.device) -> None:
        self.config, self.text, self.device = config, text, device
        self.synchronize = devices.synchronizer(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = TransformerLM(model_config(config)).to(
                device
            )  # drawn on the CPU: everywhere the same
        if config.precision == "pure-bf16":
            for (
                weight
            ) in self.model.parameters():  # not `model.bfloat16()`: the table of positions stays fp32
                weight.data = weight.data.bfloat16()
        self.optimizer = AdamW(self.model.parameters())
        self.scaler = torch.amp.GradScaler(
            device.type, growth_interval=config.growth_interval, enabled=config.precision == "fp16"
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.curves = Curves()

    @property
    def num_steps(self) -> int:
        """Steps done."""
        return len(self.curves.loss)

    @property
    def diverged(self) -> bool:
        """Whether the last loss was inf or nan, after which there is nothing left to train."""
        return self.num_steps > 0 and self.curves.loss[-1] is None

    @property
    def finished(self) -> bool:
        """Whether no step is left to do."""
        return self.diverged or self.num_steps == self.config.steps

    def advance(self) -> None:
        """One step on the next batch; every `eval_every` steps an evaluation before it; one at the end."""
        config, evaluations = self.config, self.curves.evaluations
        window = config.context_length + 1
        tokens = sample_windows(self.text.train, config.batch_size, window, self.generator).to(self.device)
        if self.num_steps % config.eval_every:
            self._train(tokens)
        else:
            evaluation = self._evaluate() | self._measure_underflow(tokens)
            before = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
            self._train(tokens)
            if not self.curves.skipped[-1] and not self.diverged:
                lost = lost_update_fraction(before, self.model, self.optimizer)
                evaluation["lost_update_fraction"] = lost
            evaluations.append(evaluation)
        if self.num_steps == config.steps and not self.diverged:
            evaluations.append(self._evaluate())

    def _train(self, tokens: Int64[Tensor, "batch window"]) -> None:
        """Forward, backward, clipping, optimizer step; notes in the curves what was seen."""
        self.synchronize()
        start_s = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.num_steps)
        scale = self.scaler.get_scale()
        loss, _ = self._loss(tokens)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)  # leaves the weights alone when a gradient is inf or nan
        self.scaler.update()  # and halves the scale; after growth_interval good steps it doubles it
        self.optimizer.zero_grad(set_to_none=True)
        self.synchronize()
        self.curves.step_s.append(time.perf_counter() - start_s)
        self.curves.grad_norm.append(_finite(norm))
        self.curves.scale.append(scale)
        self.curves.skipped.append(self.scaler.get_scale() < scale)
        self.curves.loss.append(_finite(loss.item()))

    def _loss(
        self, tokens: Int64[Tensor, "batch window"], weights: Weights | None = None, wide: bool = False
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch seq vocab"]]:
        """Loss and logits of the model, or with other weights in it; in the run's precision, or in fp32."""
        precision = "fp32" if wide else AUTOCAST.get(self.config.precision, "fp32")
        with devices.autocast(self.device, precision):
            logits = functional_call(self.model, dict(weights or {}), tokens[:, :-1])
        return cross_entropy(logits, tokens[:, 1:]), logits

    @torch.no_grad()
    def _evaluate(self) -> dict[str, Any]:
        window = self.config.context_length + 1
        windows = spread_windows(self.text.held_out, NUM_HELD_OUT_WINDOWS, window).to(self.device)
        parts = windows.split(self.config.batch_size)
        total = sum(self._loss(part)[0].item() * len(part) for part in parts)
        return {"step": self.num_steps, "held_out_loss": _finite(total / len(windows))}

    def _measure_underflow(self, tokens: Int64[Tensor, "batch window"]) -> dict[str, Any]:
        return dataclasses.asdict(measure_underflow(
            self.model, lambda weights: self._loss(tokens, weights),
            lambda weights: self._loss(tokens, weights, wide=True), self.scaler.get_scale(),
        ))  # fmt: skip

    def state(self) -> dict[str, Any]:
        """All that changes while training: tensors, numbers and text only."""
        # BEGIN SOLUTION save_and_load
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
            "curves": dataclasses.asdict(self.curves),
        }
        # END SOLUTION

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, to the last bit."""
        # BEGIN SOLUTION save_and_load
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.curves = Curves(**state["curves"])
        # END SOLUTION


def learning_rate(config: TrainingConfig, num_steps: int) -> float:
    """The rate of the step after `num_steps`: rises to its peak, falls to a tenth of it in the last step."""
    return cosine_learning_rate(
        num_steps + 1,  # step 0 of the schedule has rate 0
        max_lr=config.learning_rate,
        min_lr=MIN_LEARNING_RATE * config.learning_rate,
        warmup_steps=round(config.warmup_fraction * config.steps),
        cosine_steps=config.steps,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
