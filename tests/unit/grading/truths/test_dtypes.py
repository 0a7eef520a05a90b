"""Types and sums against what was published and exact arithmetic."""

import pathlib
from fractions import Fraction

import pytest

from cs_systems.grading.evidence import Evidence
from cs_systems.grading.truths.dtypes import error_of_terms
from cs_systems.grading.truths.find import find_truth

NOTHING = Evidence(pathlib.Path("nowhere"))

AUTOCAST = "benchmarking_mixed_precision.a"


def truth(name):
    part, key = name.split()
    return find_truth(part, key, {}, NOTHING)


def test_six_types_as_a_gpu_was_seen_to_have_them():
    published = {
        "parameters": "fp32", "fc1": "fp16", "layer_norm": "fp32", "logits": "fp16", "loss": "fp32",
        "gradients": "fp32", "loss_mean": "fp16",
    }  # fmt: skip
    assert {key: truth(f"{AUTOCAST} {key}").value for key in published} == published
    assert truth("benchmarking_mixed_precision.b layer_norm_bf16").value == "fp32"


def test_the_well_known_wrong_answers_get_a_reason():
    for key, wrong, reason in (
        ("parameters", "fp16", "copies of the weights"), ("fc1", "fp32", "lower precision"),
        ("layer_norm", "fp16", "laptop"), ("gradients", "fp16", "type of its parameter"),
        ("loss_mean", "fp32", "mean"),
    ):  # fmt: skip
        assert reason in truth(f"{AUTOCAST} {key}").why[wrong]


def test_sums_are_the_published_ones():
    printed = {
        "fp32": "10.0001",
        "fp16": "9.9531",
        "mixed": "10.0021",
        "mixed_cast": "10.0021",
        "bf16": "4.0000",
    }
    part = "mixed_precision_accumulation.a"
    assert {key: f"{truth(f'{part} {key}').value:.4f}" for key in printed} == printed


def test_where_the_error_comes_from():
    """0.01 in fp16 is 0.01000213623, so exact additions of it give 10.00213623."""
    terms, additions = error_of_terms(10.00213623046875, "fp16")
    assert (float(terms), additions) == (pytest.approx(0.00213623), 0)
    terms, additions = error_of_terms(9.953125, "fp16")
    assert additions == Fraction("10.00213623046875") - Fraction("9.953125")
    assert truth("mixed_precision_accumulation.a error_of_mixed").value == "terms"
    assert truth("mixed_precision_accumulation.a error_of_fp16").value == "additions"


def test_overflow_is_half_of_the_exponents_range():
    """The largest fp16 is below 2^16, the largest bf16 below 2^128; a square doubles the exponent."""
    assert truth("benchmarking_mixed_precision.b overflow_fp16").value == 2**8
    assert truth("benchmarking_mixed_precision.b overflow_bf16").value == 2**64
