"""Truths about one training step of the 2026 leaderboard's model."""

from cs_systems.estimator.flops import forward_flops, forward_flops_by_part
from cs_systems.estimator.parameters import num_parameters
from cs_systems.grading.items import Truth
from cs_systems.grading.truths.question import Finder, Question, under
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import find_preset

BASELINE_S, BASELINE_GPUS = 10.0, 2
LEADERBOARD_BATCH = 2


def _leaderboard() -> ModelConfig:
    return find_preset("leaderboard-2026").config


def step_flops() -> int:
    """FLOPs of one training step: three forwards, half of the scores hidden by the mask."""
    config = _leaderboard()
    parts = forward_flops_by_part(config, LEADERBOARD_BATCH, config.context_length)
    hidden = (parts["attention scores"] + parts["weighted values"]) // 2
    return 3 * (sum(parts.values()) - hidden)


def _leaderboard_parameters(question: Question) -> Truth:
    config = _leaderboard()
    parameters = num_parameters(config)
    third = config.num_layers * config.d_model * config.d_ff
    why = {
        f"{parameters - config.vocab_size * config.d_model}": "embedding and head are two matrices",
        f"{parameters - third}": "SwiGLU has three matrices",
    }
    return Truth(
        float(parameters), why=why, hint="embedding, head, and per block four and three matrices, two norms"
    )


def _leaderboard_state(question: Question) -> Truth:
    parameters = num_parameters(_leaderboard())
    why = {
        f"{12 * parameters}": "weights, gradients and two moments are four numbers",
        f"{4 * parameters}": "gradients and moments count too",
        f"{8 * parameters}": "moments count too",
    }
    return Truth(float(16 * parameters), why=why, hint="four numbers of four bytes for each parameter")


def _leaderboard_logits(question: Question) -> Truth:
    config = _leaderboard()
    logits = 4 * LEADERBOARD_BATCH * config.context_length * config.vocab_size
    why = {f"{logits // 2}": "the loss has them in fp32: four bytes", f"{logits // 4}": "four bytes each"}
    return Truth(
        float(logits), why=why, hint="a number for each token of the batch and each word of the vocabulary"
    )


def _leaderboard_flops(question: Question) -> Truth:
    config = _leaderboard()
    everything = 3 * forward_flops(config, LEADERBOARD_BATCH, config.context_length)
    why = {
        f"{everything}": "half of the scores are hidden by the causal mask and need not be computed",
        f"{step_flops() // 3}": "backward costs twice as much as forward, and both belong to a step",
        f"{6 * num_parameters(config) * LEADERBOARD_BATCH * config.context_length}": (
            "6 P for each token leaves out attention's own products, which are not small at this length"
        ),
    }
    return Truth(
        float(step_flops()), why=why, hint="three times forward, with half of attention's own products"
    )


def _leaderboard_rate(question: Question) -> Truth:
    rate = step_flops() / BASELINE_S / BASELINE_GPUS
    why = {f"{BASELINE_GPUS * rate}": "that is both GPUs together"}
    return Truth(rate, why=why, hint="FLOPs of a step, over its time and over the number of GPUs")


FINDERS: dict[str, Finder] = {
    **under(
        "leaderboard.a",
        {
            "num_parameters": _leaderboard_parameters,
            "state": _leaderboard_state,
            "logits": _leaderboard_logits,
            "step_flops": _leaderboard_flops,
            "baseline_rate": _leaderboard_rate,
        },
    ),
}
