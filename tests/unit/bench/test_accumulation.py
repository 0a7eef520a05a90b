"""The accumulation experiment: what is refused, what a record holds, and what Ctrl-C leaves."""

import json

import pytest
import torch

from cs_systems.bench import accumulation
from cs_systems.mixed_precision.settings import AccumulationConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (70000.0, "fp16", "--value 70000, --dtypes fp16: 70000 becomes infinity"),
        (1e-9, "fp16", "becomes 0 in fp16"),
    ],
)
def test_a_number_that_the_type_cannot_hold_is_refused(value, dtype, words):
    with pytest.raises(ValueError, match=words) as error:
        accumulation.check_all([AccumulationConfig(), AccumulationConfig(value=value, dtypes=dtype)])
    assert "\n" not in str(error.value)
    accumulation.check_all([AccumulationConfig(value=value, dtypes="bf16")])


@pytest.mark.parametrize("given", [{"value": 0.0}, {"steps": 0}, {"steps": 10_000_001}])
def test_settings_that_make_no_sum_are_refused(given):
    with pytest.raises(ValueError, match=f"--{next(iter(given))}"):
        AccumulationConfig(**given)


def test_a_record_splits_each_error_in_two():
    told = []
    record, interrupted = accumulation.run_case(AccumulationConfig(dtypes="fp16"), "python", told.append)
    assert (record.status, interrupted) == ("ok", False)
    assert (record.case["dtypes"], record.case["steps"]) == ("fp16", 1000)
    metrics = json.loads(record.to_json())["metrics"]
    assert told == [one["method"] for one in metrics["methods"]]
    assert metrics["term"] == 0.01000213623046875
    assert metrics["exact_sum"] == 10
    assert metrics["input_error"] == pytest.approx(0.00213623046875, rel=1e-12)
    for one in metrics["methods"]:
        assert one["error"] == pytest.approx(one["sum"] - 10, abs=1e-12)
        assert one["error"] == pytest.approx(metrics["input_error"] + one["accumulation_error"], abs=1e-12)
        assert one["errors"][-1] == one["error"]
    assert metrics["predicted_sum"] == metrics["observed_sum"] == 9.953125
    assert metrics["nearest_sum"] == 10.0
    assert (metrics["stall_value"], metrics["stall_spacing"], metrics["kahan_stall_value"]) == (
        32,
        2**-5,
        None,
    )
    chance = metrics["stochastic"]
    assert abs(chance["mean"] - 10.0021) < 4 * chance["deviation"] / chance["repeats"] ** 0.5


def test_the_binades_account_for_the_whole_error_also_of_a_negative_number():
    metrics = accumulation.measure(AccumulationConfig(value=-0.01, dtypes="bf16"), CPU, len)
    plain = metrics["methods"][0]
    assert (plain["sum"], metrics["stall_value"], plain["stall_step"]) == (-4, -4, 351)
    assert sum(row["error"] for row in metrics["binades"]) == pytest.approx(plain["accumulation_error"])
    assert 1 + sum(row["num_additions"] for row in metrics["binades"]) == 1000
    assert metrics["predicted_sum"] == metrics["observed_sum"]


def test_kahan_s_sum_stalls_where_the_rule_says():
    config = AccumulationConfig(value=1.0, steps=70_000, dtypes="bf16")
    metrics = accumulation.measure(config, CPU, len)
    kahan = next(one for one in metrics["methods"] if one["method"] == "Kahan")
    assert kahan["sum"] == metrics["kahan_stall_value"] == 65536


def test_infinity_is_a_word():
    record, _ = accumulation.run_case(
        AccumulationConfig(value=1000.0, steps=100, dtypes="fp16"), "python", len
    )
    plain = record.metrics["methods"][0]
    assert (plain["sum"], plain["error"], plain["stall_step"]) == ("inf", None, None)
    assert record.metrics["predicted_sum"] == "inf"
    assert record.metrics["overflow_step"] == 66
    assert record.metrics["nearest_sum"] == "inf"
    assert plain["errors"][0] == 0
    record.to_json()


def test_ctrl_c_leaves_no_record():
    def interrupt(method):
        raise KeyboardInterrupt

    assert accumulation.run_case(AccumulationConfig(steps=10), "python", interrupt) == (None, True)
