"""Parameter counts: against the real model, name by name."""

import pytest
import torch

from cs_systems.estimator.parameters import (
    largest_parameter,
    num_parameters,
    parameter_groups,
    parameter_shapes,
)
from cs_systems.model.presets import PRESETS
from cs_systems.model.transformer import TransformerLM


@pytest.mark.parametrize("name", PRESETS)
def test_names_and_shapes_are_those_of_the_model(name):
    preset = PRESETS[name]
    with torch.device("meta"):
        model = TransformerLM(preset.config)
    real = {parameter: tuple(value.shape) for parameter, value in model.named_parameters()}
    assert parameter_shapes(preset.config) == real
    assert num_parameters(preset.config) == preset.num_parameters
    assert sum(parameter_groups(preset.config).values()) == preset.num_parameters
    assert largest_parameter(preset.config) == max(value.numel() for value in model.parameters())
