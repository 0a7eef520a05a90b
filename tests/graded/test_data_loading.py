"""run_get_batch: random windows of a text, and what follows each token."""

import collections
import math
import warnings

import numpy as np
import torch
from graded_support.compare import check_tensor, fail


def get_batch(adapters, data, batch_size, context_length, device="cpu"):
    """One batch; what is no pair of tensors of the right type and shape is told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns where a tensor shares memory with a file
        batch = adapters.run_get_batch(data, batch_size, context_length, device)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        fail(
            f"run_get_batch returned a {type(batch).__name__}; expected a pair of tensors: inputs and targets"
        )
    for name, tensor in zip(("inputs", "targets"), batch, strict=True):
        if type(tensor) is not torch.Tensor:
            fail(f"the {name} are a {type(tensor).__name__}; expected a torch.Tensor")
        if tuple(tensor.shape) != (batch_size, context_length):
            fail(
                f"the {name} have shape {tuple(tensor.shape)}; expected (batch_size, context_length) = "
                f"{batch_size, context_length}. A window that begins too late in the data comes out short."
            )
        if tensor.dtype != torch.int64:
            fail(f"the {name} are {tensor.dtype}; expected torch.int64, which embeddings and the loss take")
    return batch


def check_consecutive(inputs, targets):
    """Fail unless these are windows of data that count on by one, and the tokens that follow."""
    places = torch.arange(inputs.shape[1])
    if not torch.equal(targets, inputs + 1) or not torch.equal(inputs[:, :1] + places, inputs):
        fail(
            f"of data in which each token is one more than the last, a row of the inputs is "
            f"{inputs[0].tolist()}, and its targets are {targets[0].tolist()}"
        )


def draw_starts(adapters, num_windows, batch_size):
    """The first tokens of a batch of windows of 4 tokens, of data in which a token's value is its place."""
    inputs, _ = get_batch(adapters, np.arange(num_windows + 4), batch_size, 4)
    return inputs[:, 0].tolist()


def test_targets_are_the_tokens_that_follow(adapters):
    data = np.arange(1000) * 3 + 7  # so that a token tells its place
    inputs, targets = get_batch(adapters, data, 16, 12)
    places = (inputs[:, :1] - 7) // 3 + torch.arange(12)
    if not torch.equal(inputs, places * 3 + 7):
        fail("a row of the inputs is no stretch of the data: its tokens must stand there one after the other")
    check_tensor(
        targets.double(),
        (places * 3 + 10).double(),
        what="the second tensor of run_get_batch",
        allowed=0.0,
        dtype=torch.float64,
        mistakes={
            "the targets are the inputs: a model would learn to copy; they are one token further": inputs,
            "the targets are shifted by two tokens": places * 3 + 13,
            "the targets are shifted to the left: they are the tokens before": places * 3 + 4,
            "the targets are the inputs, rolled: the last one is the first token of the window": inputs.roll(
                -1, 1
            ),
        },
        hint="targets[i, j] is the token that follows inputs[i, j] in the data.",
    )


def test_every_window_can_be_drawn_and_no_other(adapters):
    found = set()
    for _ in range(20):  # 200 draws of 3 windows: one that is possible stays away with 1 in 10^35
        found |= set(draw_starts(adapters, 3, 10))
    if 2 not in found:
        fail(
            "the last window was never drawn: starts go from 0 to len(data) - context_length - 1, and "
            "randint never draws its upper bound"
        )
    if 0 not in found:
        fail("the first window was never drawn: starts begin at 0")
    if 1 not in found:
        fail(f"of the windows at 0, 1 and 2 only {sorted(found)} were drawn in 200 attempts")
    if found != {0, 1, 2}:
        fail(f"in 7 tokens a window of 4 that has targets begins at 0, 1 or 2; one was drawn at {max(found)}")
    only, _ = get_batch(adapters, np.array([5, 6, 7, 8]), 3, 3)
    if not torch.equal(only, torch.tensor([[5, 6, 7]] * 3)):
        fail(f"4 tokens have one window of 3 with targets, [5, 6, 7]; the inputs were {only.tolist()}")


def test_windows_are_drawn_at_random(adapters):
    first, second = draw_starts(adapters, 1000, 32), draw_starts(adapters, 1000, 32)
    if len(set(first)) == 1:
        fail(f"all 32 rows of a batch are the window at {first[0]}: draw one start for each row")
    if first == second:
        fail("two batches are the same: do not seed in run_get_batch, and do not begin at 0 each time")
    if set(np.diff(first)) in ({1}, {4}):
        fail(f"the windows follow one another ({first[:4]}, ...): draw each start at random")
    num_draws, num_windows = 3000, 6
    counts = collections.Counter(draw_starts(adapters, num_windows, num_draws))
    mean = num_draws / num_windows
    # A count is binomial; six standard deviations leave 1 in 10^8 to chance.
    margin = 6 * math.sqrt(mean * (1 - 1 / num_windows))
    for start in range(num_windows):
        if abs(counts[start] - mean) > margin:
            fail(
                f"in {num_draws} draws of {num_windows} windows, that at {start} came {counts[start]} times; "
                f"all are equally likely, so expected {mean:.0f}, give or take {margin:.0f}"
            )


def test_a_seed_of_torch_repeats_a_batch(adapters):
    """One seed for weights, dropout and data is what makes a run repeatable."""
    batches = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        batches.append(draw_starts(adapters, 1000, 32))
    if batches[0] != batches[1]:
        fail(
            "after the same torch.manual_seed two batches differ: draw with torch (torch.randint), whose own "
            "generator it seeds; numpy and random have others"
        )
    if batches[0] == batches[2]:
        fail("after another torch.manual_seed the batch is the same: draw it at random, with torch")


def test_a_memory_mapped_file_of_two_byte_tokens_is_read(adapters, tmp_path):
    """Texts are stored so: ids up to 65535 in uint16, a file that need not fit into memory."""
    values = np.arange(40_000, 40_200, dtype=np.uint16)
    values.tofile(tmp_path / "tokens.bin")
    data = np.memmap(tmp_path / "tokens.bin", dtype=np.uint16, mode="r")
    inputs, targets = get_batch(adapters, data, 8, 16)
    if int(inputs.min()) < 0:
        fail("ids over 32767 came out negative: uint16 was read as int16; go to int64 directly")
    check_consecutive(inputs, targets)
    if not 40_000 <= int(inputs.min()) <= int(targets.max()) < 40_200:
        fail(f"ids from 40000 to 40199 came out as {int(inputs.min())} to {int(targets.max())}")


def test_tensors_are_on_the_device_that_was_asked_for(adapters):
    data = np.arange(100)
    if torch.cuda.is_available():
        pair = get_batch(adapters, data, 2, 8, "cuda:0")
        check_consecutive(*(tensor.cpu() for tensor in pair))
        for tensor in pair:
            if tensor.device != torch.device("cuda:0"):
                fail(f"run_get_batch for cuda:0 returned a tensor on {tensor.device}")
        return
    pair = get_batch(adapters, data, 2, 8, "cpu")
    check_consecutive(*pair)
    for tensor in pair:
        if tensor.device != torch.device("cpu"):
            fail(f"run_get_batch for cpu returned a tensor on {tensor.device}")
    try:
        adapters.run_get_batch(data, 2, 8, "cuda:0")
    except (RuntimeError, AssertionError):  # what torch says of a GPU that is not there
        return
    fail("run_get_batch for cuda:0 worked on a machine without a GPU, so it passes over `device`")
