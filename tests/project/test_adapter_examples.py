"""Each 'For example' of tests/adapters.py is what the reference gives, number by number."""

import importlib.util
import io
import math
import pathlib
import re
import weakref

import numpy as np
import pytest
import torch
from torch import nn

ADAPTERS = pathlib.Path(__file__).parents[1] / "adapters.py"
NOT_HERE_YET = {
    "get_ddp",
    "ddp_on_after_backward",
    "get_ddp_bucketed",
    "ddp_bucketed_on_after_backward",
    "ddp_bucketed_on_train_batch_start",
    "get_sharded_optimizer",
    "get_fsdp",
    "fsdp_on_after_backward",
    "fsdp_gather_full_params",
}
"""Adapters of problems that the reference does not solve."""


def load_adapters():
    spec = importlib.util.spec_from_file_location("adapters_of_the_examples", ADAPTERS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


adapters = load_adapters()


def example_of(name):
    """The sentence of a docstring that begins with 'For example', on one line."""
    text = " ".join(getattr(adapters, name).__doc__.split())
    return text.partition("For example, ")[2]


def printed(value):
    """A tensor or number as the docstrings write it: at most four decimals, no zeros at the end."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(printed, value))}]"
    return f"{value:.4f}".rstrip("0").rstrip(".")


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def nn_parameter_with_gradient(*gradient):
    parameter = nn.Parameter(torch.zeros(len(gradient)))
    parameter.grad = tensor(*gradient)
    return parameter


def clipped():
    parameter = nn_parameter_with_gradient(3, 4)
    assert adapters.run_gradient_clipping(iter([parameter]), 1.0) is None
    return parameter.grad


def attention_of_one_query(mask):
    zeros = torch.zeros(2, 2)
    return adapters.run_scaled_dot_product_attention(torch.ones(1, 2), zeros, tensor([1], [3]), mask)


# What to compute, and the words around the result in the docstring.
NUMBERS = [
    ("run_linear", lambda: adapters.run_linear(2, 1, tensor([1, 2]), tensor(3, 4)), "give {}"),
    (
        "run_embedding",
        lambda: adapters.run_embedding(2, 2, tensor([1, 2], [3, 4]), torch.tensor([1, 0])),
        "token_ids [1, 0] give {}",
    ),
    ("run_rmsnorm", lambda: adapters.run_rmsnorm(2, 0.0, torch.ones(2), tensor(3, 4)), "[3, 4] give {}"),
    ("run_silu", lambda: adapters.run_silu(tensor(0, 1)), "[0, 1] give {}"),
    (
        "run_swiglu",
        lambda: adapters.run_swiglu(1, 1, tensor([1]), tensor([3]), tensor([2]), tensor(1)),
        "in_features [1] give {}",
    ),
    ("run_softmax", lambda: adapters.run_softmax(tensor(1000, 1000), 0), "dim 0 give {}"),
    (
        "run_cross_entropy",
        lambda: adapters.run_cross_entropy(tensor([0, 0]), torch.tensor([1])),
        "targets [1] give {}",
    ),
    ("run_scaled_dot_product_attention", lambda: attention_of_one_query(None), "V [[1], [3]] give {}"),
    (
        "run_scaled_dot_product_attention",
        lambda: attention_of_one_query(torch.tensor([[True, False]])),
        "mask [[True, False]] {}",
    ),
    ("run_gradient_clipping", clipped, "leave {}"),
    (
        "run_get_lr_cosine_schedule",
        lambda: adapters.run_get_lr_cosine_schedule(5, 1.0, 0.1, 10, 20),
        "(5, 1.0, 0.1, 10, 20) gives {}",
    ),
    (
        "run_get_lr_cosine_schedule",
        lambda: adapters.run_get_lr_cosine_schedule(15, 1.0, 0.1, 10, 20),
        "(15, 1.0, 0.1, 10, 20) gives {}",
    ),
    (
        "get_weighted_sum_autograd_function_triton",
        lambda: adapters.get_weighted_sum_autograd_function_triton().apply(tensor([1, 2]), tensor(3, 4)),
        "gives {}",
    ),
    (
        "get_softmax_autograd_function_triton",
        lambda: adapters.get_softmax_autograd_function_triton().apply(tensor([0, 0])),
        "gives {}",
    ),
]


@pytest.mark.parametrize(("name", "compute", "words"), NUMBERS)
def test_numbers_are_as_printed(name, compute, words):
    assert f"{words.format(printed(compute()))}" in example_of(name)


def test_rope_turns_by_one_radian():
    result = adapters.run_rope(2, 10_000.0, 4, tensor([1, 0]), torch.tensor([1]))
    assert "[[cos 1, sin 1]]" in example_of("run_rope")
    torch.testing.assert_close(result, tensor([math.cos(1), math.sin(1)]))


def test_one_token_attends_to_itself():
    q, k, v, o = torch.randn(4, 8, 8)
    x = torch.randn(1, 1, 8)
    result = adapters.run_multihead_self_attention(8, 2, q, k, v, o, x)
    torch.testing.assert_close(result, x @ v.T @ o.T)


def test_only_distances_count_for_rotated_attention():
    weights, x, positions = torch.randn(4, 8, 8), torch.randn(1, 5, 8), torch.arange(5)[None]
    moved = [
        adapters.run_multihead_self_attention_with_rope(8, 2, 16, 100.0, *weights, x, token_positions=places)
        for places in (None, positions, positions + 7)
    ]
    torch.testing.assert_close(moved[0], moved[1])
    torch.testing.assert_close(moved[0], moved[2])


BLOCK = {f"attn.{name}_proj.weight": (8, 8) for name in ("q", "k", "v", "output")} | {
    "ln1.weight": (8,), "ln2.weight": (8,),
    "ffn.w1.weight": (16, 8), "ffn.w2.weight": (8, 16), "ffn.w3.weight": (16, 8),
}  # fmt: skip
"""Names and shapes of run_transformer_block."""


def test_a_block_whose_matrices_are_zero_passes_its_input_on():
    weights = {
        name: torch.ones(shape) if len(shape) == 1 else torch.zeros(shape) for name, shape in BLOCK.items()
    }
    x = torch.randn(2, 3, 8)
    assert torch.equal(adapters.run_transformer_block(8, 2, 16, 4, 10_000.0, weights, x), x)


def test_a_head_of_zeros_gives_logits_of_zero():
    weights = {f"layers.0.{name}": torch.randn(shape) for name, shape in BLOCK.items()}
    weights |= {"token_embeddings.weight": torch.randn(7, 8), "ln_final.weight": torch.ones(8)}
    weights["lm_head.weight"] = torch.zeros(7, 8)
    ids = torch.tensor([[0, 6, 3]])
    logits = adapters.run_transformer_lm(7, 4, 8, 1, 2, 16, 10_000.0, weights, ids)
    assert torch.equal(logits, torch.zeros(1, 3, 7))


def test_a_step_of_adamw_is_that_of_torch():
    start = torch.randn(5)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours.grad = theirs.grad = torch.randn(5)
    adapters.get_adamw_cls()([ours], lr=3e-4).step()
    torch.optim.AdamW([theirs], lr=3e-4).step()
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, start)


def test_the_only_window_of_four_ids():
    inputs, targets = adapters.run_get_batch(np.arange(4), 1, 3, "cpu")
    assert f"give ({printed(inputs)}, {printed(targets)})" in example_of("run_get_batch")
    assert inputs.dtype == targets.dtype == torch.int64


def test_a_checkpoint_holds_the_number_of_the_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    kept = model.weight.detach().clone()
    adapters.run_save_checkpoint(model, optimizer, 100, "run.pt")
    file = io.BytesIO()
    adapters.run_save_checkpoint(model, optimizer, 100, file)
    file.seek(0)
    for source in ("run.pt", file):
        nn.init.zeros_(model.weight)
        assert adapters.run_load_checkpoint(source, model, optimizer) == 100
        assert torch.equal(model.weight, kept)
    assert "returns 100" in example_of("run_load_checkpoint")


def test_two_warm_up_steps_and_three_that_count():
    made, calls = [], []

    def make_inputs():
        made.append(object())
        return made[-1]

    seconds = adapters.run_benchmark(make_inputs, calls.append, lambda: None, lambda: 0.0, 2, 3)
    assert calls == made
    assert "call make_inputs and step 5 times and return 3 numbers" in example_of("run_benchmark")
    assert (len(calls), seconds) == (5, [0.0] * 3)


def recorded(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return profile.events()


def test_a_range_stands_around_the_product():
    x = torch.ones(2, 2)

    def named_product():
        with adapters.get_annotate()("forward"):
            x @ x

    events = recorded(named_product)
    (product,) = [event for event in events if event.name == "aten::mm"]
    ancestors = []
    while product.cpu_parent:
        product = product.cpu_parent
        ancestors.append(product.name)
    assert "forward" in ancestors


def test_attention_shows_each_of_its_ranges_once():
    q, k, v = torch.randn(3, 1, 2, 3, 4).requires_grad_().unbind()
    parts = ["attention scores", "attention softmax", "attention final matmul"]
    for named in parts:
        assert f'"{named}"' in " ".join(adapters.run_annotated_attention.__doc__.split())

    def forward_and_backward():
        adapters.run_annotated_attention(q, k, v, True).sum().backward()

    names = [event.name for event in recorded(forward_and_backward)]
    assert [names.count(part) for part in parts] == [1, 1, 1]
    assert [names.count(f"{part} (backward)") for part in parts] == [1, 1, 1]


def test_a_sum_of_a_thousand_terms():
    example = example_of("run_accumulation")
    value, steps, sum_name, term_name, total = re.match(
        r"\(([\d.]+), (\d+), torch\.(\w+), torch\.(\w+)\) gives ([\d.]+)\.$", example
    ).groups()
    dtypes = getattr(torch, sum_name), getattr(torch, term_name)
    assert adapters.run_accumulation(float(value), int(steps), *dtypes) == float(total)
    by_hand = torch.zeros((), dtype=dtypes[0])
    for _ in range(int(steps)):
        by_hand += torch.tensor(float(value), dtype=dtypes[1])
    assert by_hand.item() == float(total)


def test_names_of_types_are_those_of_the_example():
    model, ids = nn.Sequential(nn.Embedding(4, 2), nn.Flatten()), torch.tensor([[0], [1], [3]])
    found = adapters.run_autocast_dtypes(model, ids, torch.tensor([0, 1, 0]), torch.bfloat16)
    named = r"((?:parameters|outputs|gradients)\.[\w.]*\w|loss)"
    assert set(found) == set(re.findall(named, example_of("run_autocast_dtypes")))


class Scale(nn.Module):
    """A block that keeps its input, and remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.inputs = []

    def forward(self, x):
        self.inputs.append(weakref.ref(x))
        return x.square() * self.weight


@pytest.mark.parametrize(("size", "kept", "calls"), [(2, 2, 2), (0, 4, 1)])
def test_two_checkpoints_keep_two_inputs(size, kept, calls):
    assert "keep 2 inputs, and backward runs each block once more" in example_of("run_checkpointed_blocks")
    blocks = [Scale() for _ in range(4)]
    result = adapters.run_checkpointed_blocks(blocks, torch.ones(2, requires_grad=True), size)
    assert sum(block.inputs[0]() is not None for block in blocks) == kept
    result.sum().backward()
    assert [len(block.inputs) for block in blocks] == [calls] * 4


def flash_case(num_keys):
    q = torch.randn(2, 5, 4, requires_grad=True)
    return q, torch.randn(2, num_keys, 4), torch.randn(2, num_keys, 4)


def test_flash_attention_with_one_key_repeats_its_value():
    q, k, v = flash_case(num_keys=1)
    result = adapters.get_flashattention_autograd_function_pytorch().apply(q, k, v, False)
    torch.testing.assert_close(result, v.expand(2, 5, 4))
    (lse,) = [tensor for tensor in result.grad_fn.saved_tensors if tensor.shape == (2, 5)]
    torch.testing.assert_close(lse, (q @ k.mT)[..., 0] / 2)


def test_flash_attention_in_triton_with_true_is_causal():
    q, k, v = flash_case(num_keys=5)
    apply = adapters.get_flashattention_autograd_function_triton().apply
    before = apply(q, k, v, True)
    v[:, 1:] = 100.0
    after = apply(q, k, v, True)
    torch.testing.assert_close(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_what_is_not_here_yet_says_so():
    for name in sorted(NOT_HERE_YET):
        arguments = [None] * getattr(adapters, name).__code__.co_argcount
        with pytest.raises(NotImplementedError, match="no parallel strategies yet"):
            getattr(adapters, name)(*arguments)
