"""Steps of an optimizer whose state is shared out, and where one AdamW in float64 ends.

All ranks start with the same parameters and are given the same gradients, as after data parallelism.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graded_support.compare import check_tensor, fail, rounding_bound
from graded_support.ranks import Rank

LEARNING_RATE = 0.1
WEIGHT_DECAY = 0.5


@dataclass(frozen=True)
class Run:
    """What is optimized, and what a training program does meanwhile."""

    shapes: tuple[tuple[int, ...], ...] = ((4, 3), (7,), (4, 3), (5, 2), (9,), (3, 4), (5, 2), (8,))
    num_steps: int = 3
    without_gradient: int | None = None
    """This parameter never has one."""
    groups: bool = False
    """Two groups of parameters, of which the second has settings of its own."""
    added_later: bool = False
    """The last parameter comes by add_param_group after the first step, with settings of its own."""
    changed_lr: float | None = None
    """Learning rate of all groups from the second step on."""
    closure: bool = False
    """Gradients are computed in a closure."""


def make_parameters(run: Run, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """The parameters at the start."""
    draw = torch.Generator().manual_seed(7)
    return [nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in run.shapes]


def give_gradients(run: Run, parameters: Sequence[nn.Parameter], step: int) -> None:
    """Put the gradients of a step in place."""
    draw = torch.Generator().manual_seed(70 + step)
    for i, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=draw)
        parameter.grad = None if i == run.without_gradient else gradient.to(parameter.dtype)


def groups_of(run: Run, parameters: list[nn.Parameter]) -> list[Any]:
    """What the optimizer is made with."""
    first = parameters[:-1] if run.added_later else parameters
    if not run.groups:
        return first
    special = {"params": first[2:], "lr": 0.02, "weight_decay": 0.0}
    return [{"params": first[:2]}, special]


def take_steps(
    run: Run, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer
) -> list[int | float]:
    """The training loop of a rank and of the truth. Returns what is to be known of closures."""
    notes: list[int | float] = []
    for step in range(run.num_steps):
        if step == 1 and run.changed_lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = run.changed_lr
        if step == 1 and run.added_later:
            optimizer.add_param_group({"params": [parameters[-1]], "lr": 0.05, "weight_decay": 0.0})
        if not run.closure:
            give_gradients(run, parameters, step)
            optimizer.step()
            continue
        calls = []

        def closure(step: int = step, calls: list[bool] = calls) -> float:
            calls.append(torch.is_grad_enabled())
            give_gradients(run, parameters, step)
            return 2.5 + step

        loss = optimizer.step(closure)
        notes += [len(calls), all(calls), -1.0 if loss is None else float(loss)]
    return notes


def optimize(adapters: Any, rank: Rank, *, run: Run) -> dict[str, Any]:
    """What a rank does: the parameters at the end, and how much state the optimizers in the wrapper hold."""
    inside: list[torch.optim.AdamW] = []

    class ObservedAdamW(torch.optim.AdamW):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            inside.append(self)
            super().__init__(*args, **kwargs)

    parameters = make_parameters(run)
    optimizer = adapters.get_sharded_optimizer(
        groups_of(run, parameters), ObservedAdamW, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    notes = take_steps(run, parameters, optimizer)
    states = [state for one in inside for state in one.state.values()]
    return {
        "parameters": [parameter.detach() for parameter in parameters],
        "notes": notes,
        "num_state_values": sum(state["exp_avg"].numel() for state in states),
    }


def finish(run: Run) -> list[Tensor]:
    """Where one AdamW ends that has all parameters, in float64."""
    parameters = make_parameters(run, torch.float64)
    groups = groups_of(run, parameters)
    take_steps(run, parameters, torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    return [parameter.detach() for parameter in parameters]


def check_parameters(results: list[dict[str, Any]], run: Run) -> None:
    """Fail unless all ranks end where one optimizer ends."""
    truth, start = finish(run), make_parameters(run, torch.float64)
    mistakes = _mistakes(run)
    for rank, result in enumerate(results):
        for i, expected in enumerate(truth):
            check_tensor(
                result["parameters"][i],
                expected,
                what=f"parameter {i} on rank {rank} of {len(results)} after {run.num_steps} steps of AdamW",
                # Each step rounds a dozen times on the way to an update of about lr at most.
                allowed=rounding_bound(
                    torch.float32, 12 * run.num_steps, start[i].detach().abs() + run.num_steps * LEARNING_RATE
                ),
                dtype=torch.float32,
                mistakes={words: values[i] for words, values in mistakes.items()},
                hint="On every rank it is what torch.optim.AdamW makes of it alone.",
            )
    for i in range(len(truth)):
        for rank, result in enumerate(results):
            if not torch.equal(result["parameters"][i], results[0]["parameters"][i]):
                fail(
                    f"parameter {i} differs in its last bits between rank 0 and rank {rank}: only its owner "
                    "may update it, the others take over the result"
                )


def _mistakes(run: Run) -> dict[str, list[Tensor]]:
    """What parameters come out as when something usual goes wrong."""
    found = {
        "nothing changes it here: nobody updates it, or its owner did not send it after the step": [
            parameter.detach() for parameter in make_parameters(run, torch.float64)
        ]
    }
    if run.changed_lr is not None:
        words = (
            "the learning rate that was changed in the wrapper's groups did not reach the optimizer inside"
        )
        found[words] = finish(replace(run, changed_lr=None))
    if run.groups:
        words = "the settings of a group are lost, and the general ones are used"
        found[words] = finish(replace(run, groups=False))
    return found
