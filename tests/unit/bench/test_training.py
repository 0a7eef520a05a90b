"""One measured case: the passes do what their names say, and the record says what happened."""

import dataclasses
import typing

import pytest
import torch

from cs_systems import device as devices
from cs_systems.bench import training
from cs_systems.bench.record import Provenance
from cs_systems.bench.training import OPTIMIZERS, TrainingStep, build_model, run_case
from cs_systems.bench.workload import PASSES, TOTAL, Case, Mode, WorkloadConfig
from cs_systems.model.attention import ATTENTION
from cs_systems.model.config import ModelConfig
from cs_systems.timing.timer import TimingConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=50, context_length=8, d_model=32, num_layers=2, num_heads=2)
PROVENANCE = Provenance("test", None, None, "2026-01-01T00:00:00+00:00", "test", "cpu", 1, {})


def run(timing: TimingConfig | None = None, on_step=lambda *step: None, **workload):
    case = Case("toy", CONFIG, WorkloadConfig(**workload), timing or TimingConfig(warmup_steps=1, steps=2))
    return run_case(case, CPU, PROVENANCE, on_step)


@pytest.mark.parametrize("mode", typing.get_args(Mode))
def test_a_record_holds_the_passes_of_its_mode_and_their_sum(mode):
    record = run(mode=mode)
    passes = PASSES[mode]
    total = [TOTAL[mode]] if mode in TOTAL else []
    assert record.status == "ok"
    assert list(record.samples_s) == [*passes, *total]
    assert list(record.warmup_samples_s) == [*passes, *total]
    assert {len(values) for values in record.samples_s.values()} == {2}
    for name in total:
        sums = [sum(step) for step in zip(*(record.samples_s[part] for part in passes), strict=True)]
        assert record.samples_s[name] == pytest.approx(sums, rel=1e-12)
    assert record.metrics["graph_built"] == (mode != "forward")
    assert record.metrics["optimizer_state_existed"] == (mode == "train-step")
    assert record.to_json()  # no nan, nothing that JSON cannot hold


def test_without_warm_up_the_optimizer_state_did_not_exist():
    assert not run(TimingConfig(warmup_steps=0, steps=1)).metrics["optimizer_state_existed"]


def test_rates_follow_from_the_medians():
    record = run(TimingConfig(warmup_steps=0, steps=1))
    tokens = 4 * CONFIG.context_length
    for name, rate in record.metrics["tokens_per_s"].items():
        assert rate == pytest.approx(tokens / record.samples_s[name][0])
    # Every matrix product of the model, counted by hand: projections, scores and values, feed-forward, head.
    d, f, s, layers = 32, 128, 8, 2
    flops = layers * (2 * tokens * (4 * d * d + 3 * d * f) + 4 * tokens * s * d) + 2 * tokens * 50 * d
    seconds = record.samples_s["forward"][0]
    assert record.metrics["tflops_per_s"]["forward"] == pytest.approx(flops / seconds / 1e12)
    assert record.metrics["fraction_of_peak"]["forward"] == pytest.approx(
        flops / seconds / 1e12 / record.metrics["peak_tflops_per_s"]
    )
    assert "optimizer_step" not in record.metrics["tflops_per_s"]
    assert "this run" in record.metrics["peak_source"]


@pytest.mark.parametrize("optimizer", ["adamw", "torch", "torch-fused"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_passes_is_a_step_of_training(optimizer, precision):
    """Forward, backward and optimizer step against the same step written out with torch's own parts."""
    step = TrainingStep(CONFIG, WorkloadConfig(optimizer=optimizer, precision=precision), CPU)
    twin = build_model(CONFIG, "fp32", CPU)
    twin.load_state_dict(step.model.state_dict())
    step.prepare()
    for run_pass in step.passes().values():
        run_pass()

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = twin(step.token_ids)
    reference = torch.optim.AdamW(twin.parameters())
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), step.targets.flatten())
    loss.backward()
    reference.step()
    assert step.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(step.model.named_parameters(), twin.parameters(), strict=True):
        # AdamW's first step is lr * sign(gradient): a gradient of rounding size may have either sign.
        settled = theirs.grad.abs() > 1e-4 * theirs.grad.abs().max()
        torch.testing.assert_close(ours[settled], theirs[settled], rtol=1e-4, atol=2e-5, msg=name)


def test_prepare_draws_other_tokens_and_drops_gradients():
    step = TrainingStep(CONFIG, WorkloadConfig(), CPU)
    step.prepare()
    first = step.token_ids
    step.forward()
    step.backward()
    assert all(weight.grad is not None for weight in step.model.parameters())
    step.prepare()
    assert not torch.equal(first, step.token_ids)
    assert torch.equal(step.token_ids[:, 1:], step.targets[:, :-1])
    assert all(weight.grad is None for weight in step.model.parameters())


def test_forward_mode_builds_no_graph():
    step = TrainingStep(CONFIG, WorkloadConfig(mode="forward"), CPU)
    step.prepare()
    step.forward()
    assert not step.loss.requires_grad


@pytest.mark.parametrize("param_dtype", ["bf16", "fp16"])
def test_parameters_are_stored_as_asked_and_rope_tables_stay_fp32(param_dtype):
    model = build_model(CONFIG, param_dtype, CPU)
    assert {weight.dtype for weight in model.parameters()} == {devices.DTYPES[param_dtype]}
    assert model.rope_cos.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_same_seed_same_weights_other_seed_other_weights():
    def weight(seed: int):
        return TrainingStep(CONFIG, WorkloadConfig(seed=seed), CPU).model.lm_head.weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


def test_a_case_that_cannot_fit_is_not_started(monkeypatch):
    monkeypatch.setattr(training, "free_memory_bytes", lambda device: 1000)
    monkeypatch.setattr(training, "build_model", lambda *arguments: pytest.fail("was started"))
    record = run()
    assert record.status == "skipped"
    assert "needs" in record.reason
    assert record.samples_s == {}
    assert record.metrics["predicted_peak_memory_bytes"] > 1000


def test_running_out_of_memory_is_a_row_and_other_errors_are_not_swallowed(monkeypatch):
    def fail(error):
        def build(*arguments):
            raise error

        monkeypatch.setattr(training, "build_model", build)
        return run()

    record = fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert record.status == "oom"
    assert "ran out of memory" in record.reason
    with pytest.raises(RuntimeError, match="a real bug"):
        fail(RuntimeError("a real bug"))


def test_interrupted_case_keeps_its_samples(monkeypatch):
    def press_ctrl_c(phase, index, total):
        if phase == "measuring" and index == 2:
            raise KeyboardInterrupt

    record = run(TimingConfig(warmup_steps=1, steps=5), on_step=press_ctrl_c)
    assert record.status == "failed"
    assert record.reason == "interrupted after 2 of 5 steps"
    assert len(record.samples_s["train_step"]) == 2


def test_an_overflowing_precision_is_noted(monkeypatch):
    def overflowing_loss(logits, targets):
        return logits.float().sum() * float("inf")

    monkeypatch.setattr(training, "cross_entropy", overflowing_loss)
    assert any("overflowed" in note for note in run(mode="forward").notes)


def test_a_peak_that_was_measured_too_low_is_doubted(monkeypatch):
    rates = iter([training.PeakRate(1e-9, "disturbed"), training.PeakRate(2e-9, "less disturbed")])
    monkeypatch.setattr(training, "peak_rate", lambda *arguments: next(rates))
    record = run()
    assert record.metrics["peak_source"] == "less disturbed"
    assert any("ignore 'of peak'" in note for note in record.notes)


def test_flag_choices_are_the_implementations():
    hints = typing.get_type_hints(WorkloadConfig)
    assert set(typing.get_args(hints["attention"])) == set(ATTENTION)
    assert set(typing.get_args(hints["optimizer"])) == set(OPTIMIZERS)
    assert set(typing.get_args(hints["param_dtype"])) == set(devices.DTYPES)


def test_case_settings_name_every_field_once():
    settings = Case("toy", CONFIG, WorkloadConfig(), TimingConfig()).settings()
    fields = [
        f.name for part in (ModelConfig, WorkloadConfig, TimingConfig) for f in dataclasses.fields(part)
    ]
    assert len(fields) == len(set(fields))
    assert set(settings) == {"model", *fields}
