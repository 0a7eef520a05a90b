"""One point measured for real on a tiny model: parts add up, tokens are right, ends are records."""

import itertools

import pytest
import torch

from cs_systems.bench import generation_run
from cs_systems.bench.generation_case import GIB, GenerationCase, GenerationWorkload
from cs_systems.bench.generation_ceilings import Ceilings
from cs_systems.bench.generation_energy import EnergyMeter
from cs_systems.bench.generation_engines import find_obstacle, load_engine, load_model, load_peer
from cs_systems.bench.generation_memory import data_bytes, reset_peak, resident_bytes
from cs_systems.bench.generation_peer import peer_settings
from cs_systems.bench.generation_rates import Clocks, rates
from cs_systems.bench.generation_run import make_texts, ran_out_of_memory, run_point
from cs_systems.bench.record import Provenance
from cs_systems.inference.tokenizer import ByteTokenizer
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import PRESETS

CPU = torch.device("cpu")
CEILINGS = Ceilings(
    copy_bytes_per_s=2e10, read_bytes_per_s=4e10, flops_per_s={"fp32": 1e11, "bf16": 2e11},
    datasheet_bytes_per_s=None, datasheet_flops_per_s={"fp32": None, "bf16": None}, memory_bytes=8 * GIB,
    memory_source="free memory",
)  # fmt: skip
PROVENANCE = Provenance("python", None, None, "2026-01-01T00:00:00+00:00", "test", "cpu", 1, {"torch": "0"})
SHAPE = ModelConfig(vocab_size=260, context_length=64, d_model=32, num_layers=2, num_heads=2)
GPT2 = SHAPE.replace(
    norm="layernorm", activation="gelu_tanh", position="learned", tied_embeddings=True, attention_bias=True,
    ffn_bias=True,
)  # fmt: skip


def make_case(model=GPT2, batch_size=2, **settings):
    plain = {"engine": "ours", "precision": "fp32", "prompt_len": 9, "new_tokens": 5, "runs": 2}
    return GenerationCase("shape", model, GenerationWorkload(**(plain | settings)), batch_size)


def run(case, on_step=lambda phase: None):
    return run_point(case, CPU, CEILINGS, PROVENANCE, on_step)


def test_a_point_has_every_part_of_every_run_and_figures_that_follow():
    phases = []
    record = run(make_case(), phases.append)
    assert record.status == "ok", record.reason
    assert phases == ["loading", "warm-up", "measuring", "measuring"]
    assert {name: len(times) for name, times in record.samples_s.items()} == {
        "end_to_end": 2, "tokenise": 2, "prompt": 2, "step": 8, "detokenise": 2,
    }  # fmt: skip
    assert len(record.warmup_samples_s["end_to_end"]) == 1
    parts = sum(sum(record.samples_s[name]) for name in ("tokenise", "prompt", "step", "detokenise"))
    assert parts == pytest.approx(sum(record.samples_s["end_to_end"]), rel=0.2)
    metrics = record.metrics
    assert metrics["tokens_per_s"] * metrics["latency_s"] == pytest.approx(2 * 5)
    assert metrics["tokens_per_s"] * metrics["ms_per_token"] == pytest.approx(1000)
    assert metrics["tokens_per_s_per_sequence"] * 2 == pytest.approx(metrics["tokens_per_s"])
    assert metrics["inter_token_p10_s"] <= metrics["inter_token_p50_s"] <= metrics["inter_token_p99_s"]
    assert [len(row) for row in metrics["tokens"]] == [5, 5]
    assert metrics["cache_bytes"] < metrics["predicted_bytes"] < metrics["memory_bytes"] == 8 * GIB
    assert record.to_json()


def test_rates_are_of_the_bytes_and_flops_that_a_step_needs():
    clocks = Clocks()
    clocks.add(end_to_end=[1.0], tokenise=[0.1], prompt=[0.2], step=[0.1] * 4, detokenise=[0.1])
    metrics = rates(make_case(batch_size=3), clocks, CEILINGS)
    weights = 4 * sum(p.numel() for p in load_model(GPT2, 0, CPU).parameters()) - 4 * 64 * 32
    cache = 3 * 4 * (2 * 2 * 32) * (9 + 5 / 2)  # keys and values, two layers, nine tokens and half of the new
    assert metrics["step_bytes"] == pytest.approx(weights + cache)
    assert metrics["decode_bytes_per_s"] == pytest.approx((weights + cache) / 0.1)
    assert metrics["mbu"] == pytest.approx((weights + cache) / 0.1 / 4e10)
    assert metrics["mbu_datasheet"] is None
    assert metrics["ttft_s"] == pytest.approx(0.3)
    assert metrics["mfu"] == pytest.approx(3 * metrics["prompt_flops"] / 0.2 / 1e11)


def test_one_new_token_has_no_time_between_tokens():
    record = run(make_case(new_tokens=1, runs=1, warmup_runs=0))
    assert record.status == "ok"
    assert "step" not in record.samples_s
    assert "mbu" not in record.metrics


@pytest.mark.parametrize("model", [GPT2, SHAPE.replace(num_kv_heads=1)], ids=["gpt2", "llama-mqa"])
def test_every_engine_chooses_the_tokens_of_hugging_face_in_fp32(model):
    pytest.importorskip("transformers")
    tokens = {
        engine: run(make_case(model, engine=engine, runs=1, warmup_runs=0)).metrics["tokens"]
        for engine in ("ours", "ours-simple", "hf", "hf-static")
    }
    assert tokens["ours"] == tokens["ours-simple"] == tokens["hf"] == tokens["hf-static"]


def test_weights_of_a_seed_are_the_same_for_both_and_those_of_another_are_not():
    pytest.importorskip("transformers")
    ids = torch.arange(8)[None]
    ours, peer = load_model(GPT2, 3, CPU), load_peer(GPT2, 3, torch.float32, CPU)
    with torch.no_grad():
        assert torch.allclose(ours(ids), peer(ids).logits, atol=1e-5)
        assert not torch.allclose(ours(ids), load_model(GPT2, 4, CPU)(ids), atol=1e-3)


def test_presets_with_a_family_are_read_back_as_themselves():
    families = {
        name: (peer_settings(preset.config) or {}).get("model_type") for name, preset in PRESETS.items()
    }
    assert families["gpt2-mha-1.3b"] == "gpt2"
    assert families["bloom-1.3b"] == families["bloom-176b"] == "bloom"
    assert families["gptj-6b"] == "gptj"
    assert families["opt-1.3b"] == families["gpt-175b"] == "opt"
    assert families["small"] == families["clm-60m"] == "llama"
    assert families["gpt2-mqa-1.1b"] is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "deepspeed"}, "deepspeed is not installed"),
        ({"engine": "vllm"}, "vllm is not installed"),
        ({"engine": "hf", "precision": "int8"}, "bitsandbytes"),
        ({"engine": "ours-simple", "precision": "int8"}, "no int8"),
        ({"engine": "hf", "model": PRESETS["gpt2-mqa-1.1b"].config}, "no family"),
        ({"precision": "int8", "model": SHAPE.replace(d_model=24, num_heads=3)}, "multiple of 16"),
    ],
)
def test_what_cannot_run_is_a_skipped_row_with_the_reason(settings, said):
    assert said in (find_obstacle(make_case(**settings)) or "")
    record = run(make_case(**settings))
    assert record.status == "skipped"
    assert said in record.reason


def test_running_out_of_memory_is_a_row_with_the_account(monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(generation_run, "load_engine", fail)
    record = run(make_case(batch_size=1000, memory_limit_gib=0.001))
    assert record.status == "oom"
    assert "weights " in record.reason
    assert "1000 sequences" in record.reason
    assert "should fit" in record.reason
    assert ran_out_of_memory(RuntimeError("std::bad_alloc"))
    assert not ran_out_of_memory(RuntimeError("shapes differ"))


def test_interrupted_generations_are_kept(monkeypatch):
    case, calls = make_case(runs=5, warmup_runs=0), itertools.count()
    engine = load_engine(case, CPU)
    plain = engine.generate

    def generate(prompts, new_tokens, on_token):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return plain(prompts, new_tokens, on_token)

    monkeypatch.setattr(engine, "generate", generate)
    monkeypatch.setattr(generation_run, "load_engine", lambda *_: engine)
    record = run(case)
    assert (record.status, record.reason) == ("failed", "interrupted after 2 of 5 generations")
    assert len(record.samples_s["end_to_end"]) == 2


def test_a_budget_ends_a_point_and_says_so():
    record = run(make_case(runs=50, max_seconds=1e-6))
    assert record.status == "ok"
    assert len(record.samples_s["end_to_end"]) == 1
    assert "1 of 50 generations" in record.notes[0]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    record = run(make_case(GPT2.replace(vocab_size=100)))
    assert record.status == "skipped"
    assert "vocabulary of 100" in record.reason


@pytest.mark.parametrize("prompt_len", [1, 2, 9, 64])
def test_prompts_have_enough_tokens_and_hardly_more(prompt_len):
    texts = make_texts(ByteTokenizer(), 20, prompt_len)
    assert len(set(texts)) > 10
    assert all(prompt_len <= len(text) < prompt_len + 10 for text in texts)


def test_energy_is_the_difference_of_the_packages_and_survives_a_restart_of_the_counter(tmp_path):
    def write(name, microjoules):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")

    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        write(name, 9_000_000)
    meter = EnergyMeter.start("cpu", tmp_path)
    assert meter.source == "RAPL intel-rapl:0 and RAPL intel-rapl:1"
    write("intel-rapl:0", 9_500_000)
    write("intel-rapl:1", 1_000_000)  # 1 J to the end, 1 J from the start
    assert meter.finish() == pytest.approx(0.5 + 2.0)
    empty = EnergyMeter.start("cpu", tmp_path / "none")
    assert (empty.source, empty.finish()) == (None, None)


@pytest.mark.skipif(data_bytes() is None, reason="needs Linux's /proc")
def test_memory_of_this_process_is_read():
    before = data_bytes()
    block = torch.ones(2**24)
    assert data_bytes() - before >= 0.9 * block.nbytes
    assert resident_bytes() > block.nbytes
    assert reset_peak() in (True, False)
