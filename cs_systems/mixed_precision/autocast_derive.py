"""CUDA's autocast rules, found in a torch that has no GPU.

The rules are part of every build of torch. They act on tensors that claim to live on a GPU, and a fake tensor
claims so: it has a shape, a type and a device, and no memory. Fake tensors are a private part of torch; where
they are missing or have changed, `why_underivable` says so and the table in `autocast_policy` takes over.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cs_systems.mixed_precision.autocast_policy import RULES, Kind, find_kind

NOT_AS_EXPECTED = (ImportError, AttributeError, TypeError, NotImplementedError, RuntimeError, AssertionError)
"""What a private interface raises when it is not what it was."""

MakeTensor = Callable[..., Tensor]
"""From sizes and `dtype` to a tensor."""


@contextlib.contextmanager
def pretend_autocast(device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast for tensors of `device_type`, whether or not this machine has such a device.

    `torch.autocast("cuda")` switches itself off without a GPU; the setters below it do not.
    """
    old = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, True)
    torch.set_autocast_dtype(device_type, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device_type, old[0])
        torch.set_autocast_dtype(device_type, old[1])


class FakeGpu(TorchFunctionMode):
    """A context in which tensors from `fake` claim to be on cuda:0 and operations on them compute types only.

    Such tensors must not require gradients: without a GPU, torch ends the process at once.
    """

    def __init__(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        super().__init__()
        self._mode = FakeTensorMode()

    def __enter__(self) -> "FakeGpu":
        self._mode.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._mode.__exit__(*exception)

    def fake(self, tensor: Tensor) -> Tensor:
        """A fake tensor on the GPU with the shape and type of `tensor`, which is on the meta device."""
        from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

        with unset_fake_temporarily():
            return FakeTensor(self._mode, tensor.detach(), torch.device("cuda:0"))

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; `tensor[index]` needs CUDA itself, so its shape is found on the meta device."""
        if function is torch.Tensor.__getitem__:
            return self.fake(_index(*args))
        return function(*args, **(kwargs or {}))


def _index(tensor: Tensor, index: Any) -> Tensor:
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    def on_meta(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(on_meta, value))
        return (
            torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value
        )

    with unset_fake_temporarily():
        return on_meta(tensor)[on_meta(index)]


@functools.cache
def why_underivable() -> str | None:
    """Why fake tensors cannot show CUDA's rules with this torch, in words; None where they can."""
    try:
        with FakeGpu() as gpu, pretend_autocast("cuda", torch.bfloat16):
            x, weight = (gpu.fake(torch.empty(4, 4, device="meta")) for _ in range(2))
            product = F.linear(x, weight)
            found = product.dtype, F.layer_norm(product, (4,)).dtype
    except NOT_AS_EXPECTED as error:
        return f"fake tensors of torch {torch.__version__} are not as expected ({type(error).__name__})"
    if found != (torch.bfloat16, torch.float32):
        return f"fake tensors of torch {torch.__version__} do not follow autocast"
    return None


_EXAMPLES: dict[str, Callable[[MakeTensor, list[torch.dtype]], Tensor]] = {
    "linear": lambda make, t: F.linear(make(4, 4, dtype=t[0]), make(4, 4, dtype=t[1])),
    "matmul": lambda make, t: make(4, 4, dtype=t[0]) @ make(4, 4, dtype=t[1]),
    "mm": lambda make, t: torch.mm(make(4, 4, dtype=t[0]), make(4, 4, dtype=t[1])),
    "mv": lambda make, t: torch.mv(make(4, 4, dtype=t[0]), make(4, dtype=t[1])),
    "bmm": lambda make, t: torch.bmm(make(2, 4, 4, dtype=t[0]), make(2, 4, 4, dtype=t[1])),
    "addmm": lambda make, t: torch.addmm(make(4, dtype=t[1]), make(4, 4, dtype=t[0]), make(4, 4, dtype=t[1])),
    "addbmm": lambda make, t: torch.addbmm(
        make(4, 4, dtype=t[1]), make(2, 4, 4, dtype=t[0]), make(2, 4, 4, dtype=t[1])
    ),
    "baddbmm": lambda make, t: torch.baddbmm(
        make(2, 4, 4, dtype=t[1]), make(2, 4, 4, dtype=t[0]), make(2, 4, 4, dtype=t[1])
    ),
    "einsum": lambda make, t: torch.einsum("ij,jk->ik", make(4, 4, dtype=t[0]), make(4, 4, dtype=t[1])),
    "scaled_dot_product_attention": lambda make, t: F.scaled_dot_product_attention(
        make(1, 2, 4, 8, dtype=t[0]), make(1, 2, 4, 8, dtype=t[1]), make(1, 2, 4, 8, dtype=t[1])
    ),
    "conv1d": lambda make, t: F.conv1d(make(1, 4, 8, dtype=t[0]), make(4, 4, 3, dtype=t[1])),
    "conv2d": lambda make, t: F.conv2d(make(1, 4, 8, 8, dtype=t[0]), make(4, 4, 3, 3, dtype=t[1])),
    "softmax": lambda make, t: F.softmax(make(4, 4, dtype=t[0]), -1),
    "log_softmax": lambda make, t: F.log_softmax(make(4, 4, dtype=t[0]), -1),
    "logsumexp": lambda make, t: make(4, 4, dtype=t[0]).logsumexp(-1),
    "pow": lambda make, t: make(4, 4, dtype=t[0]).pow(2),
    "cumsum": lambda make, t: make(4, 4, dtype=t[0]).cumsum(-1),
    "layer_norm": lambda make, t: F.layer_norm(make(4, 4, dtype=t[0]), (4,)),
    "rms_norm": lambda make, t: F.rms_norm(make(4, 4, dtype=t[0]), (4,)),
    "group_norm": lambda make, t: F.group_norm(make(4, 4, dtype=t[0]), 2),
    "cross_entropy": lambda make, t: F.cross_entropy(make(4, 4, dtype=t[0]), make(4, dtype=torch.int64)),
    "nll_loss": lambda make, t: F.nll_loss(make(4, 4, dtype=t[0]), make(4, dtype=torch.int64)),
    "mse_loss": lambda make, t: F.mse_loss(make(4, dtype=t[0]), make(4, dtype=t[1])),
    "l1_loss": lambda make, t: F.l1_loss(make(4, dtype=t[0]), make(4, dtype=t[1])),
    "binary_cross_entropy_with_logits": lambda make, t: F.binary_cross_entropy_with_logits(
        make(4, dtype=t[0]), make(4, dtype=t[1])
    ),
    "silu": lambda make, t: F.silu(make(4, 4, dtype=t[0])),
    "gelu": lambda make, t: F.gelu(make(4, 4, dtype=t[0])),
    "clamp": lambda make, t: make(4, 4, dtype=t[0]).clamp(0, 1),
    "masked_fill": lambda make, t: make(4, dtype=t[0]).masked_fill(make(4, dtype=torch.bool), 0.0),
    "where": lambda make, t: torch.where(make(4, dtype=torch.bool), make(4, dtype=t[0]), make(4, dtype=t[1])),
    "gather": lambda make, t: make(4, 4, dtype=t[0]).gather(-1, make(4, 1, dtype=torch.int64)),
    "amax": lambda make, t: make(4, 4, dtype=t[0]).amax(-1),
    "embedding": lambda make, t: F.embedding(make(4, dtype=torch.int64), make(4, 4, dtype=t[0])),
    "cat": lambda make, t: torch.cat([make(4, dtype=t[0]), make(4, dtype=t[1])]),
    "stack": lambda make, t: torch.stack([make(4, dtype=t[0]), make(4, dtype=t[1])]),
    "addcmul": lambda make, t: torch.addcmul(make(4, dtype=t[1]), make(4, dtype=t[0]), make(4, dtype=t[1])),
    "addcdiv": lambda make, t: torch.addcdiv(make(4, dtype=t[1]), make(4, dtype=t[0]), make(4, dtype=t[1])),
    "dot": lambda make, t: torch.dot(make(4, dtype=t[0]), make(4, dtype=t[1])),
    **{
        op: lambda make, t, op=op: getattr(torch, op)(make(4, 4, dtype=t[0]), make(4, 4, dtype=t[1]))
        for op in ("add", "sub", "mul", "div")
    },
}


def run_example(op: str, make: MakeTensor, dtypes: list[torch.dtype]) -> Tensor:
    """The result of one small call of an operation; its first input has dtypes[0], further ones dtypes[1]."""
    example = _EXAMPLES.get(op)
    return example(make, dtypes) if example else getattr(torch, op)(make(4, 4, dtype=dtypes[0]))


def derive_kinds(policy: str, dtype: torch.dtype) -> dict[str, Kind]:
    """The list on which torch has each operation of `RULES`, from what comes out of a small call of each.

    Fake tensors for the policy cuda, real ones for cpu. An operation that gives a low type for fp32 is on the
    list of lower precision, one that gives fp32 for a low type is on that of fp32. The third list and none at
    all give the same types here, so torch's dispatcher is asked which of the two it is.
    """
    if policy == "cpu":
        with pretend_autocast("cpu", dtype):
            return {op: derive_kind(op, _ones, policy, dtype) for op in RULES}
    with FakeGpu() as gpu, pretend_autocast("cuda", dtype):

        def make(*sizes: int, dtype: torch.dtype) -> Tensor:
            return gpu.fake(torch.empty(sizes, dtype=dtype, device="meta"))

        return {op: derive_kind(op, make, policy, dtype) for op in RULES}


def _ones(*sizes: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(sizes, dtype=dtype)


def derive_kind(op: str, make: MakeTensor, policy: str, dtype: torch.dtype) -> Kind:
    """The list that one operation is on, under an autocast to `dtype` that is already switched on."""
    wide = torch.float32
    if run_example(op, make, [wide, wide]).dtype == dtype:
        return "lower"
    if run_example(op, make, [dtype, dtype]).dtype == wide:
        return "fp32"
    return "widest" if has_own_kernel(op, policy) else "unlisted"


def has_own_kernel(op: str, policy: str) -> bool:
    """Whether autocast has code for the operation or one of its parts, according to torch's dispatcher."""
    key = "AutocastCUDA" if policy == "cuda" else "AutocastCPU"
    return any(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{part}", key) for part in RULES[op].parts
    )


def disagreements(policy: str, dtype: torch.dtype) -> list[str]:
    """Operations on which this torch and the table differ, as `exp: table fp32, torch unlisted`."""
    return [
        f"{op}: table {find_kind(op, policy)}, torch {kind}"
        for op, kind in derive_kinds(policy, dtype).items()
        if kind != find_kind(op, policy)
    ]
