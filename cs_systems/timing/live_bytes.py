"""Count the bytes of tensors that are alive, on any device, by watching every operation.

Resident memory of a process says what the allocator keeps; this says what the program needs. It watches each
operation's results until they die, so it is exact for tensors, slow, and blind inside compiled code.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class LiveBytes(TorchDispatchMode):
    """Within `with LiveBytes(existing) as live:`, `live.live` bytes are alive and `live.peak` were at most.

    Args:
        existing: tensors made before that count from the start, such as parameters. Others do not count.
    """

    def __init__(self, existing: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.live = self.peak = 0
        for tensor in existing:
            self._count(tensor)

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self.known.discard(key)
        self.live -= num_bytes

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return result
