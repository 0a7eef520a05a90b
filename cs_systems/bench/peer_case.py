"""What is compared with Hugging Face and how, as one dataclass: a shape, a family, a clock. No torch here."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from cs_systems.model.config import ModelConfig
from cs_systems.model.hugging_face_config import config_from_hugging_face
from cs_systems.model.presets import find_preset

EXPERIMENT = "peers"
"""Name of this experiment in records."""

PASSES = ("forward", "forward_backward")
"""What is timed, one after the other."""

WARMUP_STEPS = 1
"""Steps of each pass that are timed but not counted."""


@dataclass(frozen=True, kw_only=True)
class PeersConfig:
    """One comparison: a shape, a family of models that both sides have, and how it is run."""

    model: str = "small"
    """Preset that gives the shape: width, layers, heads, vocabulary."""
    family: Literal["llama", "gpt2"] = "llama"
    """Architecture of both models."""
    attention: Literal["naive", "sdpa"] = "sdpa"
    """naive: ours against their eager; sdpa: PyTorch's fused kernel in both."""
    batch_size: int = 4
    """Sequences per step."""
    context_length: int = 128
    """Tokens in each sequence."""
    threads: int = 0
    """CPU threads of one operation (0: torch's choice)."""
    steps: int = 10
    """Measured steps of each pass; each step runs both models."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "context_length", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.threads < 0:
            raise ValueError(f"--threads {self.threads} must not be negative; 0 leaves it to torch")


def case_settings(case: PeersConfig) -> dict[str, Any]:
    """All settings in one flat dictionary: `BenchmarkRecord.case`."""
    return dataclasses.asdict(peer_config(case)) | dataclasses.asdict(case)


def peer_settings(case: PeersConfig) -> dict[str, Any]:
    """The contents of a config.json for the family in the shape of the preset.

    Raises:
        ValueError: when there is no such preset, or the family cannot have its shape.
    """
    shape = find_preset(case.model).config
    settings = {
        "model_type": case.family,
        "vocab_size": shape.vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if case.family == "llama":
        return settings | {
            "hidden_size": shape.d_model,
            "intermediate_size": shape.d_ff,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "max_position_embeddings": case.context_length,
            "rms_norm_eps": shape.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        }
    if shape.num_kv_heads != shape.num_heads:
        raise ValueError(f"--model {case.model} shares key heads, which GPT-2 cannot; use --family llama")
    return settings | {
        "n_embd": shape.d_model,
        "n_inner": shape.d_ff,
        "n_layer": shape.num_layers,
        "n_head": shape.num_heads,
        "n_positions": case.context_length,
        "layer_norm_epsilon": shape.norm_eps,
    }


def peer_config(case: PeersConfig) -> ModelConfig:
    """Our configuration of the same model; errors as in `peer_settings`."""
    return config_from_hugging_face(peer_settings(case))
