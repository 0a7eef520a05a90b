"""run_autocast_dtypes with models that nobody knows, put together of layers whose rule is known."""

import random

import torch
from graded_support.autocast_types import LOWER, Case, Model, RootMeanSquare, check_types
from torch import nn

WIDTH = 5
LAYERS = {
    # A product is listed as lower, this norm casts for itself, others keep the type of what comes in.
    "product": (lambda: nn.Linear(WIDTH, WIDTH), LOWER, ("weight", "bias")),
    "norm": (lambda: RootMeanSquare(WIDTH), torch.float32, ("gain",)),
    "kept": (nn.Tanh, None, ()),
}


def draw_case(draw):
    """Some layers, two of them in a module of their own, and the types in which they return."""
    layers, outputs, parameters, kind = [], {}, {}, torch.float32
    names = [draw.choice(list(LAYERS)) for _ in range(draw.randint(3, 6))] + ["product"]
    for i, name in enumerate(names):
        make, own, weights = LAYERS[name]
        place = f"{i}" if i < 2 else f"2.{i - 2}"
        kind = own or kind
        layers.append(make())
        outputs[place] = kind
        parameters |= {f"{place}.{weight}": torch.float32 for weight in weights}
    model = Model(*layers[:2], nn.Sequential(*layers[2:]))
    return Case(lambda: model, outputs, parameters)


def test_models_that_nobody_knows(adapters, secret_seed):
    draw = random.Random(secret_seed)
    for _ in range(4):
        case, dtype = draw_case(draw), draw.choice((torch.float16, torch.bfloat16))
        check_types(adapters.run_autocast_dtypes, case, dtype)
