"""run_autocast_dtypes: the types of a training step under autocast. Each test watches the model as well."""

import copy

import torch
from graded_support.autocast_types import check_types
from graded_support.compare import fail
from torch import nn

IDS = torch.tensor([0, 3, 1, 2])
TARGETS = torch.tensor([0, 1, 2, 0])


class RootMeanSquare(nn.Module):
    """A norm that computes in fp32, as norms do, and returns what it computed."""

    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = x.float()
        return x / x.square().mean(-1, keepdim=True).add(1e-5).sqrt() * self.gain


class Watched(torch.autograd.Function):
    """The identity; its backward notes whether autocast is on."""

    seen: list = []  # noqa: RUF012  a Function has no instance to keep it in

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Watched.seen.append(torch.is_autocast_enabled(gradient.device.type))
        return gradient


class Probe(nn.Module):
    """The identity, which looks at its own backward."""

    def forward(self, x):
        return Watched.apply(x)


def check(adapters, model, inputs, dtype):
    """Give the student a copy, so that what they do to it is not done to ours."""
    actual = adapters.run_autocast_dtypes(copy.deepcopy(model), inputs, TARGETS, dtype)
    check_types(actual, model, inputs, TARGETS, dtype)


def test_the_model_of_the_course(adapters):
    model = nn.Sequential(nn.Linear(5, 10, bias=False), nn.ReLU(), nn.LayerNorm(10), nn.Linear(10, 3))
    for dtype in (torch.float16, torch.bfloat16):
        check(adapters, model, torch.randn(4, 5), dtype)


def test_nested_modules_and_an_embedding(adapters):
    inner = nn.Sequential(nn.Linear(6, 6), nn.Sequential(RootMeanSquare(6), nn.GELU()))
    model = nn.Sequential(nn.Embedding(4, 6), inner, nn.Linear(6, 3))
    check(adapters, model, IDS, torch.bfloat16)


def test_gradients_have_the_types_of_their_parameters(adapters):
    """Of which one is bf16 here."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3))
    model[1].bfloat16()
    check(adapters, model, torch.randn(4, 5), torch.bfloat16)


def test_the_loss_is_computed_in_the_context_and_backward_outside(adapters):
    model = nn.Sequential(nn.Linear(5, 3), Probe())
    check(adapters, model, torch.randn(4, 5), torch.bfloat16)
    Watched.seen.clear()
    adapters.run_autocast_dtypes(model, torch.randn(4, 5), TARGETS, torch.bfloat16)
    if not Watched.seen:
        fail("no backward pass was run: the types of gradients are known when there are gradients")
    if any(Watched.seen):
        fail("backward ran inside of torch.autocast: leave the context first; it has the types of forward")


def test_the_model_is_left_as_it_was(adapters):
    model = nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)))
    adapters.run_autocast_dtypes(model, torch.randn(4, 5), TARGETS, torch.bfloat16)
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if any(hooks) or "forward" in vars(module):
            fail(f"a hook was left in {name or 'the model'}: call remove() of what registering it returned")
        if not module.training:
            fail("the model was left in evaluation mode: a measurement leaves what it measures as it was")
    if {weight.dtype for weight in model.parameters()} != {torch.float32}:
        fail("the parameters of the model were converted: autocast casts what they are used for, not them")
