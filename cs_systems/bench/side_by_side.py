"""Our model and the Hugging Face model of the same shape and weights, timed in turns in one process."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from cs_systems.bench.peer_case import (
    EXPERIMENT,
    PASSES,
    WARMUP_STEPS,
    PeersConfig,
    case_settings,
    peer_settings,
)
from cs_systems.bench.provenance import collect_provenance
from cs_systems.bench.record import BenchmarkRecord, Status
from cs_systems.bench.turns import Turn, take_turns, wall_timer
from cs_systems.estimator.parameters import num_parameters
from cs_systems.model.apply import apply_attention
from cs_systems.model.functional import cross_entropy
from cs_systems.model.hugging_face_config import config_from_hugging_face
from cs_systems.model.hugging_face_weights import state_from_hugging_face
from cs_systems.model.transformer import TransformerLM
from cs_systems.tables import format_bytes
from cs_systems.timing.contention import CoreLoad
from cs_systems.timing.host_memory import available_bytes
from cs_systems.timing.stats import Samples, median_ratio_interval

LARGEST_DIFFERENCE = 1e-3
"""Of any logit, as a fraction of the largest: fp32 rounding stays far below, another formula far above."""

BYTES_PER_PARAMETER = 2 * (4 + 4)
"""Weight and gradient in fp32, for two models: the least that a comparison needs."""

_PEER_ATTENTION = {"naive": "eager", "sdpa": "sdpa"}


@dataclass(frozen=True)
class Contestant:
    """A model, how to get logits from it, and the loss that its users would take."""

    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]

    def forward(self, token_ids: Tensor, targets: Tensor) -> None:
        """Logits alone, without a graph, as in inference."""
        with torch.no_grad():
            self.logits(token_ids)

    def forward_backward(self, token_ids: Tensor, targets: Tensor) -> None:
        """Logits, loss and the gradients of all parameters."""
        self.loss(self.logits(token_ids), targets).backward()


def build_contestants(settings: Mapping[str, Any], attention: str) -> dict[str, Contestant]:
    """Both models with the random weights of the peer; `settings` are those of a config.json."""
    peer_config = transformers.AutoConfig.for_model(**settings)
    peer = transformers.AutoModelForCausalLM.from_config(
        peer_config, attn_implementation=_PEER_ATTENTION[attention]
    )
    peer.eval()  # ours has no dropout, so theirs is off
    ours = TransformerLM(config_from_hugging_face(settings))
    ours.load_state_dict(state_from_hugging_face(settings["model_type"], ours.config, peer.state_dict()))
    apply_attention(ours, attention)
    return {
        "ours": Contestant(ours, ours, cross_entropy),
        "peer": Contestant(
            peer,
            lambda token_ids: peer(input_ids=token_ids, use_cache=False).logits,
            lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
        ),
    }


def logit_difference(contestants: Mapping[str, Contestant], token_ids: Tensor) -> float:
    """Largest difference of a logit between the two, as a fraction of the largest logit."""
    with torch.no_grad():
        ours, peer = (contestants[name].logits(token_ids) for name in ("ours", "peer"))
    return float((ours - peer).abs().max() / peer.abs().max())


def measure_in_turns(
    runs: Mapping[str, Callable[[], object]],
    steps: int,
    into: dict[str, list[float]],
    *,
    prepare: Callable[[], object],
    on_step: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Add the seconds of each run in each step to `into`; in every second step the last comes first.

    `prepare` is called before each run and `on_step` after each step, both with the clock stopped. A step cut
    short leaves nothing behind, so all lists stay of one length.
    """
    turns = {name: Turn(run, prepare) for name, run in runs.items()}
    take_turns(turns, steps, {"wall": wall_timer(clock=clock)}, {"wall": into}, on_round=on_step)


def run_case(case: PeersConfig, command: str, on_step: Callable[[str], None]) -> tuple[BenchmarkRecord, bool]:
    """The record of a case, and whether Ctrl-C ended it. A case that cannot fit is not started."""
    if case.threads:
        torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    settings = peer_settings(case)
    config = config_from_hugging_face(settings)
    metrics: dict[str, Any] = {
        "transformers": transformers.__version__,
        "num_parameters": num_parameters(config),
    }
    provenance = collect_provenance(command, torch.device("cpu"))

    def record(status: Status, **fields: Any) -> BenchmarkRecord:
        return BenchmarkRecord(EXPERIMENT, case_settings(case), status, provenance, metrics=metrics, **fields)

    needed, free = BYTES_PER_PARAMETER * num_parameters(config), available_bytes()
    if free is not None and needed > free:
        advice = (
            f"weights and gradients of two models need {format_bytes(needed)}, {format_bytes(free)} are free"
        )
        return record("skipped", reason=f"{advice}: try a smaller --model"), False
    contestants = build_contestants(settings, case.attention)
    tokens = torch.randint(config.vocab_size, (case.batch_size, case.context_length + 1))
    token_ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    metrics["logit_difference"] = difference = logit_difference(contestants, token_ids)
    if not difference < LARGEST_DIFFERENCE:
        reason = f"the models do not compute the same: logits differ by {difference:.1e} of the largest"
        return record("failed", reason=reason), False
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in PASSES}
    warmup_samples: dict[str, dict[str, list[float]]] = {name: {} for name in PASSES}
    interrupted = False
    load = CoreLoad.start()
    try:
        for name in PASSES:
            _measure_pass(name, case, contestants, (token_ids, targets), warmup_samples, samples, on_step)
    except KeyboardInterrupt:
        interrupted = True
    metrics["other_load_cores"] = load.finish()
    metrics |= comparison(samples)
    fields = {"samples_s": _flat(samples), "warmup_samples_s": _flat(warmup_samples)}
    if interrupted:
        done = sum(len(times.get("ours", [])) for times in samples.values())
        reason = f"interrupted after {done} of {case.steps * len(PASSES)} steps"
        return record("failed", reason=reason, **fields), True
    return record("ok", **fields), False


def _measure_pass(
    name: str,
    case: PeersConfig,
    contestants: Mapping[str, Contestant],
    batch: tuple[Tensor, Tensor],
    warmup_samples: dict[str, dict[str, list[float]]],
    samples: dict[str, dict[str, list[float]]],
    on_step: Callable[[str], None],
) -> None:
    runs = {who: functools.partial(getattr(model, name), *batch) for who, model in contestants.items()}

    def drop_gradients() -> None:
        for contestant in contestants.values():
            contestant.model.zero_grad()

    for phase, steps, into in (
        ("warm-up", WARMUP_STEPS, warmup_samples[name]),
        ("measuring", case.steps, samples[name]),
    ):
        told = functools.partial(on_step, f"{phase} {name}")
        measure_in_turns(runs, steps, into, prepare=drop_gradients, on_step=told)


def comparison(samples: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Medians, spreads and ratios by pass; ours over peer (below 1: ours is faster), with a 95 % interval."""
    metrics: dict[str, dict[str, float]] = {}
    for name, times in samples.items():
        if not times.get("ours"):
            continue
        ours, peer = (Samples.from_values(times[who]) for who in ("ours", "peer"))
        low, high = median_ratio_interval(peer.values, ours.values)
        for key, value in {
            "ours_median_s": ours.median,
            "ours_iqr_s": ours.iqr,
            "peer_median_s": peer.median,
            "peer_iqr_s": peer.iqr,
            "ratio": ours.median / peer.median,
            "ratio_low": low,
            "ratio_high": high,
        }.items():
            metrics.setdefault(key, {})[name] = value
    return metrics


def _flat(samples: Mapping[str, Mapping[str, list[float]]]) -> dict[str, list[float]]:
    return {f"{name}_{who}": values for name, times in samples.items() for who, values in times.items()}
