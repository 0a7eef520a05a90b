"""What is generated, by which engine, and how it is measured; with the memory it will need. No torch here."""

import argparse
import dataclasses
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cs_systems.estimator.generation import CacheGrowth, GenerationMemory, predict_memory
from cs_systems.inference.memory import VALUE_BYTES, cache_bytes_per_token, matrix_shapes, weight_bytes
from cs_systems.inference.settings import Precision
from cs_systems.model.config import ModelConfig

EXPERIMENT = "generation"
"""Name of this experiment in records."""

Engine = Literal["ours", "ours-compiled", "ours-simple", "hf", "hf-static", "deepspeed", "vllm"]
CACHE_GROWTH: dict[str, CacheGrowth] = {"hf": "layer by layer", "deepspeed": "static"}
"""How the cache of an engine grows; static where nothing is said."""

CAPACITY_MULTIPLE = 64
"""A compiled step of ours rounds the capacity of its cache up to this; a test compares it with the cache."""

LARGEST_BATCH = 2**17
"""Where a ladder without an end stops if memory never runs out."""

GIB = 2**30

DEFAULT_MODEL = "gpt2-124m"
"""The shape of most comparisons on a CPU."""


@dataclass(frozen=True, kw_only=True)
class GenerationWorkload:
    """Everything about a column of points but the model and the batch size."""

    engine: Engine = "ours"
    """ours (KV cache, packed weights), the same compiled, ours-simple (the model's own layers), Hugging Face
    with its default or its static cache, or another engine, which must be installed."""
    precision: Precision = "bf16"
    """Type of weights and cache; int8: weights in 8 bits, the rest in bf16."""
    prompt_len: int = 128
    """Tokens of each prompt."""
    new_tokens: int = 32
    """Tokens generated after each prompt, greedily; nothing stops earlier."""
    warmup_runs: int = 1
    """Generations before the measured ones; timed too, but kept apart."""
    runs: int = 3
    """Generations that are measured."""
    max_seconds: float = 60.0
    """Budget for the generations of one point; one of each kind is always done."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int = 0
    """CPU threads of one operation (0: torch's choice)."""
    memory_limit_gib: float = 0.0
    """Memory that weights, cache and temporaries of a point may take on a CPU, enforced by the operating
    system, so that running out can be seen on a machine with much memory (0: what is free)."""
    tokenizer: str = ""
    """A tokenizer.json of the tokenizers library (default: one token a byte)."""
    seed: int = 0
    """Seed of the random weights."""

    def __post_init__(self) -> None:
        for name in ("prompt_len", "new_tokens", "runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        for name in ("warmup_runs", "threads", "seed", "memory_limit_gib"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must not be negative")
        if not self.max_seconds > 0:
            raise ValueError(f"--max-seconds {self.max_seconds:g} must be over 0, for example 60")

    @property
    def memory_limit_bytes(self) -> int | None:
        """The limit in bytes, None for none."""
        return int(self.memory_limit_gib * GIB) or None


@dataclass(frozen=True)
class GenerationCase:
    """One point: a model with its label, a workload and a batch size."""

    label: str
    model: ModelConfig
    workload: GenerationWorkload
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """All settings in one flat dictionary: `BenchmarkRecord.case`."""
        parts = dataclasses.asdict(self.model) | dataclasses.asdict(self.workload)
        return {"model": self.label} | parts | {"batch_size": self.batch_size}


def check_case(case: GenerationCase) -> None:
    """Raise ValueError for a point that no engine could run."""
    work = case.workload
    num_tokens = work.prompt_len + work.new_tokens
    if work.prompt_len > case.model.context_length:
        raise ValueError(
            f"--prompt-len {work.prompt_len} is over the context of {case.label}, "
            f"{case.model.context_length} tokens; shorten it or choose a larger --context-length"
        )
    if num_tokens > case.model.context_length:
        raise ValueError(
            f"--prompt-len {work.prompt_len} and --new-tokens {work.new_tokens} are {num_tokens} tokens, "
            f"over the context of {case.label}, {case.model.context_length}; lower one of them or choose "
            f"a larger --context-length"
        )
    if not work.tokenizer and case.model.vocab_size < 256:
        raise ValueError(
            f"{case.label} has a vocabulary of {case.model.vocab_size}, bytes need 256; give a --tokenizer"
        )


def predict(case: GenerationCase, *, packed: bool) -> GenerationMemory:
    """Memory of a point; `packed` as in `inference.memory.weight_bytes`, for our engines."""
    work, config = case.workload, case.model
    growth = CACHE_GROWTH.get(work.engine, "static")
    return predict_memory(
        config,
        weight_bytes=weight_bytes(config, work.precision, packed=packed and work.engine.startswith("ours")),
        cache_bytes_per_token=cache_bytes_per_token(config, work.precision),
        value_bytes=VALUE_BYTES[work.precision],
        prompt_len=work.prompt_len,
        new_tokens=work.new_tokens,
        capacity=cache_capacity(case),
        growth=growth,
    )


def cache_capacity(case: GenerationCase) -> int:
    """Tokens that a static cache has room for; the last new token is never fed back."""
    num_tokens = case.workload.prompt_len + case.workload.new_tokens - 1
    if case.workload.engine != "ours-compiled":
        return num_tokens
    rounded = -(-num_tokens // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
    return min(rounded, case.model.context_length)


def weight_read_bytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of weights that a step must read: all matrices and the head once; of tables only a few rows."""
    tables = 0 if config.tied_embeddings else config.vocab_size
    if config.position == "learned":
        tables += config.num_positions + config.position_offset
    return weight_bytes(config, precision) - VALUE_BYTES[precision] * tables * config.d_model


def int8_obstacle(config: ModelConfig) -> str | None:
    """Why the weights cannot be stored in 8 bits; None when they can."""
    columns = {shape[1] for shape in matrix_shapes(config)} | {config.d_model}
    odd = sorted(num for num in columns if num % 16)
    if not odd:
        return None
    return f"int8 takes rows of a multiple of 16, and this model has rows of {odd[0]}; use --precision bf16"


def parse_batch_sizes(text: str) -> tuple[tuple[int, ...], bool]:
    """Batch sizes in the order typed, and whether they go on until memory runs out.

    Entries are numbers and ranges: 8-64 (all), 8-64+8 (steps of 8), 8-64*2 (doubling). Three dots continue
    what the three numbers before them began, up to the next number or, at the end, until memory runs out.

    Raises:
        argparse.ArgumentTypeError: when the text is none of these.
    """
    sizes: list[int] = []
    entries = [entry.strip() for entry in text.split(",")]
    is_open = False
    for index, entry in enumerate(entries):
        if entry in ("...", "…"):
            end = entries[index + 1] if index + 1 < len(entries) else None
            is_open = end is None
            if end is not None and not end.isdigit():
                raise argparse.ArgumentTypeError(f"{text!r}: after ... comes one number or nothing")
            sizes += _continue(sizes, LARGEST_BATCH if end is None else int(end) - 1, text)
        else:
            sizes += _entry(entry, text)
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a batch holds at least 1 sequence")
    return tuple(dict.fromkeys(sizes)), is_open


def _entry(entry: str, text: str) -> list[int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?", entry)
    if not found:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {entry!r} is no batch size; write 1,2,4,... or 8-64+8 or 8-64*2"
        )
    first, last, kind, step = int(found[1]), int(found[2] or found[1]), found[3], int(found[4] or 1)
    if last < first or step < (2 if kind == "*" else 1):
        raise argparse.ArgumentTypeError(f"{text!r}: the range {entry!r} does not go up")
    if kind == "*":
        return list(itertools.takewhile(lambda size: size <= last, _powers(max(first, 1), step)))
    return list(range(first, last + 1, step))


def _powers(first: int, factor: int) -> Iterator[int]:
    return (first * factor**power for power in itertools.count())


def _continue(sizes: list[int], last: int, text: str) -> list[int]:
    if len(sizes) < 3:
        raise argparse.ArgumentTypeError(f"{text!r}: ... needs three numbers before it, such as 1,2,4,...")
    a, b, c = sizes[-3:]
    if c > b and c - b == b - a:
        return list(range(c + c - b, last + 1, c - b))
    if a and b % a == 0 and b > a and c * a == b * b:
        return list(itertools.takewhile(lambda size: size <= last, _powers(c * (b // a), b // a)))
    raise argparse.ArgumentTypeError(f"{text!r}: {a}, {b}, {c} neither go up in equal steps nor multiply")
