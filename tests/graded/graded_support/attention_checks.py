"""Both implementations of FlashAttention-2 called for given inputs, and compared with the truth."""

from typing import Any

import torch
from torch import Tensor

from graded_support.attention_mistakes import gradient_mistakes, result_mistakes
from graded_support.attention_truth import Inputs, true_gradients, true_result
from graded_support.compare import check_tensor
from graded_support.kernel_calls import apply, gradients, triton_device

IMPLEMENTATIONS = ("pytorch", "triton")


def device_of(kind: str, test: Any) -> str:
    """Where an implementation is tested, as `triton_device` has it."""
    return triton_device(test) if kind == "triton" else "cpu"


def forward(adapters: Any, kind: str, inputs: Inputs) -> Tensor:
    """What `apply` of "pytorch" or "triton" returns for leaves that want gradients."""
    return _forward(adapters, kind, inputs)[0]


def check_forward(adapters: Any, kind: str, inputs: Inputs) -> None:
    """Compare o with the truth."""
    check_result(forward(adapters, kind, inputs), inputs, f"o of {kind}")


def check_result(actual: Any, inputs: Inputs, what: str) -> None:
    """Compare what came out of some call with o."""
    truth = true_result(inputs)
    check_tensor(
        actual,
        truth.values,
        what=f"{what} ({_sizes(inputs)})",
        allowed=truth.allowed,
        dtype=inputs.q.dtype,
        mistakes=result_mistakes(inputs, actual),
        hint=(
            "nan comes from inf / inf (subtract the running maximum before exp) or from exp(-inf - (-inf)); "
            "otherwise compare m, l and O with the formula after each tile."
        ),
    )


def check_backward(adapters: Any, kind: str, inputs: Inputs) -> None:
    """Compare dq, dk and dv with the truth; `inputs.do` arrives as it is laid out."""
    o, leaves = _forward(adapters, kind, inputs)
    found = gradients(o, leaves, inputs.upstream(), what=f"flash attention ({kind})")
    mistakes = gradient_mistakes(inputs)
    for actual, (name, truth) in zip(found, true_gradients(inputs).items(), strict=True):
        check_tensor(
            actual,
            truth.values,
            what=f"{name} of {kind} ({_sizes(inputs)})",
            allowed=truth.allowed,
            dtype=inputs.q.dtype,
            mistakes=mistakes[name],
            hint=(
                "With P = exp(S - L), D = rowsum(o * do) and dS = P * (do v^T - D): dv = P^T do, "
                "dq = dS k / sqrt(d), dk = dS^T q / sqrt(d)."
            ),
        )


def _forward(adapters: Any, kind: str, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    function = getattr(adapters, f"get_flashattention_autograd_function_{kind}")()
    leaves = [tensor.detach().requires_grad_() for tensor in (inputs.q, inputs.k, inputs.v)]
    what = f"flash attention ({kind})"
    return apply(function, *leaves, inputs.is_causal, what=what, in_triton=kind == "triton"), leaves


def _sizes(inputs: Inputs) -> str:
    (num_queries, d), num_keys = inputs.q.shape[1:], inputs.k.shape[1]
    return f"{num_queries} queries, {num_keys} keys, d {d}, is_causal={inputs.is_causal}"


def make_secret_inputs(secret_seed: int, number: int, *, device: str) -> Inputs:
    """Sizes and numbers that nobody knows beforehand: powers of two from 16 to 128, d up to 64."""
    generator = torch.Generator().manual_seed(1000 * secret_seed + number)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    batch_size, num_queries, num_keys, d = draw(1, 3), 2 ** draw(4, 7), 2 ** draw(4, 7), 2 ** draw(4, 6)
    rows = num_queries, num_keys, num_keys, num_queries
    q, k, v, do = (torch.randn(batch_size, n, d, generator=generator).to(device) for n in rows)
    return Inputs(1.5 * q, k, v, number % 2 == 1, do)
