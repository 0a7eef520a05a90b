"""Which settings get columns, and how cases are named."""

from cs_systems.bench.workload import EXPERIMENT, PASSES, TOTAL
from cs_systems.report import cases


def test_names_agree_with_those_of_the_experiment():
    assert cases.EXPERIMENT == EXPERIMENT
    for mode, passes in PASSES.items():
        total = (TOTAL[mode],) if mode in TOTAL else ()
        assert cases.PASSES[mode] == passes + total


def test_nothing_varies_in_one_record(make_record):
    assert cases.varying_settings([make_record(forward=[1.0])]) == []


def test_workload_settings_that_differ_are_listed_in_a_fixed_order(make_record):
    records = [
        make_record(forward=[1.0], precision=precision, context_length=length)
        for precision in ("fp32", "bf16")
        for length in (128, 256)
    ]
    assert cases.varying_settings(records) == ["context_length", "precision"]
    assert cases.labels(records)[3] == "small, 256 tokens, bf16"


def test_the_shape_of_a_model_is_not_repeated_beside_its_name(make_record):
    records = [make_record("small", forward=[1.0]), make_record("medium", forward=[1.0])]
    assert cases.varying_settings(records) == []
    assert cases.labels(records) == ["small", "medium"]


def test_a_shape_that_the_name_leaves_open_is_listed(make_record):
    records = [make_record(forward=[1.0], vocab_size=size) for size in (10_000, 50_000)]
    assert cases.varying_settings(records) == ["vocab_size"]
    assert cases.labels(records)[1] == "small, vocab_size 50000"


def test_warm_up_has_its_own_column_and_is_part_of_the_name(make_record):
    records = [make_record(forward=[1.0]), make_record(forward=[1.0], warmup={"forward": [2.0]})]
    assert cases.varying_settings(records) == []
    assert cases.labels(records) == ["small, warm-up 0", "small, warm-up 1"]


def test_runs_that_differ_only_in_the_machine_are_told_apart_by_it(make_record):
    records = [make_record(forward=[1.0]), make_record(forward=[1.0], device="NVIDIA H200")]
    assert cases.labels(records) == ["small, Some", "small, NVIDIA H200"]
    assert cases.labels(records, machine=False) == ["small", "small"]
    records = [make_record(forward=[1.0]), make_record(forward=[1.0], commit="0123456789", dirty=True)]
    assert cases.labels(records) == ["small, commit abc1234", "small, commit 0123456*"]


def test_the_case_is_shown_as_it_ran_not_as_it_was_typed(make_record):
    shown = cases.settings(make_record(forward=[1.0]))
    assert (shown["device"], shown["threads"]) == ("Some", 2)


def test_conditions_say_what_all_records_share(make_record):
    metrics = {"matmul_precision": "highest"}
    records = [
        make_record(forward=[1.0], backward=[2.0], optimizer_step=[0.1], metrics=metrics, compile=compiled)
        for compiled in (True, False)
    ]
    shared = "batch 4 x 128 tokens, fp32 (matmul precision highest), naive attention, optimizer adamw"
    assert cases.conditions(records) == shared
    assert cases.conditions(records[:1]) == shared.replace("attention,", "attention, compiled,")
    mixed = [make_record(forward=[1.0], batch_size=8, param_dtype="bf16"), make_record(forward=[1.0])]
    assert cases.conditions(mixed) == "128 tokens, fp32, naive attention"
    assert cases.conditions(mixed[:1]) == "batch 8 x 128 tokens, fp32, stored as bf16, naive attention"


def test_the_origin_of_the_numbers_is_said_in_one_line(make_record):
    records = [make_record(forward=[1.0]), make_record(forward=[1.0], time_utc="2026-02-01T00:00:00+00:00")]
    assert cases.machine(records) == "Some, 2 threads, torch 2.13.0, commit abc1234, 2026-01-02 to 2026-02-01"


def test_processor_names_lose_marks_and_clock_rates():
    assert cases.short_device("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz") == "Intel Xeon Platinum 8481C"
    assert cases.short_device("NVIDIA H200") == "NVIDIA H200"


def test_the_last_ok_record_of_a_case_counts_and_the_others_are_mentioned(make_record):
    first, second = make_record(forward=[1.0]), make_record(forward=[2.0])
    failed = make_record(forward=[3.0], status="failed", reason="interrupted")
    found, again = cases.last_ok([first, second, failed])
    assert list(found.values()) == [second]
    assert again == ["small: measured 2 times, the last is used"]


def test_other_experiments_are_left_out_and_said(make_record):
    ours, theirs = make_record(forward=[1.0]), make_record(forward=[1.0], experiment="estimate")
    chosen, said = cases.of_training_step([ours, theirs])
    assert chosen == [ours]
    assert said == ["1 of 2 records belong to the experiment 'estimate' and are left out"]
