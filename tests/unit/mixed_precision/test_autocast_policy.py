"""The table of rules against torch's own lists, found in two ways; and what the fallback says."""

import pytest
import torch
import torch.nn.functional as F

from cs_systems.mixed_precision import autocast_derive
from cs_systems.mixed_precision.autocast_derive import (
    FakeGpu,
    derive_kind,
    derive_kinds,
    disagreements,
    has_own_kernel,
    pretend_autocast,
    why_underivable,
)
from cs_systems.mixed_precision.autocast_policy import RULES, find_kind, plain_name

DTYPES = (torch.float16, torch.bfloat16)
POLICIES = ("cuda", "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("policy", POLICIES)
def test_each_operation_does_what_the_table_says(policy, dtype):
    assert derive_kinds(policy, dtype) == {op: find_kind(op, policy) for op in RULES}
    assert disagreements(policy, dtype) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_the_dispatcher_has_code_for_exactly_the_listed_operations(policy):
    with_code = {op for op in RULES if has_own_kernel(op, policy)}
    assert with_code == {op for op in RULES if find_kind(op, policy) != "unlisted"}


def test_a_wrong_row_is_found(monkeypatch):
    wrong = RULES | {"exp": RULES["relu"], "relu": RULES["exp"]}
    monkeypatch.setattr(autocast_derive, "find_kind", lambda op, policy: wrong[op].cuda)
    assert sorted(disagreements("cuda", torch.float16)) == [
        "exp: table unlisted, torch fp32", "relu: table fp32, torch unlisted",
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_real_gpu_follows_the_table(dtype):
    def make(*sizes, dtype):
        return torch.ones(sizes, dtype=dtype, device="cuda")

    with torch.autocast("cuda", dtype):
        found = {op: derive_kind(op, make, "cuda", dtype) for op in RULES}
    assert found == {op: find_kind(op, "cuda") for op in RULES}


EXPRESSIONS = {
    "x @ x": ("matmul", lambda x: x @ x), "x**2": ("pow", lambda x: x**2), "2**x": ("pow", lambda x: 2**x),
    "1 - x": ("sub", lambda x: 1 - x), "1 / x": ("reciprocal", lambda x: 1 / x),
    "x / 2": ("div", lambda x: x / 2), "-x": ("neg", lambda x: -x), "2 * x": ("mul", lambda x: 2 * x),
    "x + 1": ("add", lambda x: x + 1), "F.softmax": ("softmax", lambda x: F.softmax(x, -1)),
    "torch.softmax": ("softmax", lambda x: torch.softmax(x, -1)), "x.sum()": ("sum", lambda x: x.sum()),
}  # fmt: skip


class Names(torch.overrides.TorchFunctionMode):
    """Notes under which names the table is asked."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(plain_name(function.__name__))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_operators_functions_and_methods_are_looked_up_under_the_name_that_decides(expression):
    """Also that CUDA treats the expression as the row of that name says; `1 / x` is a reciprocal, in fp32."""
    name, run = EXPRESSIONS[expression]
    with FakeGpu() as gpu, pretend_autocast("cuda", torch.float16):
        x = gpu.fake(torch.empty(2, 2, dtype=torch.float16, device="meta"))
        with Names() as seen:
            y = run(x)
    assert seen.names == [name]
    assert (y.dtype == torch.float32) == (find_kind(name, "cuda") == "fp32")


def test_pretended_autocast_ends_with_its_context():
    before = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    inside = []

    def fail():
        with pretend_autocast("cpu", torch.float16):
            inside.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [(True, torch.float16)]
    assert (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")) == before


def test_fake_tensors_can_be_indexed():
    real, mask = torch.zeros(4, 6), torch.tensor([0, 2])
    with FakeGpu() as gpu:
        fake = gpu.fake(torch.empty(4, 6, device="meta"))
        rows = gpu.fake(torch.empty(2, dtype=torch.int64, device="meta"))
        for index in (0, slice(1, 3), (..., slice(0, None, 2)), (None, 1)):
            assert fake[index].shape == real[index].shape
        assert fake[rows, rows].shape == real[mask, mask].shape
        assert fake[rows].device.type == "cuda"


def test_why_nothing_can_be_derived_is_told(monkeypatch):
    assert why_underivable() is None

    def gone():
        raise ImportError("no FakeTensor")

    monkeypatch.setattr(autocast_derive, "FakeGpu", gone)
    why_underivable.cache_clear()
    try:
        assert "not as expected (ImportError)" in why_underivable()
        monkeypatch.undo()
        monkeypatch.setattr(F, "layer_norm", lambda x, shape: x)
        why_underivable.cache_clear()
        assert "do not follow autocast" in why_underivable()
    finally:
        why_underivable.cache_clear()
