"""Times of generations, part by part, and every rate that follows from them by arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cs_systems.bench.generation_case import GenerationCase, weight_read_bytes
from cs_systems.bench.generation_ceilings import Ceilings
from cs_systems.estimator.generation import block_flops, prompt_flops, token_flops
from cs_systems.inference.memory import cache_bytes_per_token
from cs_systems.timing.stats import Samples, quantile


@dataclass
class Clocks:
    """Seconds of each part of each generation, in the order measured."""

    parts: dict[str, list[float]] = field(
        default_factory=lambda: {
            name: [] for name in ("end_to_end", "tokenise", "prompt", "step", "detokenise")
        }
    )

    def add(self, **seconds: Sequence[float]) -> None:
        """Keep one generation: all of its parts or, when it was interrupted, none."""
        for name, values in seconds.items():
            self.parts[name] += values

    @property
    def samples(self) -> dict[str, list[float]]:
        """As a record wants them."""
        return {name: values for name, values in self.parts.items() if values}

    @property
    def num_runs(self) -> int:
        """Complete generations."""
        return len(self.parts["end_to_end"])


def rates(case: GenerationCase, clocks: Clocks, ceilings: Ceilings) -> dict[str, Any]:
    """Everything that follows from the times by arithmetic."""
    work, config, batch = case.workload, case.model, case.batch_size
    parts = clocks.parts
    latency_s, prompt_s = (Samples.from_values(parts[name]).median for name in ("end_to_end", "prompt"))
    first_s = [a + b for a, b in zip(parts["tokenise"], parts["prompt"], strict=True)]
    kind = "bf16" if work.precision == "int8" else work.precision
    tokens_per_s = batch * work.new_tokens / latency_s
    metrics: dict[str, Any] = {
        "latency_s": latency_s,
        "ttft_s": Samples.from_values(first_s).median,
        "prompt_s": prompt_s,
        "tokens_per_s": tokens_per_s,
        "tokens_per_s_per_sequence": work.new_tokens / latency_s,
        "ms_per_token": 1e3 / tokens_per_s,
        "prompt_flops": prompt_flops(config, work.prompt_len),
        "prompt_block_flops": block_flops(config, work.prompt_len),
        "token_block_flops": block_flops(config, 1),
        "prompt_flops_per_s": batch * prompt_flops(config, work.prompt_len) / prompt_s,
        "peak_flops_per_s": ceilings.flops_per_s[kind],
        "peak_bytes_per_s": ceilings.bytes_per_s,
        "copy_bytes_per_s": ceilings.copy_bytes_per_s,
    }
    metrics["mfu"] = metrics["prompt_flops_per_s"] / ceilings.flops_per_s[kind]
    metrics["mfu_datasheet"] = _share(metrics["prompt_flops_per_s"], ceilings.datasheet_flops_per_s[kind])
    steps = parts["step"]
    if not steps:
        return metrics
    for name, fraction in (("min", 0.0), ("p10", 0.1), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        metrics[f"inter_token_{name}_s"] = quantile(steps, fraction)
    median_s = metrics["inter_token_p50_s"]
    num_keys = work.prompt_len + work.new_tokens / 2  # on average over the steps, the new token included
    read = weight_read_bytes(config, work.precision)
    read += batch * num_keys * cache_bytes_per_token(config, work.precision)
    metrics |= {
        "step_bytes": read,
        "decode_bytes_per_s": read / median_s,
        "mbu": read / median_s / ceilings.bytes_per_s,
        "mbu_datasheet": _share(read / median_s, ceilings.datasheet_bytes_per_s),
        "token_flops": token_flops(config, round(num_keys)),
        "decode_flops_per_s": batch * token_flops(config, round(num_keys)) / median_s,
        "decode_tokens_per_s": batch / median_s,
    }
    return metrics


def _share(value: float, whole: float | None) -> float | None:
    return None if whole is None else value / whole
