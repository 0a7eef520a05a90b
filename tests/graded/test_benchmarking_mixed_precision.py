"""run_autocast_dtypes: the types of a training step under autocast. Each test watches the model as well."""

import torch
from graded_support.autocast_types import (
    NESTED,
    OF_THE_COURSE,
    PARTLY_BF16,
    PROBED,
    WITH_DROPOUT,
    Watched,
    check_types,
)
from graded_support.compare import fail


def test_the_model_of_the_course(adapters):
    for dtype in (torch.float16, torch.bfloat16):
        check_types(adapters.run_autocast_dtypes, OF_THE_COURSE, dtype)


def test_nested_modules_and_an_embedding(adapters):
    check_types(adapters.run_autocast_dtypes, NESTED, torch.bfloat16)


def test_gradients_have_the_types_of_their_parameters(adapters):
    """Of which one is bf16 here."""
    check_types(adapters.run_autocast_dtypes, PARTLY_BF16, torch.bfloat16)


def test_the_loss_is_computed_in_the_context_and_backward_outside(adapters):
    Watched.seen.clear()
    check_types(adapters.run_autocast_dtypes, PROBED, torch.bfloat16)
    if not Watched.seen:
        fail("no backward pass was run: the types of gradients are known when there are gradients")
    if any(Watched.seen):
        fail("backward ran inside of torch.autocast: leave the context first; it has the types of forward")


def test_the_model_is_left_as_it_was(adapters):
    model = check_types(adapters.run_autocast_dtypes, WITH_DROPOUT, torch.bfloat16)
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if any(hooks) or "forward" in vars(module):
            fail(f"a hook was left in {name or 'the model'}: call remove() of what registering it returned")
        if not module.training:
            fail("the model was left in evaluation mode: a measurement leaves what it measures as it was")
    if {weight.dtype for weight in model.parameters()} != {torch.float32}:
        fail("the parameters of the model were converted: autocast casts what they are used for, not them")
