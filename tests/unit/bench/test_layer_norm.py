"""The layer-norm experiment: what a record holds, and that its limits are found where the rules say."""

import json

import pytest
import torch

from cs_systems.bench import layer_norm
from cs_systems.mixed_precision.settings import LayerNormConfig

CPU = torch.device("cpu")


def limits_of(**given):
    metrics = layer_norm.measure(LayerNormConfig(d_model=64, **given), CPU)
    return {limit["limit"].rpartition(" from ")[0] or limit["limit"]: limit for limit in metrics["limits"]}


@pytest.mark.parametrize(
    "given",
    [{"d_model": 1}, {"d_model": 10**6}, {"scale": 0.0}, {"scale": 1e31}, {"offset": -1e31}, {"eps": 0.0}],
)
def test_settings_without_a_norm_are_refused(given):
    flag = next(iter(given)).replace("_", "-")
    with pytest.raises(ValueError, match=f"--{flag} "):
        LayerNormConfig(**given)


def test_a_record_holds_every_operation_and_no_infinity():
    steps = []
    config = LayerNormConfig(d_model=64, scale=300.0)
    record, interrupted = layer_norm.run_case(config, "python", steps.append)
    assert (record.status, interrupted, len(steps)) == ("ok", False, 1)
    metrics = json.loads(record.to_json())["metrics"]
    operations = {step["name"]: step for step in metrics["operations"]}
    assert list(operations)[:3] == ["x", "sum", "mean"]
    assert operations["squares"]["largest"] == "inf"
    assert operations["squares"]["total_error"] is None
    norms = {norm["norm"]: norm for norm in metrics["norms"]}
    assert norms["layer norm, op by op"]["error"] == 1
    assert norms["F.layer_norm"]["error"] < 0.001
    for axis in ("scale", "offset"):
        swept = metrics["sweeps"][axis]
        assert {len(errors) for errors in swept["errors"].values()} == {len(swept["values"])}
    assert None in metrics["sweeps"]["scale"]["errors"]["squares"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_limits_are_found_where_the_rules_say(dtype):
    limits = limits_of(dtype=dtype)
    spacing = {"fp16": 2**-10, "bf16": 2**-7, "fp32": 2**-23}[dtype]
    for name, tolerance in (("a square overflows", 1), ("their sum overflows", 64)):
        found, predicted = limits[name]["found"], limits[name]["predicted"]
        assert found == pytest.approx(predicted, rel=tolerance * spacing + 2e-6), name
    vanishing = limits["all squares are 0 up to scale"]
    assert vanishing["found"] == pytest.approx(vanishing["predicted"], rel=2 * spacing + 2e-6)


def test_what_fp16_makes_of_eps():
    stored = limits_of(eps=1e-5)["eps 1e-05 is stored as"]
    assert stored["predicted"] == torch.tensor(1e-5, dtype=torch.float16).item()
    assert stored["rule"].startswith("subnormal (below 6.1e-05), 8 of 11 bits")
    gone = limits_of(eps=1e-8)
    assert gone["eps 1e-08 is stored as"]["predicted"] == 0
    assert "eps changes nothing" not in gone
    assert limits_of(eps=1e-8, dtype="bf16")["eps 1e-08 is stored as"]["rule"] == "8 of 8 bits"


def test_ctrl_c_leaves_no_record(monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(layer_norm, "sweep", interrupt)
    assert layer_norm.run_case(LayerNormConfig(d_model=8), "python", len) == (None, True)
