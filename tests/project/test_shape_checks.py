"""The harness itself: shapes are checked while tests run, the switch works, torch's state is put back."""

import importlib.util

import pytest
import torch

from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import cross_entropy

checked = pytest.mark.skipif(importlib.util.find_spec("beartype") is None, reason="beartype is not installed")


@checked
def test_a_wrong_shape_is_an_error_that_names_both_shapes():
    with pytest.raises(Exception, match=r"(?s)targets.*\[5\].*batch") as caught:
        cross_entropy(torch.zeros(4, 7), torch.zeros(5, dtype=torch.long))
    assert type(caught.value).__name__ == "TypeCheckError"


@checked
def test_an_int_may_stand_for_a_float():
    assert ModelConfig(rope_theta=10_000).rope_theta == 10_000


@checked
def test_no_shape_checks_lets_torch_compile_trace_the_code(no_shape_checks):
    logits, targets = torch.randn(4, 7), torch.arange(4)
    compiled = torch.compile(cross_entropy, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, targets), cross_entropy(logits, targets))


@checked
def test_shape_checks_are_back_after_a_test_without_them():
    with pytest.raises(Exception, match="targets"):
        cross_entropy(torch.zeros(4, 7), torch.zeros(5, dtype=torch.long))


def test_a_test_may_change_the_settings_of_torch():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(61)


def test_the_next_test_finds_them_restored():
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() != 61
