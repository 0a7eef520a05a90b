"""Our engines and Hugging Face's `generate` in turns in one process, on the same weights and prompts.

A ratio of two programs that run one after the other compares two moments of a machine. Here each round lets
every engine generate once, every second round in reverse, and a ratio is that of medians over the rounds. All
engines read one sequence of prompts, and the tokens are compared before anything is timed.
"""

import argparse
import functools
import gc
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cs_systems.bench.command import GroupsResult, conclude, load_finished
from cs_systems.bench.contest import WARMUP_ROUNDS, Outcome, as_outcome, failures
from cs_systems.bench.generation_case import (
    DEFAULT_MODEL,
    GenerationCase,
    GenerationWorkload,
    check_case,
)
from cs_systems.bench.generation_contest_table import BASELINE, EXPERIMENT, PARTS, contest_table, summary
from cs_systems.bench.generation_engines import (
    Engine,
    HuggingFaceEngine,
    find_obstacle,
    load_model,
    load_ours,
    load_peer,
    timed_generate,
)
from cs_systems.bench.generation_run import check_vocabulary, make_texts
from cs_systems.bench.groups import Group, OnStep, prepare_device, run_groups
from cs_systems.bench.turns import Turn, take_turns, wall_timer
from cs_systems.cli import Parser, cross_product, field_names, only_fields
from cs_systems.device import DTYPES
from cs_systems.estimator.flops import forward_flops
from cs_systems.inference.tokenizer import load_tokenizer
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import resolve_model
from cs_systems.timing.contention import CoreLoad
from cs_systems.timing.stats import Samples, median_ratio_interval, quantile

DEFAULT = (
    (1, ("hf fp32", "ours fp32", "ours-compiled fp32")),
    (1, ("hf bf16", "ours bf16", "ours-compiled bf16", "ours int8", "ours-compiled int8")),
    (8, ("hf bf16", "ours bf16", "ours-compiled bf16")),
)
"""Batch size and contestants of each group where nothing is typed."""


_ROUNDS_FOR_INTERVAL = 3


def run_contests(parser: Parser, args: argparse.Namespace, command: str) -> int:
    """Hold the contests that `args` asks for, print them, and return the exit code.

    Raises:
        ValueError: when what was asked for is impossible.
    """
    finished, problems = load_finished(args)
    groups_of_cases = make_groups(args)
    first = groups_of_cases[0][0].workload
    device = prepare_device(first.device, first.threads)
    groups = [
        Group(
            label=f"{cases[0].label}, {cases[0].workload.precision}, batch {cases[0].batch_size}",
            cases={_name(case): case.settings() for case in cases},
            find_obstacle=functools.partial(_find_obstacle, cases),
            measure=functools.partial(measure, cases, device),
            num_passes=1,
            rounds=first.runs,
            work=len(cases)
            * forward_flops(cases[0].model, cases[0].batch_size, first.prompt_len + first.new_tokens),
        )
        for cases in groups_of_cases
    ]
    result: GroupsResult = run_groups(EXPERIMENT, groups, command, device, args.output, finished)
    num_rows = sum(map(len, groups_of_cases))
    return conclude(parser, args, contest_table, summary, result, num_rows, problems)


def make_groups(args: argparse.Namespace) -> list[list[GenerationCase]]:
    """The contestants of each group; errors as in `check_case`."""
    typed = {name: getattr(args, name)[0] for name in field_names(ModelConfig) if hasattr(args, name)}
    names = [name for name in field_names(GenerationWorkload) if name not in ("engine", "precision")]
    label, model = resolve_model(getattr(args, "model", (DEFAULT_MODEL,))[0], typed)
    groups = []
    for given in cross_product(args, names):
        for batch, contestants in _asked_for(args):
            cases = []
            for name in contestants:
                engine, precision = name.split()
                settings = only_fields(GenerationWorkload, given)
                workload = GenerationWorkload(engine=engine, precision=precision, **settings)  # pyright: ignore[reportArgumentType]
                cases.append(GenerationCase(label, model, workload, batch))
            check_case(cases[0])
            groups.append(cases)
    return groups


def _asked_for(args: argparse.Namespace) -> Sequence[tuple[int, Sequence[str]]]:
    """Batch size and contestants: the default's, or those that were typed, with the baseline first."""
    sizes = args.batch_size[0] if args.batch_size else None
    if not (sizes or hasattr(args, "engine") or hasattr(args, "precision")):
        return DEFAULT
    engines = dict.fromkeys((BASELINE, *getattr(args, "engine", ("ours", "ours-compiled"))))
    precisions = getattr(args, "precision", ("fp32", "bf16"))
    groups = []
    for precision in dict.fromkeys("bf16" if name == "int8" else name for name in precisions):
        names = [
            f"{engine} {precision}" for engine in engines if precision in precisions or engine == BASELINE
        ]
        if precision == "bf16" and "int8" in precisions:
            names += [f"{engine} int8" for engine in engines if engine.startswith("ours")]
        groups += [(size, names) for size in sizes or (1,)]
    return groups


def _find_obstacle(cases: Sequence[GenerationCase], name: str) -> str | None:
    return find_obstacle(next(case for case in cases if _name(case) == name))


def _name(case: GenerationCase) -> str:
    return f"{case.workload.engine} {case.workload.precision}"


def measure(
    cases: Sequence[GenerationCase], device: torch.device, names: Sequence[str], on_step: OnStep
) -> tuple[dict[str, Outcome], bool]:
    """The outcome of each contestant in `names`, and whether Ctrl-C ended the contest."""
    able = {_name(case): case for case in cases if _name(case) in names}
    work = cases[0].workload
    tokenizer = load_tokenizer(work.tokenizer or None)
    check_vocabulary(cases[0], tokenizer)
    texts = make_texts(tokenizer, cases[0].batch_size, work.prompt_len)
    prompts = [tokenizer.encode(text)[: work.prompt_len] for text in texts]
    outcomes = {name: Outcome() for name in able}
    history: dict[str, list[list[float]]] = {name: [] for name in able}
    rows: dict[str, list[list[int]]] = {}
    interrupted = False
    load = CoreLoad.start()
    times: dict[str, dict[str, list[float]]] = {"all": {}}
    try:
        engines = _load(able, outcomes, device)
        for name, engine in engines.items():  # compiles, and makes the cache
            try:
                rows[name] = timed_generate(engine, prompts, work.new_tokens)[0]
            except failures() as error:
                end = as_outcome(error)
                outcomes[name].status, outcomes[name].reason = end.status, end.reason
            on_step(f"checking {name}")
        _compare(rows, outcomes)

        def run(name: str) -> None:
            _, start, ticks = timed_generate(engines[name], prompts, work.new_tokens)
            history[name].append([start, *ticks])

        turns = {
            name: Turn(functools.partial(run, name)) for name in engines if outcomes[name].status == "ok"
        }
        deadline = time.monotonic() + work.max_seconds
        for phase, rounds in (("warm-up", WARMUP_ROUNDS), ("measuring", work.runs)):
            for runs in history.values():
                runs.clear()
            load = CoreLoad.start()
            take_turns(
                turns, rounds, {"all": wall_timer()}, times, on_round=functools.partial(on_step, phase),
                has_time=lambda: time.monotonic() < deadline,
            )  # fmt: skip
    except KeyboardInterrupt:
        interrupted = True
    other = load.finish()
    num_rounds = min((len(runs) for runs in history.values() if runs), default=0)
    kept = {name: runs[:num_rounds] for name, runs in history.items() if runs}
    for name, outcome in outcomes.items():
        if interrupted and outcome.status == "ok":
            outcome.status, outcome.reason = "failed", f"interrupted after {num_rounds} of {work.runs} rounds"
        if kept.get(name):
            outcome.samples_s = _samples(kept[name])
            outcome.metrics |= {"other_load_cores": other} | _figures(name, kept)
            if num_rounds < work.runs:
                outcome.notes.append(f"{num_rounds} of {work.runs} rounds; --max-seconds was used up")
    return outcomes, interrupted


def _load(
    cases: Mapping[str, GenerationCase], outcomes: Mapping[str, Outcome], device: torch.device
) -> dict[str, Engine]:
    """The engines that could be loaded; ours share one fp32 model while they are made."""
    engines: dict[str, Engine] = {}
    first = next(iter(cases.values()))
    model = load_model(first.model, first.workload.seed, device)
    for name, case in cases.items():
        work = case.workload
        try:
            if work.engine.startswith("ours"):
                engines[name] = load_ours(case, model)
            else:
                peer = load_peer(case.model, work.seed, DTYPES[work.precision], device)
                engines[name] = HuggingFaceEngine(
                    peer, "static" if work.engine == "hf-static" else None, device
                )
        except failures() as error:
            end = as_outcome(error)
            outcomes[name].status, outcomes[name].reason = end.status, end.reason
    del model
    gc.collect()
    return engines


def _compare(rows: Mapping[str, list[list[int]]], outcomes: Mapping[str, Outcome]) -> None:
    """Share of tokens that are the baseline's; in fp32 another token is a wrong result and gets no time."""
    baseline = next((name for name in rows if name.split()[0] == BASELINE), None)
    if baseline is None:
        return
    expected = [token for row in rows[baseline] for token in row]
    for name, own in rows.items():
        tokens = [token for row in own for token in row]
        share = sum(a == b for a, b in zip(tokens, expected, strict=True)) / len(expected)
        outcomes[name].metrics["tokens_match"] = share
        if name.endswith("fp32") and share < 1:
            outcomes[name].status = "failed"
            outcomes[
                name
            ].reason = f"other tokens than {baseline}: {share:.1%} agree, so its time means nothing"


def _samples(runs: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Of each round: the whole generation, the first token, and the median time between two tokens."""
    samples = {
        "end_to_end": [run[-1] - run[0] for run in runs],
        "first_token": [run[1] - run[0] for run in runs],
    }
    if len(runs[0]) > 2:
        samples["inter_token"] = [Samples.from_values(_gaps(run)).median for run in runs]
    return samples


def _gaps(run: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(run[1:])]


def _figures(name: str, runs: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Medians, and how many times as fast as the baseline, with a 95 % interval."""
    own = _samples(runs[name])
    figures: dict[str, Any] = {f"{part}_median_s": Samples.from_values(own[part]).median for part in own}
    gaps = [gap for run in runs[name] for gap in _gaps(run)]
    if gaps:
        figures |= {"inter_token_p10_s": quantile(gaps, 0.1), "inter_token_p90_s": quantile(gaps, 0.9)}
    baseline = next((other for other in runs if other.split()[0] == BASELINE), None)
    if baseline is None or baseline == name:
        return figures
    theirs = _samples(runs[baseline])
    for part in PARTS:
        if part in own:
            known = len(own[part]) >= _ROUNDS_FOR_INTERVAL
            low, high = median_ratio_interval(own[part], theirs[part]) if known else (None, None)
            median = Samples.from_values(theirs[part]).median / figures[f"{part}_median_s"]
            figures |= {f"{part}_speedup": median, f"{part}_speedup_low": low, f"{part}_speedup_high": high}
    return figures
