"""From prompts to tokens, whatever the decoder: all at once, or one step after the other."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from cs_systems.inference.decoding import Decoder
from cs_systems.inference.kv_cache import KVCache
from cs_systems.inference.prompts import PromptBatch, make_batch
from cs_systems.inference.sampling import NOT_A_NUMBER, Sampler
from cs_systems.inference.settings import GenerationConfig
from cs_systems.inference.tokenizer import Tokenizer


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    cache: KVCache | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt: `max_new_tokens` of them, or up to and with a stop token.

    Without stop tokens the device is waited for only once, at the end. `cache` may be one from
    `decoder.new_cache`, to be used again and again; its contents are replaced.

    Raises:
        ValueError: for a prompt that is empty, too long or not of the model's vocabulary, a cache that is too
            small, and logits that are no numbers.
    """
    if config.stop_tokens:
        rows: list[list[int]] = [[] for _ in prompts]
        for tokens in stream(decoder, prompts, config, cache):
            for row, token in zip(rows, tokens, strict=True):
                if token is not None:
                    row.append(token)
        return rows
    batch = make_batch(prompts, decoder.config, config.max_new_tokens, decoder.device)
    steps = list(_sample_steps(decoder, batch, config, cache))
    if not steps:
        return [[] for _ in prompts]
    chosen = torch.stack(steps).tolist()
    for step, tokens in enumerate(chosen):
        _check_tokens(tokens, step)
    return [list(row) for row in zip(*chosen, strict=True)]


def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    cache: KVCache | None = None,
) -> Iterator[list[int | None]]:
    """The next token of every prompt as soon as it is known, None for those that have met a stop token.

    Ends after `max_new_tokens`, or when all have stopped. Errors as in `generate`.
    """
    batch = make_batch(prompts, decoder.config, config.max_new_tokens, decoder.device)
    stopped = [False] * len(prompts)
    for step, chosen in enumerate(_sample_steps(decoder, batch, config, cache)):
        tokens = chosen.tolist()
        _check_tokens(tokens, step)
        yield [None if done else token for token, done in zip(tokens, stopped, strict=True)]
        stopped = [done or token in config.stop_tokens for token, done in zip(tokens, stopped, strict=True)]
        if all(stopped):
            return


def generate_text(
    decoder: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: GenerationConfig,
    cache: KVCache | None = None,
) -> list[str]:
    """What follows each text; a stop token is left out of it. Errors as in `generate`."""
    prompts = [tokenizer.encode(text) for text in texts]
    rows = generate(decoder, prompts, config, cache)
    kept = [row[:-1] if row and row[-1] in config.stop_tokens else row for row in rows]
    return [tokenizer.decode(row) for row in kept]


def _sample_steps(
    decoder: Decoder, batch: PromptBatch, config: GenerationConfig, cache: KVCache | None
) -> Iterator[Int[Tensor, " batch"]]:
    """The tokens of each step, still on the device. The last one is never fed back, so it needs no slot."""
    if config.max_new_tokens == 0:
        return
    if cache is None:
        batch_size, seq = batch.token_ids.shape
        cache = decoder.new_cache(batch_size, seq + config.max_new_tokens - 1)
    sampler = Sampler(config, decoder.device)
    tokens = sampler(decoder.prefill(batch, cache))
    yield tokens
    for _ in range(config.max_new_tokens - 1):
        tokens = sampler(decoder.decode_step(tokens.clamp(min=0), cache))  # NOT_A_NUMBER is no index
        yield tokens


def _check_tokens(tokens: Sequence[int], step: int) -> None:
    if NOT_A_NUMBER in tokens:
        raise ValueError(
            f"the logits of prompt {tokens.index(NOT_A_NUMBER)} are nan at new token {step}: a weight is nan "
            f"or inf, or fp16 overflowed; try --precision bf16 or fp32"
        )
