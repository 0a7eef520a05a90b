"""Truths that follow from the numbers of a problem: bytes on several devices and times."""

import math

from cs_systems.estimator.flops import forward_flops_by_part
from cs_systems.estimator.memory import MemoryCase, block_weight_copies
from cs_systems.estimator.parameters import num_parameters
from cs_systems.grading.items import Truth
from cs_systems.grading.truths.question import GIB, Finder, Question, under
from cs_systems.model.presets import find_preset

# communication_accounting: the model and the machine.
LAYERS, D_MODEL, D_FF, MATRICES = 126, 16384, 53248, 2
GPU_BYTES, TPU_BYTES = 80e9, 95e9
FLOPS_PER_S, BYTES_PER_S = 4.6e14, 1.8e11
FSDP_DEVICES, TP_DEVICES, FSDP_LINKS = 16, 4, 2

STATE_BYTES = {"weights": 4, "gradients": 4, "first moments": 4, "second moments": 4}
"""Of each parameter in fp32 training with AdamW."""
RANKS = 2

# fsdp_accounting.b: 2.7B on two devices, batch and context of each.
GATHER_BATCH, GATHER_LENGTH = 4, 512
GATHER_FLOPS_PER_S, GATHER_BYTES_PER_S = 4e14, 5e10


def _large_parameters() -> int:
    return LAYERS * MATRICES * D_MODEL * D_FF


def _large_state() -> int:
    return sum(STATE_BYTES.values()) * _large_parameters()


def _count_large(question: Question) -> Truth:
    parameters = _large_parameters()
    why = {
        f"{parameters // 2}": "each layer has two matrices",
        f"{parameters // LAYERS}": "that is one layer",
    }
    return Truth(float(parameters), why=why, hint="layers, matrices of a layer, numbers of a matrix")


def _state_of_large(question: Question) -> Truth:
    parameters = _large_parameters()
    why = {
        f"{12 * parameters}": "weights, gradients and two moments are four numbers of four bytes",
        f"{8 * parameters}": "AdamW keeps two moments besides weights and gradients",
        f"{4 * parameters}": "gradients and both moments are held too",
    }
    return Truth(float(_large_state()), why=why, hint="four numbers of four bytes for each parameter")


def gpus_for(num_bytes: int, gpu_bytes: float) -> int:
    """Devices that are needed to hold so many bytes."""
    return math.ceil(num_bytes / gpu_bytes)


def _gpus_of_large(question: Question) -> Truth:
    binary = gpus_for(_large_state(), 80 * GIB)
    why = {f"{binary}": "that takes a GB for 2^30 bytes: the vendors' GB is 10^9 bytes"}
    return Truth(
        float(gpus_for(_large_state(), GPU_BYTES)), why=why, hint="round up: bytes over bytes of one GPU"
    )


def _activations_per_token() -> int:
    return 2 * LAYERS * (D_MODEL + D_FF)


def _activations_of_large(question: Question) -> Truth:
    saved = _activations_per_token()
    why = {
        f"{2 * saved}": "bf16 has two bytes",
        f"{saved // LAYERS}": "every layer keeps its own",
        f"{2 * LAYERS * D_MODEL}": "the second matrix needs its input too, which is wider",
    }
    return Truth(float(saved), why=why, hint="each matrix keeps its input: one is D wide, the other F")


def _bytes_per_device(question: Question) -> Truth:
    state = sum(STATE_BYTES.values())
    return Truth(
        f"({state}*P + A/2)/N + A/2",
        why={
            f"({state}*P + A)/N": "only half of the activations are sharded",
            f"{state}*P/N + A": "half of the activations are sharded too",
            f"{state}*P/N": "activations count as well",
        },
        hint="what is sharded over N, plus what each device holds whole",
    )


def _devices_for_state(question: Question) -> Truth:
    why = {f"{gpus_for(_large_state(), 95 * GIB)}": "a GB is 10^9 bytes here"}
    return Truth(float(gpus_for(_large_state(), TPU_BYTES)), why=why, hint="round up")


def tokens_to_hide_fsdp() -> float:
    """Tokens in all at which a layer's forward products take as long as the gathering of its weights.

    Of a layer every device multiplies B / X tokens with D F / Y weights in each of two matrices, and gathers
    these weights, two bytes each, over its links.
    """
    flops_per_token = MATRICES * 2 * D_MODEL * D_FF / (FSDP_DEVICES * TP_DEVICES)
    gather_s = MATRICES * 2 * D_MODEL * D_FF / TP_DEVICES / (BYTES_PER_S * FSDP_LINKS)
    return gather_s * FLOPS_PER_S / flops_per_token


def tokens_if_traffic_adds_up() -> float:
    """The same if the sums over tensor-parallel devices, two passes of two bytes, took time of their own."""
    return tokens_to_hide_fsdp() / (1 - TP_DEVICES * FLOPS_PER_S / (D_FF * BYTES_PER_S))


_ADDS_UP = "the sums of tensor parallelism travel over another axis of the network, at the same time"


def _tokens(question: Question) -> Truth:
    tokens = tokens_to_hide_fsdp()
    why = {
        f"{tokens_if_traffic_adds_up()}": _ADDS_UP,
        f"{FSDP_LINKS * tokens}": "two of the network's axes carry the weights",
        f"{tokens / FSDP_DEVICES}": "that is for each group of tensor-parallel devices",
        f"{tokens / (FSDP_DEVICES * TP_DEVICES)}": "that is for each device: asked is the sum",
    }
    return Truth(
        tokens, why=why, hint="set the time to gather a layer's weights equal to that of its products"
    )


def _tokens_per_device(question: Question) -> Truth:
    tokens = tokens_to_hide_fsdp()
    why = {
        f"{tokens_if_traffic_adds_up() / (FSDP_DEVICES * TP_DEVICES)}": _ADDS_UP,
        f"{tokens / FSDP_DEVICES}": "a tensor-parallel group of four devices shares these tokens",
        f"{tokens}": "that is the sum over all devices",
    }
    return Truth(tokens / (FSDP_DEVICES * TP_DEVICES), why=why, hint="there are X Y devices")


def held_bytes(parameters: int, sharded: tuple[str, ...]) -> int:
    """Bytes on one of two ranks at the moment when all gradients and moments exist; some of it is sharded."""
    return sum(size * parameters // (RANKS if name in sharded else 1) for name, size in STATE_BYTES.items())


MOMENTS = ("first moments", "second moments")


def _held(preset: str, sharded: tuple[str, ...], wrong: str) -> Finder:
    def find(question: Question) -> Truth:
        parameters = num_parameters(find_preset(preset).config)
        held = held_bytes(parameters, sharded)
        why = {f"{each * parameters}": wrong for each in (4, 6, 8, 12, 16) if each * parameters != held}
        return Truth(
            float(held),
            why=why,
            hint="16 bytes a parameter, less what lies on the other rank; no activations",
        )

    return find


def _after_init(question: Question) -> Truth:
    parameters = num_parameters(find_preset("xl").config)
    why = {f"{16 * parameters}": "gradients and moments are made by backward and by the first optimizer step"}
    return Truth(float(4 * parameters), why=why, hint="only what building the model makes")


def _saved_by_fsdp(question: Question) -> Truth:
    parameters = num_parameters(find_preset("2.7B").config)
    saved = held_bytes(parameters, MOMENTS) - held_bytes(parameters, tuple(STATE_BYTES))
    why = {
        f"{held_bytes(parameters, ()) - held_bytes(parameters, tuple(STATE_BYTES))}": (
            "compare with the sharded optimizer, not with plain data parallelism"
        ),
        f"{saved // 2}": "weights and gradients are sharded, both",
    }
    return Truth(float(saved), why=why, hint="which two things are sharded now that were not before?")


def _sent(passes: int, wrong: int) -> Finder:
    """Bytes out of a rank for so many passes of fp32 values through a ring."""
    why = {
        f"{4 * wrong}*P*(N-1)/N": "count the passes through the ring: an all-reduce has two",
        f"{4 * passes}*P": "a device never sends itself its own share: (N - 1) / N of it",
        f"{2 * passes}*P*(N-1)/N": "fp32 has four bytes",
    }
    return lambda question: Truth(
        f"{4 * passes}*P*(N-1)/N",
        why=why,
        hint="passes through the ring, times 4 P (N - 1) / N bytes for each",
    )


def gather_and_compute_s() -> tuple[float, float]:
    """Seconds to gather the bf16 weights of one block on two devices, and to run it forward."""
    config = find_preset("2.7B").config
    case = MemoryCase(batch_size=GATHER_BATCH, seq_len=GATHER_LENGTH, precision="bf16")
    weights = block_weight_copies(config, case)
    parts = forward_flops_by_part(config, GATHER_BATCH, GATHER_LENGTH)
    flops = (sum(parts.values()) - parts["head"]) / config.num_layers
    return weights * (RANKS - 1) / RANKS / GATHER_BYTES_PER_S, flops / GATHER_FLOPS_PER_S


def _gather_time(question: Question) -> Truth:
    gather_s, _ = gather_and_compute_s()
    why = {
        f"{RANKS * gather_s}": "half of the weights is on the device already",
        f"{2 * gather_s}": "weights are gathered in bf16: two bytes",
    }
    return Truth(gather_s, why=why, hint="bytes that come from the other rank, over W")


def _compute_time(question: Question) -> Truth:
    _, compute_s = gather_and_compute_s()
    why = {f"{compute_s / 2}": "a multiply-add is two operations", f"{3 * compute_s}": "forward alone"}
    return Truth(compute_s, why=why, hint="products of one block, attention's own included, over C; no head")


def _is_in_time(question: Question) -> Truth:
    gather_s, compute_s = gather_and_compute_s()
    return Truth("yes" if gather_s <= compute_s else "no", hint="compare your two times")


FINDERS: dict[str, Finder] = {
    **under(
        "communication_accounting.a",
        {
            "num_parameters": _count_large,
            "state": _state_of_large,
            "gpus": _gpus_of_large,
            "activations": _activations_of_large,
        },
    ),
    **under("communication_accounting.b", {"formula": _bytes_per_device, "devices": _devices_for_state}),
    **under("communication_accounting.c", {"tokens": _tokens, "tokens_per_device": _tokens_per_device}),
    **under(
        "optimizer_state_sharding_accounting.a",
        {
            "after_init": _after_init,
            "plain": _held("xl", (), "every rank holds weights, gradients and both moments whole"),
            "sharded": _held(
                "xl", MOMENTS, "only the two moments are sharded: weights and gradients stay whole"
            ),
        },
    ),
    **under("optimizer_state_sharding_accounting.c", {"ours": _sent(3, 2), "zero1": _sent(2, 3)}),
    **under(
        "fsdp_accounting.a",
        {
            "held": _held("2.7B", tuple(STATE_BYTES), "all four numbers are sharded over the two ranks"),
            "saved": _saved_by_fsdp,
        },
    ),
    **under("fsdp_accounting.b", {"gather": _gather_time, "compute": _compute_time, "in_time": _is_in_time}),
}
