"""What a made-up profile says, whose times are round numbers."""

import pytest

from cs_systems.grading.items import NotMeasuredError
from cs_systems.grading.truths.find import find_truth

SMALL = {"model": "small", "context_length": "128"}
GIB = 2**30
BYTES = {"forward": 2 * GIB, "loss": 4 * GIB, "backward": 3 * GIB, "optimizer": 1 * GIB}


def truth(evidence, name, **values):
    part, key = name.split()
    return find_truth(part, key, {**SMALL, **values}, evidence)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nsys_profile.a timer_forward", 0.0002),
        ("nsys_profile.a agreement", "timer longer"),
        ("nsys_profile.b top_forward", "gemm_128x64_nn"),
        ("nsys_profile.b calls", 2.0),
        ("nsys_profile.b same_in_backward", "no"),
        ("nsys_profile.c other_kernel", "elementwise_kernel"),
        ("nsys_profile.c other_share", 0.23),
        ("nsys_profile.d matmul_in_forward", 0.65),
        ("nsys_profile.d matmul_in_step", 0.43),
        ("nsys_profile.d change", "falls"),
        ("nsys_profile.d classes", ("matmul", "elementwise", "reduction")),
        ("nsys_profile.d phases", ("backward", "optimizer", "forward")),
        ("nsys_profile.e time_ratio", 12 / 15),
    ],
)
def test_a_profile_says(profile, name, value):
    found = truth(profile(passes=3), name).value
    assert found == (pytest.approx(value) if isinstance(value, float) else value)


def test_forward_by_the_profiler_includes_the_loss_and_ends_with_its_last_kernel(profile):
    """Seven kernels of 105 us in all, 5 us between two and 1 us for each range that opens."""
    found = truth(profile(), "nsys_profile.a profiler_forward").value
    assert 105e-6 + 6 * 5e-6 <= found <= 105e-6 + 7 * 5e-6 + 7e-6


@pytest.mark.parametrize(
    ("model", "num"),
    [("small", 109), ("medium", 217), ("large", 325), ("xl", 433), ("2.7B", 289), ("10B", 451)],
)
def test_the_matrix_products_of_a_forward_are_the_published_ones(profile, model, num):
    assert truth(profile(), "nsys_profile.b num_gemms", model=model).value == num


def test_softmax_has_two_percent_of_the_operations(profile):
    assert truth(profile(), "nsys_profile.e flops_ratio").value == pytest.approx(0.0195, abs=1e-4)
    assert truth(profile(), "nsys_profile.e flops_ratio", model="2.7B").value == pytest.approx(
        0.0156, abs=1e-4
    )


def test_the_newest_profile_of_the_case_counts(profile):
    slow = [(("step", "forward"), "gemm", "aten::mm", 900), (("step", "loss"), "reduce", "aten::sum", 90)]
    alone = truth(profile("plain"), "nsys_profile.a profiler_forward").value
    later = profile("memory", kernels=slow, totals={"forward": GIB}, time_utc="2026-02-01T00:00:00")
    assert truth(later, "nsys_profile.a profiler_forward").value == alone


def test_sizes_of_a_checkpoint_within_a_percent_tie(profile):
    for size, peak in ((0, 100), (1, 60), (2, 60), (3, 61), (4, 90)):
        evidence = profile(f"blocks{size}", totals={"loss": peak * GIB}, checkpoint_blocks=size)
    found = truth(evidence, "gradient_checkpointing.c best_size")
    assert (found.low, found.high) == (1, 2)
    assert truth(evidence, "gradient_checkpointing.c lowest_peak").value == 60 * GIB


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("nsys_profile.b top_forward", "python profiling/run.py --model medium --context-length 128"),
        ("memory_profiling.a phase", "python profiling/run.py --memory --model medium"),
        ("memory_profiling.c forward_peak", "--mode forward --precision bf16 --output-dir"),
        ("gradient_checkpointing.c best_size", "--checkpoint-blocks 0,1,2,3,4,6"),
    ],
)
def test_what_is_not_recorded_is_told_with_the_command(profile, name, command):
    with pytest.raises(NotMeasuredError) as raised:
        truth(profile(), name, model="medium")
    assert command in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_size_of_a_checkpoint_is_no_comparison(profile):
    evidence = profile(totals={"loss": GIB}, checkpoint_blocks=1)
    with pytest.raises(NotMeasuredError, match="0,1,2,3,4,6"):
        truth(evidence, "gradient_checkpointing.c best_size")


def test_a_profile_without_names_says_so(profile):
    evidence = profile(kernels=[((), "gemm", "aten::mm", 5)])
    with pytest.raises(NotMeasuredError, match="names it"):
        truth(evidence, "nsys_profile.b top_forward")
