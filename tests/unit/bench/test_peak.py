"""The rate that FLOP/s are compared with: bounded however slow the type is."""

import pytest
import torch

from cs_systems.bench import peak


@pytest.mark.parametrize(
    ("flops_per_s", "size", "repeats"),
    [(1e11, 2048, 10), (1e9, 512, 10), (1e6, 256, 1)],
)
def test_the_largest_product_is_bounded_by_the_rate(monkeypatch, flops_per_s, size, repeats):
    """On a made-up machine of that rate, no measurement takes more than a few seconds."""
    monkeypatch.setattr(peak, "_time_product", lambda a, b: 2 * a.shape[0] ** 3 / flops_per_s)
    rate, found_size, found_repeats = peak.measure_matmul_rate(torch.float32)
    assert rate == pytest.approx(flops_per_s)
    assert (found_size, found_repeats) == (size, repeats)


def test_the_source_names_what_was_measured():
    rate = peak.peak_rate(torch.device("cpu"), "fp32", "bf16")
    assert rate.tflops_per_s > 0
    assert "matrices in bf16, this run" in rate.source
