"""Wrong ways to share out the optimizer's state and the weights: the reference with one step changed."""

import distributed_reference as reference
import torch
import torch.distributed as dist


class NotSending(reference.ShardedOptimizer):
    def step(self, closure=None, **kwargs):
        loss = closure() if closure else None
        if self.inner is not None:
            self.inner.step()
        return loss


class KeepingTheLearningRate(reference.ShardedOptimizer):
    def step(self, closure=None, **kwargs):
        self.owned_groups = []
        kept, self.param_groups = self.param_groups, []
        loss = super().step(closure, **kwargs)
        self.param_groups = kept
        return loss


class ForgettingSettings(reference.ShardedOptimizer):
    def add_param_group(self, param_group):
        super().add_param_group({"params": param_group["params"]})


class ForgettingLateGroups(reference.ShardedOptimizer):
    def add_param_group(self, param_group):
        if self.inner is None or not self.inner.state:
            super().add_param_group(param_group)


class MadeAtOnce(reference.ShardedOptimizer):
    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        if self.inner is None:
            self.inner = self.optimizer_cls([], **self.kwargs)


class WithoutClosure(reference.ShardedOptimizer):
    def step(self, closure=None, **kwargs):
        return super().step(None, **kwargs)


def whole_optimizer(params, optimizer_cls, **kwargs):
    return optimizer_cls(params, **kwargs)


class FullySharded(reference.FullyShardedDataParallel):
    """The reference, whose parts the mutants below change."""


class WholeEverywhere(FullySharded):
    def take_rows(self, weight):
        return weight

    def make_gather(self, num_rows):
        def keep(layer, args):
            layer.shard = [layer._parameters.pop("weight")]
            layer.weight = layer.shard[0] * 1

        return keep


class LocalNorms(FullySharded):
    def finish_gradient_synchronization(self):
        pass


class WrappedNames(FullySharded):
    def gather_full_params(self):
        return {f"module.{name}": tensor for name, tensor in super().gather_full_params().items()}


class WithPadding(FullySharded):
    def gather_full_params(self):
        rows = dict(self.num_rows)
        self.num_rows = {
            name: -(-num // dist.get_world_size()) * dist.get_world_size() for name, num in rows.items()
        }
        full = super().gather_full_params()
        self.num_rows = rows
        return full


class Hoarding(FullySharded):
    def make_gather(self, num_rows):
        gather = super().make_gather(num_rows)
        self.kept = []

        def keep(layer, args):
            gather(layer, args)
            self.kept.append(layer.weight)

        return keep


class TurningTheBatchAround(FullySharded):
    def forward(self, token_ids):
        return super().forward(token_ids.flip(0))


class SummingShards(FullySharded):
    def finish_gradient_synchronization(self):
        super().finish_gradient_synchronization()
        for parameter in self.parameters():
            parameter.grad *= dist.get_world_size()


class CastingAfterTheGather(FullySharded):
    def make_gather(self, num_rows):
        def gather(layer, args):
            layer.shard = [layer._parameters.pop("weight")]
            whole = reference._Gather.apply(layer.shard[0], num_rows, torch.float32)
            layer.weight = whole.to(self.compute_dtype)

        return gather


class AddingWhatIsThere(FullySharded):
    """The gradients of the norm are those of all batches so far."""

    def finish_gradient_synchronization(self):
        super().finish_gradient_synchronization()
        total = getattr(self, "total", None)
        norms = [p for name, p in self.module.named_parameters() if name not in self.num_rows]
        if total is not None:
            for parameter, before in zip(norms, total, strict=True):
                parameter.grad += before
        self.total = [parameter.grad.clone() for parameter in norms]


class _SummingInBf16(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shard, num_rows, dtype):
        return reference._Gather.forward(ctx, shard, num_rows, dtype)

    @staticmethod
    def backward(ctx, gradient):
        num_ranks = dist.get_world_size()
        padded = gradient.new_zeros((-(-len(gradient) // num_ranks) * num_ranks, *gradient.shape[1:]))
        padded[: len(gradient)] = gradient
        dist.all_reduce(padded)
        return padded.chunk(num_ranks)[dist.get_rank()].float() / num_ranks, None, None


class ReducingInBf16(FullySharded):
    def make_gather(self, num_rows):
        def gather(layer, args):
            layer.shard = [layer._parameters.pop("weight")]
            layer.weight = _SummingInBf16.apply(layer.shard[0], num_rows, self.compute_dtype)

        return gather
