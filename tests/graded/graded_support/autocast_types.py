"""The types of a training step under autocast: small models with a table of the right answers, and the check.

The tables follow from torch's documentation, "Autocast Op Reference", section "CPU": operations that it lists
as running in the lower type, those that it lists as fp32, and all others, which run in the type of what they
are given. The models run on the CPU on every machine. A test of the project compares the tables with torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, bfloat16, float32, nn

from graded_support.compare import fail

Types = dict[str, torch.dtype]
LOWER: Literal["lower"] = "lower"
"""In a table: the type that the context was given."""
TARGETS = torch.tensor([0, 1, 2, 0])
"""Classes of the four examples that each model is given."""


class Model(nn.Sequential):
    """Layers one after the other, which know whether they were ever run, copies of them included."""

    num_runs = 0

    def forward(self, input: Tensor) -> Tensor:
        """Of all layers."""
        Model.num_runs += 1
        return super().forward(input)


class RootMeanSquare(nn.Module):
    """A norm that computes in fp32, as norms do, and returns what it computed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """In fp32 whatever `x` is."""
        x = x.float()
        return x / x.square().mean(-1, keepdim=True).add(1e-5).sqrt() * self.gain


class Watched(torch.autograd.Function):
    """The identity; its backward notes whether autocast is on."""

    seen: list[bool] = []  # noqa: RUF012  a Function has no instance to keep it in

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """A copy."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient as it came."""
        (gradient,) = gradients
        Watched.seen.append(torch.is_autocast_enabled(gradient.device.type))
        return gradient


class Probe(nn.Module):
    """The identity, which looks at its own backward."""

    def forward(self, x: Tensor) -> Tensor:
        """A copy of `x`."""
        return Watched.apply(x)


@dataclass(frozen=True)
class Case:
    """A model, what it is given, and the types that come out."""

    make_model: Callable[[], nn.Module]
    outputs: Mapping[str, torch.dtype | Literal["lower"]]
    """Of each submodule that has no submodules."""
    parameters: Mapping[str, torch.dtype]
    """Autocast changes none of them, and a gradient has the type of its parameter."""
    make_inputs: Callable[[], Tensor] = lambda: torch.randn(4, 5)

    def expected(self, dtype: torch.dtype) -> Types:
        """What `run_autocast_dtypes` should return."""
        outputs = {f"outputs.{name}": dtype if kind == LOWER else kind for name, kind in self.outputs.items()}
        kinds = self.parameters.items()
        # cross_entropy_loss is listed as fp32.
        return {
            **{f"parameters.{name}": kind for name, kind in kinds},
            **outputs,
            "loss": float32,
            **{f"gradients.{name}": kind for name, kind in kinds},
        }


OF_THE_COURSE = Case(
    lambda: Model(nn.Linear(5, 10, bias=False), nn.ReLU(), nn.LayerNorm(10), nn.Linear(10, 3)),
    outputs={
        "0": LOWER,  # linear is listed as lower
        "1": LOWER,  # relu is not listed: the type of what comes in
        "2": LOWER,  # nor is layer_norm, on a CPU; CUDA's list has it as fp32
        "3": LOWER,
    },
    parameters={
        "0.weight": float32, "2.weight": float32, "2.bias": float32, "3.weight": float32, "3.bias": float32,
    },
)  # fmt: skip
NESTED = Case(
    lambda: Model(
        nn.Embedding(4, 6),
        nn.Sequential(nn.Linear(6, 6), nn.Sequential(RootMeanSquare(6), nn.GELU())),
        nn.Linear(6, 3),
    ),
    outputs={
        "0": float32,  # embedding is not listed: rows of a weight of fp32
        "1.0": LOWER,
        "1.1.0": float32,  # it says so itself, and none of its operations is listed
        "1.1.1": float32,  # gelu is not listed: the type of what comes in
        "2": LOWER,
    },
    parameters={
        "0.weight": float32, "1.0.weight": float32, "1.0.bias": float32, "1.1.0.gain": float32,
        "2.weight": float32, "2.bias": float32,
    },
    make_inputs=lambda: torch.tensor([0, 3, 1, 2]),
)  # fmt: skip


def _with_one_of_bf16() -> nn.Module:
    return Model(nn.Linear(5, 6), nn.Linear(6, 6, bias=False).bfloat16(), nn.Linear(6, 3))


PARTLY_BF16 = Case(
    _with_one_of_bf16,
    outputs={"0": LOWER, "1": LOWER, "2": LOWER},  # linear, whatever its weights are
    parameters={
        "0.weight": float32, "0.bias": float32, "1.weight": bfloat16, "2.weight": float32, "2.bias": float32,
    },
)  # fmt: skip
PROBED = Case(
    lambda: Model(nn.Linear(5, 3), Probe()),
    outputs={"0": LOWER, "1": LOWER},  # a copy has the type of what it is made of
    parameters={"0.weight": float32, "0.bias": float32},
)
WITH_DROPOUT = Case(
    lambda: Model(nn.Linear(5, 6), nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))),
    outputs={"0": LOWER, "1.0": LOWER, "1.1": LOWER},  # dropout is not listed: the type of what comes in
    parameters={"0.weight": float32, "0.bias": float32, "1.1.weight": float32, "1.1.bias": float32},
)
CASES = (OF_THE_COURSE, NESTED, PARTLY_BF16, PROBED, WITH_DROPOUT)


def check_types(run_autocast_dtypes: Callable[..., Any], case: Case, dtype: torch.dtype) -> nn.Module:
    """Fail unless the student finds the types of a step, by running it; the model as it was left."""
    model, expected = case.make_model(), case.expected(dtype)
    Model.num_runs = 0
    actual = run_autocast_dtypes(model, case.make_inputs(), TARGETS, dtype)
    if not isinstance(actual, Mapping):
        fail(f"run_autocast_dtypes returned a {type(actual).__name__}; expected a dict of types by name")
    found = dict(actual)
    if missing := sorted(expected.keys() - found.keys()):
        deep = [name for name in missing if name.startswith("outputs.") and name.count(".") > 1]
        words = ": named_children() sees one level, named_modules() all of them" if deep == missing else ""
        fail(f"run_autocast_dtypes has no {', '.join(missing)}{words}")
    if extra := sorted(map(str, found.keys() - expected.keys())):
        words = ", which are not submodules without submodules" if _are_outputs(extra) else ""
        fail(f"run_autocast_dtypes has {', '.join(extra)} besides what was asked for{words}")
    if others := [name for name in found if not isinstance(found[name], torch.dtype)]:
        fail(f"{others[0]} is a {type(found[others[0]]).__name__}; expected a torch.dtype")
    wrong = [name for name in expected if found[name] is not expected[name]]
    if wrong:
        name = wrong[0]
        fail(
            f"{name} is {found[name]}; it is {expected[name]} in a step under torch.autocast({dtype})."
            f"{_explain(found, wrong, expected, dtype)}"
        )
    if not Model.num_runs:
        fail("the model was never run: types are looked up in a step of it, and not known by heart")
    return model


def _are_outputs(names: list[str]) -> bool:
    return all(name.startswith("outputs.") for name in names)


def _explain(found: Types, wrong: list[str], expected: Types, dtype: torch.dtype) -> str:
    """What probably went wrong, in words."""
    parameters = [name for name in expected if name.startswith("parameters.")]
    if all(found[name] is dtype for name in parameters):
        return " The model was converted (model.to); autocast leaves parameters as they are and casts inputs."
    if all(name.startswith("gradients.") for name in wrong):
        return " A gradient has the type of its parameter: look at parameter.grad after backward."
    if found == dict.fromkeys(expected, float32):
        return " The forward pass runs outside of torch.autocast."
    if found == expected | {name: dtype for name in expected if name.startswith("outputs.")}:
        return " Not every module's output has the type of autocast: look at each output with a hook."
    # What cross_entropy is given here has the lower type.
    if found == expected | {"loss": dtype}:
        return " The loss is computed outside of the context."
    return " Look at each with a hook while the model runs in the context."
