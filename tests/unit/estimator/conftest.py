"""The real model under observation: what autograd saved, and how many bytes of tensors were alive."""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode

from cs_systems.device import DTYPES
from cs_systems.kernels.apply import MODEL_KERNELS, apply_kernels, make_loss
from cs_systems.model.apply import apply_attention, apply_checkpointing
from cs_systems.model.transformer import TransformerLM
from cs_systems.optim import AdamW
from cs_systems.timing.live_bytes import LiveBytes

LOWER = {"matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "linear", "scaled_dot_product_attention"}
FP32 = {"exp", "log", "pow", "square", "rsqrt", "reciprocal", "softmax", "log_softmax", "sum", "logsumexp"}


class CudaAutocast(TorchFunctionMode):
    """The casts of torch.autocast("cuda") on CPU tensors, for the operations that the model uses.

    The lists follow ATen/autocast_mode.h. Every consumer of an activation gets a copy of its own.
    """

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.dtype = dtype

    def cast(self, value, dtype):
        if isinstance(value, list | tuple):
            return type(value)(self.cast(part, dtype) for part in value)
        is_wide = (
            isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        )
        return value.to(dtype) if is_wide else value

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        dtype = self.dtype if name in LOWER else torch.float32 if name in FP32 else None
        if dtype is None:
            return func(*args, **kwargs)
        return func(
            *self.cast(args, dtype), **{key: self.cast(value, dtype) for key, value in kwargs.items()}
        )


def autocast_for(case):
    """The context that `case` runs in."""
    if case.precision not in ("bf16", "fp16"):
        return contextlib.nullcontext()
    dtype = DTYPES[case.precision]
    return CudaAutocast(dtype) if case.device_type == "cuda" else torch.autocast("cpu", dtype)


def build(config, case):
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPES[case.param_dtype])
    model = TransformerLM(config)
    torch.set_default_dtype(torch.float32)
    apply_attention(model, case.attention)
    apply_kernels(model, [name for name in case.kernels if name in MODEL_KERNELS])
    apply_checkpointing(model, case.checkpoint_blocks)
    return model


def run_loss(model, case, ids, targets):
    kernel = next((name for name in case.kernels if name not in MODEL_KERNELS), None)
    outputs, criterion = make_loss(model, kernel)
    return criterion(outputs(ids), targets)


def draw_tokens(config, case):
    tokens = torch.randint(config.vocab_size, (case.batch_size, case.seq_len + 1))
    return tokens[:, :-1].clone(), tokens[:, 1:].clone()


@pytest.fixture
def saved_bytes():
    """Bytes of the storages that autograd saves in a forward pass, parameters and buffers left out."""

    def measure(config, case) -> int:
        model = build(config, case)
        ids, targets = draw_tokens(config, case)
        own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = tensor  # holding it keeps the address from being used again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast_for(case):
            loss = run_loss(model, case, ids, targets)
        assert loss.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())

    return measure


@pytest.fixture
def live_peak_bytes():
    """The most bytes of tensors alive in the second step of `case`."""

    def measure(config, case) -> int:
        model = build(config, case)
        makers = {"adamw": AdamW, "torch": torch.optim.AdamW}
        optimizer = makers[case.optimizer](model.parameters())

        def step():
            ids, targets = draw_tokens(config, case)
            with torch.set_grad_enabled(case.mode != "forward"), autocast_for(case):
                loss = run_loss(model, case, ids, targets)
            if case.mode != "forward":
                loss.backward()
            if case.mode == "train-step":
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step()
        state = [value for values in optimizer.state.values() for value in values.values()]
        tensors = [value for value in state if torch.is_tensor(value)]
        with LiveBytes([*model.parameters(), *model.buffers(), *tensors]) as live:
            step()
        return live.peak

    return measure
