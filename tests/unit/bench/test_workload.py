"""What a workload refuses, and which kernels its flag means."""

import pytest

from cs_systems.bench.training import TrainingStep, model_kernels, prepare_device
from cs_systems.bench.workload import ALL_KERNELS, KERNELS, WorkloadConfig
from cs_systems.device import UnsupportedError
from cs_systems.kernels.apply import MODEL_KERNELS
from cs_systems.model.config import ModelConfig


@pytest.mark.parametrize(
    ("flag", "names", "loss"),
    [
        ("off", (), None),
        ("all", ALL_KERNELS, "cross-entropy"),
        ("rope", ("rope",), None),
        ("swiglu+rmsnorm", ("swiglu", "rmsnorm"), None),
        ("rope+linear-cross-entropy", ("rope", "linear-cross-entropy"), "linear-cross-entropy"),
    ],
)
def test_the_kernels_that_a_flag_means(flag, names, loss):
    workload = WorkloadConfig(kernels=flag)
    assert workload.kernel_names == names
    assert workload.loss_kernel == loss


@pytest.mark.parametrize(
    "flag", ["", "rmsnrom", "all+rope", "rope+", "rope+rope", "cross-entropy+linear-cross-entropy"]
)
def test_a_flag_that_means_nothing_is_refused(flag):
    with pytest.raises(ValueError, match="--kernels"):
        WorkloadConfig(kernels=flag)


def test_the_names_are_those_that_can_be_applied():
    assert set(KERNELS) == {*MODEL_KERNELS, "cross-entropy", "linear-cross-entropy"}


@pytest.mark.parametrize(
    ("changes", "instead"),
    [
        ({"attention": "flash"}, "--attention flash-torch"),
        ({"kernels": "all"}, "--kernels off"),
        ({"optimizer": "triton"}, "--optimizer torch-fused"),
    ],
)
def test_triton_on_a_cpu_is_one_line_with_a_way_out(monkeypatch, changes, instead):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnsupportedError, match=f"TRITON_INTERPRET=1.*{instead}"):
        prepare_device(WorkloadConfig(device="cpu", **changes))
    prepare_device(WorkloadConfig(device="cpu", attention="flash-torch"))


def test_all_takes_what_the_model_has_and_a_name_insists():
    config = ModelConfig(vocab_size=9, context_length=4, d_model=16, num_layers=1, norm="layernorm")
    model = TrainingStep(
        config, WorkloadConfig(device="cpu"), prepare_device(WorkloadConfig(device="cpu"))
    ).model
    assert model_kernels(model, WorkloadConfig(kernels="all")) == ["rope", "swiglu"]
    assert model_kernels(model, WorkloadConfig(kernels="rmsnorm")) == ["rmsnorm"]  # apply_kernels refuses
