"""The training loop against one written with torch's own parts, and what its precisions and scaler do."""

import dataclasses
import math
import typing

import pytest
import torch
import torch.nn.functional as F

from cs_systems.mixed_precision.settings import TrainingConfig, TrainingPrecision
from cs_systems.mixed_precision.text import Text, sample_windows, spread_windows
from cs_systems.mixed_precision.training import TrainingRun, learning_rate
from cs_systems.model.transformer import TransformerLM

CPU = torch.device("cpu")
PRECISIONS = typing.get_args(TrainingPrecision)
SIZES = {
    "d_model": 32, "num_heads": 2, "num_layers": 1, "context_length": 16, "batch_size": 2, "steps": 7,
    "eval_every": 3,
}  # fmt: skip


def make_text():
    data = torch.frombuffer(
        bytearray(b"the cat sat on the mat, and the dog on the log. " * 60), dtype=torch.uint8
    )
    return Text(data[:-300], data[-300:], 1, "0" * 64)


def make_run(**settings):
    return TrainingRun(TrainingConfig(**(SIZES | settings)), make_text(), CPU)


def finish(run):
    while not run.finished:
        run.advance()
    return run


def test_fp32_is_the_training_that_torch_itself_would_do():
    """Its AdamW, clipping and cross-entropy, and the schedule written out."""
    run = finish(make_run(max_grad_norm=0.7))
    torch.manual_seed(0)
    model, generator = TransformerLM(run.model.config), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.01)
    for step in range(7):
        tokens = sample_windows(make_text().train, 2, 17, generator)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.7)
        for group in optimizer.param_groups:  # warm-up is a tenth of 7 steps: one step, at the full rate
            group["lr"] = 1e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 6)))
        optimizer.step()
        optimizer.zero_grad()
        assert run.curves.loss[step] == pytest.approx(loss.item(), rel=1e-5)
        assert run.curves.grad_norm[step] == pytest.approx(norm.item(), rel=1e-4)
    windows = spread_windows(make_text().held_out, 32, 17)
    held_out = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).item()
    assert run.curves.evaluations[-1] == {"step": 7, "held_out_loss": pytest.approx(held_out, rel=1e-5)}
    assert max(run.curves.grad_norm) > 0.7  # something was clipped


def test_evaluations_come_before_every_third_step_and_at_the_end():
    evaluations = finish(make_run(precision="bf16")).curves.evaluations
    assert [one["step"] for one in evaluations] == [0, 3, 6, 7]
    assert {"zeroed_fraction", "gradient_error", "lost_update_fraction"} <= set(evaluations[0])


def test_every_precision_starts_from_the_same_weights_and_sees_the_same_batches():
    runs = {name: make_run(precision=name) for name in PRECISIONS}
    exact = make_run().model.state_dict()
    for name, run in runs.items():
        for key, weight in run.model.state_dict().items():
            assert torch.equal(weight, exact[key].bfloat16() if name == "pure-bf16" else exact[key])
        run.advance()
    states = [run.generator.get_state() for run in runs.values()]
    assert all(torch.equal(state, states[0]) for state in states)
    losses = [run.curves.loss[0] for run in runs.values()]
    assert losses == pytest.approx([losses[0]] * 5, rel=5e-3)
    assert len(set(losses)) > 2  # the precisions are not all the same
    assert make_run(seed=1).model.state_dict()["lm_head.weight"].ne(exact["lm_head.weight"]).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_each_precision_stores(precision):
    run = make_run(precision=precision)
    run.advance()
    stored = torch.bfloat16 if precision == "pure-bf16" else torch.float32
    assert {weight.dtype for weight in run.model.parameters()} == {stored}
    state = next(iter(run.optimizer.state.values()))
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == stored
    assert run.model.rope_cos.dtype == torch.float32
    tokens = torch.zeros(1, 17, dtype=torch.int64)
    computed = {"fp32": torch.float32, "bf16": torch.bfloat16, "pure-bf16": torch.bfloat16}
    assert run._loss(tokens)[1].dtype == computed.get(precision, torch.float16)
    assert run._loss(tokens)[0].dtype == torch.float32
    assert run.curves.scale == [2.0**16 if precision == "fp16" else 1.0]


def test_weights_and_torchs_own_generator_do_not_disturb_each_other():
    before = torch.get_rng_state()
    finish(make_run())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_scaler_doubles_until_gradients_overflow_and_then_halves_and_skips():
    run, weights = make_run(precision="fp16", growth_interval=1, steps=12, eval_every=100), []
    for _ in range(12):
        weights.append(run.model.lm_head.weight.detach().clone())
        run.advance()
    curves = run.curves
    assert True in curves.skipped
    assert False in curves.skipped
    for step, (scale, skipped) in enumerate(zip(curves.scale[:-1], curves.skipped[:-1], strict=True)):
        assert curves.scale[step + 1] == (scale / 2 if skipped else 2 * scale)
        assert torch.equal(weights[step], weights[step + 1]) == skipped
        assert (curves.grad_norm[step] is None) == skipped
    assert None not in curves.loss  # the loss itself never overflowed
    norms = [norm for norm in curves.grad_norm if norm is not None]
    assert max(norms) < 20  # the scale is taken out again before clipping


def test_fp32_loses_nothing_and_pure_bf16_loses_updates():
    exact, pure = finish(make_run()), finish(make_run(precision="pure-bf16"))
    for one in exact.curves.evaluations[:-1]:
        assert one["zeroed_fraction"] == one["gradient_error"] == 0
        assert one["lost_update_fraction"] < 0.01
    assert all(one["lost_update_fraction"] > 0.2 for one in pure.curves.evaluations[1:-1])


def test_a_sure_model_loses_gradients_of_logits_in_fp16_without_a_scale_only():
    share = {}
    for precision in ("bf16", "fp16", "fp16-noscale"):
        run = make_run(precision=precision)
        with torch.no_grad():
            run.model.lm_head.weight.mul_(10)  # logits spread out: most bytes get a probability near 0
        run.advance()
        share[precision] = run.curves.evaluations[0]["zeroed_logit_fraction"]
    assert share["fp16-noscale"] > 0.2 > 0.05 > share["fp16"]
    assert share["bf16"] == 0


def test_a_loss_that_is_no_number_ends_the_run():
    run = make_run()
    run.advance()
    with torch.no_grad():
        run.model.lm_head.weight[0, 0] = math.inf
    run.advance()
    assert run.diverged
    assert run.finished
    assert run.num_steps == 2
    assert run.curves.loss[-1] is None
    assert run.curves.evaluations[-1]["step"] == 0


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth():
    config = TrainingConfig(steps=20, learning_rate=0.5, warmup_fraction=0.2)
    rates = [learning_rate(config, step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "--steps 0 must be at least 1"),
        ({"growth_interval": 0}, "--growth-interval 0 must be at least 1"),
        ({"seed": -1}, "--seed -1 must not be negative"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"warmup_fraction": 1.0}, "--warmup-fraction 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(TrainingConfig(), **settings)
