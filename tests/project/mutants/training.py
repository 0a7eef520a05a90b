"""Wrong implementations of what a training run needs: optimizer, clipping, schedule, batches, checkpoints."""

import functools
import io
import math

import numpy as np
import torch

from mutants.mutant import Mutant


class SpoiltAdamW(torch.optim.Optimizer):
    """AdamW with one mistake, which the subclass names."""

    mistake = ""
    defaults_of = {}  # noqa: RUF012

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)
        self.first_rate = lr
        self.num_updates = 0

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups[:1] if self.mistake == "first group" else self.param_groups:
            settings = self.param_groups[0] if self.mistake == "settings of the first group" else group
            for weight in group["params"]:
                if weight.grad is None:
                    if self.mistake != "no gradient":
                        continue
                    weight.grad = torch.zeros_like(weight)
                self.update(weight, settings)

    def update(self, weight, group):
        mistake, state = self.mistake, self.state[weight]
        if not state or mistake == "no state":
            state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
        state["step"] += 1
        self.num_updates += 1
        number = self.num_updates if mistake == "one counter" else state["step"]
        lr = self.first_rate if mistake == "first rate" else group["lr"]
        (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
        gradient = weight.grad + (decay * weight if mistake == "L2" else 0)
        state["mean"] = beta1 * state["mean"] + (1 - beta1) * gradient
        state["square"] = beta2 * state["square"] + (1 - beta2) * gradient**2
        corrections = (1.0, 1.0) if mistake == "no correction" else (1 - beta1**number, 1 - beta2**number)
        mean, square = state["mean"] / corrections[0], state["square"] / corrections[1]
        root = (square + eps).sqrt() if mistake == "eps in the root" else square.sqrt() + eps
        if mistake not in ("L2", "decay last"):
            weight.mul_(1 - (1 if mistake == "decay without rate" else lr) * decay)
        weight.sub_(lr * mean / root)
        if mistake == "decay last":
            weight.mul_(1 - lr * decay)


def spoil_adamw(mistake, **defaults):
    """The adapter that returns the class with a mistake, or with other defaults."""

    class Spoilt(SpoiltAdamW):
        def __init__(self, params, **settings):
            super().__init__(params, **defaults | settings)

    Spoilt.mistake = mistake
    return {"get_adamw_cls": lambda: Spoilt}


def gradients_of(parameters):
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def clip_each_alone(parameters, max_l2_norm):
    for gradient in gradients_of(parameters):
        gradient.mul_(min(1.0, max_l2_norm / (float(gradient.norm()) + 1e-6)))


def norm_of(gradients):
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))


def clip(parameters, max_l2_norm, *, eps=1e-6, most=1.0, root=True, squares=True, in_place=True):
    """Right when nothing is changed."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = gradients_of(parameters)
    norm = norm_of(gradients) if squares else sum(float(gradient.norm()) for gradient in gradients)
    factor = min(most, max_l2_norm / ((norm if root else norm**2) + eps))
    for parameter in parameters:
        if in_place:
            parameter.grad.mul_(factor)
        else:
            parameter.grad = parameter.grad * factor


def clip_iterating_twice(parameters, max_l2_norm):
    norm = norm_of(gradients_of(parameters))
    for gradient in gradients_of(parameters):
        gradient.mul_(min(1.0, max_l2_norm / (norm + 1e-6)))


def clip_giving_zeros(parameters, max_l2_norm):
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    clip(parameters, max_l2_norm)


def schedule(it, most, least, warm_up, end, *, first=0, until=None, subtract=0, half=1.0, after=None):
    """Right when nothing is changed."""
    if it < warm_up:
        return most * (it + first) / warm_up
    if after is not None and it >= end:
        return after
    if it >= (end if until is None else until):
        return least
    progress = (it - (warm_up if subtract == 0 else 0)) / (end - (warm_up if subtract == 0 else 0))
    return least + (most - least) * (1 + math.cos(half * math.pi * progress)) / 2


def schedule_in_a_line(it, most, least, warm_up, end):
    if warm_up <= it < end:
        return most + (least - most) * (it - warm_up) / (end - warm_up)
    return schedule(it, most, least, warm_up, end)


def schedule_starting_at_zero(it, *settings):
    return 0.0 if it == 0 else schedule(it, *settings)


def batch(
    data, batch_size, context_length, device, *, shift=1, least=0, more=0, draw=None, dtype=np.int64, to=True
):
    """Right when nothing is changed."""
    draw = draw or (lambda: int(torch.randint(least, len(data) - context_length + more, ())))
    starts = [draw() for _ in range(batch_size)]
    rows = np.stack([data[start : start + context_length] for start in starts])
    # Where the shift leads past the end, the tokens begin again.
    later = np.stack(
        [np.take(data, range(s + shift, s + shift + context_length), mode="wrap") for s in starts]
    )
    pair = tuple(torch.from_numpy(part.astype(dtype)) for part in (rows, later))
    return tuple(part.to(device) for part in pair) if to else pair


def batch_of_one_window(data, batch_size, context_length, device):
    start = int(torch.randint(len(data) - context_length, ()))
    return batch(data, batch_size, context_length, device, draw=lambda: start)


def batch_seeded(data, batch_size, context_length, device):
    random = np.random.RandomState(0)
    draw = lambda: random.randint(0, len(data) - context_length)  # noqa: E731
    return batch(data, batch_size, context_length, device, draw=draw)


def batch_of_zeros(data, batch_size, context_length, device):
    return [torch.zeros(batch_size, context_length, dtype=torch.int64, device=device)] * 2


def batch_drawn_by_numpy(data, batch_size, context_length, device):
    draw = lambda: np.random.randint(0, len(data) - context_length)  # noqa: E731
    return batch(data, batch_size, context_length, device, draw=draw)


def batch_of_signed(data, batch_size, context_length, device):
    pair = batch(data.astype(np.int16), batch_size, context_length, device)
    return tuple(part.long() for part in pair)


def batch_mostly_early(data, batch_size, context_length, device):
    last = len(data) - context_length - 1
    return batch(
        data,
        batch_size,
        context_length,
        device,
        draw=lambda: int(last * torch.rand(()) ** 2 + torch.rand(())),
    )


def save(model, optimizer, iteration, out, *, parts=("model", "optimizer", "iteration")):
    """Right when nothing is changed."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
    torch.save({part: state[part] for part in parts}, out)


def load(src, model, optimizer, *, parts=("model", "optimizer"), more=0, kind=int):
    """Right when nothing is changed."""
    state = torch.load(src)
    for part, owner in (("model", model), ("optimizer", optimizer)):
        if part in parts:
            owner.load_state_dict(state[part])
    return kind(state["iteration"] + more)


def load_without_rate(src, model, optimizer):
    rates = [group["lr"] for group in optimizer.param_groups]
    iteration = load(src, model, optimizer)
    for group, rate in zip(optimizer.param_groups, (0.1 for _ in rates), strict=True):
        group["lr"] = rate
    return iteration


def save_and_close(model, optimizer, iteration, out):
    save(model, optimizer, iteration, out)
    if isinstance(out, io.IOBase):
        out.close()


def save_to_a_name(model, optimizer, iteration, out):
    """Takes every destination for a path."""
    if isinstance(out, str):
        save(model, optimizer, iteration, out)


def make_keeper():
    """A pair that keeps the tensors themselves and writes nothing."""
    kept = {}

    def keep(model, optimizer, iteration, out):
        kept[out] = model.state_dict(), iteration

    def give_back(src, model, optimizer):
        model.load_state_dict(kept[src][0])
        return kept[src][1]

    return {"run_save_checkpoint": keep, "run_load_checkpoint": give_back}


def mutants(problem, adapter, wrong):
    """Wrong functions for one adapter: name of the mistake, what must be said of it, the function."""
    return [Mutant(problem, name, {adapter: function}, says) for name, says, function in wrong]


ADAMW = [
    Mutant("adamw", name, adapters, says)
    for name, says, adapters in (
        ("l2-regularisation", "L2 regularisation", spoil_adamw("L2")),
        ("no-bias-correction", "bias corrections .* are missing", spoil_adamw("no correction")),
        ("eps-inside-the-root", "eps is added under the root", spoil_adamw("eps in the root")),
        ("decay-of-the-new-weight", "taken of the new weight", spoil_adamw("decay last")),
        ("decay-without-the-rate", "not multiplied by the learning rate", spoil_adamw("decay without rate")),
        ("state-not-kept", "begin anew in each step", spoil_adamw("no state")),
        ("one-counter", "counts the number of the step on", spoil_adamw("one counter")),
        ("rate-of-the-groups-ignored", "schedule has no effect", spoil_adamw("first rate")),
        ("settings-of-the-first-group", "own group are not used", spoil_adamw("settings of the first group")),
        ("first-group-only", "only the first group", spoil_adamw("first group")),
        ("moves-without-gradient", "whose .grad is None was changed", spoil_adamw("no gradient")),
        ("other-defaults", "default of weight_decay is 0;", spoil_adamw("", weight_decay=0.0)),
        (
            "betas-of-language-models",
            r"default of betas is \(0.9, 0.95\)",
            spoil_adamw("", betas=(0.9, 0.95)),
        ),
    )
]
CLIPPING = mutants(
    "gradient_clipping",
    "run_gradient_clipping",
    [
        ("nothing-done", "nothing is ever changed", lambda parameters, max_l2_norm: None),
        ("each-tensor-alone", "by its own norm", clip_each_alone),
        ("norms-added", "norms of the tensors are added", functools.partial(clip, squares=False)),
        ("root-missing", "root of the sum of squares is missing", functools.partial(clip, root=False)),
        ("always-scaled", "always scaled", functools.partial(clip, most=math.inf)),
        ("no-eps", "the 1e-6 .* is missing", functools.partial(clip, eps=0.0)),
        ("not-in-place", "was not changed: multiply it in place", functools.partial(clip, in_place=False)),
        ("iterates-twice", "iterated over twice", clip_iterating_twice),
        ("zeros-for-none", "without a gradient got one", clip_giving_zeros),
    ],
)
SCHEDULE = mutants(
    "learning_rate_schedule",
    "run_get_lr_cosine_schedule",
    [
        ("counted-from-one", "counted from 1", functools.partial(schedule, first=1)),
        ("warm-up-in-the-cosine", "warm-up is not part of it", functools.partial(schedule, subtract=1)),
        ("whole-period", "whole period", functools.partial(schedule, half=2.0)),
        ("straight-line", "straight line", schedule_in_a_line),
        ("always-the-least", "is always the least", lambda it, most, least, warm_up, end: least),
        ("rises-again", "rises again", functools.partial(schedule, until=math.inf)),
        ("zero-at-the-end", "the rate is 0 after", functools.partial(schedule, after=0.0)),
        ("step-zero-is-zero", "also without warm-up", schedule_starting_at_zero),
    ],
)
BATCHES = mutants(
    "data_loading",
    "run_get_batch",
    [
        ("not-shifted", "the targets are the inputs: ", functools.partial(batch, shift=0)),
        ("shifted-by-two", "shifted by two", functools.partial(batch, shift=2)),
        ("int32", "int32; expected torch.int64", functools.partial(batch, dtype=np.int32)),
        ("last-window-missing", "last window was never drawn", functools.partial(batch, more=-1)),
        ("one-window-too-many", "a window of 4 that has targets", functools.partial(batch, more=1)),
        ("first-window-missing", "first window was never drawn", functools.partial(batch, least=1)),
        ("one-window-a-batch", "all 32 rows", batch_of_one_window),
        ("seeded", "do not seed", batch_seeded),
        ("zeros", "each token is one more than the last", batch_of_zeros),
        ("drawn-by-numpy", "draw with torch", batch_drawn_by_numpy),
        ("mostly-early", "equally likely", batch_mostly_early),
        ("read-as-int16", "came out negative", batch_of_signed),
        (
            "device-ignored",
            "passes over `device`|returned a tensor on cpu",
            functools.partial(batch, to=False),
        ),
    ],
)
CHECKPOINTS = [
    Mutant("save_and_load", name, adapters, says)
    for name, says, adapters in (
        ("model-not-loaded", "did not change the model", {
            "run_load_checkpoint": functools.partial(load, parts=("optimizer",))}),
        ("optimizer-not-loaded", "optimizer's state was not put back", {
            "run_load_checkpoint": functools.partial(load, parts=("model",))}),
        ("rate-not-loaded", "learning rate after loading", {"run_load_checkpoint": load_without_rate}),
        ("one-more", "counting on is the training loop's", {
            "run_load_checkpoint": functools.partial(load, more=1)}),
        ("number-as-text", "expected an int", {"run_load_checkpoint": functools.partial(load, kind=str)}),
        ("file-closed", "closed the file", {"run_save_checkpoint": save_and_close}),
        ("file-not-written", "nothing was written", {"run_save_checkpoint": save_to_a_name}),
        ("kept-by-reference", "kept by reference", make_keeper()),
    )
]  # fmt: skip
MUTANTS = [*ADAMW, *CLIPPING, *SCHEDULE, *BATCHES, *CHECKPOINTS]
