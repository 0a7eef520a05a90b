"""run_save_checkpoint and run_load_checkpoint: a run that was interrupted goes on as if it had not been."""

import io

import torch
from graded_support.compare import fail
from torch import nn


def make_run(seed):
    """A model and an optimizer with state, which differ with the seed."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer, range(3))
    return model, optimizer


def train(model, optimizer, steps):
    """Steps on data that depend on nothing but the number of the step."""
    for step in steps:
        data = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=data)).square().mean().backward()
        optimizer.step()


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def are_equal(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in weights)


def check_weights(model, expected, fresh):
    found = weights_of(model)
    if are_equal(found, fresh):
        fail("loading did not change the model: its weights must be put back (load_state_dict)")
    for name, tensor in expected.items():
        if not torch.equal(found[name], tensor):
            fail(f"{name} of the model is not what was saved, to the bit")


def test_weights_come_back_from_a_path(adapters, tmp_path):
    model, optimizer = make_run(0)
    path = str(tmp_path / "run.pt")
    adapters.run_save_checkpoint(model, optimizer, 3, path)
    saved = weights_of(model)
    train(model, optimizer, range(3, 5))  # what is saved is the moment, not what the model becomes
    other, other_optimizer = make_run(1)
    fresh = weights_of(other)
    adapters.run_load_checkpoint(path, other, other_optimizer)
    if are_equal(weights_of(other), weights_of(model)):
        fail(
            "the weights are those of after run_save_checkpoint: they were kept by reference and not written"
        )
    check_weights(other, saved, fresh)


def test_an_open_file_is_written_and_read(adapters):
    model, optimizer = make_run(0)
    file = io.BytesIO()
    adapters.run_save_checkpoint(model, optimizer, 3, file)
    if file.closed:
        fail("run_save_checkpoint closed the file that it was given; who opened it closes it")
    if not file.getvalue():
        fail("nothing was written to the open file: `out` is a path or a file, and torch.save takes both")
    other, other_optimizer = make_run(1)
    fresh = weights_of(other)
    adapters.run_load_checkpoint(io.BytesIO(file.getvalue()), other, other_optimizer)
    check_weights(other, weights_of(model), fresh)


def test_the_number_of_the_step_comes_back(adapters, tmp_path):
    model, optimizer = make_run(0)
    for iteration in (0, 12_345):
        path = str(tmp_path / f"{iteration}.pt")
        adapters.run_save_checkpoint(model, optimizer, iteration, path)
        found = adapters.run_load_checkpoint(path, model, optimizer)
        if type(found) is not int:
            fail(f"run_load_checkpoint returned a {type(found).__name__}; expected an int, the step")
        if found != iteration:
            words = "; counting on is the training loop's business" if found == iteration + 1 else ""
            fail(f"run_load_checkpoint returned {found}; the checkpoint was saved at step {iteration}{words}")


def test_the_steps_after_loading_are_those_of_a_run_without_interruption(adapters, tmp_path):
    """Bit by bit: that needs the optimizer's moments, its number of steps, and its rate."""
    model, optimizer = make_run(0)
    optimizer.param_groups[0]["lr"] = 0.05  # as a schedule does
    path = str(tmp_path / "run.pt")
    adapters.run_save_checkpoint(model, optimizer, 3, path)
    saved = weights_of(model)
    train(model, optimizer, range(3, 6))
    expected = weights_of(model)

    other, other_optimizer = make_run(1)
    adapters.run_load_checkpoint(path, other, other_optimizer)
    rate = other_optimizer.param_groups[0]["lr"]
    train(other, other_optimizer, range(3, 6))
    if are_equal(weights_of(other), expected):
        return
    without_state, its_optimizer = make_run(1)
    without_state.load_state_dict(saved)
    train(without_state, its_optimizer, range(3, 6))
    if are_equal(weights_of(other), weights_of(without_state)):
        fail("the optimizer's state was not put back: its averages of the gradients are those before loading")
    if rate != 0.05:
        fail(
            f"the learning rate after loading is {rate}, 0.05 was saved: put back the optimizer's state_dict"
        )
    fail(
        "three steps after loading gave other weights than without the interruption: save and put back the "
        "state_dict of the model and of the optimizer"
    )
