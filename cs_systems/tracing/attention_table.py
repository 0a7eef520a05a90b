"""Attention in parts: does softmax take the share of the time that its share of the FLOPs suggests?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cs_systems.tables import Column, Table
from cs_systems.tracing.attribute import attribute, named, phase_of
from cs_systems.tracing.classify import op_class
from cs_systems.tracing.columns import TOTAL, share, time_column, work_word
from cs_systems.tracing.trace import BACKWARD_SUFFIX, RunFacts, Trace

ATTENTION = "attention"
SCORES, SOFTMAX, FINAL = "attention scores", "attention softmax", "attention final matmul"
PARTS = (SCORES, SOFTMAX, FINAL)
_NAMES = {ATTENTION, *PARTS}
REST = "attention, the rest"
PASSES = ("forward", "recomputed", "backward")

# FLOPs of one layer, as multiples of batch_size * num_heads * seq_len**2. Backward of a product is two of
# its size. Softmax: subtract the maximum (which takes a comparison), exp, sum, divide; its backward is
# weights * (gradient - sum(gradient * weights)).
_MATMUL_FLOPS = {"forward": 2, "recomputed": 2, "backward": 4}  # times d_head
_SOFTMAX_FLOPS = {"forward": 5, "recomputed": 5, "backward": 4}

_COLUMNS = [
    Column("pass", "Pass", align="left"),
    Column("part", "Part", align="left"),
    Column("calls", "Calls"),
    time_column("busy_ns", "Time"),
    time_column("matmul_ns", "Of it matmuls"),
    Column("flops", "FLOPs", format=lambda flops: f"{flops:.3g}"),
    Column("tflops_per_s", "Rate", "TFLOP/s"),
    Column("time_ratio", "Time ratio", "softmax = 1", format=lambda ratio: f"{ratio:.2f}x"),
    Column("flops_ratio", "FLOPs ratio", "softmax = 1", format=lambda ratio: f"{ratio:.2f}x"),
]


def attention_table(trace: Trace, facts: RunFacts | None) -> Table:
    """Time and FLOPs of scores, softmax and the final product, in forward and in backward.

    The two last columns are for comparison: with softmax as 1, how much longer a product takes and how many
    more FLOPs it has. FLOPs follow from the shapes in `facts`; without, these columns are blank. A forward
    that is repeated inside backward, as checkpointing does, has rows of its own.
    """
    attributed = attribute(trace)
    range_paths = named(trace, attributed.range_chains)
    calls = Counter(_pass_and_part(path) for path in range_paths if _bare(path[-1]) in _NAMES)
    busy_ns: Counter = Counter()
    matmul_ns: Counter = Counter()
    for kernel, path in zip(trace.kernels, named(trace, attributed.kernel_chains), strict=True):
        found = _pass_and_part(path)
        busy_ns[found] += kernel.busy_ns
        if op_class(kernel) == "matmul":
            matmul_ns[found] += kernel.busy_ns
    rows = []
    for each_pass in PASSES:
        softmax = each_pass, SOFTMAX
        softmax_flops = _flops(facts, softmax, calls)
        in_parts = any(calls[each_pass, part] for part in PARTS)
        for part in (*PARTS, ATTENTION):
            key = each_pass, part
            if not calls[key] or (in_parts and part == ATTENTION and not busy_ns[key]):
                continue
            flops = None if in_parts and part == ATTENTION else _flops(facts, key, calls)
            rows.append(
                {
                    "pass": each_pass,
                    "part": REST if in_parts and part == ATTENTION else part,
                    "calls": calls[key],
                    "busy_ns": busy_ns[key],
                    "matmul_ns": matmul_ns[key],
                    "flops": flops,
                    "tflops_per_s": share(flops / 1e3, busy_ns[key]) if flops else None,
                    "time_ratio": share(busy_ns[key], busy_ns[softmax]),
                    "flops_ratio": share(flops, softmax_flops) if flops and softmax_flops else None,
                }
            )
    if rows:
        sums = {key: sum(row[key] for row in rows) for key in ("busy_ns", "matmul_ns")}
        rows.append({"pass": TOTAL, **sums})
    notes = (
        []
        if facts
        else ["no FLOPs: the shapes of the run are not known, as no .run.json lies beside the trace"]
    )
    return Table(f"Attention, time of the {work_word(trace)}", _COLUMNS, rows, notes)


def _bare(name: str) -> str:
    return name.removesuffix(BACKWARD_SUFFIX)


def _pass_and_part(path: Sequence[str]) -> tuple[str, str] | None:
    """Where a path lies in attention, by its innermost range that belongs to it."""
    for name in reversed(path):
        if _bare(name) in _NAMES:
            if name != _bare(name):
                return "backward", _bare(name)
            return "recomputed" if phase_of(path) == "backward" else "forward", name
    return None


def _flops(facts: RunFacts | None, key: tuple[str, str], calls: Mapping[Any, int]) -> int | None:
    """FLOPs of all calls of a part in a pass; of `attention` as a whole those of its parts."""
    if facts is None:
        return None
    each_pass, part = key
    matmul = _MATMUL_FLOPS[each_pass] * facts.d_head
    softmax = _SOFTMAX_FLOPS[each_pass]
    per_weight = {SCORES: matmul, SOFTMAX: softmax, FINAL: matmul, ATTENTION: 2 * matmul + softmax}[part]
    return calls[key] * per_weight * facts.batch_size * facts.num_heads * facts.seq_len**2
