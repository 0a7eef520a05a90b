"""The fast decoder against the simple one: every layout, precision and kind of model, traced and compiled."""

import pytest
import torch

from cs_systems.inference import projections
from cs_systems.inference.decoding import SimpleDecoder
from cs_systems.inference.engine import generate
from cs_systems.inference.memory import weight_bytes
from cs_systems.inference.packed import PackedDecoder
from cs_systems.inference.prompts import make_batch
from cs_systems.inference.quantize import compare_logits, dequantize_rows, quantize_rows
from cs_systems.inference.settings import DecoderConfig, GenerationConfig

NAMES = [
    *("llama", "llama-gqa", "llama-mqa-tied", "gpt2", "gpt2-mqa", "bloom", "bloom-gqa", "gptj", "opt"),
]
PROMPTS = {"equal": [[3, 1, 4], [1, 5, 9]], "padded": [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3]], "one": [[3, 1]]}
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def feed(decoder, prompts, num_steps=3):
    """Logits after the prompts and after tokens 1, 2, 3, ... of which each sequence gets another."""
    batch = make_batch(prompts, decoder.config, num_steps, decoder.device)
    cache = decoder.new_cache(len(prompts), batch.token_ids.shape[1] + num_steps)
    rows = torch.arange(len(prompts))
    logits = [decoder.prefill(batch, cache)]
    logits += [decoder.decode_step(rows + step, cache) for step in range(1, num_steps + 1)]
    return torch.stack(logits)


@pytest.fixture(params=["dense", "transposed", "packed"])
def layout(request, monkeypatch):
    if request.param == "packed" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN, whose blocks these are")
    monkeypatch.setattr("cs_systems.inference.packed.choose_layout", lambda config, device: request.param)
    return request.param


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_simple_decoder(name, prompts, layout, make_model):
    model = make_model(name)
    expected = feed(SimpleDecoder(model), PROMPTS[prompts])
    decoder = PackedDecoder(model, DecoderConfig(precision="fp32"))
    assert decoder.layout == layout
    torch.testing.assert_close(feed(decoder, PROMPTS[prompts]), expected, **CLOSE)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.03), ("fp16", 0.004), ("int8", 0.045)])
@pytest.mark.parametrize("name", NAMES)
def test_lower_precisions_are_close(name, precision, bound, make_model):
    model = make_model(name)
    expected = feed(SimpleDecoder(model), PROMPTS["padded"])
    decoder = PackedDecoder(model, DecoderConfig(precision=precision))
    error = compare_logits(feed(decoder, PROMPTS["padded"]).float(), expected)
    assert error.relative_rms < bound
    assert error.same_top_token > 0.6


def test_int8_computes_with_exactly_the_weights_that_it_keeps(make_model):
    """Against a model whose matrices were rounded to 8 bits, only the bf16 of the activations is left."""
    model = make_model("llama")
    decoder = PackedDecoder(model, DecoderConfig(precision="int8"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name or ".ffn." in name or "lm_head" in name:
                numbers, scales = quantize_rows(weight)
                weight.copy_(dequantize_rows(numbers, scales.float()))
    tokens = torch.randint(53, (2, 8))
    rounded = model(tokens).detach()
    bf16 = compare_logits(PackedDecoder(model, DecoderConfig(precision="bf16")).all_logits(tokens), rounded)
    error = compare_logits(decoder.all_logits(tokens), rounded)
    assert error.relative_rms < 1.5 * bf16.relative_rms


@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_int8_product_of_few_and_of_many_rows(num_rows):
    weight, bias = torch.randn(5, 32), torch.randn(5).bfloat16()
    layer = projections.Int8Linear(weight, bias)
    x = torch.randn(num_rows, 32).bfloat16()
    exact = x.double() @ (layer.weight.double() * layer.scales.double()[:, None]).T + bias.double()
    torch.testing.assert_close(layer(x).double(), exact, rtol=2e-2, atol=2e-2 * float(exact.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_all_logits_are_those_of_the_model(name, make_model):
    model = make_model(name)
    tokens = torch.randint(53, (2, 9))
    logits = PackedDecoder(model, DecoderConfig(precision="fp32")).all_logits(tokens)
    torch.testing.assert_close(logits, model(tokens).detach(), **CLOSE)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_weight_bytes_are_the_closed_form(name, precision, make_model, monkeypatch):
    layout = "int8" if precision == "int8" else "dense"
    monkeypatch.setattr("cs_systems.inference.packed.choose_layout", lambda config, device: layout)
    model = make_model(name)
    decoder = PackedDecoder(model, DecoderConfig(precision=precision))
    assert decoder.weight_bytes == weight_bytes(model.config, precision)
    tables = [t for t in (decoder.rope_cos, decoder.rope_sin, decoder.slopes) if t is not None]
    storages = {buffer.untyped_storage().data_ptr(): buffer.untyped_storage() for buffer in decoder.buffers()}
    total = sum(storage.nbytes() for storage in storages.values()) - sum(t.nbytes for t in tables)
    assert decoder.weight_bytes == total


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_packed_weights_take_the_closed_form_and_padding(name, make_model):
    shape = {"d_model": 128, "d_ff": 256, "vocab_size": 512}  # whole blocks: nothing is padded
    model = make_model(name, **shape)
    decoder = PackedDecoder(model, DecoderConfig(precision="fp32", expected_batch_size=8))
    if decoder.layout != "packed":
        pytest.skip("this torch has no oneDNN, whose blocks these are")
    assert decoder.weight_bytes == weight_bytes(model.config, "fp32", packed=True)
    ragged = make_model(name)
    decoder = PackedDecoder(ragged, DecoderConfig(precision="fp32", expected_batch_size=8))
    assert decoder.weight_bytes > weight_bytes(ragged.config, "fp32", packed=True)


def test_layouts_follow_precision_batch_size_and_compilation(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    chosen = {
        (precision, size, compile): projections.choose_layout(
            DecoderConfig(precision=precision, expected_batch_size=size, compile=compile), cpu
        )
        for precision in ("fp32", "int8") for size in (1, 2, 3) for compile in (False, True)
    }  # fmt: skip
    assert [chosen["fp32", size, False] for size in (1, 2, 3)] == ["transposed", "packed", "packed"]
    assert [chosen["fp32", size, True] for size in (1, 2, 3)] == ["dense", "dense", "packed"]
    assert {chosen["int8", size, compile] for size in (1, 2, 3) for compile in (False, True)} == {"int8"}
    bf16 = DecoderConfig(precision="bf16")
    for supported, layout in ((True, "packed"), (False, "dense")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda it=supported: it)
        assert projections.choose_layout(bf16, cpu) == layout
    assert projections.choose_layout(bf16, torch.device("cuda")) == "dense"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert projections.choose_layout(DecoderConfig(precision="fp32", expected_batch_size=8), cpu) == "dense"


def test_a_shape_that_int8_cannot_take_is_refused_in_one_line(make_model):
    model = make_model("llama", d_ff=40)
    with pytest.raises(ValueError, match=r"^int8 .* multiple of 16 long, not 40; use a --d-model and --d-ff"):
        PackedDecoder(model, DecoderConfig(precision="int8"))


@pytest.mark.parametrize(
    ("name", "size", "precision"),
    [
        ("llama-gqa", 1, "fp32"), ("llama-gqa", 3, "bf16"), ("bloom", 3, "fp32"), ("bloom-gqa", 1, "int8"),
        ("gptj", 1, "bf16"), ("gptj", 3, "int8"), ("opt", 3, "fp32"), ("gpt2-mqa", 1, "fp32"),
    ],
)  # fmt: skip
def test_the_traced_step_is_the_eager_one(name, size, precision, make_model, traced_compile):
    model = make_model(name)
    settings = {"precision": precision, "expected_batch_size": size}
    eager = PackedDecoder(model, DecoderConfig(**settings))
    traced = PackedDecoder(model, DecoderConfig(**settings, compile=True))
    rounding = CLOSE if precision == "fp32" else {"rtol": 0.05, "atol": 0.2}
    for prompts in [PROMPTS["padded"], PROMPTS["equal"]] if size > 1 else [PROMPTS["one"]]:
        torch.testing.assert_close(feed(traced, prompts), feed(eager, prompts), **rounding)


def test_one_graph_serves_all_lengths_of_a_capacity(make_model, traced_compile):
    decoder = PackedDecoder(make_model("llama", context_length=200), DecoderConfig(compile=True))
    feed(decoder, [[1, 2, 3]])
    torch._dynamo.utils.counters.clear()
    feed(decoder, [[1] * 50], num_steps=6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    assert decoder.new_cache(1, 56).capacity == 64
    assert decoder.new_cache(1, 65).capacity == 128
    assert decoder.new_cache(1, 199).capacity == 200
    with pytest.raises(ValueError, match="a cache of 201 tokens is over context_length 200"):
        decoder.new_cache(1, 201)


def test_more_batch_sizes_than_torch_compile_allows(make_model, traced_compile):
    decoder = PackedDecoder(make_model("opt", num_layers=1), DecoderConfig(compile=True, precision="fp32"))
    for size in range(1, 11):
        assert feed(decoder, [[1]] * size, 1).shape == (2, size, 53)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of torch itself
@pytest.mark.parametrize(("precision", "size"), [("int8", 1), ("bf16", 3)])
def test_generated_code_gives_the_same_tokens(precision, size, make_model, no_shape_checks):
    """Once with the real compiler: the sum of products, and the product that it does not look into."""
    model = make_model("gpt2", num_layers=1)
    settings = {"precision": precision, "expected_batch_size": size}
    rows = [
        generate(
            PackedDecoder(model, DecoderConfig(**settings, compile=compile)),
            [[3, 1, 4]] * size,
            GenerationConfig(max_new_tokens=4),
        )
        for compile in (False, True)
    ]
    assert rows[0] == rows[1]


def test_a_decoder_does_not_need_its_model(make_model):
    model = make_model("llama")
    decoder = PackedDecoder(model, DecoderConfig(precision="bf16"))
    before = feed(decoder, PROMPTS["equal"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(feed(decoder, PROMPTS["equal"]), before)
