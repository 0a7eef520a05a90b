"""Wrong data parallelism; most are the reference with one step changed."""

import distributed_reference as reference
import torch
import torch.distributed as dist
from torch import nn


class Naive(nn.Module):
    """Data parallelism without overlap, in which one step can be left out or replaced."""

    def __init__(self, module, broadcast=True, scale=None):
        super().__init__()
        self.module = module
        self.scale = scale
        if broadcast:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def forward(self, *args):
        return self.module(*args)

    def finish_gradient_synchronization(self):
        for parameter in self.module.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad *= 1 / dist.get_world_size() if self.scale is None else self.scale


class SendsNothing(Naive):
    def finish_gradient_synchronization(self):
        pass


class AveragesParameters(Naive):
    def finish_gradient_synchronization(self):
        for parameter in self.module.parameters():
            dist.all_reduce(parameter.data)
            parameter.data /= dist.get_world_size()


class SendsOnceMoreOnRank1(Naive):
    def finish_gradient_synchronization(self):
        super().finish_gradient_synchronization()
        if dist.get_rank() == 1:
            dist.all_reduce(torch.zeros(3))


class OtherOrderOnRank1(Naive):
    def finish_gradient_synchronization(self):
        parameters = list(self.module.parameters())[:-1]
        for parameter in parameters if dist.get_rank() == 0 else reversed(parameters):
            dist.all_reduce(parameter.grad)


class Overlapping(nn.Module):
    """A hook on every parameter that sends it, of which subclasses change one step."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.sent = []
        for tensor in self.find_tensors_to_broadcast():
            dist.broadcast(tensor.detach(), src=0)
        for parameter in self.find_parameters_to_hook():
            parameter.register_post_accumulate_grad_hook(self.hook)

    def find_tensors_to_broadcast(self):
        return [*self.module.parameters(), *self.module.buffers()]

    def find_parameters_to_hook(self):
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def hook(self, parameter):
        self.sent.append((dist.all_reduce(parameter.grad, async_op=True), parameter))

    def forward(self, *args):
        return self.module(*args)

    def finish_gradient_synchronization(self):
        for work, parameter in self.sent:
            work.wait()
            parameter.grad /= dist.get_world_size()
        self.sent = []


class Blocking(Overlapping):
    def hook(self, parameter):
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


class NotWaiting(Overlapping):
    def finish_gradient_synchronization(self):
        for _, parameter in self.sent:
            parameter.grad /= dist.get_world_size()
        self.sent = []


class SendingTiedWeightsTwice(Overlapping):
    def find_parameters_to_hook(self):
        named = self.module.named_parameters(remove_duplicate=False)
        return [parameter for _, parameter in named if parameter.requires_grad]


class BroadcastingWhatIsTrained(Overlapping):
    def find_tensors_to_broadcast(self):
        return [*self.find_parameters_to_hook(), *self.module.buffers()]


class BroadcastingParameters(Overlapping):
    def find_tensors_to_broadcast(self):
        return list(self.module.parameters())


class HookingFrozenParameters(Overlapping):
    def find_parameters_to_hook(self):
        return list(self.module.parameters())


class RememberingTheLastBatch(Overlapping):
    def finish_gradient_synchronization(self):
        for work, parameter in self.sent:
            work.wait()
            parameter.grad /= dist.get_world_size()


class Bucketed(reference.DataParallel):
    """The reference, made with megabytes."""

    def __init__(self, module, bucket_size_mb):
        super().__init__(module, float("inf") if bucket_size_mb is None else bucket_size_mb * self.BYTES)

    BYTES = 1e6


class SummingBuckets(Bucketed):
    def finish_gradient_synchronization(self):
        super().finish_gradient_synchronization()
        for parameter in self.parameters():
            parameter.grad *= dist.get_world_size()


class BucketsOfMebibytes(Bucketed):
    BYTES = 2**20


class BucketsThatForget(Bucketed):
    """Buckets with a parameter that has no gradient are never sent."""

    def finish_gradient_synchronization(self):
        for bucket, ready in enumerate(self.num_ready):
            if bucket not in self.sent and ready < len(self.buckets[bucket]):
                self.sent[bucket] = (_Done(), torch.zeros(0), [])
        super().finish_gradient_synchronization()


class _Done:
    def wait(self):
        pass


class BucketsThatKeepCounting(Bucketed):
    def finish_gradient_synchronization(self):
        counted = list(self.num_ready)
        super().finish_gradient_synchronization()
        self.num_ready = counted

    def send(self, bucket):
        if self.num_ready[bucket] <= len(self.buckets[bucket]):
            super().send(bucket)


class BucketsSentAtTheEnd(Bucketed):
    def make_hook(self, bucket):
        return lambda parameter: None


class BlockingBuckets(Bucketed):
    def send(self, bucket):
        super().send(bucket)
        if bucket in self.sent:
            self.sent[bucket][0].wait()


class BucketsNotWaitedFor(Bucketed):
    def finish_gradient_synchronization(self):
        self.sent = {
            bucket: (_Done(), flat, parameters) for bucket, (_, flat, parameters) in self.sent.items()
        }
        super().finish_gradient_synchronization()


class BucketsFromTheFirst(Bucketed):
    def __init__(self, module, bucket_size_mb):
        super().__init__(_Reversed(module), bucket_size_mb)
        self.module = module


class _Reversed(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def parameters(self, recurse=True):
        return iter(reversed(list(super().parameters(recurse))))
