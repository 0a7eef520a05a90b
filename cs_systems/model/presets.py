"""Published model shapes by name, each with its source.

Names follow the first edition of the course; a later edition calls the 2.7B shape "xl", so `xl-2026` is
an alias of `2.7B`. A name is a label, not a count: with SwiGLU's third matrix "2.7B" holds 3.41 billion
parameters. The exact counts stand beside the shapes and are tested on the meta device.
"""

import difflib
from dataclasses import dataclass
from typing import Any

from cs_systems.model.config import ModelConfig

COURSE_2025 = "CS336 (Stanford) assignment 2, 2025 edition, table of model sizes"
COURSE_2026 = "CS336 (Stanford) assignment 2, 2026 edition, table of model sizes"
LEADERBOARD = "CS336 (Stanford) assignment 2, 2026 edition, leaderboard model"
GPT2 = "openai-community/gpt2, config.json"
BIGCODE = "bigcode-project/bigcode-inference-benchmark, README (one A100 80GB)"
DS3LAB = "DS3Lab/Decentralized_FM_alpha, results/Inference_benchmarks.md"
GPTJ = "EleutherAI/gpt-j-6b, config.json"
BLOOM = "bigscience/bloom, config.json"
OPT = "Zhang et al. 2022, OPT, arXiv 2205.01068, table 1; facebook/opt-*, config.json"
CLM = "AICrossSim/NewComputeBench, model_flavors.py (Llama 3.1 style)"
OURS = "ours: for tests and for the first minute"


@dataclass(frozen=True)
class Preset:
    """A named shape, the number of its parameters and where both were published."""

    config: ModelConfig
    num_parameters: int
    source: str


def _gpt2(context_length: int = 2048, **shape: Any) -> ModelConfig:
    return ModelConfig(
        context_length=context_length, norm="layernorm", activation="gelu_tanh", position="learned",
        tied_embeddings=True, attention_bias=True, ffn_bias=True, **shape,
    )  # fmt: skip


def _bloom(**shape: Any) -> ModelConfig:
    return ModelConfig(
        context_length=2048, norm="layernorm", activation="gelu_tanh", position="alibi",
        embedding_norm=True, tied_embeddings=True, attention_bias=True, ffn_bias=True, **shape,
    )  # fmt: skip


def _opt(**shape: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=50_272, context_length=2048, norm="layernorm", activation="relu",
        position="learned", position_offset=2, tied_embeddings=True, attention_bias=True,
        ffn_bias=True, **shape,
    )  # fmt: skip


def _clm(**shape: Any) -> ModelConfig:
    return ModelConfig(vocab_size=49_152, context_length=2048, rope_theta=500_000.0, **shape)


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        ModelConfig(vocab_size=256, context_length=128, d_model=128, num_layers=2, num_heads=4),
        590_464, OURS,
    ),
    "small": Preset(
        ModelConfig(d_model=768, d_ff=3072, num_layers=12, num_heads=12), 128_625_408, COURSE_2025
    ),
    "medium": Preset(
        ModelConfig(d_model=1024, d_ff=4096, num_layers=24, num_heads=16), 423_183_360, COURSE_2025
    ),
    "large": Preset(
        ModelConfig(d_model=1280, d_ff=5120, num_layers=36, num_heads=20), 969_411_840, COURSE_2025
    ),
    "xl": Preset(
        ModelConfig(d_model=1600, d_ff=6400, num_layers=48, num_heads=25), 1_998_235_200, COURSE_2025
    ),
    "2.7B": Preset(
        ModelConfig(d_model=2560, d_ff=10_240, num_layers=32, num_heads=32), 3_406_809_600, COURSE_2025
    ),
    "10B": Preset(
        ModelConfig(d_model=4608, d_ff=12_288, num_layers=50, num_heads=36), 12_832_823_808, COURSE_2026
    ),
    "leaderboard-2026": Preset(
        ModelConfig(
            vocab_size=151_936, context_length=32_768, d_model=4096, d_ff=11_008, num_layers=34,
            num_heads=32,
        ),
        8_125_698_048, LEADERBOARD,
    ),
    "gpt2-124m": Preset(
        _gpt2(1024, vocab_size=50_257, d_model=768, num_layers=12, num_heads=12), 124_439_808, GPT2
    ),
    "gpt2-mha-1.3b": Preset(
        _gpt2(vocab_size=50_258, d_model=2048, num_layers=24, num_heads=16), 1_315_725_312, BIGCODE
    ),
    "gpt2-mqa-1.1b": Preset(
        _gpt2(vocab_size=50_258, d_model=2048, num_layers=24, num_heads=16, num_kv_heads=1),
        1_126_889_472, BIGCODE,
    ),
    "bloom-1.3b": Preset(
        _bloom(vocab_size=50_258, d_model=2048, num_layers=24, num_heads=16), 1_311_535_104, BIGCODE
    ),
    "bloom-176b": Preset(
        _bloom(vocab_size=250_880, d_model=14_336, num_layers=70, num_heads=112), 176_247_271_424, BLOOM
    ),
    "gptj-6b": Preset(
        ModelConfig(
            vocab_size=50_400, context_length=2048, d_model=4096, num_layers=28, num_heads=16,
            rotary_dim=64, norm="layernorm", activation="gelu_tanh", residual="parallel",
            ffn_bias=True, head_bias=True,
        ),
        6_050_882_784, GPTJ,
    ),
    "gpt-66b": Preset(
        _opt(d_model=9216, num_layers=64, num_heads=72), 65_719_701_504, f"{DS3LAB}; shape: {OPT}"
    ),
    "gpt-175b": Preset(
        _opt(d_model=12_288, num_layers=96, num_heads=96), 174_604_468_224, f"{DS3LAB}; shape: {OPT}"
    ),
    "opt-1.3b": Preset(_opt(d_model=2048, num_layers=24, num_heads=32), 1_315_758_080, OPT),
    "opt-6.7b": Preset(_opt(d_model=4096, num_layers=32, num_heads=32), 6_658_473_984, OPT),
    "clm-60m": Preset(
        _clm(d_model=384, num_layers=22, num_heads=6, num_kv_heads=2, d_ff=1408), 82_101_120, CLM
    ),
    "clm-200m": Preset(
        _clm(d_model=768, num_layers=24, num_heads=12, num_kv_heads=4, d_ff=2688), 261_919_488, CLM
    ),
    "clm-400m": Preset(
        _clm(d_model=960, num_layers=30, num_heads=15, num_kv_heads=5, d_ff=3328), 455_697_600, CLM
    ),
    "clm-1.1b": Preset(
        _clm(d_model=1536, num_layers=32, num_heads=24, num_kv_heads=8, d_ff=5376), 1_145_144_832, CLM
    ),
}  # fmt: skip

ALIASES = {"xl-2026": "2.7B"}
COURSE_SIZES = ("small", "medium", "large", "xl", "2.7B", "10B")
SHAPE_FIELDS = ("d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff")


def find_preset(name: str) -> Preset:
    """The preset called `name`, or a ValueError that suggests the nearest name."""
    known = [*PRESETS, *ALIASES]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(
            name.lower(), known, n=1
        )
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"--model {name} is no preset; {hint}")
    return PRESETS[ALIASES.get(name, name)]


def resolve_model(name: str | None, given: dict[str, object]) -> tuple[str, ModelConfig]:
    """The label and configuration that a command line asks for.

    With `name` the preset is the base and `given` replaces its fields. Without it, a course preset is
    looked up from the shape flags before anything is derived, because `d_model // 64` heads would be
    wrong for the 2.7B and 10B shapes: `--d-model 1024 --num-layers 24` is `medium`. A shape that no preset
    has is built from the defaults of `ModelConfig`.
    """
    if name is None and not any(field in given for field in SHAPE_FIELDS):
        name = "small"
    if name is None:
        name = _match_course_preset(given)
    if name is None:
        config = ModelConfig(**given)  # pyright: ignore[reportArgumentType]
        named = ("d_model", "num_layers", "vocab_size", "context_length")
        typed = [f"{field}={given[field]}" for field in given if field not in named]
        return "+".join([f"d{config.d_model}-L{config.num_layers}", *typed]), config
    base = find_preset(name).config
    config = base.replace(**given)
    changed = [
        f"{field}={getattr(config, field)}"
        for field in given
        if field not in ("vocab_size", "context_length") and getattr(config, field) != getattr(base, field)
    ]
    return "+".join([name, *changed]), config


def _match_course_preset(given: dict[str, object]) -> str | None:
    if "d_model" not in given or "num_layers" not in given:
        return None
    shape = {field: given[field] for field in SHAPE_FIELDS if field in given}
    for name in COURSE_SIZES:
        config = PRESETS[name].config
        if all(getattr(config, field) == value for field, value in shape.items()):
            return name
    return None
