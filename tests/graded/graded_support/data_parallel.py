"""A toy for data parallelism, what its gradients must be, and the training loop that a rank runs.

All numbers of the toy are small integers and means are over 4 examples a rank, so fp32 computes each rank's
gradient without any rounding, in whatever order; only the average over the ranks can round.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from graded_support.compare import check_tensor, fail, rounding_bound
from graded_support.ranks import Rank

VOCAB_SIZE = 6
D_MODEL = 4
D_HIDDEN = 5
BATCH_SIZE = 4
"""Examples of each rank."""
LEARNING_RATE = 0.125


@dataclass(frozen=True)
class Kind:
    """What is peculiar about a toy."""

    tied: bool = False
    """The output layer has the weight of the embedding."""
    frozen: bool = False
    """One layer has a weight that is not trained."""
    unused: bool = False
    """One layer is not used, so its weight has no gradient."""


class Toy(nn.Module):
    """An embedding, two layers with a bias and one without; {-1, 0, 1} drawn with the seed everywhere."""

    def __init__(self, kind: Kind, seed: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, D_MODEL)
        self.hidden = nn.Linear(D_MODEL, D_HIDDEN)
        self.unused = nn.Linear(3, 2, bias=False) if kind.unused else None
        self.mix = nn.Linear(D_HIDDEN, D_MODEL)
        self.frozen = nn.Linear(D_MODEL, D_MODEL, bias=False).requires_grad_(False) if kind.frozen else None
        self.output = nn.Linear(D_MODEL, VOCAB_SIZE, bias=False)
        self.register_buffer("offset", torch.zeros(D_MODEL))
        if kind.tied:
            self.output.weight = self.embedding.weight
        draw = torch.Generator().manual_seed(100 + seed)
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.copy_(torch.randint(-1, 2, tensor.shape, generator=draw))

    def forward(self, token_ids: Tensor) -> Tensor:
        x = self.mix(torch.relu(self.hidden(self.embedding(token_ids) + self.offset)))
        return self.output(x if self.frozen is None else self.frozen(x))


def make_batch(rank: int, number: int) -> tuple[Tensor, Tensor]:
    """Token ids (batch,) and targets (batch, vocab) of a rank."""
    draw = torch.Generator().manual_seed(1100 + 10 * number + rank)
    token_ids = torch.randint(VOCAB_SIZE, (BATCH_SIZE,), generator=draw)
    targets = torch.randint(-1, 2, (BATCH_SIZE, VOCAB_SIZE), generator=draw)
    return token_ids, targets.float()


def compute_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance, mean over the batch."""
    return ((outputs - targets) ** 2).sum(-1).mean() / 2


# --- What a rank does -------------------------------------------------------------------------------------


def train(
    adapters: Any,
    rank: Rank,
    *,
    kind: Kind,
    bucket_size_mb: float | str | None = "no buckets",
    num_batches: int = 1,
    rank_1_is_late: bool = False,
) -> dict[str, Any]:
    """Gradients of some batches, all with the weights of the start, then one step of SGD.

    With rank_1_is_late its backward begins when that of rank 0 has ended, which must not wait for it.
    """
    model = Toy(kind, seed=rank.rank)
    if bucket_size_mb == "no buckets":
        ddp, after_backward = adapters.get_ddp(model), adapters.ddp_on_after_backward
    else:
        ddp, after_backward = (
            adapters.get_ddp_bucketed(model, bucket_size_mb),
            adapters.ddp_bucketed_on_after_backward,
        )
    rank.watcher.seen.clear()
    start = _copies({**dict(ddp.module.named_parameters()), **dict(ddp.module.named_buffers())}.items())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=LEARNING_RATE)
    has_gradient = [parameter for name, parameter in model.named_parameters() if _is_trained(name)]
    gradients, ended_alone = [], True
    for number in range(num_batches):
        optimizer.zero_grad()
        if bucket_size_mb != "no buckets":
            adapters.ddp_bucketed_on_train_batch_start(ddp, optimizer)
        token_ids, targets = make_batch(rank.rank, number)
        rank.watcher.phase = "forward"
        loss = compute_loss(ddp(token_ids), targets)
        if rank_1_is_late and rank.rank == 1:
            ended_alone = rank.await_announcement("backward of rank 0 has ended")
            # Rank 0 goes on alone as far as it can, which should be no further than after_backward.
            rank.await_announcement("rank 0 goes on to its update", within_s=0.5)
        rank.watcher.phase, rank.watcher.expected = "backward", has_gradient
        loss.backward()
        rank.announce(f"backward of rank {rank.rank} has ended")
        rank.watcher.phase = "after backward"
        after_backward(ddp, optimizer)
        gradients.append(_copies((n, p.grad) for n, p in ddp.module.named_parameters() if p.grad is not None))
        rank.announce(f"rank {rank.rank} goes on to its update")
    rank.watcher.phase = "step"
    optimizer.step()
    return {
        "start": start,
        "gradients": gradients,
        "end": _copies(ddp.module.named_parameters()),
        "collectives": rank.watcher.as_dicts(),
        "ended_alone": ended_alone,
    }


def _is_trained(name: str) -> bool:
    return not name.startswith(("frozen", "unused"))


def _copies(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors}


# --- What must come out of it -----------------------------------------------------------------------------


@cache
def gradients_of(kind: Kind, seed: int, ranks: tuple[int, ...], number: int = 0) -> dict[str, Tensor]:
    """Of the parts of these ranks as one batch, by one process in float64, weights drawn with `seed`."""
    model = Toy(kind, seed).double()
    batches = [make_batch(rank, number) for rank in ranks]
    token_ids, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    compute_loss(model(token_ids), targets.double()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_gradients(results: list[dict[str, Any]], kind: Kind, number: int = 0) -> None:
    """Fail unless every rank has, for this batch, the gradients of all parts as one batch."""
    num_ranks = len(results)
    truth = gradients_of(kind, 0, tuple(range(num_ranks)), number)
    parts = [gradients_of(kind, 0, (rank,), number) for rank in range(num_ranks)]
    for name, expected in truth.items():
        # Each part is exact. Dividing before or after adding, and adding, round num_ranks times each at most.
        magnitude = torch.stack([part[name].abs() for part in parts]).sum(0) / num_ranks
        for rank, result in enumerate(results):
            found = result["gradients"][number].get(name)
            if found is None:
                fail(f"{name} has no gradient on rank {rank} after ddp_on_after_backward")
            check_tensor(
                found,
                expected,
                what=f"the gradient of {name} on rank {rank} of {num_ranks}, batch {number + 1},",
                allowed=rounding_bound(torch.float32, 2 * num_ranks, magnitude),
                dtype=torch.float32,
                mistakes=_sent_parameters(result, kind, name, number, rank)
                | _mistakes(kind, num_ranks, name, number, rank),
                hint="It is that of one process that has the parts of all ranks as one batch.",
            )


def _sent_parameters(result: dict[str, Any], kind: Kind, name: str, number: int, rank: int) -> dict[str, Any]:
    """The mistake that the gradients alone do not show: they stay as they were."""
    if not any(c["of_parameters"] for c in result["collectives"] if c["phase"] != "forward"):
        return {}
    words = "the parameter is sent instead of its gradient (all_reduce of p or p.data, not of p.grad)"
    return {words: lambda: gradients_of(kind, 0, (rank,), number)[name]}


def _mistakes(kind: Kind, num_ranks: int, name: str, number: int, rank: int) -> dict[str, Any]:
    """What would come out when something usual goes wrong."""
    everyone = tuple(range(num_ranks))
    whole = partial(gradients_of, kind, 0, everyone, number)

    def with_own_weights() -> Tensor:
        own = [gradients_of(kind, other, (other,), number)[name] for other in everyone]
        return torch.stack(own).mean(0)

    by_two = (
        {}
        if num_ranks == 2
        else {"gradients are divided by 2, not by the number of ranks": lambda: whole()[name] * num_ranks / 2}
    )
    return by_two | {
        "gradients are summed over the ranks, not averaged": lambda: num_ranks * whole()[name],
        "gradients are divided by the number of ranks twice": lambda: whole()[name] / num_ranks,
        f"rank {rank} goes on with the gradient of its own part: the update happened before the gradients "
        "had arrived, or they were never sent": lambda: gradients_of(kind, 0, (rank,), number)[name],
        "the gradients of its own part are divided by the number of ranks: the update happened before the "
        "gradients had arrived": lambda: gradients_of(kind, 0, (rank,), number)[name] / num_ranks,
        "rank 1 started from other weights: rank 0 sends its own when the model is wrapped": with_own_weights,
        "rank 1 started from other weights, and gradients are not averaged either": lambda: gradients_of(
            kind, rank, (rank,), number
        )[name],
        "they are those of the batch before": lambda: gradients_of(kind, 0, everyone, 0)[name],
        "those of the batch before are still in it": lambda: (
            whole()[name] + gradients_of(kind, 0, everyone, 0)[name]
        ),
    }


def check_start(results: list[dict[str, Any]], kind: Kind, *, only: str = "") -> None:
    """Fail unless every rank starts from the parameters and buffers of rank 0."""
    toy = Toy(kind, seed=0)
    for name, expected in (*toy.named_parameters(), *toy.named_buffers()):
        if not name.startswith(only):
            continue
        for rank, result in enumerate(results):
            found = result["start"].get(name)
            if found is None:
                fail(f"the wrapped module has no {name} on rank {rank}: .module is the one that was wrapped")
            if not torch.equal(found, expected):
                own = dict((*Toy(kind, rank).named_parameters(), *Toy(kind, rank).named_buffers()))[name]
                why = "it kept its own" if torch.equal(found, own) else "they are not those of any one rank"
                fail(
                    f"rank {rank} started from other weights: its {name} is not that of rank 0 ({why}); rank "
                    "0 must send parameters and buffers when the model is wrapped"
                )


def check_end(results: list[dict[str, Any]], kind: Kind, number: int = 0) -> None:
    """Fail unless every rank ends where one process ends that has the whole batch."""
    num_ranks = len(results)
    truth = gradients_of(kind, 0, tuple(range(num_ranks)), number)
    toy = copy.deepcopy(Toy(kind, seed=0)).double()
    for name, parameter in toy.named_parameters():
        start = parameter.detach()
        gradient = truth.get(name, torch.zeros_like(start))
        for rank, result in enumerate(results):
            own = gradients_of(kind, 0, (rank,), number).get(name, gradient)
            theirs = [
                gradients_of(kind, other, (other,), number).get(name, gradient) for other in range(num_ranks)
            ]
            starts = [
                dict(Toy(kind, other).double().named_parameters())[name].detach()
                for other in range(num_ranks)
            ]
            check_tensor(
                result["end"][name],
                start - LEARNING_RATE * gradient,
                what=f"{name} on rank {rank} after a step of SGD",
                # The rounded average, the product and the difference.
                allowed=rounding_bound(
                    torch.float32, 2 * num_ranks + 2, start.abs() + LEARNING_RATE * gradient.abs()
                ),
                dtype=torch.float32,
                mistakes={
                    "gradients are summed over the ranks, not averaged": start
                    - num_ranks * LEARNING_RATE * gradient,
                    "each rank goes on with the gradient of its own part": start - LEARNING_RATE * own,
                    "rank 1 started from other weights": starts[rank]
                    - LEARNING_RATE * sum(theirs) / num_ranks,
                    "parameters are averaged before the update instead of gradients (all_reduce of the "
                    "parameter instead of its gradient)": sum(starts) / num_ranks - LEARNING_RATE * own,
                },
            )


def check_overlap(results: list[dict[str, Any]]) -> None:
    """Fail unless the first gradients leave while backward has others still to compute."""
    for rank, result in enumerate(results):
        collectives = result["collectives"]
        if not any(collective["phase"] == "backward" for collective in collectives):
            fail(
                f"rank {rank} starts no collective during backward: register_post_accumulate_grad_hook on "
                "each parameter runs as soon as its gradient is there"
            )
        if not any(collective["phase"] == "backward" and collective["missing"] for collective in collectives):
            fail(
                f"rank {rank} starts its first collective when all gradients are there, so nothing overlaps: "
                "send a gradient, or a full bucket, as soon as it is there"
            )
