"""See which collectives a rank takes part in, by whichever function of torch.distributed it calls them.

They all become operators of the namespaces c10d or _c10d_functional, which a dispatch mode sees.
"""

import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMESPACES = ("c10d", "_c10d_functional")
NO_COLLECTIVES = ("wait_tensor", "_wrap_tensor_autograd")
NAMES = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
}


@dataclass(frozen=True)
class Collective:
    """One call."""

    name: str
    numel: int
    """Values that the operator was given, of all tensors together; of gathers also where they go."""
    dtype: str
    phase: str
    """What the rank was doing."""
    missing: int
    """Gradients that were still to come."""
    of_parameters: bool
    """Whether a parameter itself was among the tensors."""

    def __str__(self) -> str:
        return f"{self.name} of {self.numel} values of {self.dtype}"


@dataclass
class Watcher:
    """What a rank does at the moment; its work says so, collectives are noted with it."""

    phase: str = "start"
    expected: Sequence[nn.Parameter] = ()
    """Parameters that will have a gradient."""
    seen: list[Collective] = field(default_factory=list)

    def as_dicts(self) -> list[dict[str, Any]]:
        """What was seen, to be sent to another process."""
        return [asdict(collective) for collective in self.seen]


class WatchCollectives(TorchDispatchMode):
    """Notes each collective, and writes it to a file before it runs: the rank may never return from it."""

    def __init__(self, watcher: Watcher, log: pathlib.Path) -> None:
        super().__init__()
        self.watcher = watcher
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and pass on."""
        name = str(func._opname)
        if func.namespace in NAMESPACES and name not in NO_COLLECTIVES:
            self._note(NAMES.get(name, name.strip("_")), tree_leaves(args))
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, leaves: Sequence[Any]) -> None:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        collective = Collective(
            name,
            sum(tensor.numel() for tensor in tensors),
            ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
            self.watcher.phase,
            sum(parameter.grad is None for parameter in self.watcher.expected),
            bool({tensor.data_ptr() for tensor in tensors} & {p.data_ptr() for p in self.watcher.expected}),
        )
        self.watcher.seen.append(collective)
        with self.log.open("a") as file:
            file.write(f"{collective}\n")
