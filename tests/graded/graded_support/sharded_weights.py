"""A toy whose weights are shared out, the training loop that a rank runs, and what must come out of it.

All numbers are small integers and the loss is linear in the outputs, so that even bf16 computes each rank's
gradient without rounding; only the average over the ranks and the update can round.
"""

import gc
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from graded_support.compare import check_tensor, fail, rounding_bound
from graded_support.ranks import Rank

VOCAB_SIZE = 10
D_MODEL = 4
D_HIDDEN = 7
"""Divisible neither by 2 ranks nor by 3."""
D_OUT = 6
BATCH_SIZE = 4
LEARNING_RATE = 2**-10
"""So small that a weight kept in bf16 would not notice an update."""
SHARDED = ("embedding.weight", "hidden.weight", "output.weight")


class Norm(nn.Module):
    """The part of a norm that is trained: one number for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D_MODEL))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.to(x.dtype)


class Toy(nn.Module):
    """Weights are {-1, 0, 1}, the same on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, D_MODEL)
        self.norm = Norm()
        self.hidden = nn.Linear(D_MODEL, D_HIDDEN, bias=False)
        self.output = nn.Linear(D_HIDDEN, D_OUT, bias=False)
        draw = torch.Generator().manual_seed(100)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=draw))

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.output(torch.relu(self.hidden(self.norm(self.embedding(token_ids)))))


def make_batch(rank: int, number: int) -> tuple[Tensor, Tensor]:
    """Token ids (batch,) of a rank, and by what its outputs (batch, d_out) are multiplied in the loss."""
    draw = torch.Generator().manual_seed(1000 + 10 * number + rank)
    token_ids = torch.randint(VOCAB_SIZE, (BATCH_SIZE,), generator=draw)
    return token_ids, torch.randint(-1, 2, (BATCH_SIZE, D_OUT), generator=draw).float()


def compute_loss(outputs: Tensor, factors: Tensor) -> Tensor:
    """Mean over the batch of a weighted sum of the outputs."""
    return (outputs * factors.to(outputs.dtype)).sum(-1).mean()


# --- What a rank does -------------------------------------------------------------------------------------


def train(
    adapters: Any, rank: Rank, *, compute_dtype: torch.dtype | None = None, num_batches: int = 1
) -> dict[str, Any]:
    """Some steps of SGD, and what can be seen on the way."""
    model = Toy()
    fsdp = adapters.get_fsdp(model, compute_dtype)
    rank.watcher.seen.clear()
    optimizer = torch.optim.SGD(fsdp.parameters(), lr=LEARNING_RATE)
    result: dict[str, Any] = {"shards": [list(parameter.shape) for parameter in fsdp.parameters()]}
    result["start"] = _gather(adapters, fsdp)
    for number in range(num_batches):
        optimizer.zero_grad()
        token_ids, factors = make_batch(rank.rank, number)
        rank.watcher.phase = "forward"
        outputs = fsdp(token_ids)
        result.setdefault("outputs", outputs.detach())
        loss = compute_loss(outputs, factors)
        rank.watcher.phase = "backward"
        loss.backward()
        rank.watcher.phase = "after backward"
        adapters.fsdp_on_after_backward(fsdp, optimizer)
        result["gradients"] = [
            (list(p.shape), None if p.grad is None else [str(p.grad.dtype), list(p.grad.shape)])
            for p in fsdp.parameters()
        ]
        rank.watcher.phase = "step"
        optimizer.step()
    optimizer.zero_grad()
    del model, outputs, loss
    result["left_over"] = _find_what_stays(known=[*result["start"].values()])
    result["end"] = _gather(adapters, fsdp)
    result["collectives"] = rank.watcher.as_dicts()
    return result


def _gather(adapters: Any, fsdp: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in adapters.fsdp_gather_full_params(fsdp).items()}


def _find_what_stays(known: list[Tensor]) -> list[list[int]]:
    """What is still there after a second: gloo's threads let go of tensors a moment after a collective."""
    end = time.monotonic() + 1.0
    while (found := _find_whole_weights(known)) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def _find_whole_weights(known: list[Tensor]) -> list[list[int]]:
    """Shapes of tensors of this process that may be whole weights and have memory, besides those known."""
    gc.collect()
    sizes = {parameter.numel() for name, parameter in Toy().named_parameters() if name in SHARDED}
    found = []
    for thing in gc.get_objects():
        # isinstance would ask lazy objects of other libraries for their class.
        if type(thing) not in (Tensor, nn.Parameter) or thing.numel() not in sizes:
            continue
        has_memory = thing.untyped_storage().nbytes() >= thing.numel() * thing.element_size()
        if has_memory and not any(thing is other for other in known):
            found.append(list(thing.shape))
    return found


# --- What must come out of it -----------------------------------------------------------------------------


def train_alone(ranks: Iterable[int], num_batches: int = 1, scale: float = 1.0) -> dict[str, Tensor]:
    """The parameters at the end of one process in float64 that has the parts of these ranks as one batch."""
    ranks = list(ranks)
    model = Toy().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE * scale)
    for number in range(num_batches):
        optimizer.zero_grad()
        batches = [make_batch(rank, number) for rank in ranks]
        token_ids, factors = (torch.cat(parts) for parts in zip(*batches, strict=True))
        compute_loss(model(token_ids), factors.double()).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def compute_outputs(rank: int) -> Tensor:
    """The first outputs of a rank, in float64."""
    with torch.no_grad():
        return Toy().double()(make_batch(rank, 0)[0])


def check_full(result: dict[str, Any], when: str) -> dict[str, Tensor]:
    """The gathered parameters of one rank, with the names that they had before wrapping; fails otherwise."""
    full, names = result[when], [name for name, _ in Toy().named_parameters()]
    if sorted(full) != sorted(names):
        fail(
            f"fsdp_gather_full_params returned the names {sorted(full)}; expected {sorted(names)}: those of "
            "the module that was wrapped, without what the wrapper puts before them"
        )
    for name, parameter in Toy().named_parameters():
        if full[name].shape[1:] == parameter.shape[1:] and len(full[name]) > len(parameter):
            fail(
                f"{name} was gathered as {tuple(full[name].shape)}; expected {tuple(parameter.shape)}: what "
                "pads the rows to a multiple of the number of ranks is cut off"
            )
    return full


def check_end(results: list[dict[str, Any]], num_batches: int = 1) -> None:
    """Fail unless the gathered parameters of every rank are those of one process with the whole batch."""
    num_ranks = len(results)
    truth = train_alone(range(num_ranks), num_batches)
    start = {name: parameter.detach().double() for name, parameter in Toy().named_parameters()}
    summed = train_alone(range(num_ranks), num_batches, scale=num_ranks)
    # The average of gradients below 32, its product with the rate, the difference. Then the weights are no
    # integers any more, so a later step also rounds in every sum, forward and backward.
    num_sums = 2 * (D_MODEL + D_HIDDEN + D_OUT + BATCH_SIZE)
    num_roundings = num_batches * (2 * num_ranks + 2) + (num_batches - 1) * num_sums
    for rank, result in enumerate(results):
        own = train_alone([rank], num_batches)
        full = check_full(result, "end")
        for name, expected in truth.items():
            check_tensor(
                full[name],
                expected,
                what=f"{name}, gathered on rank {rank} of {num_ranks} after {num_batches} steps of SGD,",
                allowed=rounding_bound(torch.float32, num_roundings, start[name].abs() + 32 * LEARNING_RATE),
                dtype=torch.float32,
                mistakes={
                    "gradients are summed over the ranks, not averaged": summed[name],
                    "gradients are not averaged: each rank goes on with that of its own part": own[name],
                    "it was never updated (a copy was, or what is kept has too few bits)": start[name],
                },
                hint="Often wrong here: rows of the shards in another order; padding that is not cut off; "
                "gradients of parameters that every rank keeps whole (norms) are not averaged.",
            )
