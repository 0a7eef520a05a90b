"""Tables of made-up points: every layout says what its heading says, and published values are marked."""

import itertools
import json
import re

import pytest

from cs_systems.bench.record import BenchmarkRecord, Provenance
from cs_systems.estimator.generation import USABLE, GenerationMemory, cache_factor
from cs_systems.inference.memory import cache_bytes_per_token
from cs_systems.model.presets import PRESETS
from cs_systems.report.generation import frontier_table, memory_table, points_table, render_generation
from cs_systems.report.generation_layouts import bigcode_tables, bloom_table, cpu_table
from cs_systems.report.generation_plots import draw_generation
from cs_systems.report.generation_published import SOURCES, comparison_table, load_published
from cs_systems.report.generation_rows import of_generation, tokens_match
from cs_systems.tables import render_table


def make_point(batch=1, engine="ours", status="ok", *, device="Some CPU", latency_s=2.0, **given):
    """A point whose latency is given; other settings and metrics by name."""
    case = {
        "model": "tiny", "engine": engine, "precision": "bf16", "prompt_len": 8, "new_tokens": 100,
        "threads": 0, "memory_limit_gib": 0.0, "batch_size": batch, "seed": 0, "runs": 3, "warmup_runs": 1,
        "max_seconds": 60.0,
    }  # fmt: skip
    case |= {name: given.pop(name) for name in list(given) if name in case}
    rate = batch * case["new_tokens"] / latency_s
    metrics = {
        "latency_s": latency_s, "ttft_s": 0.1, "prompt_s": 0.1, "tokens_per_s": rate,
        "tokens_per_s_per_sequence": rate / batch, "ms_per_token": 1e3 / rate, "inter_token_p10_s": 0.01,
        "inter_token_p50_s": 0.02, "inter_token_p90_s": 0.03, "inter_token_p99_s": 0.04, "mbu": 0.5,
        "mfu": 0.25,
        "prompt_block_flops": 2e12, "token_block_flops": 4e11, "prompt_flops_per_s": 1e12,
        "peak_bytes_per_s": 5e10, "peak_flops_per_s": 1e11, "start_to_ready_s": 3.0, "weight_bytes": 2**30,
        "tokens": [[1, 2, 3, 4]], "tokens_sha256": "same", "memory_bytes": 2**31,
        "memory_source": "free memory", "predicted_largest_batch": 12, "predicted_bytes": 2**29,
        "peak_memory_bytes": 2**28, "other_load_cores": 0.01, "contended": False,
    }  # fmt: skip
    reason = given.pop("reason", None)
    if status != "ok":
        metrics = {
            name: metrics[name] for name in ("memory_bytes", "memory_source", "predicted_largest_batch")
        }
    metrics |= given
    provenance = Provenance(
        "python", "abc", False, "2026-01-01T00:00:00+00:00", device, "cpu", 2, {"torch": "2.13.0"}
    )
    return BenchmarkRecord("generation", case, status, provenance, reason=reason, metrics=metrics)


def make_sweep():
    return [
        make_point(1),
        make_point(2, latency_s=2.5),
        make_point(4, status="oom", reason="out of memory: weights 1 GiB"),
        make_point(8, status="skipped", reason="not run: batch 4 did not fit", predicted_oom=True),
        make_point(1, "hf", latency_s=4.0),
        make_point(2, "hf", latency_s=5.0, contended=True, other_load_cores=0.7),
        make_point(4, "hf", latency_s=8.0),
        make_point(1, "deepspeed", status="skipped", reason="deepspeed is not installed"),
    ]


def cells(table):
    """The rows of a table as people see them, by heading."""
    head, rule, *rest = render_table(table, "table").splitlines()[1:]
    spans = [match.span() for match in re.finditer("-+", rule)]
    return [{head[a:b].strip(): line[a:b].strip() for a, b in spans} for line in rest[: len(table.rows)]]


def test_the_layout_of_bigcode_has_a_column_an_engine_and_oom_where_memory_ended():
    throughput, latency = bigcode_tables([*make_sweep(), make_point(16, "hf", latency_s=16.0)])
    assert throughput.title == "tiny: Throughput (tokens/sec | msec/token), 8 prompt tokens, 100 new"
    shown = [tuple(row.values()) for row in cells(throughput)]
    assert [column.title for column in throughput.columns[1:]] == [
        "ours (bf16)",
        "hf (bf16)",
        "deepspeed (bf16)",
    ]
    assert shown == [
        ("1", "50.00 | 20.00", "25.00 | 40.00", "skipped"),
        ("2", "80.00 | 12.50", "40.00 | 25.00", ""),
        ("4", "oom", "50.00 | 20.00", ""),
        ("8", "oom*", "", ""),
        ("16", "oom*", "100.00 | 10.00", ""),
    ]
    assert [row["hf (bf16)"] for row in cells(latency)] == ["4.00", "5.00", "8.00", "", "16.00"]
    notes = "\n".join(latency.notes)
    assert "deepspeed is not installed" in notes
    assert "! contended: in 1 of 6 rows other programs used up to 0.7 cores" in notes


def test_published_columns_appear_only_on_request_and_are_marked():
    records = [make_point(64, model="bloom-1.3b"), make_point(1024, model="bloom-1.3b")]
    plain, _ = bigcode_tables(records)
    assert not any("published" in column.title for column in plain.columns)
    table, latency = bigcode_tables(records, published=True)
    row = next(row for row in cells(table) if row["batch_size"] == "64")
    assert row["published HF (bf16)"] == "4784.46 | 0.21"
    assert next(r for r in cells(latency) if r["batch_size"] == "1024")["published HF (fp32)"] == "oom"
    assert len(table.rows) == 22
    assert "published: printed by others, on one A100 80GB" in latency.notes[-1]


def test_the_published_rows_are_complete_and_agree_with_themselves():
    points = load_published("seed-000")
    by_cell = {(p.model, p.engine, p.precision, p.batch_size, p.metric): p for p in points}
    assert len(points) == len(by_cell) == 2 * 4 * 22 * 3
    wrong = [
        (key[:4], rate.value * by_cell[*key[:4], "latency"].value / key[3])
        for key, rate in by_cell.items()
        if key[4] == "throughput" and rate.value is not None
        and abs(rate.value * by_cell[*key[:4], "latency"].value / key[3] - 100) > 1
    ]  # fmt: skip
    assert [(key, round(tokens, 1)) for key, tokens in wrong] == [(("gpt2-mha-1.3b", "HF", "int8", 32), 95.4)]
    assert {point.source for name in SOURCES for point in load_published(name)} == set(SOURCES)


@pytest.mark.parametrize("model", ["bloom-1.3b", "gpt2-mha-1.3b"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_two_whole_caches_predict_where_each_published_column_ends(model, precision):
    config, item = PRESETS[model].config, 4 if precision == "fp32" else 2
    linears = config.num_layers * 12 * config.d_model**2 if precision == "int8" else 0
    plan = GenerationMemory(
        weight_bytes=item * PRESETS[model].num_parameters - linears,
        cache_bytes=108 * cache_bytes_per_token(config, precision), prompt_cache_bytes=0,
        cache_factor=cache_factor("whole", config.num_layers), prompt_work_bytes=0, step_work_bytes=0,
    )  # fmt: skip
    column = [
        point
        for point in load_published("bigcode")
        if (point.model, point.engine, point.precision, point.metric) == (model, "HF", precision, "latency")
    ]
    last_ok = max(point.batch_size for point in column if point.status == "ok")
    first_oom = min(point.batch_size for point in column if point.status == "oom")
    assert last_ok <= plan.largest_batch(int(USABLE * 80 * 2**30)) < first_oom


def test_no_ratio_between_different_devices_models_or_lengths():
    ours = make_point(64, "hf", model="bloom-1.3b", device="NVIDIA A100-SXM4-80GB")
    (bloom, *_) = rows = [r for r in comparison_table([ours], "seed-000").rows if r["metric"] == "throughput"]
    assert [row["their_engine"] for row in rows] == ["HF bf16", "DS-inference fp16"]
    assert bloom["ratio"] == pytest.approx(ours.metrics["tokens_per_s"] / 4784.46)
    for change, said in (
        ({"device": "NVIDIA H200"}, "no: other device"),
        ({"model": "tiny"}, "no: other model"),
        ({"new_tokens": 32}, "no: other lengths"),
        ({"device": "AMD EPYC", "model": "tiny"}, "no: other device, model"),
    ):
        settings = {"model": "bloom-1.3b", "device": "NVIDIA A100-SXM4-80GB"} | change
        table = comparison_table([make_point(64, "hf", **settings)], "bigcode")
        assert {row["ratio"].text for row in table.rows} == {said}
        assert "our_device" in table.rows[0]
    assert "no batch size" in comparison_table([make_point(3)], "bigcode").notes[-1]


def test_memory_ends_where_it_was_observed_beside_the_prediction():
    ours, theirs = frontier_table(make_sweep()[:7])[0].rows
    assert (ours["predicted_largest_batch"], ours["largest_ok"], ours["first_oom"]) == (12, 2, 4)
    assert (theirs["largest_ok"], theirs["first_oom"].text) == (4, "not reached")
    predicted = [make_point(1), make_point(9, status="skipped", predicted_oom=True)]
    assert frontier_table(predicted)[0].rows[0]["first_oom"].text == "9 predicted, not run"
    assert "tiny, ours, bf16, batch 4: out of memory: weights 1 GiB" in frontier_table(make_sweep())[0].notes


def test_points_say_what_is_inside_each_clock_and_flag_other_load():
    (table,) = points_table(make_sweep())
    rows = cells(table)
    assert rows[5]["Other load (cores)"] == "0.70 !"
    assert [row["Latency (s)"] for row in rows[2:4]] == ["oom", "skipped"]
    assert rows[0]["MBU"] == "50.0%"
    text = " ".join(table.notes)
    for said in ("tokenising", "detokenising", "loading, compiling and warm-up are outside", "J/token"):
        assert said in text or said == "J/token"
    assert "J/token" not in rows[0]
    assert "J/token" in cells(points_table([make_point(energy_j_per_token=0.5)])[0])[0]


def test_tokens_are_held_to_those_of_hugging_face():
    theirs = make_point(1, "hf", tokens=[[1, 2, 3, 4]], tokens_sha256="theirs")
    near = make_point(1, tokens=[[1, 2, 9, 4]], tokens_sha256="near")
    assert tokens_match(near, [near, theirs]) == 0.75
    assert tokens_match(make_point(1, tokens_sha256="theirs"), [theirs]) == 1.0
    assert tokens_match(make_point(1, precision="int8", tokens_sha256="theirs"), [theirs]) == 1.0
    assert tokens_match(near, [near]) is None
    assert tokens_match(theirs, [theirs]) is None
    assert tokens_match(near, [make_point(1, "hf", prompt_len=9)]) is None


def test_the_four_metrics_are_of_one_generation():
    (row,) = bloom_table([make_point(40, latency_s=42.96)])[0].rows
    assert row["num_tokens"] == 4000
    assert row["ms_per_token"] == pytest.approx(10.74)
    assert row["finish_s"] == pytest.approx(3.0 + 42.96)


def test_the_cpu_layout_divides_flops_of_the_batch_by_each_time():
    (row,) = cpu_table([make_point(4)])[0].rows
    assert row["prompt_tflops"] == pytest.approx(4 * 2 / 0.1)
    assert row["token_tflops"] == pytest.approx(4 * 0.4 / 0.02)
    assert row["decode_tokens_per_s"] == pytest.approx(4 / 0.02)


def test_memory_rows_hold_prediction_and_peak():
    ok, oom = memory_table([make_point(1), make_point(4, status="oom")])[0].rows
    assert (ok["predicted_bytes"], ok["peak_memory_bytes"]) == (2**29, 2**28)
    assert oom["peak_memory_bytes"].text == "oom"


def test_the_last_measurement_of_a_point_counts_and_every_style_renders():
    records = [make_point(1, latency_s=9.0), *make_sweep()]
    assert of_generation(records)[0].metrics["latency_s"] == 2.0
    layouts = ("points", "memory", "frontier", "bigcode", "bloom", "cpu")
    text = render_generation(records, "table", layouts, "seed-000")
    assert json.loads(text.splitlines()[-1])["records"][0]["latency_s"] == 2.0
    assert len(json.loads(render_generation(records, "json", layouts))) == 7
    for style in ("md", "latex"):
        assert "oom" in render_generation(records, style, ("bigcode",))
    csv_lines = render_generation(records, "csv", layouts, "seed-000").splitlines()
    assert len(csv_lines) == 1 + len(of_generation(records))


def test_both_plots_are_drawn_for_each_model_and_say_what_is_missing(tmp_path):
    pytest.importorskip("matplotlib")
    records = [*make_sweep(), make_point(1, model="small")]
    files, remarks = draw_generation(records, tmp_path)
    names = itertools.product(("throughput", "latency"), ("svg", "png"))
    assert [file.name for file in files] == [f"generation_tiny_{plot}.{kind}" for plot, kind in names]
    assert all(file.stat().st_size > 1000 for file in files)
    assert remarks == ["small: not drawn, there is only one batch size"]
    text = files[0].read_text()
    for said in ("ours (bf16)", "next ran out of memory", "contended"):
        assert said in text


def test_csv_says_what_became_of_a_point_and_why():
    text = render_generation(make_sweep(), "csv", ["points"])
    assert "oom,out of memory: weights 1 GiB" in text
    assert "skipped,not run: batch 4 did not fit" in text
