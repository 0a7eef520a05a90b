"""Which operations of one Transformer block keep what for backward: found in the graph, beside the formula.

After a forward pass the graph holds every tensor that backward will need, each in the node of the operation
that wants it. Walking it from the output gives bytes by operation; a storage that several operations share is
counted once, for the one that comes first. Weights are left out: they exist anyway.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cs_systems import device as devices
from cs_systems.bench.training import TrainingStep, estimator_case
from cs_systems.bench.workload import Case
from cs_systems.estimator.memory import block_tensors, block_weight_copies, total_bytes
from cs_systems.model.transformer import TransformerLM
from cs_systems.tables import Column, Table, format_bytes, format_percent
from cs_systems.timing.live_bytes import LiveBytes


@dataclass(frozen=True)
class Saved:
    """One storage that is kept for backward."""

    operation: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


def saved_by_operation(output: Tensor, left_out: set[int]) -> list[Saved]:
    """What the graph behind `output` keeps, largest first; `left_out` are addresses of storages to ignore."""
    found: dict[int, Saved] = {}
    for node in graph_of(output):
        for tensor in tensors_of(node):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in left_out | found.keys():
                name = node.name().removesuffix("0").removesuffix("Backward")
                found[storage.data_ptr()] = Saved(name, tuple(tensor.shape), _name(tensor), storage.nbytes())
    return sorted(found.values(), key=lambda saved: -saved.num_bytes)


def graph_of(output: Tensor) -> Iterator[Any]:
    """The nodes of the graph behind `output`, the last operation first."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [parent for parent, _ in node.next_functions]


def tensors_of(node: Any) -> Iterator[Tensor]:
    """The tensors that a node keeps: of torch's own operations, and of an autograd.Function."""
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            value = getattr(node, name)
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, Tensor) and part.dim():  # a plain number is no tensor that was computed
                    yield part


def measure_saved(case: Case, device: torch.device) -> list[Saved]:
    """What one block of the case's model, run alone, keeps for the backward pass of a training step.

    Of a checkpointed block that is its input, and whatever was found alive besides.
    """
    model, (x, *rest) = _arguments_of_a_block(case, device)
    own = [*model.parameters(), *model.buffers()]
    x = x.detach().clone().requires_grad_()
    with devices.autocast(device, case.workload.precision):
        if not case.workload.checkpoint_blocks:
            output = model.run_blocks([model.layers[0]], x, *rest)
            return saved_by_operation(output, {tensor.untyped_storage().data_ptr() for tensor in own})
        # To look into the graph of a checkpointed block would be to recompute it.
        with LiveBytes([*own, x]) as live:
            before = live.live
            output = model.run_blocks([model.layers[0]], x, *rest)
    gc.collect()  # what Triton's interpreter leaves in cycles is not kept for backward
    besides = live.live - before - output.untyped_storage().nbytes()
    kept = Saved("input of the block", tuple(x.shape), _name(x), x.untyped_storage().nbytes())
    return [kept, *([Saved("besides", (), "", besides)] if besides else [])]


def _arguments_of_a_block(case: Case, device: torch.device) -> tuple[TransformerLM, tuple]:
    """The model, and what its first block is called with."""
    step = TrainingStep(case.model.replace(num_layers=1), case.workload, device)  # all blocks are alike
    block, seen = step.model.layers[0], []
    handle = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    step.prepare()
    with torch.no_grad(), devices.autocast(device, case.workload.precision):
        step.model(step.token_ids)
    handle.remove()
    if case.workload.compile:
        block.compile()
    return step.model, seen[0]


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def saved_table(case: Case, device: torch.device, top: int = 5) -> Table:
    """The operations that keep most, their shares, and the formula's total for the same block."""
    saved = measure_saved(case, device)
    total = sum(entry.num_bytes for entry in saved)
    rows = [
        {"operation": entry.operation, "shape": " x ".join(map(str, entry.shape)), "dtype": entry.dtype,
         "num_bytes": entry.num_bytes}
        for entry in saved[:top]
    ]  # fmt: skip
    others = saved[top:]
    if others:
        rows.append({"operation": f"({len(others)} others)", "num_bytes": sum(s.num_bytes for s in others)})
    rows.append({"operation": "total", "num_bytes": total})
    for row in rows:
        row["share"] = row["num_bytes"] / total
    columns = [
        *(Column(name, name.capitalize(), align="left") for name in ("operation", "shape", "dtype")),
        Column("num_bytes", "Bytes"),
        Column("size", "Size", raw_only=False),
        Column("share", "Share", format=format_percent),
    ]
    for row in rows:
        row["size"] = format_bytes(row["num_bytes"])
    workload = case.workload
    how = [workload.precision, f"{workload.attention} attention"]
    how += ["compiled"] * workload.compile + ["checkpointed"] * bool(workload.checkpoint_blocks)
    shape = f"{case.label}, batch {workload.batch_size} x {case.model.context_length} tokens"
    title = f"Kept for backward by one block: {shape}, {', '.join(how)}"
    return Table(title, columns, rows, _notes(case, device, total))


def _notes(case: Case, device: torch.device, total: int) -> list[str]:
    notes = ["one block, run alone; its weights are left out, copies of them that autocast made are not"]
    if case.workload.compile:
        return [*notes, "no formula: what a compiled block keeps is the compiler's choice"]
    memory_case = estimator_case(case, device)
    if case.workload.checkpoint_blocks:
        predicted = memory_case.stream_bytes * memory_case.num_tokens * case.model.d_model
    else:
        predicted = total_bytes(block_tensors(case.model, memory_case))
        predicted += block_weight_copies(case.model, memory_case)
    return [*notes, f"the formula says {predicted} bytes, {total - predicted:+d} to what was found"]
