"""Truths about training on many devices, as formulas.

The model of these problems is one feed-forward layer of three matrices of D x F (SwiGLU) with two bytes a
value, a batch of B tokens, N devices with C operations a second, and W bytes a second out of each of them.
Formulas are put together from these numbers and from the time of a ring; tests compare them with devices that
are simulated one by one.
"""

from collections.abc import Mapping
from fractions import Fraction

from cs_systems.grading.items import Truth
from cs_systems.grading.truths.question import Finder, Question, under

MATRICES, VALUE_BYTES = 3, 2
FLOPS = {"forward": 2 * MATRICES, "backward": 4 * MATRICES}
"""Times B D F; each product Y = X W has two in backward."""
WEIGHTS = VALUE_BYTES * MATRICES
"""Bytes of all weights, times D F."""
ACTIVATIONS = VALUE_BYTES
"""Bytes of the result of the layer, times B D."""

THIRD_MATRIX = "SwiGLU has three matrices, not two"
HALF_RING = "each device has its own share already: a ring takes N - 1 steps of an N-th each"


def one_pass(num_bytes: str) -> str:
    """Time of an all-gather or a reduce-scatter in a ring: N - 1 steps in which each device sends an N-th."""
    return f"{num_bytes}*(N-1)/(N*W)"


def all_reduce(num_bytes: str) -> str:
    """Time of a reduce-scatter and an all-gather."""
    return f"2*{one_pass(num_bytes)}"


def weights_bound(phase: str, passes: int) -> str:
    """Largest N at which so many passes of the weights take no longer than the work of a phase."""
    return f"1 + {Fraction(FLOPS[phase], passes * WEIGHTS)}*B*W/C"


def activations_bound(phase: str) -> str:
    """Largest N at which one all-reduce of the result is no longer than the work of a phase."""
    return f"1 + {Fraction(FLOPS[phase], 2 * ACTIVATIONS)}*F*W/C"


def shared_bound() -> str:
    """Largest N = NF NT at which both axes together are no longer than the work of forward.

    a (NF - 1) + b (NT - 1) <= budget with a and b for the two communications: the product NF NT is greatest
    where a NF = b NT = (budget + a + b) / 2.
    """
    a, b = f"{WEIGHTS}*F", f"{2 * ACTIVATIONS}*B"
    return f"({FLOPS['forward']}*B*F*W/C + {a} + {b})**2/(4*{a}*{b})"


def _formula(value: str, hint: str, why: Mapping[str, str] | None = None) -> Finder:
    return lambda question: Truth(value, why=why or {}, hint=hint)


_FLOPS = (
    "2 m n k for each product, and an N-th of them on each device; backward has two products for each one"
)
_TIME = "bytes that one device sends, over W; count the steps of the ring and the bytes of one step"
_BOUND = "set the time of the communication equal to that of the computation and solve for N"


def _flops(phase: str) -> Finder:
    forward = phase == "forward"
    why = {
        "4*B*D*F/N" if forward else "8*B*D*F/N": THIRD_MATRIX,
        "3*B*D*F/N" if forward else "6*B*D*F/N": (
            "a multiply-add is two operations"
            if forward
            else "each product has two in backward: for its input and weight"
        ),
        "6*B*D*F" if forward else "12*B*D*F": "that is the work of all devices together",
    }
    return _formula(f"{FLOPS[phase]}*B*D*F/N", _FLOPS, why)


def _time(value: str, why: Mapping[str, str]) -> Finder:
    return _formula(value, _TIME, why)


_WEIGHTS_ONCE = {
    "6*D*F/W": HALF_RING,
    "4*D*F*(N-1)/(N*W)": THIRD_MATRIX,
    "12*D*F*(N-1)/(N*W)": "one pass through the ring is enough: the weights are gathered, nothing is summed",
}
_WEIGHTS_TWICE = {
    "6*D*F*(N-1)/(N*W)": "two passes through the ring are needed",
    "12*D*F/W": HALF_RING,
    "8*D*F*(N-1)/(N*W)": THIRD_MATRIX,
}
_ACTIVATIONS = {
    "2*B*D*(N-1)/(N*W)": "a sum over the devices that all need takes two passes through the ring",
    "4*B*F*(N-1)/(N*W)": "the sum is over the result of the layer, which is D wide",
    "4*B*D/W": HALF_RING,
}


def replicated_gradients() -> str:
    """Which gradient of a tensor-parallel SwiGLU layer is only a part of the truth on each device.

    W1 and W2 are cut by columns and W3 by rows, so each device has its own columns of x1, x2 and z. A layer
    of two hidden units on two devices is differentiated by hand, unit by unit: x1 = w1 x, x2 = w2 x,
    z = x1^2 x2 (a stand-in for silu(x1) x2), y = w3 z.
    """
    x, dy = 3, 5
    units = [{"w1": 2, "w2": 7, "w3": 11}, {"w1": -1, "w2": 4, "w3": 6}]

    def gradients(held: list[dict[str, int]]) -> dict[str, list[int]]:
        parts: dict[str, list[int]] = {"dx": [0], "dW1": [], "dW2": [], "dW3": []}
        for unit in held:
            x1, x2 = unit["w1"] * x, unit["w2"] * x
            dz = dy * unit["w3"]
            dx1, dx2 = dz * 2 * x1 * x2, dz * x1**2
            parts["dx"][0] += dx1 * unit["w1"] + dx2 * unit["w2"]
            parts["dW1"].append(dx1 * x)
            parts["dW2"].append(dx2 * x)
            parts["dW3"].append(x1**2 * x2 * dy)
        return parts

    whole = gradients(units)
    shards = [gradients([unit]) for unit in units]
    [partial] = [name for name in whole if whole[name] != [v for shard in shards for v in shard[name]]]
    return partial


def _reduced(question: Question) -> Truth:
    return Truth(
        replicated_gradients(),
        why={
            "dW1": "a device has whole columns of W1, and all of the tokens",
            "dW2": "a device has whole columns of W2, and all of the tokens",
            "dW3": "a device has whole rows of W3, and all of the tokens",
        },
        hint="for each gradient: over which axis does the sum run, and is that axis cut?",
    )


FINDERS: dict[str, Finder] = {
    **under(
        "alternate_ring_all_reduce.a",
        {
            "time": _time(
                "(N-1)*S/W",
                {
                    "N*S/W": "after N - 1 steps every device has seen every tensor",
                    "2*(N-1)*S/(N*W)": "that is the usual ring; here a step passes a whole tensor on",
                    "(N-1)*S/(N*W)": "a step passes a whole tensor on, not an N-th of it",
                },
            ),
            "usual": _time(all_reduce("S"), {"(N-1)*S/(N*W)": "summing is one pass, sharing another"}),
        },
    ),
    **under(
        "data_parallel_calcs.a",
        {
            "flops": _flops("backward"),
            "time": _time(all_reduce(f"{WEIGHTS}*D*F"), _WEIGHTS_TWICE),
            "largest_n": _formula(weights_bound("backward", 2), _BOUND, {"B*W/C": "that is N - 1"}),
        },
    ),
    **under(
        "fsdp_calcs.a",
        {
            "flops": _flops("forward"),
            "time": _time(one_pass(f"{WEIGHTS}*D*F"), _WEIGHTS_ONCE),
            "largest_n": _formula(weights_bound("forward", 1), _BOUND, {"B*W/C": "that is N - 1"}),
        },
    ),
    **under(
        "fsdp_calcs.b",
        {
            "flops": _flops("backward"),
            "time": _time(all_reduce(f"{WEIGHTS}*D*F"), _WEIGHTS_TWICE),
            "largest_n": _formula(weights_bound("backward", 2), _BOUND, {"B*W/C": "that is N - 1"}),
        },
    ),
    "tp_calcs.a reduced": _reduced,
    **under(
        "tp_calcs.b",
        {
            "flops": _flops("forward"),
            "time": _time(all_reduce(f"{ACTIVATIONS}*B*D"), _ACTIVATIONS),
            "largest_n": _formula(activations_bound("forward"), _BOUND, {"3*F*W/(2*C)": "that is N - 1"}),
        },
    ),
    **under(
        "tp_calcs.c",
        {
            "flops": _flops("backward"),
            "time": _time(all_reduce(f"{ACTIVATIONS}*B*D"), _ACTIVATIONS),
            "largest_n": _formula(activations_bound("backward"), _BOUND, {"3*F*W/C": "that is N - 1"}),
        },
    ),
    **under(
        "fsdp_tp_calcs.a",
        {
            "flops": _formula(
                f"{FLOPS['forward']}*B*D*F/(NF*NT)", _FLOPS, {"6*B*D*F/NF": "each group cuts it again"}
            ),
            "fsdp_time": _time(
                f"{WEIGHTS}*D*F/NT*(NF-1)/(NF*W)",
                {"6*D*F*(NF-1)/(NF*W)": "a device gathers only the columns that it works with"},
            ),
            "tp_time": _time(
                f"2*{ACTIVATIONS}*B*D/NF*(NT-1)/(NT*W)",
                {"4*B*D*(NT-1)/(NT*W)": "a tensor-parallel group has only its own share of the batch"},
            ),
        },
    ),
    **under(
        "fsdp_tp_calcs.b",
        {
            "overlapped": _formula(
                f"({weights_bound('forward', 1)})*({activations_bound('forward')})",
                "each axis has a bound of its own then; the number of devices is the product",
                {"3*B*F*W**2/(2*C**2)": "that leaves the ones out: N - 1 is bounded, not N"},
            ),
            "shared": _formula(
                shared_bound(),
                "write the sum of both times as a (NF - 1) + b (NT - 1), then maximise NF NT",
                {"3*B*F*W**2/(8*C**2)": "that leaves the ones out: N - 1 is bounded, not N"},
            ),
        },
    ),
    **under(
        "ddp_bucketed_benchmarking.b",
        {
            "overhead": _formula(
                "s/(n*w) + n*o",
                "which bucket cannot overlap with backward, and what does each bucket cost besides?",
                {"s/w + n*o": "all buckets but the last are sent while backward still computes"},
            ),
            "best_n": _formula("sqrt(s/(o*w))", "where is the derivative of the overhead by n zero?", {}),
            "best_bytes": _formula(
                "s/sqrt(s/(o*w))",
                "the bytes of one bucket when there are as many as is best",
                {"sqrt(s/(o*w))": "that is the number of buckets"},
            ),
        },
    ),
}  # fmt: skip
