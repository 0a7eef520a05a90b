"""From logits to the next token: the most probable one, or one drawn at random from all or the best few."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cs_systems.inference.settings import GenerationConfig

NOT_A_NUMBER = -1
"""In place of a token where a row of logits holds nan; `engine` turns it into an error."""


class Sampler:
    """Draws tokens as `config` says, with a random generator of its own on `device`.

    Nothing here waits for a GPU: whether logits are numbers is told by the token itself.
    """

    def __init__(self, config: GenerationConfig, device: torch.device) -> None:
        self.config = config
        self.generator = torch.Generator(device).manual_seed(config.seed)

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
        """The next token of each sequence, NOT_A_NUMBER where there is none."""
        if self.config.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            tokens = draw(token_probabilities(logits, self.config), self.generator)
        return tokens.masked_fill(logits.isnan().any(-1), NOT_A_NUMBER)


def token_probabilities(
    logits: Float[Tensor, "batch vocab"], config: GenerationConfig
) -> Float[Tensor, "batch vocab"]:
    """softmax(logits / temperature) in fp32, restricted to the top k, then to the top p of what is left."""
    scaled = logits.float() / config.temperature
    if config.top_k:
        scaled = keep_top_k(scaled, config.top_k)
    if config.top_p < 1:
        scaled = keep_top_p(scaled, config.top_p)
    return scaled.softmax(-1)


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """-inf for all but the k largest logits of a row; of equal ones at the edge only some are kept."""
    values, ids = logits.topk(min(k, logits.shape[-1]))
    return torch.full_like(logits, float("-inf")).scatter(-1, ids, values)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """-inf for all but the fewest tokens whose probabilities sum to p or more (Holtzman et al. 2020).

    A token stays when those before it, in order of probability, do not reach p yet: so one always stays.
    """
    values, ids = logits.sort(-1, descending=True)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    return torch.full_like(logits, float("-inf")).scatter(
        -1, ids, values.masked_fill(before >= p, float("-inf"))
    )


def draw(probabilities: Float[Tensor, "batch vocab"], generator: torch.Generator) -> Int[Tensor, " batch"]:
    """One id a row, with the given probabilities.

    The first of several alarms with rates p_i, set off after Exponential(1) / p_i, is number i with
    probability p_i: the largest p_i / Exponential(1) is the draw. `torch.multinomial` would wait for a GPU.
    """
    return (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(-1)
