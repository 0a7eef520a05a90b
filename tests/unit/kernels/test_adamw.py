"""FusedAdamW against PyTorch's AdamW in fp64, and this package's AdamW, whose state it shares."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.device import UnsupportedError
from cs_systems.optim import AdamW

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((3, 5), (64, 32), (1,), (4097,), (16, 16), (2048,), (2, 3, 4))
STEPS = 4


@pytest.fixture(scope="module")
def module(device):
    from cs_systems.kernels import adamw

    return adamw


@pytest.fixture(scope="module")
def FusedAdamW(module):
    return module.FusedAdamW


def make_parameters(device, shapes=SHAPES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]


def copy_of(parameters, dtype=None):
    return [torch.nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in parameters]


def train(optimizer, parameters, steps=STEPS, seed=1, scale=1.0):
    """The same gradients for every optimizer: random, rounded to the dtype of the first run."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            gradient = (torch.randn(parameter.shape, generator=generator) * scale).half().float()
            parameter.grad = gradient.to(parameter.device, torch.bfloat16).to(parameter.dtype)
        optimizer.step()


def assert_same(ours, theirs, **tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


def states(optimizer, name):
    return [optimizer.state[p][name] for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.1, "weight_decay": 0.5},
        {"betas": (0.5, 0.9), "eps": 1e-3},
        {"betas": (0.0, 0.0)},
        {"lr": 0.0},
        {"weight_decay": 0.0, "eps": 1e-30, "lr": 10.0},
    ],
    ids=str,
)
def test_agrees_with_torch(FusedAdamW, device, options):
    ours = make_parameters(device)
    theirs = copy_of(ours, torch.float64)
    mine, other = FusedAdamW(ours, **options), torch.optim.AdamW(theirs, **options)
    train(mine, ours)
    train(other, theirs)
    assert_same(ours, theirs, rtol=2e-6, atol=3e-6, check_dtype=False)
    for name in ("exp_avg", "exp_avg_sq"):
        assert_same(states(mine, name), states(other, name), rtol=2e-6, atol=1e-7, check_dtype=False)
    assert states(mine, "step") == [STEPS] * len(SHAPES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_accurate_as_torch(FusedAdamW, device, assert_as_accurate, dtype):
    ours = make_parameters(device, dtype=dtype)
    exact, plain = copy_of(ours, torch.float64), copy_of(ours)
    options = {"lr": 0.1, "eps": 1e-3}  # fp16 has no 1e-8
    for kind, parameters in ((FusedAdamW, ours), (torch.optim.AdamW, exact), (torch.optim.AdamW, plain)):
        train(kind(parameters, **options), parameters)
    assert all(parameter.dtype == dtype for parameter in ours)
    assert_as_accurate(*(torch.cat([p.detach().flatten() for p in x]) for x in (ours, exact, plain)))


def test_bf16_is_rounded_to_nearest(FusedAdamW, device):
    """Cut off instead, half of the elements would differ."""
    (ours,) = make_parameters(device, ((4000,),), torch.bfloat16)
    (exact,) = copy_of([ours], torch.float64)
    mine, other = FusedAdamW([ours]), torch.optim.AdamW([exact])
    train(mine, [ours], steps=1)
    train(other, [exact], steps=1)
    pairs = [(ours, exact)] + [
        (mine.state[ours][name], other.state[exact][name]) for name in ("exp_avg", "exp_avg_sq")
    ]
    for result, true in pairs:
        assert (result == true.bfloat16()).float().mean() > 0.99


def test_fp64_agrees_to_the_last_digits(FusedAdamW, device):
    if device == "cuda":
        pytest.skip("fp64 runs in the interpreter only")
    ours = make_parameters(device, dtype=torch.float64)
    theirs = copy_of(ours)
    train(FusedAdamW(ours, lr=0.1), ours)
    train(torch.optim.AdamW(theirs, lr=0.1), theirs)
    assert_same(ours, theirs, rtol=1e-13, atol=1e-14)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 17), max_size=3).map(tuple), min_size=1, max_size=6),
    transposed=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shapes(FusedAdamW, device, shapes, transposed, seed):
    ours = make_parameters(device, shapes, seed=seed)
    if transposed:
        ours = [torch.nn.Parameter(p.detach().permute(list(reversed(range(p.dim()))))) for p in ours]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    train(FusedAdamW(ours, lr=0.1), ours, steps=2)
    train(torch.optim.AdamW(theirs, lr=0.1), theirs, steps=2)
    assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


def groups_of(parameters):
    rest = {"params": parameters[2:], "lr": 0.05, "betas": (0.6, 0.8), "eps": 0.01, "weight_decay": 0.7}
    return [{"params": parameters[:2]}, rest]


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_state_can_be_handed_over_in_the_middle(FusedAdamW, device, first):
    """A run that begins with one AdamW and goes on with the other, in groups, is the run of either."""
    switched, whole = make_parameters(device), make_parameters(device)
    kinds = (FusedAdamW, AdamW) if first == "ours" else (AdamW, FusedAdamW)
    begin = kinds[0](groups_of(switched))
    train(begin, switched, steps=3, seed=1)
    proceed = kinds[1](groups_of(switched), lr=99.0)
    proceed.load_state_dict(copy.deepcopy(begin.state_dict()))
    train(proceed, switched, steps=3, seed=2)
    reference = AdamW(groups_of(whole))
    train(reference, whole, steps=3, seed=1)
    train(reference, whole, steps=3, seed=2)
    assert_same(switched, whole, rtol=1e-5, atol=1e-6)
    expected = reference.state_dict()
    found = proceed.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for index, state in expected["state"].items():
        assert found["state"][index].keys() == state.keys()
        assert found["state"][index]["step"] == state["step"] == 6
        assert isinstance(found["state"][index]["step"], int)


def test_defaults_are_those_of_adamw(FusedAdamW):
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert FusedAdamW([parameter]).defaults == AdamW([parameter]).defaults


@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1.0}, {"weight_decay": -1.0}],
)
def test_wrong_numbers_are_refused_as_by_adamw(FusedAdamW, options):
    messages = []
    for kind in (FusedAdamW, AdamW):
        with pytest.raises(ValueError, match="must") as error:
            kind([torch.nn.Parameter(torch.zeros(1))], **options)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_parameters_without_a_gradient_are_left_alone_and_count_their_own_steps(FusedAdamW, device):
    ours = make_parameters(device, ((8,), (8,)))
    theirs = copy_of(ours)
    for parameters, optimizer in ((ours, FusedAdamW(ours)), (theirs, AdamW(theirs))):
        train(optimizer, parameters, steps=1)
        parameters[0].grad = None
        optimizer.step()
        assert states(optimizer, "step") == [1, 2]
        train(optimizer, parameters, steps=1, seed=5)
        optimizer.zero_grad()
        optimizer.step()
        assert states(optimizer, "step") == [2, 3]
    assert_same(ours, theirs)


def test_a_changed_learning_rate_counts(FusedAdamW, device):
    ours = make_parameters(device, ((8,),))
    theirs = copy_of(ours)
    for parameters, optimizer in ((ours, FusedAdamW(ours)), (theirs, AdamW(theirs))):
        for lr in (0.1, 0.0, 0.5):
            optimizer.param_groups[0]["lr"] = lr
            train(optimizer, parameters, steps=1)
    assert_same(ours, theirs)


@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("size", [1, 15, 16, 2047, 2048, 2049])
def test_nothing_outside_of_the_tensors_is_touched(FusedAdamW, device, offset, size):
    """Weight, gradient and state inside larger buffers of a known value, at any address."""

    def inside(value):
        buffer = torch.full((size + 96,), 12345.0, device=device)
        buffers.append(buffer)
        view = buffer[16 + offset : 16 + offset + size]
        return view.copy_(value)

    buffers = []
    start, gradient = torch.randn(2, size, device=device)
    weight, plain = torch.nn.Parameter(inside(start)), torch.nn.Parameter(start.clone())
    optimizer, reference = FusedAdamW([weight]), AdamW([plain])
    weight.grad, plain.grad = inside(gradient), gradient.clone()
    means = {name: inside(torch.zeros(size, device=device)) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[weight] = {"step": 0} | means
    optimizer.step()
    reference.step()
    torch.testing.assert_close(weight, plain)
    torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=0)
    assert optimizer.state[weight]["exp_avg"] is means["exp_avg"]
    for buffer in buffers:
        assert (buffer[: 16 + offset] == 12345).all()
        assert (buffer[16 + offset + size :] == 12345).all()


@pytest.mark.parametrize("what", ["gradient", "state"])
def test_other_layouts_and_dtypes_are_converted(FusedAdamW, device, what):
    """A gradient expanded from one number, and a state saved from a weight that lay in another way."""
    weight = torch.nn.Parameter(torch.randn(6, 4, device=device).T)
    plain = torch.nn.Parameter(weight.detach().clone())
    optimizer, reference = FusedAdamW([weight]), AdamW([plain])
    if what == "gradient":
        weight.grad = torch.full((1, 1), 0.5, device=device).expand(4, 6)
        plain.grad = torch.full((4, 6), 0.5, device=device)
    else:
        weight.grad = plain.grad = torch.randn(4, 6, device=device)
        mean, square = torch.randn(4, 6, device=device), torch.rand(6, 4, device=device).T
        optimizer.state[weight] = {"step": 3, "exp_avg": mean.clone(), "exp_avg_sq": square.double()}
        reference.state[plain] = {"step": 3, "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
    optimizer.step()
    reference.step()
    torch.testing.assert_close(weight, plain)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.state[weight][name], reference.state[plain][name])


def count_launches(monkeypatch, module):
    launches, launch = [], module._launch
    monkeypatch.setattr(module, "_launch", lambda *args: (launches.append(args[:2]), launch(*args)))
    return launches


def test_one_launch_for_all_tensors_of_a_dtype(module, device, monkeypatch):
    launches = count_launches(monkeypatch, module)
    shapes = ((16,), (32, 16), (4096,), (48, 2))
    parameters = make_parameters(device, shapes) + make_parameters(device, shapes, torch.bfloat16)
    train(module.FusedAdamW([{"params": parameters[:3]}, {"params": parameters[3:]}]), parameters, steps=1)
    assert sorted(launches, key=str) == [(torch.bfloat16, True), (torch.float32, True)]


def test_odd_sizes_and_addresses_are_launched_apart(module, device, monkeypatch):
    launches = count_launches(monkeypatch, module)
    parameters = [
        torch.randn(16, device=device),
        torch.randn(17, device=device),
        torch.randn(17, device=device)[1:],
    ]
    parameters = [torch.nn.Parameter(p) for p in parameters]
    train(module.FusedAdamW(parameters), parameters, steps=1)
    assert sorted(launches, key=str) == [(torch.float32, False), (torch.float32, True)]


def test_two_runs_agree_to_the_last_bit(FusedAdamW, device):
    first, second = make_parameters(device), make_parameters(device)
    for parameters in (first, second):
        train(FusedAdamW(parameters), parameters)
    assert all(map(torch.equal, first, second))


def test_nan_stays_in_its_place_and_huge_gradients_are_taken(FusedAdamW, device):
    weight = torch.nn.Parameter(torch.zeros(40, device=device))
    weight.grad = torch.full((40,), 1e15, device=device)
    weight.grad[7] = torch.nan
    FusedAdamW([weight], lr=0.5).step()
    assert weight.isnan().nonzero().flatten().tolist() == [7]
    others = weight[torch.arange(40, device=device) != 7]
    torch.testing.assert_close(others, torch.full_like(others, -0.5))


def test_closure(FusedAdamW, device):
    weight = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = FusedAdamW([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0
    assert (weight < 1).all()
    assert optimizer.step() is None


def test_gradient_scaler(FusedAdamW, device):
    """It unscales, then steps, and leaves a step out when a gradient is infinite."""
    weight, plain = (torch.nn.Parameter(torch.ones(20, device=device)) for _ in range(2))
    optimizer, reference = FusedAdamW([weight], lr=0.1), AdamW([plain], lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    for factor in (1.0, float("inf"), 2.0):
        optimizer.zero_grad()
        scaler.scale((weight.square() * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor < 3:
            plain.grad = 2 * factor * plain.detach()
            reference.step()
    torch.testing.assert_close(weight, plain)
    assert optimizer.state[weight]["step"] == 2


def test_a_copied_optimizer_goes_on(FusedAdamW, device):
    parameters = make_parameters(device, ((8,),))
    optimizer = FusedAdamW(parameters)
    train(optimizer, parameters, steps=1)
    parameters, optimizer = copy.deepcopy((parameters, optimizer))
    before = parameters[0].detach().clone()
    train(optimizer, parameters, steps=1)
    assert not torch.equal(parameters[0], before)


def test_sparse_gradients_gaps_and_two_devices_are_refused_before_anything_changes(FusedAdamW, device):
    good = torch.nn.Parameter(torch.ones(4, device=device))
    sparse = torch.nn.Parameter(torch.ones(4, 2, device=device))
    gaps = torch.nn.Parameter(torch.ones(4, 4, device=device)[:, ::2])
    elsewhere = torch.nn.Parameter(torch.ones(4, device="meta"))
    for bad, gradient, said in (
        (sparse, torch.ones(4, 2, device=device).to_sparse(), "sparse"),
        (gaps, torch.ones(4, 2, device=device), "gaps"),
        (elsewhere, torch.ones(4, device="meta"), "one device"),
    ):
        good.grad, bad.grad = torch.ones_like(good), gradient
        optimizer = FusedAdamW([good, bad])
        with pytest.raises(UnsupportedError, match=said):
            optimizer.step()
        assert (good == 1).all()
        assert not optimizer.state
