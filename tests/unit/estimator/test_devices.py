"""The catalogue: ratios that the hardware fixes, and names that must not match."""

import pytest

from cs_systems.estimator.devices import DEVICES, find_device

RATIO = {  # dense fp16 over fp32
    "A40": 4.0, "A5000": 4.0, "A6000": 4.0, "L4": 4.0, "RTX 3090": 2.0, "RTX 4090": 2.0, "RTX 3070": 2.0,
    "A100": 16.0, "H100": 14.8, "H200": 14.8, "V100": 8.0, "T4": 8.0,
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.names[0])
def test_ratio_of_tensor_to_ordinary_rate(device):
    ratios = [ratio for part, ratio in RATIO.items() if part in device.names[0]]
    assert len(ratios) == 1
    assert device.tflops_fp16 / device.tflops_fp32 == pytest.approx(ratios[0], rel=0.01)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.names[0])
def test_every_entry_is_plausible_and_sourced(device):
    assert 50 < device.bandwidth_gb_per_s < 10_000
    assert 50 < device.tdp_w <= 1000
    assert device.source
    assert {*device.from_memory} <= set(device.__dataclass_fields__)


def test_precisions_that_the_hardware_lacks_have_no_rate():
    old, new = find_device("Tesla T4"), find_device("NVIDIA H200")
    assert old.peak_tflops_per_s("bf16") is None
    assert old.peak_tflops_per_s("tf32") is None
    assert new.peak_tflops_per_s("bf16") == new.peak_tflops_per_s("fp16") == 989.4
    assert new.peak_tflops_per_s("tf32") == pytest.approx(494.7)
    assert new.peak_tflops_per_s("fp32") == 66.9


@pytest.mark.parametrize(
    "name", ["H100", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 3070 Laptop GPU", "NVIDIA A100", "", "AMD EPYC"]
)
def test_a_similar_name_is_no_match(name):
    assert find_device(name) is None


def test_no_name_stands_twice():
    names = [name for device in DEVICES for name in device.names]
    assert len(names) == len(set(names))
