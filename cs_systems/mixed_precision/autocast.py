"""Types under autocast: of parameters, outputs, loss and gradients, and the rules behind them.

The model is run once and watched. Where depends on the policy and the machine: on the GPU or the CPU whose
rules are asked for; for a GPU that is not there, with fake tensors; and where torch's fake tensors cannot do
that, by the table of rules, on tensors without memory.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from cs_systems.device import (
    DTYPES,
    UnsupportedError,
    autocast,
    check_precision,
    choose_device,
    device_name,
)
from cs_systems.mixed_precision.autocast_derive import FakeGpu, pretend_autocast, why_underivable
from cs_systems.mixed_precision.autocast_emulate import EmulatedAutocast
from cs_systems.mixed_precision.autocast_observe import Observer, Operation, dtype_name
from cs_systems.mixed_precision.autocast_policy import CASTS
from cs_systems.mixed_precision.autocast_subject import Subject, build_subject
from cs_systems.mixed_precision.settings import AutocastConfig
from cs_systems.mixed_precision.toy import LOSSES
from cs_systems.model.presets import resolve_model

EntryKind = Literal["parameter", "output", "logits", "loss", "gradient"]
Route = Literal["device", "fake", "emulated"]


@dataclass(frozen=True)
class Entry:
    """One tensor of the run, its type and what decided it."""

    kind: EntryKind
    name: str
    dtype: str
    rule: str


@dataclass(frozen=True)
class Inspection:
    """What one run of a model showed."""

    origin: str
    """How it is known: measured on a processor, or derived, and from what."""
    entries: tuple[Entry, ...]
    operations: tuple[Operation, ...]
    """Every call in order."""
    notes: tuple[str, ...]
    """What was run in place of what was asked for."""

    def dtype_of(self, kind: EntryKind, name: str) -> str:
        """The type of one entry."""
        return next(entry.dtype for entry in self.entries if (entry.kind, entry.name) == (kind, name))


@dataclass(frozen=True)
class Difference:
    """An output that CUDA and the CPU give different types, and what each decided by."""

    where: str
    what: str
    cuda: str
    cpu: str
    cuda_rule: str
    cpu_rule: str


def check_config(config: AutocastConfig) -> None:
    """Raise ValueError where the model is no preset, or a GPU that is there cannot do `dtype`."""
    if config.model != "toy":
        try:
            resolve_model(config.model, {})
        except ValueError as error:
            raise ValueError(f"{error} (or --model toy)") from None
    device = choose_device("auto")
    try:
        check_precision(device, config.dtype)
    except UnsupportedError:
        raise UnsupportedError(
            f"--dtype {config.dtype}: {device_name(device)} has no arithmetic for it; use --dtype fp16"
        ) from None


def inspect_model(config: AutocastConfig) -> Inspection:
    """Run the model once under the policy, forward and backward, and note all types.

    Raises:
        ValueError: for an unknown model, or bf16 on a GPU without it.
    """
    check_config(config)
    if config.policy == "cpu" or choose_device("auto").type == "cuda":
        return run_route(config, "device")
    emulated = run_route(config, "emulated")
    missing = why_underivable()
    if missing is not None:
        return replace(emulated, notes=(*emulated.notes, f"{missing}: the static table of rules was used"))
    fake = run_route(config, "fake")
    remark = _compare(fake.entries, emulated.entries)
    return replace(fake, notes=(*fake.notes, remark))


def _compare(fake: Sequence[Entry], emulated: Sequence[Entry]) -> str:
    """Fake tensors cannot have gradients, the emulation can: whether it confirms all types."""
    differing = [a.name for a, b in zip(fake, emulated, strict=True) if a.dtype != b.dtype]
    if differing:
        return f"the static table, emulated with a backward pass, gives other types to {', '.join(differing)}"
    return f"the static table, emulated with a backward pass, gives the same {len(fake)} types"


def run_route(config: AutocastConfig, route: Route) -> Inspection:
    """Run the model in one way: on the device of the policy, with fake tensors, or emulated by the table."""
    run = {"device": _run_on_device, "fake": _run_fake, "emulated": _run_emulated}[route]
    return run(config)


def differences(config: AutocastConfig) -> tuple[Inspection, Inspection, list[Difference]]:
    """The same model under CUDA's and the CPU's policy, and every operation whose output differs, in order.

    A cast in the model that one of the two does not need is no operation there, so the n-th call of an
    operation in a module is compared with the n-th.
    """
    cuda, cpu = (inspect_model(replace(config, policy=policy)) for policy in ("cuda", "cpu"))
    theirs = _numbered(cpu.operations)
    pairs = [(ours, theirs[key]) for key, ours in _numbered(cuda.operations).items()]
    differing = [
        Difference(ours.module, ours.op, ours.output, other.output, ours.rule, other.rule)
        for ours, other in pairs
        if ours.output != other.output
    ]
    return cuda, cpu, differing


def _numbered(operations: Sequence[Operation]) -> dict[tuple[str, str, int], Operation]:
    numbered, calls = {}, Counter()
    for operation in operations:
        if operation.op not in CASTS:
            place = operation.module, operation.op
            numbered[(*place, calls[place])] = operation
            calls[place] += 1
    return numbered


# BEGIN SOLUTION benchmarking_mixed_precision
def toy_dtypes(dtype: str, policy: str = "cuda", loss: str = "cross-entropy") -> dict[str, str]:
    """The six types that the course asks for, of its toy model with fp32 parameters, forward and backward.

    Returns:
        fp32, fp16 or bf16 under parameters, fc1, layer_norm, logits, loss and gradients.
    """
    config = AutocastConfig(model="toy", dtype=dtype, policy=policy, loss=loss)  # pyright: ignore[reportArgumentType]
    return course_answers(inspect_model(config))


# END SOLUTION


def step_dtypes(
    model: nn.Module, inputs: Tensor, targets: Int[Tensor, " batch"], dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """The types of one training step of any model under torch's autocast, on the device of its inputs.

    The loss is the cross-entropy of the result. Submodules return one tensor each. The gradients that `model`
    had are put back.

    Returns:
        By name: `parameters.NAME` in the context, `outputs.NAME` of each submodule without submodules,
        `loss`, and `gradients.NAME` of each parameter that got one.
    """
    # BEGIN SOLUTION benchmarking_mixed_precision
    found: dict[str, torch.dtype] = {}

    def note(name: str) -> Callable:
        return lambda module, args, output: found.update({f"outputs.{name}": output.dtype})

    leaves = [(name, module) for name, module in model.named_modules() if name and not [*module.children()]]
    handles = [module.register_forward_hook(note(name)) for name, module in leaves]
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad()
    try:
        with torch.autocast(inputs.device.type, dtype=dtype):
            found.update({f"parameters.{name}": weight.dtype for name, weight in model.named_parameters()})
            loss = F.cross_entropy(model(inputs), targets)
        found["loss"] = loss.dtype
        loss.backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                found[f"gradients.{name}"] = weight.grad.dtype
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in before:
            parameter.grad = gradient
    return found
    # END SOLUTION


def course_answers(inspection: Inspection) -> dict[str, str]:
    """The six types of the course, from an inspection of the toy model."""
    return {
        "parameters": inspection.dtype_of("parameter", "fc1.weight"),
        "fc1": inspection.dtype_of("output", "fc1"),
        "layer_norm": inspection.dtype_of("output", "ln"),
        "logits": inspection.dtype_of("logits", "logits"),
        "loss": inspection.dtype_of("loss", "loss"),
        "gradients": inspection.dtype_of("gradient", "fc1.weight"),
    }


def _run_on_device(config: AutocastConfig) -> Inspection:
    device = choose_device(config.policy)
    subject, observer = build_subject(config.model, config.loss, device), Observer(config.policy)
    with autocast(device, config.dtype), observer, observer.watch(subject.model):
        logits = subject.model(subject.inputs)
        loss = LOSSES[config.loss](logits, subject.targets)
    loss.backward()
    origin = f"measured on {device_name(device) if device.type == 'cuda' else 'this CPU'}"
    return _inspection(origin, subject, observer, logits, loss)


def _run_emulated(config: AutocastConfig) -> Inspection:
    """The table's casts, on tensors without memory that have gradients all the same."""
    subject = build_subject(config.model, config.loss, torch.device("meta"))
    observer = Observer(config.policy)
    emulated = EmulatedAutocast(config.policy, DTYPES[config.dtype])
    with emulated, observer, observer.watch(subject.model):  # the observer is asked first: it sees no cast
        logits = subject.model(subject.inputs)
        loss = LOSSES[config.loss](logits, subject.targets)
    loss.backward()
    return _inspection("derived: static table", subject, observer, logits, loss)


def _run_fake(config: AutocastConfig) -> Inspection:
    """Torch's own rules for a GPU; without gradients, whose types follow from those of the parameters."""
    subject = build_subject(config.model, config.loss, torch.device("meta"))
    observer, gpu = Observer(config.policy), FakeGpu()
    tensors = [*subject.model.named_parameters(), *subject.model.named_buffers()]
    state = {name: gpu.fake(tensor) for name, tensor in tensors}
    inputs, targets = gpu.fake(subject.inputs), gpu.fake(subject.targets)
    with gpu, pretend_autocast("cuda", DTYPES[config.dtype]), observer, observer.watch(subject.model):
        logits = torch.func.functional_call(subject.model, state, (inputs,))
        loss = LOSSES[config.loss](logits, targets)
    return _inspection("derived: fake tensors", subject, observer, logits, loss)


def _inspection(
    origin: str, subject: Subject, observer: Observer, logits: Tensor, loss: Tensor
) -> Inspection:
    parameters = list(subject.model.named_parameters())
    outputs = [(name, output) for name, output in observer.outputs.items() if name]
    cast, own = "autocast casts inputs, never parameters", "a gradient has its parameter's type"
    entries = [
        *(_entry("parameter", name, p, cast) for name, p in parameters),
        *(_entry("output", name, output, observer.rule_of(output)) for name, output in outputs),
        _entry("logits", "logits", logits, observer.rule_of(logits)),
        _entry("loss", "loss", loss, observer.rule_of(loss)),
        # A fake parameter has no gradient, and the rule is all there is.
        *(_entry("gradient", name, p if p.grad is None else p.grad, own) for name, p in parameters),
    ]
    return Inspection(origin, tuple(entries), tuple(observer.operations), subject.notes)


def _entry(kind: EntryKind, name: str, tensor: Tensor, rule: str) -> Entry:
    return Entry(kind, name, dtype_name(tensor.dtype), rule)
