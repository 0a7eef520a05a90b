"""What autocast is shown on: the toy model or a language model, its input and its targets."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cs_systems.estimator.parameters import num_parameters
from cs_systems.mixed_precision.toy import ToyModel, make_targets
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import resolve_model
from cs_systems.model.transformer import TransformerLM

TOY_SHAPE = (4, 8, 3)
"""Batch, inputs and outputs of the toy model."""
RUN_BLOCKS = 2
"""Blocks of a language model that are run: all are alike."""
RUN_TOKENS = 8
"""Tokens that are run: types do not depend on how many."""
FULL_WIDTH_PARAMETERS = 50_000_000
"""A model with more, at `RUN_BLOCKS` blocks, is run with narrow layers."""


@dataclass(frozen=True)
class Subject:
    """A model and what it is called with; parameters are fp32."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    notes: tuple[str, ...] = ()
    """How it differs from what was asked for."""


def build_subject(name: str, loss: str, device: torch.device) -> Subject:
    """The toy model, or a preset with its first blocks only, and narrow where it would take much memory.

    Raises:
        ValueError: when there is no such preset.
    """
    if name == "toy":
        return _toy(loss, device)
    _, full = resolve_model(name, {})
    config = full.replace(num_layers=min(RUN_BLOCKS, full.num_layers))
    notes = []
    if full.num_layers > config.num_layers:
        notes.append(f"{config.num_layers} of {full.num_layers} blocks were run: all are alike")
    if num_parameters(config) > FULL_WIDTH_PARAMETERS:
        config = _narrow(config)
        notes.append("its layers were run narrow: types do not depend on widths")
    return _language_model(config, min(RUN_TOKENS, config.context_length), loss, device, tuple(notes))


def build_full_subject(name: str, loss: str) -> Subject:
    """The whole model and one sequence of its context length, without memory (on torch's meta device)."""
    device = torch.device("meta")
    if name == "toy":
        return _toy(loss, device)
    _, config = resolve_model(name, {})
    return _language_model(config, config.context_length, loss, device)


def _toy(loss: str, device: torch.device) -> Subject:
    batch, d_in, d_out = TOY_SHAPE
    with device:
        return Subject(
            ToyModel(d_in, d_out), torch.ones(batch, d_in), make_targets(loss, (batch, d_out), device)
        )


def _language_model(
    config: ModelConfig, seq: int, loss: str, device: torch.device, notes: tuple[str, ...] = ()
) -> Subject:
    with device:
        ids = torch.zeros(1, seq, dtype=torch.int64)
        targets = make_targets(loss, (1, seq, config.vocab_size), device)
        return Subject(TransformerLM(config), ids, targets, notes)


def _narrow(config: ModelConfig) -> ModelConfig:
    """The same operations in the same order, on small layers."""
    d_head = 8
    return config.replace(
        d_model=d_head * config.num_heads,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        d_ff=64,
        rotary_dim=d_head if config.rotary_dim == config.d_head else d_head // 2,
        vocab_size=64,
        context_length=RUN_TOKENS,
        num_positions=RUN_TOKENS,
    )
