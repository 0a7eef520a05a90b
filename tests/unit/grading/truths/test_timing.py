"""What warm-up changes, and the closed forms of a model that is timed."""

import pytest

from cs_systems.grading.items import NotMeasuredError
from cs_systems.grading.truths.find import find_truth

C = "benchmarking_script.c"
SMALL = {"model": "small", "context_length": 128, "batch_size": 4}
WARM = [1.0] * 10


def samples(forward):
    return {"forward": forward, "backward": [2.0] * len(forward)}


def truth_of(key, evidence_of, record, cold):
    evidence = evidence_of(record(samples(WARM)), record(samples(cold), warmup_steps=0, day=2))
    return find_truth(C, key, SMALL, evidence).value


@pytest.mark.parametrize(
    ("first", "effect"), [(1.1, "none"), (1.3, "small"), (3.0, "large"), (12.0, "huge"), (0.5, "none")]
)
def test_the_effect_of_warmup_is_that_on_the_mean(evidence_of, record, first, effect):
    assert truth_of("effect", evidence_of, record, [first, *WARM[1:]]) == effect


@pytest.mark.parametrize(
    ("cold", "where"),
    [([9.0, *WARM[1:]], "first"), ([3.0, 3.0, 3.0, *WARM[3:]], "spread"), ([1.0, 9.0, *WARM[2:]], "spread")],
)  # fmt: skip
def test_where_the_difference_is(evidence_of, record, cold, where):
    assert truth_of("where", evidence_of, record, cold) == where


def test_the_mean_without_warmup_is_a_mean(evidence_of, record):
    assert truth_of("forward_mean", evidence_of, record, [11.0, *WARM[1:]]) == 2.0


def test_a_comparison_needs_both_records(evidence_of, record):
    evidence = evidence_of(record(samples(WARM), warmup_steps=0))
    with pytest.raises(NotMeasuredError, match="--warmup-steps 5"):
        find_truth(C, "effect", SMALL, evidence)


def test_both_definitions_of_the_standard_deviation_are_accepted(evidence_of, record):
    truth = find_truth(
        "benchmarking_script.b", "forward_std", SMALL, evidence_of(record(samples([1.0, 3.0])))
    )
    assert truth.low < 1.0 < 2**0.5 < truth.high
    with pytest.raises(NotMeasuredError, match="no spread"):
        find_truth("benchmarking_script.b", "forward_std", SMALL, evidence_of(record(samples([1.0]), day=3)))


def test_counts_of_a_model_come_from_its_shape(evidence_of):
    parameters = find_truth("benchmarking_script.a", "num_parameters", SMALL, evidence_of())
    assert parameters.value == 2 * 10_000 * 768 + 768 + 12 * (4 * 768**2 + 3 * 768 * 3072 + 2 * 768)
    flops = find_truth("benchmarking_script.a", "forward_flops", SMALL, evidence_of())
    block = 2 * 512 * (4 * 768**2 + 3 * 768 * 3072) + 4 * 512 * 128 * 768
    assert flops.value == 12 * block + 2 * 512 * 768 * 10_000


@pytest.mark.parametrize(
    "values", [{}, {"model": "small"}, {"model": "smal", "batch_size": 4, "context_length": 1}]
)
def test_a_count_needs_its_case_first(evidence_of, values):
    with pytest.raises(NotMeasuredError, match=r"answer \w+ first|did you mean small"):
        find_truth("benchmarking_script.a", "forward_flops", values, evidence_of())


def test_precisions_are_compared_where_they_were_measured_alike(evidence_of, record):
    """The fp32 case with more warm-up, measured on another day, is no baseline of the bf16 case."""
    evidence = evidence_of(
        record(samples([0.9] * 5), warmup_steps=1, steps=5),
        record(samples([0.45] * 5), warmup_steps=1, steps=5, precision="bf16"),
        record(samples([0.7] * 10), warmup_steps=5, day=2),
    )
    part = "benchmarking_mixed_precision.c"
    values = {key: find_truth(part, key, SMALL, evidence).value
              for key in ("forward_fp32", "forward_bf16", "forward_speedup")}  # fmt: skip
    assert values == pytest.approx({"forward_fp32": 0.9, "forward_bf16": 0.45, "forward_speedup": 2.0})


def test_precisions_that_were_never_measured_alike_are_still_compared(evidence_of, record):
    evidence = evidence_of(
        record(samples([0.9] * 5), warmup_steps=1),
        record(samples([0.3] * 5), warmup_steps=2, precision="bf16"),
    )
    truth = find_truth("benchmarking_mixed_precision.c", "forward_speedup", SMALL, evidence)
    assert truth.value == pytest.approx(3.0)


def test_a_ratio_is_that_of_the_medians_however_noisy_they_are(evidence_of, record):
    noisy = {"forward": [1.0, 1.0, 1.0, 9.0, 0.2], "backward": [1.3, 1.3, 1.3, 0.4, 8.0]}
    truth = find_truth("benchmarking_script.b", "backward_over_forward", SMALL, evidence_of(record(noisy)))
    assert truth.low > 1.2
    assert truth.high < 1.4


def test_a_case_that_was_cut_short_counts_only_where_there_is_no_other(evidence_of, record):
    part = "benchmarking_script.b"
    evidence = evidence_of(record(samples([5.0] * 2), steps=10))
    assert find_truth(part, "forward_median", SMALL, evidence).value == 5.0
    evidence = evidence_of(record(samples([1.0] * 10), steps=10, warmup_steps=1))
    assert find_truth(part, "forward_median", SMALL, evidence).value == 1.0


def test_a_run_with_another_time_limit_is_the_same_case_later(evidence_of, record):
    evidence = evidence_of(
        record(samples([1.0] * 10), max_seconds=30), record(samples([3.0] * 10), max_seconds=20, day=2)
    )
    truth = find_truth("benchmarking_script.b", "forward_median", SMALL, evidence)
    assert truth.value == 3.0
    assert [low < 1.0 < high for low, high, _ in truth.older] == [True]
