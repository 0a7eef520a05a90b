"""What the graded tests state as numbers, because it is handed out, computed here by other means."""

import functools
import importlib.util
import pathlib

import pytest
import torch
from graded_support import accumulation, autocast_types, fake_device
from graded_support.fake_device import Costs
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import measuring

HIDDEN = pathlib.Path(__file__).parents[1] / "graded/hidden"


@functools.cache
def load_hidden(name):
    """A file of hidden tests, as a module."""
    spec = importlib.util.spec_from_file_location(f"hidden_{name}", HIDDEN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- Sums -------------------------------------------------------------------------------------------------

SUMS = (*accumulation.ONE_TYPE, *accumulation.WIDE_SUM, *accumulation.STOPS_GROWING, *accumulation.TOO_LARGE)


@pytest.mark.parametrize("case", SUMS, ids=lambda case: f"{case.term_dtype} into {case.sum_dtype}")
def test_sums_and_those_of_mistakes_are_what_exact_fractions_give(case):
    find_sums = load_hidden("test_mixed_precision_accumulation").find_sums
    assert find_sums(case.value, case.num_terms, case.sum_dtype, case.term_dtype) == case


formats = st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.floats(width=64, allow_nan=False, allow_infinity=False), formats)
def test_fractions_are_rounded_as_torch_rounds(number, dtype):
    if dtype.itemsize == 2:
        number = float(torch.tensor(number, dtype=torch.float32))  # through which torch goes to 16 bits
    rounded = float(load_hidden("test_mixed_precision_accumulation").round_to(number, dtype))
    assert rounded == float(torch.tensor(number, dtype=torch.float64).to(dtype))


def test_every_mistake_shows_in_some_sum():
    assert {name for case in SUMS for name in case.wrong} == accumulation.MISTAKES.keys()


# --- Types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", range(len(autocast_types.CASES)))
def test_types_are_those_that_hooks_see(number, dtype):
    case = autocast_types.CASES[number]
    found = measuring.find_types(case.make_model(), case.make_inputs(), autocast_types.TARGETS, dtype)
    assert found == case.expected(dtype)


# --- Times ------------------------------------------------------------------------------------------------

HARNESSES = {
    "without waiting": functools.partial(measuring.benchmark, after=False),
    "earlier work is in the queue": functools.partial(measuring.benchmark, before=False),
    "the warm-up's": measuring.benchmark_first_samples,
    "while the clock runs": functools.partial(measuring.benchmark, times_inputs=True),
    "around the whole loop": measuring.benchmark_whole_loop,
    "mean is repeated": functools.partial(measuring.benchmark, finish=measuring.repeat_mean),
    "from the start of the loop": functools.partial(measuring.benchmark, finish=measuring.add_up_samples),
    "in milliseconds": functools.partial(measuring.benchmark, finish=measuring.to_milliseconds),
}
"""By words of the mistake, a harness that makes it."""

seconds = st.floats(0, 100)
costs = st.builds(
    Costs,
    input_host_s=seconds,
    input_device_s=seconds,
    step_host_s=seconds,
    step_device_s=seconds,
    slower_s=seconds,
    cold_s=seconds,
    num_cold=st.integers(0, 4),
)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(costs, st.integers(0, 3), st.integers(1, 4))
def test_samples_follow_from_the_costs(costs, warmup_steps, steps):
    truth = fake_device.predict(costs, warmup_steps, steps)
    _, samples = fake_device.run_harness(measuring.benchmark, costs, warmup_steps, steps)
    assert samples == pytest.approx(truth.samples_s, abs=1e-9)
    for words, predicted in fake_device.MISTAKES.items():
        (harness,) = [harness for part, harness in HARNESSES.items() if part in words]
        _, samples = fake_device.run_harness(harness, costs, warmup_steps, steps)
        assert samples == pytest.approx(predicted(truth), abs=1e-6), words


def test_a_harness_is_given_functions_that_belong_to_nothing():
    def look(*given):
        assert [function for function in given[:4] if hasattr(function, "__self__")] == []
        return []

    fake_device.run_harness(look, Costs(), 1, 1)
