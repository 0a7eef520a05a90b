"""How kernels are tested: on the GPU where there is one, else in Triton's interpreter, against fp64."""

import os

import pytest

GUARD = 64
"""Elements of a known value in front of and behind every buffer that a kernel gets to fill."""


@pytest.fixture(scope="session")
def device():
    """Where kernels run: "cuda", or "cpu" through the interpreter (the root conftest switches it on)."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    pytest.importorskip("triton", reason="needs Triton (Linux)")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
    return "cpu"


@pytest.fixture
def assert_as_accurate():
    """A check that a result is about as close to the fp64 oracle as plain torch in the same precision is."""
    import torch

    def check(ours, oracle, low_precision, *, factor=2.0):
        """max|ours - oracle| <= factor * max|low_precision - oracle| + a few units in the last place."""
        assert ours.shape == oracle.shape
        assert not torch.isnan(ours).any(), "nan: an element that no program wrote, or an operation on one"
        ulp = torch.finfo(low_precision.dtype).eps * oracle.abs().max().item()
        allowed = factor * (low_precision.double() - oracle).abs().max().item() + 2 * ulp
        error = (ours.double() - oracle).abs().max().item()
        assert error <= allowed, f"error {error:.2e}, allowed {allowed:.2e}"

    return check


@pytest.fixture
def poisoned(monkeypatch):
    """Every `torch.empty` of the test is full of nan, with guard bands that must still stand at the end.

    nan in a result shows an element that was never written; a changed guard shows a write out of bounds,
    which on a GPU would corrupt another tensor and in the interpreter goes unseen.
    """
    import torch

    buffers = []

    def empty(*shape, dtype=None, device=None):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        count = torch.Size(shape).numel()
        buffer = torch.full((count + 2 * GUARD,), 12345.0, dtype=dtype, device=device)
        inside = buffer[GUARD : GUARD + count]
        inside.fill_(float("nan") if buffer.is_floating_point() else 77)
        buffers.append(buffer)
        return inside.view(shape)

    monkeypatch.setattr(torch, "empty", empty)
    yield
    assert buffers, "the kernel allocated nothing with torch.empty: nothing was poisoned"
    for buffer in buffers:
        guard = torch.tensor(12345.0, dtype=buffer.dtype, device=buffer.device)
        assert (buffer[:GUARD] == guard).all(), "a program wrote in front of its buffer"
        assert (buffer[-GUARD:] == guard).all(), "a program wrote behind its buffer"
