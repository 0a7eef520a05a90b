"""Parallel strategies, small and plain: the proof that the graded tests of several devices can be passed.

The functions at the end have the names of tests/adapters.py, so CS_SYSTEMS_ADAPTERS may name this file.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


def fill_buckets(parameters: list[nn.Parameter], max_bytes: float) -> list[list[nn.Parameter]]:
    """From the last parameter to the first, a new bucket where the next one does not fit."""
    buckets: list[list[nn.Parameter]] = []
    for parameter in reversed(parameters):
        together = [*buckets[-1], parameter] if buckets else []
        if together and sum(p.numel() * p.element_size() for p in together) <= max_bytes:
            buckets[-1].append(parameter)
        else:
            buckets.append([parameter])
    return buckets


class DataParallel(nn.Module):
    """Averages the gradients of a bucket as soon as all of them are there."""

    def __init__(self, module: nn.Module, max_bytes: float) -> None:
        super().__init__()
        self.module = module
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.buckets = fill_buckets(trained, max_bytes)
        self.num_ready = [0] * len(self.buckets)
        self.sent: dict[int, tuple[dist.Work, Tensor, list[nn.Parameter]]] = {}
        for i, bucket in enumerate(self.buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(self.make_hook(i))

    def make_hook(self, bucket: int) -> Callable[[Tensor], None]:
        """What runs when one gradient of this bucket is there."""

        def hook(parameter: Tensor) -> None:
            self.num_ready[bucket] += 1
            if self.num_ready[bucket] == len(self.buckets[bucket]):
                self.send(bucket)

        return hook

    def send(self, bucket: int) -> None:
        """Start to average the gradients that this bucket has."""
        parameters = [parameter for parameter in self.buckets[bucket] if parameter.grad is not None]
        if parameters:
            flat = _flatten_dense_tensors([parameter.grad for parameter in parameters])
            work = dist.all_reduce(flat, async_op=True)
            self.sent[bucket] = (work, flat, parameters)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def finish_gradient_synchronization(self) -> None:
        """Send buckets that never became full, wait for all, and put the averages in place."""
        for bucket in range(len(self.buckets)):
            if bucket not in self.sent:
                self.send(bucket)
        for work, flat, parameters in self.sent.values():
            work.wait()
            gradients = [parameter.grad for parameter in parameters]
            averages = _unflatten_dense_tensors(flat / dist.get_world_size(), gradients)
            for parameter, average in zip(parameters, averages, strict=True):
                parameter.grad.copy_(average)
        self.sent = {}
        self.num_ready = [0] * len(self.buckets)


class ShardedOptimizer(torch.optim.Optimizer):
    """Each rank keeps the state of the parameters it owns, updates them, and sends them to the others."""

    def __init__(
        self, params: Iterable[Any], optimizer_cls: type[torch.optim.Optimizer], **kwargs: Any
    ) -> None:
        self.optimizer_cls = optimizer_cls
        self.kwargs = kwargs
        self.inner: torch.optim.Optimizer | None = None
        self.owned_groups: list[dict[str, Any]] = []
        self.owner: dict[nn.Parameter, int] = {}
        self.load = [0] * dist.get_world_size()
        super().__init__(params, dict(kwargs))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Give each parameter to the rank that has least; super().__init__ calls this too."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            self.owner[parameter] = self.load.index(min(self.load))
            self.load[self.owner[parameter]] += parameter.numel()
        mine = [parameter for parameter in group["params"] if self.owner[parameter] == dist.get_rank()]
        settings = {key: value for key, value in group.items() if key != "params"}
        self.owned_groups.append({**settings, "params": mine})
        if not mine:
            return
        if self.inner is None:
            self.inner = self.optimizer_cls([self.owned_groups[-1]], **self.kwargs)
        else:
            self.inner.add_param_group(self.owned_groups[-1])
        self.owned_groups[-1] = self.inner.param_groups[-1]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Update what this rank owns, then take over what the others own."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.inner is not None:
            for owned, group in zip(self.owned_groups, self.param_groups, strict=True):
                owned.update({key: value for key, value in group.items() if key != "params"})
            self.inner.step(**kwargs)
        for parameter, owner in self.owner.items():
            dist.broadcast(parameter.detach(), src=owner)
        return loss


class _Gather(torch.autograd.Function):
    """The whole weight of the shards; backward averages its gradient in fp32 and keeps this rank's rows."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
        whole = shard.new_empty((dist.get_world_size() * len(shard), *shard.shape[1:]), dtype=dtype)
        dist.all_gather(list(whole.chunk(dist.get_world_size())), shard.to(dtype))
        return whole[:num_rows]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        num_ranks = dist.get_world_size()
        shard_rows = -(-len(gradient) // num_ranks)
        padded = gradient.new_zeros((num_ranks * shard_rows, *gradient.shape[1:]), dtype=torch.float32)
        padded[: len(gradient)] = gradient
        dist.all_reduce(padded)  # reduce_scatter sends half as much, and looks less alike in every version
        return padded.chunk(num_ranks)[dist.get_rank()] / num_ranks, None, None


class FullyShardedDataParallel(nn.Module):
    """Keeps equal numbers of rows of each Linear and Embedding weight on every rank."""

    def __init__(self, module: nn.Module, compute_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self.compute_dtype = compute_dtype or torch.float32
        self.num_rows: dict[str, int] = {}
        for name, layer in list(module.named_modules()):
            if type(layer).__name__ in ("Linear", "Embedding"):
                self.num_rows[f"{name}.weight"] = len(layer.weight)
                layer.weight = nn.Parameter(self.take_rows(layer.weight.detach()))
                layer.register_forward_pre_hook(self.make_gather(self.num_rows[f"{name}.weight"]))
                layer.register_forward_hook(self.put_shard_back)

    def take_rows(self, weight: Tensor) -> Tensor:
        """This rank's rows, the last of them padded with zeros."""
        num_ranks = dist.get_world_size()
        shard_rows = -(-len(weight) // num_ranks)
        padded = weight.new_zeros(num_ranks * shard_rows, *weight.shape[1:])
        padded[: len(weight)] = weight
        return padded.chunk(num_ranks)[dist.get_rank()].clone()

    def make_gather(self, num_rows: int) -> Callable[[nn.Module, Any], None]:
        """What puts the whole weight in the shard's place before a layer runs."""

        def gather(layer: nn.Module, args: Any) -> None:
            layer.shard = [layer._parameters.pop("weight")]
            layer.weight = _Gather.apply(layer.shard[0], num_rows, self.compute_dtype)

        return gather

    @staticmethod
    def put_shard_back(layer: nn.Module, args: Any, output: Tensor) -> None:
        """Let go of the whole weight; autograd keeps what it needs."""
        del layer.weight
        layer.weight = layer.shard.pop()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def finish_gradient_synchronization(self) -> None:
        """Average the gradients of what every rank keeps whole; the others are averaged already."""
        for name, parameter in self.module.named_parameters():
            if name not in self.num_rows and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    def gather_full_params(self) -> dict[str, Tensor]:
        """Every parameter, whole, by its name in the wrapped module."""
        full = {name: parameter.detach() for name, parameter in self.module.named_parameters()}
        for name, num_rows in self.num_rows.items():
            full[name] = _Gather.apply(full[name], num_rows, torch.float32)
        return full


def get_ddp(module: nn.Module) -> nn.Module:
    return DataParallel(module, max_bytes=0)


def ddp_on_after_backward(ddp_model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    ddp_model.finish_gradient_synchronization()


def get_ddp_bucketed(module: nn.Module, bucket_size_mb: float | None) -> nn.Module:
    return DataParallel(module, float("inf") if bucket_size_mb is None else bucket_size_mb * 1e6)


def ddp_bucketed_on_after_backward(ddp_model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    ddp_model.finish_gradient_synchronization()


def ddp_bucketed_on_train_batch_start(ddp_model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    pass


def get_sharded_optimizer(
    params: Iterable[Any], optimizer_cls: type[torch.optim.Optimizer], **kwargs: Any
) -> torch.optim.Optimizer:
    return ShardedOptimizer(params, optimizer_cls, **kwargs)


def get_fsdp(module: nn.Module, compute_dtype: torch.dtype | None = None) -> nn.Module:
    return FullyShardedDataParallel(module, compute_dtype)


def fsdp_on_after_backward(fsdp_model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    fsdp_model.finish_gradient_synchronization()


def fsdp_gather_full_params(fsdp_model: nn.Module) -> dict[str, Tensor]:
    return fsdp_model.gather_full_params()
