"""Measure one point: load an engine, generate a few times, and turn the clock's readings into a record."""

import dataclasses
import functools
import gc
import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cs_systems import device as devices
from cs_systems.bench.command import BUSY_CORES
from cs_systems.bench.contest import as_outcome, failures
from cs_systems.bench.generation_case import EXPERIMENT, GenerationCase, predict
from cs_systems.bench.generation_ceilings import Ceilings
from cs_systems.bench.generation_energy import EnergyMeter
from cs_systems.bench.generation_engines import Engine, find_obstacle, load_engine, timed_generate
from cs_systems.bench.generation_memory import (
    data_bytes,
    limit_data,
    release_free_memory,
    reset_peak,
    resident_bytes,
)
from cs_systems.bench.generation_rates import Clocks, rates
from cs_systems.bench.record import BenchmarkRecord, Provenance, Status
from cs_systems.estimator.generation import (
    GenerationMemory,
    cache_factor,
)
from cs_systems.inference.projections import choose_layout
from cs_systems.inference.settings import DecoderConfig
from cs_systems.inference.tokenizer import Tokenizer, load_tokenizer
from cs_systems.tables import format_bytes
from cs_systems.timing.contention import CoreLoad
from cs_systems.timing.host_memory import peak_rss_bytes

WORDS = (
    "a",
    "quick",
    "look",
    "at",
    "how",
    "models",
    "read",
    "prompts",
    "then",
    "write",
    "one",
    "token",
    "each",
)
"""Of the prompts; each starts at another word."""

KEPT_SEQUENCES = 4
"""Sequences whose tokens are kept in the record; all of them are in the checksum."""

_NO_MEMORY = ("bad_alloc", "could not create a memory", "Cannot allocate memory")

OnStep = Callable[[str], object]


def make_texts(tokenizer: Tokenizer, batch_size: int, prompt_len: int) -> list[str]:
    """Texts of at least `prompt_len` tokens and hardly more, each a little different."""
    texts = []
    for row in range(batch_size):
        shift = row % len(WORDS)
        words = [WORDS[(shift + index) % len(WORDS)] for index in range(prompt_len)]
        num = prompt_len
        for power in reversed(range(num.bit_length())):  # bisect: fewer words while there are enough tokens
            fewer = num - 2**power
            if fewer > 0 and len(tokenizer.encode(" ".join(words[:fewer]))) >= prompt_len:
                num = fewer
        texts.append(" ".join(words[:num]))
    return texts


def run_point(
    case: GenerationCase, device: torch.device, ceilings: Ceilings, provenance: Provenance, on_step: OnStep
) -> BenchmarkRecord:
    """The record of a point. Running out of memory, a failure and Ctrl-C are records too."""
    metrics: dict[str, Any] = {}
    warmup, clocks = Clocks(), Clocks()
    plan = plan_of(case, device)
    copied = dataclasses.replace(plan, cache_factor=cache_factor("whole", case.model.num_layers))
    limit = case.workload.memory_limit_bytes or ceilings.memory_bytes
    metrics |= {
        "predicted_bytes": plan.peak_bytes(case.batch_size),
        "predicted_largest_batch": None if limit is None else plan.largest_batch(limit),
        "predicted_largest_batch_copied": None if limit is None else copied.largest_batch(limit),
        "memory_bytes": limit,
        "memory_source": "--memory-limit-gib" if case.workload.memory_limit_bytes else ceilings.memory_source,
    }

    def record(status: Status, reason: str | None = None, notes: Sequence[str] = ()) -> BenchmarkRecord:
        return BenchmarkRecord(
            EXPERIMENT, case.settings(), status, provenance, reason=reason, samples_s=clocks.samples,
            warmup_samples_s=warmup.samples, metrics=metrics, notes=list(notes),
        )  # fmt: skip

    obstacle = find_obstacle(case)
    if obstacle:
        return record("skipped", obstacle)
    try:
        notes = _measure(case, device, ceilings, metrics, warmup, clocks, on_step)
    except KeyboardInterrupt:
        return record("failed", f"interrupted after {clocks.num_runs} of {case.workload.runs} generations")
    except failures() as error:
        if ran_out_of_memory(error):
            return record("oom", explain_oom(case, plan, limit, metrics["memory_source"]))
        end = as_outcome(error)
        return record(end.status, end.reason)
    return record("ok", notes=notes)


def check_vocabulary(case: GenerationCase, tokenizer: Tokenizer) -> None:
    """Raise UnsupportedError when the tokenizer has tokens that the model does not know."""
    if tokenizer.vocab_size > case.model.vocab_size:
        raise devices.UnsupportedError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and {case.label} a vocabulary of "
            f"{case.model.vocab_size}; choose another --tokenizer or --vocab-size {tokenizer.vocab_size}"
        )


def plan_of(case: GenerationCase, device: torch.device) -> GenerationMemory:
    """The predicted memory of a point, with the layout of weights that this machine makes of it."""
    return predict(case, packed=is_packed(case, device))


def is_packed(case: GenerationCase, device: torch.device) -> bool:
    """Whether our fast decoder stores matrices in oneDNN's blocks here."""
    work = case.workload
    if work.engine not in ("ours", "ours-compiled"):
        return False
    settings = DecoderConfig(
        precision=work.precision, compile=work.engine == "ours-compiled", expected_batch_size=case.batch_size
    )
    return choose_layout(settings, device) == "packed"


def explain_oom(case: GenerationCase, plan: GenerationMemory, limit_bytes: int | None, source: str) -> str:
    """Why memory ran out, by the account of what was needed, and what would fit."""
    needed = plan.explain(case.batch_size)
    if limit_bytes is None:
        return f"out of memory: {needed}"
    largest = plan.largest_batch(limit_bytes)
    if largest >= case.batch_size:
        fits = "by this account it should have fitted, but temporaries are a rough guess: try a smaller batch"
    else:
        fits = f"--batch-size {largest} should fit" if largest else "not even one sequence should fit"
    return f"out of memory: {needed}; there are {format_bytes(limit_bytes)} ({source}); {fits}"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out; libraries below torch have their own words for it."""
    return devices.is_out_of_memory(error) or any(text in str(error) for text in _NO_MEMORY)


def _measure(
    case: GenerationCase,
    device: torch.device,
    ceilings: Ceilings,
    metrics: dict[str, Any],
    warmup: Clocks,
    clocks: Clocks,
    on_step: OnStep,
) -> list[str]:
    """Fill `metrics` and the clocks; returns notes."""
    work = case.workload
    tokenizer = load_tokenizer(work.tokenizer or None)
    check_vocabulary(case, tokenizer)
    texts = make_texts(tokenizer, case.batch_size, work.prompt_len)
    started = time.perf_counter()
    engine = load_engine(case, device)
    metrics["start_to_ready_s"] = time.perf_counter() - started
    metrics["weight_bytes"] = engine.weight_bytes
    on_step("loading")
    gc.collect()
    release_free_memory()
    if work.memory_limit_bytes is not None:
        _limit_memory(work.memory_limit_bytes, engine.weight_bytes)
    resident = resident_bytes()
    knows_peak = reset_peak()
    devices.reset_peak_memory(device)
    run = functools.partial(_run_once, engine, tokenizer, texts, work.prompt_len, work.new_tokens, device)
    deadline = time.monotonic() + work.max_seconds
    for _ in range(work.warmup_runs):
        run(warmup)
        on_step("warm-up")
        if time.monotonic() >= deadline - work.max_seconds / 2:
            break
    load, meter = CoreLoad.start(), EnergyMeter.start(device.type)
    rows: list[list[int]] = []
    for _ in range(work.runs):
        rows = run(clocks)
        on_step("measuring")
        if time.monotonic() >= deadline:
            break
    joules, other = meter.finish(), load.finish()
    num_generations = clocks.num_runs * (2 if device.type == "cuda" else 1)  # see `_run_once`
    metrics |= {
        "energy_j_per_token": _per_token(joules, num_generations * case.batch_size * work.new_tokens),
        "energy_source": meter.source,
        "other_load_cores": other,
        "contended": None if other is None else other > BUSY_CORES,
        "peak_memory_bytes": _peak(device, engine.weight_bytes, resident if knows_peak else None),
        "cache_bytes": _cache_bytes(engine),
        "tokens": rows[:KEPT_SEQUENCES],
        "tokens_sha256": hashlib.sha256(repr(rows).encode()).hexdigest(),
    }
    metrics |= rates(case, clocks, ceilings)
    if clocks.num_runs < work.runs:
        return [
            f"{clocks.num_runs} of {work.runs} generations: --max-seconds {work.max_seconds:g} was used up"
        ]
    return []


def _run_once(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    prompt_len: int,
    new_tokens: int,
    device: torch.device,
    clocks: Clocks,
) -> list[list[int]]:
    """One generation from text to text. On a GPU a second one waits for each token, the first does not."""
    start = time.perf_counter()
    prompts = [tokenizer.encode(text)[:prompt_len] for text in texts]
    tokenised = time.perf_counter()
    if device.type == "cuda":
        rows = engine.generate(prompts, new_tokens, None)
        generated = time.perf_counter()
    else:
        rows, _, ticks = timed_generate(engine, prompts, new_tokens)
        generated = ticks[-1]
    for row in rows:
        tokenizer.decode(row)
    end = time.perf_counter()
    begun = tokenised
    if device.type == "cuda":
        rows, begun, ticks = timed_generate(engine, prompts, new_tokens)
    clocks.add(
        end_to_end=[end - start],
        tokenise=[tokenised - start],
        prompt=[ticks[0] - begun],
        step=[after - before for before, after in itertools.pairwise(ticks)],
        detokenise=[end - generated],
    )
    return rows


def _per_token(joules: float | None, num_tokens: int) -> float | None:
    return None if joules is None else joules / num_tokens


def _limit_memory(limit_bytes: int, weight_bytes: int) -> None:
    """Leave what the limit has beyond the weights, which are loaded; loading itself may have taken more.

    Raises:
        MemoryError: when there is nothing left.
    """
    data = data_bytes()
    if weight_bytes > limit_bytes:
        raise MemoryError(f"the weights alone are over --memory-limit-gib {limit_bytes / 2**30:g}")
    limit_data((data or 0) - weight_bytes + limit_bytes)


def _peak(device: torch.device, weight_bytes: int, resident_before: int | None) -> int | None:
    """Most bytes in use while generating: of tensors on a GPU; on a CPU weights and growth of the process."""
    if device.type == "cuda":
        return devices.peak_memory_bytes(device)
    peak = peak_rss_bytes()
    return None if peak is None or resident_before is None else weight_bytes + peak - resident_before


def _cache_bytes(engine: Engine) -> int | None:
    cache = getattr(engine, "cache", None)
    return getattr(cache, "num_bytes", None)
