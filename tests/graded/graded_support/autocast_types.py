"""The types of a training step under autocast, found by watching, and what people report in their place."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graded_support.compare import fail

Types = dict[str, torch.dtype]


def watch_step(
    model: nn.Module, inputs: Tensor, targets: Tensor, dtype: torch.dtype, *, loss_inside: bool = True
) -> Types:
    """The types of one step, by hooks; `dtype` fp32 is a step without autocast."""
    types: Types = {f"parameters.{name}": weight.dtype for name, weight in model.named_parameters()}
    handles = []
    for name, module in model.named_modules():
        if name and not list(module.children()):

            def note(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                types[f"outputs.{name}"] = output.dtype

            handles.append(module.register_forward_hook(note))
    device = inputs.device.type
    with torch.autocast(
        device, dtype=dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32
    ):
        outputs = model(inputs)
        if loss_inside:
            loss = F.cross_entropy(outputs, targets)
    if not loss_inside:
        loss = F.cross_entropy(outputs, targets)
    types["loss"] = loss.dtype
    loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, "models of these tests use all their parameters"
        types[f"gradients.{name}"] = weight.grad.dtype
        weight.grad = None
    for handle in handles:
        handle.remove()
    return types


def check_types(actual: Any, model: nn.Module, inputs: Tensor, targets: Tensor, dtype: torch.dtype) -> None:
    """Fail unless these are the types of a step of the model, which is run again, and watched, for it."""
    expected = watch_step(model, inputs, targets, dtype)
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
            f"{_explain(found, wrong, expected, model, inputs, targets, dtype)}"
        )


def _are_outputs(names: list[str]) -> bool:
    return all(name.startswith("outputs.") for name in names)


def _explain(
    found: Types,
    wrong: list[str],
    expected: Types,
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
) -> str:
    """What probably went wrong, in words."""
    parameters = [name for name in expected if name.startswith("parameters.")]
    if all(found[name] is dtype for name in parameters):
        return " The model was converted (model.to); autocast leaves parameters as they are and casts inputs."
    if all(name.startswith("gradients.") for name in wrong):
        return " A gradient has the type of its parameter: look at parameter.grad after backward."
    if found == expected | {name: dtype for name in expected if name.startswith("outputs.")}:
        return " Not every module's output has the type of autocast: look at each output with a hook."
    if all(expected[name] is torch.float32 for name in parameters) and (
        found == watch_step(model, inputs, targets, torch.float32)
    ):
        return " The forward pass runs outside of torch.autocast."
    if found == watch_step(model, inputs, targets, dtype, loss_inside=False):
        return " The loss is computed outside of the context."
    return " Look at each with a hook while the model runs in the context."
