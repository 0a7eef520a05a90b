"""AdamW and clipping step by step against PyTorch's own, the schedule against its formula."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cs_systems.optim import AdamW, clip_gradients, cosine_learning_rate

SHAPES = ((4, 3), (5,), (), (2, 3, 2))


def make_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def set_gradients(parameters, step):
    """Gradients that depend on the step alone; they grow, shrink and change sign, as in training."""
    generator = torch.Generator().manual_seed(100 + step)
    for weight in parameters:
        gradient = torch.randn(weight.shape, generator=generator) * 10.0 ** (step % 5 - 3)
        weight.grad = gradient.to(weight.dtype)


def run_both(options, num_steps=20, dtype=torch.float32, groups=lambda p: p, before_step=lambda o, s: None):
    """The same steps with ours and with torch's; returns both lists of parameters."""
    results = []
    for cls, extra in ((AdamW, {}), (torch.optim.AdamW, {"foreach": False})):
        parameters = make_parameters(dtype)
        optimizer = cls(groups(parameters), **options, **extra)
        for step in range(num_steps):
            set_gradients(parameters, step)
            before_step(optimizer, step)
            optimizer.step()
        results.append(parameters)
    return results


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0},
        {"lr": 0.1, "weight_decay": 0.5},
        {"lr": 0.01, "betas": (0.5, 0.6)},
        {"betas": (0.0, 0.0)},
        {"lr": 0.03, "eps": 1e-2},
        {"lr": 0.0, "weight_decay": 0.5},
    ],
)
def test_twenty_steps_are_those_of_torch(options):
    for ours, theirs in zip(*run_both(options), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_defaults_are_those_of_the_paper_and_of_torch():
    ours, theirs = AdamW(make_parameters()).defaults, torch.optim.AdamW(make_parameters()).defaults
    assert ours["weight_decay"] == theirs["weight_decay"] == 0.01
    assert all(theirs[name] == value for name, value in ours.items())


def test_double_precision_agrees_with_the_formula_to_rounding():
    beta1, beta2, lr, eps, decay = 0.9, 0.99, 0.1, 1e-6, 0.2
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = AdamW([weight], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    gradients = [(0.5, -1e-7), (-2.0, 3e-7), (0.25, 0.0), (1e3, 1e-6)]
    expected, mean, square = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for t, gradient in enumerate(gradients, start=1):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        for i, g in enumerate(gradient):
            mean[i] = beta1 * mean[i] + (1 - beta1) * g
            square[i] = beta2 * square[i] + (1 - beta2) * g * g
            m_hat, v_hat = mean[i] / (1 - beta1**t), square[i] / (1 - beta2**t)
            expected[i] = (1 - lr * decay) * expected[i] - lr * m_hat / (math.sqrt(v_hat) + eps)
        assert weight.tolist() == pytest.approx(expected, rel=1e-13)


def test_the_first_step_moves_every_weight_by_the_learning_rate():
    # Bias correction makes m / sqrt(v) = +-1 after one step, whatever the size of the gradient.
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1e-3, -5.0, 1e4])
    AdamW([weight], lr=0.25, weight_decay=0.0).step()
    torch.testing.assert_close(weight.data, torch.tensor([-0.25, 0.25, -0.25]), rtol=1e-4, atol=0)


def test_parameter_groups_have_their_own_settings():
    def groups(parameters):
        return [
            {"params": parameters[:2], "weight_decay": 0.3},
            {"params": parameters[2:], "lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3},
        ]

    for ours, theirs in zip(*run_both({"lr": 0.01}, groups=groups), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_schedule_changes_the_rate_between_steps():
    def schedule(optimizer, step):
        rate = cosine_learning_rate(step, max_lr=0.1, min_lr=0.01, warmup_steps=5, cosine_steps=15)
        for group in optimizer.param_groups:
            group["lr"] = rate

    scheduled = run_both({}, before_step=schedule)
    for ours, theirs in zip(*scheduled, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    constant = run_both({})[0]
    assert not torch.allclose(scheduled[0][0], constant[0], atol=1e-3)


def test_a_torch_scheduler_drives_it():
    weight = nn.Parameter(torch.ones(2))
    optimizer = AdamW([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    weight.grad = torch.ones(2)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_bf16_parameters_keep_bf16_state_and_follow_torch():
    ours, theirs = run_both({"lr": 0.05}, dtype=torch.bfloat16)
    double = run_both({"lr": 0.05}, dtype=torch.float64)[0]
    for mine, other, exact in zip(ours, theirs, double, strict=True):
        assert mine.dtype == torch.bfloat16
        # Both round after every operation; ours may be off by no more than twice what theirs is.
        theirs_off = (other.double() - exact).abs().max()
        assert (mine.double() - exact).abs().max() <= 2 * theirs_off
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    optimizer = AdamW([weight])
    optimizer.step()
    assert {optimizer.state[weight][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}


def test_parameters_without_a_gradient_are_left_alone_and_join_later():
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = AdamW([first, second], lr=0.1, weight_decay=0.5)
    first.grad = torch.ones(2)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(second, torch.ones(2))  # not even decayed
    assert second not in optimizer.state
    second.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state[first]["step"] == 4
    assert optimizer.state[second]["step"] == 1  # its bias correction starts with its own first step


def test_no_gradient_at_all_is_a_step_without_effect():
    parameters = make_parameters()
    optimizer = AdamW(parameters, lr=1.0)
    assert optimizer.step() is None
    assert all(torch.equal(a, b) for a, b in zip(parameters, make_parameters(), strict=True))


def test_a_closure_is_run_with_gradients_and_its_loss_returned():
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = AdamW([weight], lr=0.5, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.detach().item() == 9.0
    assert weight.item() == pytest.approx(2.5)
    assert optimizer.step(lambda: 1.5) == 1.5


def test_state_is_saved_and_loaded():
    whole = make_parameters()
    optimizer = AdamW(whole, lr=0.1)
    for step in range(6):
        if step == 3:
            resumed = [nn.Parameter(weight.detach().clone()) for weight in whole]
            state = copy.deepcopy(optimizer.state_dict())
        set_gradients(whole, step)
        optimizer.step()
    second = AdamW(resumed)
    second.load_state_dict(state)
    for step in range(3, 6):
        set_gradients(resumed, step)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_it_minimises():
    weight = nn.Parameter(torch.tensor([5.0, -4.0]))
    optimizer = AdamW([weight], lr=0.1, weight_decay=0.0)
    for _ in range(200):
        optimizer.zero_grad()
        ((weight - torch.tensor([1.0, 2.0])) ** 2).sum().backward()
        optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([1.0, 2.0]), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lr": -1.0}, "lr"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"betas": (0.9, -0.1)}, "betas"),
        ({"eps": -1e-8}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_impossible_settings_are_refused(options, name):
    with pytest.raises(ValueError, match=f"{name}.* must"):
        AdamW(make_parameters(), **options)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clipping_is_that_of_torch(scale, max_norm):
    ours, theirs = make_parameters(), make_parameters()
    for parameters in (ours, theirs):
        set_gradients(parameters, 3)
        for weight in parameters:
            weight.grad *= scale
        parameters[1].grad = None
    before = clip_gradients(iter(ours), max_norm)
    assert before == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, max_norm)), rel=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-8)
    after = math.sqrt(sum(float(w.grad.double().square().sum()) for w in ours if w.grad is not None))
    assert after <= max(max_norm, 0) * (1 + 1e-5)


def test_small_gradients_are_not_scaled_up():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([0.3, 0.4])
    assert clip_gradients([weight], 10.0) == pytest.approx(0.5)
    assert torch.equal(weight.grad, torch.tensor([0.3, 0.4]))


def test_the_norm_is_taken_in_fp32():
    weight = nn.Parameter(torch.zeros(10_000, dtype=torch.float16))
    weight.grad = torch.full_like(weight, 60_000.0)  # its square is far beyond fp16
    assert clip_gradients([weight], 1.0) == pytest.approx(6e6, rel=1e-3)
    assert weight.grad.dtype == torch.float16
    assert float(weight.grad.float().norm()) == pytest.approx(1.0, rel=1e-2)


def test_without_gradients_the_norm_is_zero():
    assert clip_gradients(make_parameters(), 1.0) == 0.0
    assert clip_gradients([], 1.0) == 0.0


SCHEDULE = {"max_lr": 1.0, "min_lr": 0.1, "warmup_steps": 4, "cosine_steps": 12}


def test_the_schedule_passes_through_its_named_points():
    rates = {step: cosine_learning_rate(step, **SCHEDULE) for step in (0, 1, 4, 8, 12, 13, 10_000)}
    assert rates == pytest.approx({0: 0.0, 1: 0.25, 4: 1.0, 8: 0.55, 12: 0.1, 13: 0.1, 10_000: 0.1})


def test_the_cosine_is_torchs():
    optimizer = torch.optim.SGD(make_parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=0.1)
    for step in range(4, 13):
        assert cosine_learning_rate(step, **SCHEDULE) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@settings(deadline=None)
@given(st.floats(1e-5, 1.0), st.floats(0.0, 1.0), st.integers(0, 30), st.integers(0, 30))
def test_the_schedule_rises_then_falls_without_jumps(max_lr, fraction, warmup, cosine):
    min_lr = fraction * max_lr
    options = {"max_lr": max_lr, "min_lr": min_lr, "warmup_steps": warmup, "cosine_steps": warmup + cosine}
    rates = [cosine_learning_rate(step, **options) for step in range(warmup + cosine + 3)]
    slack = 1e-12 * max_lr
    rising, falling = rates[: warmup + (cosine > 0)], rates[warmup:]
    assert all(a <= b for a, b in itertools.pairwise(rising))
    assert all(a >= b - slack for a, b in itertools.pairwise(falling))
    assert all(0 <= rate <= max_lr + slack for rate in rates)
    if cosine:
        assert rates[warmup] == pytest.approx(max_lr)
        # The steepest part of a half cosine over n steps falls by at most pi / (2 n) of its height a step.
        largest = max(a - b for a, b in itertools.pairwise(falling))
        assert largest <= (max_lr - min_lr) * math.pi / (2 * cosine) + slack
    assert rates[warmup + cosine :] == [min_lr] * 3


def test_no_warmup_starts_at_the_maximum():
    assert cosine_learning_rate(0, max_lr=3.0, min_lr=1.0, warmup_steps=0, cosine_steps=10) == 3.0


def test_no_cosine_falls_to_the_minimum_at_once():
    options = {"max_lr": 3.0, "min_lr": 1.0, "warmup_steps": 2, "cosine_steps": 2}
    assert [cosine_learning_rate(step, **options) for step in range(4)] == [0.0, 1.5, 1.0, 1.0]
    options |= {"warmup_steps": 0, "cosine_steps": 0}
    assert cosine_learning_rate(0, **options) == 1.0
