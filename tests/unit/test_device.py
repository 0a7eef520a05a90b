"""What can be said about devices on a machine without a GPU."""

import platform

import pytest
import torch
from torch.overrides import TorchFunctionMode

from cs_systems import device as devices

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
CPU = torch.device("cpu")


@needs_no_gpu
def test_auto_is_the_cpu_and_cuda_is_refused_with_advice():
    assert devices.choose_device("auto") == CPU
    with pytest.raises(devices.UnsupportedError, match="--device cpu"):
        devices.choose_device("cuda")


def test_tf32_on_a_cpu_is_refused_and_the_rest_is_not():
    with pytest.raises(devices.UnsupportedError, match="use fp32 or bf16"):
        devices.check_precision(CPU, "tf32")
    for precision in ("fp32", "bf16", "fp16"):
        devices.check_precision(CPU, precision)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_decides_the_dtype_of_matrix_products(precision, dtype):
    a = torch.randn(4, 4)
    with devices.autocast(CPU, precision):
        assert (a @ a).dtype == dtype


def test_matmul_precision_is_set_for_every_name():
    before = torch.get_float32_matmul_precision()
    try:
        assert devices.set_matmul_precision("tf32") == "high"
        assert devices.set_matmul_precision("fp32") == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


class ShortenedProducts(TorchFunctionMode):
    """Matrix products whose inputs keep `bits` significand bits, as tensor cores have them."""

    def __init__(self, bits):
        super().__init__()
        self.bits = bits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("matmul", "__matmul__"):
            args = [self.shorten(arg) for arg in args]
        return func(*args, **(kwargs or {}))

    def shorten(self, x):
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 2**self.bits).round() / 2**self.bits, exponent)


@pytest.mark.parametrize("bits", [24, 11, 8])
def test_the_bits_that_a_product_keeps_are_measured(bits):
    with ShortenedProducts(bits):
        assert devices.fp32_matmul_bits(CPU) == bits


@pytest.mark.gpu
def test_a_gpu_shows_tf32_in_the_bits():
    cuda = torch.device("cuda")
    try:
        devices.set_matmul_precision("tf32")
        assert devices.fp32_matmul_bits(cuda) == 11
        devices.set_matmul_precision("fp32")
        assert devices.fp32_matmul_bits(cuda) == 24
    finally:
        torch.set_float32_matmul_precision("highest")


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert devices.is_out_of_memory(caught.value)
    assert devices.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert devices.is_out_of_memory(MemoryError())
    assert not devices.is_out_of_memory(RuntimeError("shapes do not match"))


def test_cpu_has_a_name_and_no_gpu_memory():
    name = devices.device_name(CPU)
    assert name
    assert "\n" not in name
    assert devices.compute_capability(CPU) is None
    assert devices.gpu_memory_bytes(CPU) is None
    assert devices.peak_memory_bytes(CPU) is None
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        assert name != platform.machine()


@pytest.mark.gpu
def test_gpu_peak_memory_counts_tensors_and_synchronize_waits():
    device = devices.choose_device("cuda")
    devices.reset_peak_memory(device)
    before = devices.peak_memory_bytes(device)
    tensor = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    assert devices.peak_memory_bytes(device) - before == tensor.numel()
    devices.synchronizer(device)()


@needs_no_gpu
def test_without_a_gpu_there_is_no_capture_to_start_or_stop():
    devices.start_capture()
    devices.stop_capture()


@pytest.mark.gpu
def test_gpu_takes_ranges_and_captures():
    devices.start_capture()
    devices.push_nvtx_range("range")
    devices.pop_nvtx_range()
    devices.stop_capture()
