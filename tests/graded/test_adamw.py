"""The class from get_adamw_cls: against the formulas in float64, and against torch.optim.AdamW."""

import functools

import torch
from graded_support.adamw import adamw
from graded_support.compare import check_tensor, fail, rounding_bound
from torch import nn

SETTINGS = {"lr": 0.1, "betas": (0.8, 0.98), "eps": 1e-8, "weight_decay": 0.2}


def take_steps(optimizer, parameter, gradients):
    """One step for each gradient of one parameter."""
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def check(parameter, start, gradients, mistakes, *, what="the weight after optimizer.step()", **settings):
    """Compare with the formulas; a mistake is what is other in them."""
    after = functools.partial(adamw, start, gradients)
    expected, folded = after(**settings), after(**settings, eps_is_corrected=False)
    # Each step adds three terms, none larger than the weight or some rates, after ten roundings or so.
    rate = max(settings["lr"]) if isinstance(settings.get("lr"), tuple) else settings.get("lr", 1e-3)
    magnitude = expected.abs().clamp(min=start.abs().max().item()) + 4 * rate * len(gradients)
    allowed = rounding_bound(torch.float32, 5 * len(gradients), magnitude, factor=1.0)
    found = parameter.detach().double()
    if found.shape == folded.shape and ((found - folded).abs() <= allowed).all():
        expected = folded  # eps is added to the uncorrected root: as good
    check_tensor(
        parameter.detach(),
        expected,
        what=what,
        allowed=allowed,
        dtype=torch.float32,
        mistakes={words: functools.partial(after, **settings | change) for words, change in mistakes.items()},
        hint="Compare your formulas with those of torch.optim.AdamW, one after the other.",
    )


def test_first_steps_follow_the_formulas(adapters):
    start, gradients = torch.randn(12), [torch.randn(12) for _ in range(3)]
    parameter = nn.Parameter(start.clone())
    take_steps(adapters.get_adamw_cls()([parameter], **SETTINGS), parameter, gradients)
    mistakes = {
        "nothing is changed": {"lr": 0.0},
        "the decay is added to the gradient (L2 regularisation, as in Adam); AdamW takes lr * weight_decay "
        "times the weight from the weight itself": {"decay": "in the gradient"},
        "the weight does not decay": {"decay": "none"},
        "the decay is not multiplied by the learning rate": {"decay": "without the rate"},
        "the decay is taken of the new weight; it belongs before the step": {"decay": "after the step"},
        "the bias corrections 1 - beta^t are missing": {"is_corrected": False},
        "the averages begin anew in each step; keep them in self.state": {"keeps_state": False},
        "the root of the second average is missing": {"takes_root": False},
        "beta1 and beta2 are exchanged": {"betas": (0.98, 0.8)},
        "the weight goes up the gradient": {"lr": -0.1, "weight_decay": -0.2},
    }
    check(parameter, start, gradients, mistakes, **SETTINGS)


def test_eps_is_added_to_the_root(adapters):
    start, gradients = torch.randn(12), [torch.randn(12) for _ in range(3)]
    parameter = nn.Parameter(start.clone())
    settings = SETTINGS | {"eps": 0.05}
    take_steps(adapters.get_adamw_cls()([parameter], **settings), parameter, gradients)
    mistakes = {
        "eps is added under the root": {"eps_under_root": True},
        "eps is left out": {"eps": 0.0},
        "eps is 1e-8, whatever was asked for": {"eps": 1e-8},
    }
    check(parameter, start, gradients, mistakes, **settings)


def test_defaults_are_those_of_torch(adapters):
    start, gradients = torch.randn(12) * 4, [torch.randn(12) for _ in range(20)]
    parameter = nn.Parameter(start.clone())
    take_steps(adapters.get_adamw_cls()([parameter]), parameter, gradients)
    mistakes = {
        "the default of weight_decay is 0; it is 0.01": {"weight_decay": 0.0},
        "the default of weight_decay is 0.1; it is 0.01": {"weight_decay": 0.1},
        "the default of betas is (0.9, 0.95); it is (0.9, 0.999)": {"betas": (0.9, 0.95)},
        "the default of lr is 0.01; it is 0.001": {"lr": 1e-2},
        "the bias corrections 1 - beta^t are missing": {"is_corrected": False},
    }
    check(parameter, start, gradients, mistakes)


def test_a_model_trains_as_with_torch(adapters):
    """Several parameters, each with its own state and its own number of steps; another oracle."""
    starts = [torch.randn(4, 3), torch.randn(5), torch.randn(2, 2)]
    # Bounded from below, where eps does not matter, however the corrections are written.
    gradients = [[(torch.rand_like(w) + 0.5) * torch.randn_like(w).sign() for w in starts] for _ in range(20)]
    parameters = [nn.Parameter(start.clone()) for start in starts]
    others = [nn.Parameter(start.double()) for start in starts]
    ours = adapters.get_adamw_cls()(parameters, lr=0.01)
    torchs = torch.optim.AdamW(others, lr=0.01)
    for step in gradients:
        for gradient, parameter, other in zip(step, parameters, others, strict=True):
            parameter.grad, other.grad = gradient.clone(), gradient.double()
        ours.step()
        torchs.step()
    for i, (parameter, other, start) in enumerate(zip(parameters, others, starts, strict=True)):
        anew = functools.partial(adamw, start, [step[i] for step in gradients], lr=0.01)
        check_tensor(
            parameter.detach(),
            other.detach(),
            what=f"parameter {i} of 3 after 20 steps",
            # Some five roundings a step, and eps where it is not corrected: eps / sqrt(1 - beta2) < 1e-6.
            allowed=rounding_bound(torch.float32, 100, other.detach().abs() + 0.2, factor=1.0) + 0.2 * 1e-6,
            dtype=torch.float32,
            mistakes={
                "each parameter counts the number of the step on, so it is too large": functools.partial(
                    anew, first_step=i + 1, steps_per_step=3
                ),
                "only the first parameter is updated": start,
                "the averages begin anew in each step; keep them in self.state": functools.partial(
                    anew, keeps_state=False
                ),
            },
            hint="Each parameter has averages and a number of steps of its own, in self.state[parameter].",
        )


def test_a_parameter_without_a_gradient_stays(adapters):
    still, moving = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = adapters.get_adamw_cls()([still, moving], **SETTINGS)
    take_steps(optimizer, moving, [torch.ones(3)] * 2)
    if not torch.equal(still.detach(), torch.ones(3)):
        fail("a parameter whose .grad is None was changed: it is passed over, and does not decay either")
    check(moving, torch.ones(3), [torch.ones(3)] * 2, {"nothing is changed": {"lr": 0.0}}, **SETTINGS)


def test_settings_are_read_from_the_groups_in_each_step(adapters):
    """Learning-rate schedules write into param_groups; weights and biases often have other settings."""
    starts, gradients = [torch.randn(4), torch.randn(4)], [torch.randn(4) for _ in range(4)]
    first, second = (nn.Parameter(start.clone()) for start in starts)
    groups = [{"params": [first]}, {"params": [second], "weight_decay": 0.0, "betas": (0.5, 0.9)}]
    optimizer = adapters.get_adamw_cls()(groups, **SETTINGS)
    rates = (0.1, 0.2, 0.05, 0.01)
    for rate, gradient in zip(rates, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        first.grad, second.grad = gradient.clone(), gradient.clone()
        optimizer.step()
    unread = "the learning rate in param_groups is not read in each step, so a schedule has no effect"
    own = SETTINGS | {"lr": rates, "weight_decay": 0.0, "betas": (0.5, 0.9)}
    check(first, starts[0], gradients, {unread: {"lr": 0.1}}, **SETTINGS | {"lr": rates})
    mistakes = {
        "the settings of a parameter's own group are not used": {"weight_decay": 0.2, "betas": (0.8, 0.98)},
        "only the first group is updated": {"lr": 0.0},
    }
    check(second, starts[1], gradients, mistakes, what="the weight of the second group", **own)
