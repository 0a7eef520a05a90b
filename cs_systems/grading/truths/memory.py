"""Truths about bytes: what a step holds, by formula and as recorded, and what checkpointing makes of it.

The closed forms are those of the estimator for the preset 2.7B, batch 4, naive attention.
"""

import functools
from collections.abc import Callable
from typing import Any

from cs_systems.estimator.memory import (
    MemoryCase,
    SavedTensor,
    block_tensors,
    logits_bytes,
    num_scores,
    total_bytes,
    weight_copies,
)
from cs_systems.estimator.parameters import num_parameters, parameter_groups
from cs_systems.estimator.peak import predict_peak
from cs_systems.grading.items import Truth
from cs_systems.grading.truths.question import Finder, Question, under
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import find_preset

BATCH = 4
STATE = {"parameters": 1, "gradients": 1, "first moments": 1, "second moments": 1}
"""What fp32 training with AdamW holds for each parameter, in numbers of four bytes."""


def _config() -> ModelConfig:
    return find_preset("2.7B").config


def _case(seq_len: int, **settings: Any) -> MemoryCase:
    return MemoryCase(batch_size=BATCH, seq_len=seq_len, device_type="cuda", **settings)


def training_state(question: Question) -> Truth:
    """Bytes of parameters, gradients and optimizer state."""
    parameters = num_parameters(_config())
    state = 4 * sum(STATE.values()) * parameters
    why = {
        f"{12 * parameters}": "parameters, gradients and two moments are four numbers, not three",
        f"{8 * parameters}": "AdamW has two moments for each parameter besides its gradient",
        f"{4 * parameters}": "gradients and optimizer state count as well",
        f"{16 * 2.7e9:.0f}": "2.7B is a name, not a count: SwiGLU's third matrix makes it more",
    }
    return Truth(
        float(state), why=why, hint="four numbers of four bytes for each parameter of the real count"
    )


def _weight_copies(question: Question) -> Truth:
    copies = weight_copies(_config(), _case(512, precision="bf16"))
    why = {
        f"{2 * copies}": "bf16 has two bytes",
        f"{copies // 2}": "bf16 has two bytes",
    }
    return Truth(
        float(copies), why=why, hint="which weights enter a matrix product? Each is cast once a step"
    )


def _stream(seq_len: int) -> Finder:
    def find(question: Question) -> Truth:
        stream = 4 * BATCH * seq_len * _config().d_model
        why = {
            f"{stream // 2}": "the residual stream is fp32: four bytes",
            f"{stream // BATCH}": "the batch has four sequences",
        }
        return Truth(
            float(stream), why=why, hint="(batch, context, d_model) numbers of four bytes; 1 MiB = 2^20 B"
        )

    return find


def _stream_formula(question: Question) -> Truth:
    return Truth(
        "4*B*S*d",
        why={"B*S*d": "that is how many numbers it has", "2*B*S*d": "fp32 has four bytes"},
        hint="numbers in the tensor, times bytes of a number",
    )  # fmt: skip


def largest_of_forward(seq_len: int) -> dict[str, int]:
    """Bytes of the largest tensor of each kind that forward allocates."""
    config, case = _config(), _case(seq_len)
    return {
        "feed-forward": 4 * case.num_tokens * config.d_ff,
        "scores": 4 * num_scores(config, case),
        "logits": logits_bytes(config, case),
        "stream": 4 * case.num_tokens * config.d_model,
    }


def _largest(seq_len: int) -> Finder:
    def find(question: Question) -> Truth:
        sizes = largest_of_forward(seq_len)
        hint = "compute all four for this context: only the scores grow with its square"
        return Truth(max(sizes, key=sizes.__getitem__), hint=hint)

    return find


def _flip(question: Question) -> Truth:
    seq_len = 1
    while (sizes := largest_of_forward(seq_len))["scores"] < max(sizes["feed-forward"], sizes["logits"]):
        seq_len += 1
    config = _config()
    why = {
        f"{config.d_ff}": "every head has scores of its own",
        f"{config.d_model // config.num_heads}": "other tensors are wider than the stream",
    }
    return Truth(float(seq_len), why=why, hint="set the bytes of the two tensors equal and solve for S")


def _saved(seq_len: int = 512) -> list[SavedTensor]:
    return block_tensors(_config(), _case(seq_len))


def kinds_of_saved(seq_len: int = 512) -> dict[str, list[SavedTensor]]:
    """The tensors that a block keeps by their shape; what is left out is smaller than a thousandth."""
    sizes = largest_of_forward(seq_len)
    kinds = ("feed-forward", "scores", "stream")
    return {kind: [tensor for tensor in _saved(seq_len) if tensor.num_bytes == sizes[kind]] for kind in kinds}


def _saved_bytes(question: Question) -> Truth:
    saved = total_bytes(_saved())
    sizes = largest_of_forward(512)
    why = {
        f"{saved + sizes['feed-forward']}": (
            "that holds where SiLU is written out as x * sigmoid(x), which keeps the sigmoid too"
        ),
        f"{saved + _gradient_bytes()}": "parameters exist anyway: they are not kept for backward",
        f"{saved - sizes['scores']}": "softmax keeps its exponentials, and the product with V the weights",
    }
    return Truth(
        float(saved), why=why, hint="python profiling/run.py saved lists them; count each storage once"
    )


def _saved_formula(question: Question) -> Truth:
    numbers = {"feed-forward": "B*S*f", "scores": "B*H*S**2", "stream": "B*S*d"}
    terms = [f"{len(tensors)}*{numbers[kind]}" for kind, tensors in kinds_of_saved().items()]
    return Truth(
        f"4*({' + '.join(terms)})",
        why={
            "4*(5*B*S*f + 2*B*H*S**2 + 10*B*S*d)": (
                "that holds where SiLU is written out as x * sigmoid(x), which keeps the sigmoid too"
            )
        },
        hint="python profiling/run.py saved lists the tensors: count those of each shape",
    )


def _order_of_saved(question: Question) -> Truth:
    totals = {kind: total_bytes(tensors) for kind, tensors in kinds_of_saved().items()}
    order = tuple(sorted(totals, key=totals.__getitem__, reverse=True))
    return Truth(
        order, hint="many tensors of one shape weigh more than one that is larger: sum them by shape"
    )


def _gradient_bytes() -> int:
    config = _config()
    groups = parameter_groups(config)
    per_layer = groups["attention"] + groups["feed_forward"] + groups["norms"]
    return 4 * ((per_layer - config.d_model) // config.num_layers)  # the last norm belongs to no block


def _gradients(question: Question) -> Truth:
    config, size = _config(), _gradient_bytes()
    why = {
        f"{size - 4 * config.d_model * config.d_ff}": "SwiGLU has three matrices, so three gradients",
        f"{size // 2}": "gradients are fp32: four bytes",
    }
    return Truth(float(size), why=why, hint="one number of four bytes for each parameter of the block")


def _change(question: Question) -> Truth:
    freed, made = total_bytes(_saved(2048)), _gradient_bytes()
    why = {
        f"{freed}": "gradients of the block's parameters come into being meanwhile",
        f"{freed + made}": "one is freed while the other comes into being: they have opposite signs",
    }
    return Truth(float(freed - made), why=why, hint="what is freed, less what is made")


def _last_block_size(question: Question) -> Truth:
    peaks = {size: _checkpointed_peak(size) for size in range(1, _config().num_layers + 1)}
    why = {"6": "sqrt(N) holds where the blocks' inputs are as large as all that a block keeps"}
    hint = "a larger group adds whole blocks to the peak, and saves only their inputs: compare the two sizes"
    return Truth(float(min(peaks, key=peaks.__getitem__)), why=why, hint=hint)


@functools.cache
def _checkpointed_peak(size: int) -> int:
    return predict_peak(_config(), _case(2048, checkpoint_blocks=size)).peak_bytes


def _gap(question: Question) -> Truth:
    gap = _checkpointed_peak(2) - _checkpointed_peak(1)
    freed = total_bytes(_saved(2048))
    why = {
        f"{freed}": "one more block recomputed means that gradients of one block fewer exist: subtract",
        f"{gap + largest_of_forward(2048)['feed-forward']}": (
            "that holds where SiLU is written out as x * sigmoid(x), which keeps the sigmoid too"
        ),
    }
    return Truth(
        float(gap), why=why, hint="the peak is in the backward of the first blocks: what differs there?"
    )


def halving(num_blocks: int) -> tuple[int, int, int]:
    """Simulates nested checkpoints by halves, forward and backward.

    Returns:
        The most blocks whose residuals exist at one time, the most inputs that are kept at one time, and how
        often a block is computed forward.
    """
    most = [0, 0]
    forwards = 0

    def backward(size: int, inputs: int) -> None:
        nonlocal forwards
        if size == 1:
            forwards += 1
            most[0], most[1] = max(most[0], 1), max(most[1], inputs)
            return
        first, second = size - size // 2, size // 2
        forwards += first  # to get the input of the second half, which is kept while that runs backward
        backward(second, inputs + 1)
        backward(first, inputs)

    backward(num_blocks, 1)
    return most[0], most[1], num_blocks + forwards


GROWTH: dict[str, Callable[[int], float]] = {
    "1": lambda n: 1.0,
    "log N": lambda n: n.bit_length() - 1,
    "sqrt N": lambda n: n**0.5,
    "N": lambda n: n,
    "N log N": lambda n: n * (n.bit_length() - 1),
    "N^2": lambda n: n**2,
}
"""The functions that the growth of a count is compared with."""


def growth_of(count: Callable[[int], int]) -> str:
    """The function in whose proportion a count grows from 2^6 to 2^10."""
    small, large = 2**6, 2**10
    grown = count(large) / count(small)
    return min(GROWTH, key=lambda name: abs(GROWTH[name](large) / GROWTH[name](small) / grown - 1))


def _growth(number: int) -> Finder:
    hints = (
        "how many blocks have been recomputed and not yet freed while one runs backward?",
        "how many halves are begun and not finished while the deepest one runs backward?",
        "how often is a block computed forward, one level of halving after the other?",
    )

    def find(question: Question) -> Truth:
        return Truth(growth_of(lambda n: halving(n)[number]), hint=hints[number])

    return find


FINDERS: dict[str, Finder] = {
    "memory_profiling.b training_state": training_state,
    "memory_profiling.c weight_copies": _weight_copies,
    **under(
        "memory_profiling.d",
        {
            "formula": _stream_formula,
            "at_128": _stream(128),
            "at_512": _stream(512),
            "at_2048": _stream(2048),
        },
    ),
    **under(
        "memory_profiling.e",
        {
            "largest_128": _largest(128),
            "largest_512": _largest(512),
            "largest_2048": _largest(2048),
            "flips_at": _flip,
        },
    ),
    **under(
        "memory_profiling.f",
        {
            "saved": _saved_bytes,
            "formula": _saved_formula,
            "order": _order_of_saved,
            "gradients": _gradients,
            "change": _change,
        },
    ),
    **under("gradient_checkpointing.a", {"residuals": _growth(0), "inputs": _growth(1), "work": _growth(2)}),
    **under("gradient_checkpointing.b", {"best_size": _last_block_size, "gap": _gap}),
}
