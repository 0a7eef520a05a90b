"""Generation as a whole: lengths, stop tokens, streaming, text, and what is refused."""

import pytest
import torch

from cs_systems.inference.decoding import Decoder, SimpleDecoder
from cs_systems.inference.engine import generate, generate_text, stream
from cs_systems.inference.packed import PackedDecoder
from cs_systems.inference.settings import DecoderConfig, GenerationConfig
from cs_systems.inference.tokenizer import ByteTokenizer

PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]


@pytest.fixture(params=["simple", "packed"])
def decoder(request, make_model):
    model = make_model("llama")
    fast = DecoderConfig(precision="fp32")
    return SimpleDecoder(model) if request.param == "simple" else PackedDecoder(model, fast)


def greedy(model, prompt, num_new):
    """The most probable token, again and again, from the whole sequence each time."""
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_tokens_are_those_of_the_model_without_a_cache(decoder, make_model):
    assert isinstance(decoder, Decoder)
    model = make_model("llama")
    rows = generate(decoder, PROMPTS, GenerationConfig(max_new_tokens=7))
    assert rows == [greedy(model, prompt, 7) for prompt in PROMPTS]


@pytest.mark.parametrize("num_new", [0, 1, 2])
def test_few_new_tokens(num_new, decoder):
    config = GenerationConfig(max_new_tokens=num_new)
    longer = generate(decoder, PROMPTS, GenerationConfig(max_new_tokens=4))
    assert generate(decoder, PROMPTS, config) == [row[:num_new] for row in longer]
    assert len(list(stream(decoder, PROMPTS, config))) == num_new


def test_the_context_may_be_filled_to_the_last_token(decoder):
    full = decoder.config.context_length
    assert len(generate(decoder, [[1] * (full - 3)], GenerationConfig(max_new_tokens=3))[0]) == 3
    assert len(generate(decoder, [[1] * full], GenerationConfig(max_new_tokens=0))) == 1


def test_a_sequence_ends_with_its_first_stop_token(decoder):
    free = generate(decoder, PROMPTS, GenerationConfig(max_new_tokens=9))
    stop = (free[0][2], free[1][5])
    expected = []
    for row in free:
        end = min((i + 1 for i, token in enumerate(row) if token in stop), default=len(row))
        expected.append(row[:end])
    config = GenerationConfig(max_new_tokens=9, stop_tokens=stop)
    assert generate(decoder, PROMPTS, config) == expected
    steps = list(stream(decoder, PROMPTS, config))
    assert len(steps) == max(map(len, expected)) < 9  # nothing is computed once all have stopped
    for row, kept in enumerate(expected):
        tokens = [step[row] for step in steps]
        assert tokens == kept + [None] * (len(steps) - len(kept))


def test_streamed_tokens_are_those_generated_at_once(decoder):
    config = GenerationConfig(max_new_tokens=6, temperature=1.5, seed=4)
    steps = stream(decoder, PROMPTS, config)
    first = next(steps)
    rows = [list(row) for row in zip(first, *steps, strict=True)]
    assert rows == generate(decoder, PROMPTS, config)
    assert rows != generate(decoder, PROMPTS, GenerationConfig(max_new_tokens=6, temperature=1.5, seed=5))


def test_a_cache_is_used_again(decoder):
    config = GenerationConfig(max_new_tokens=5)
    cache = decoder.new_cache(2, 20)
    expected = [generate(decoder, prompts, config) for prompts in (PROMPTS, [[1], [2, 3]])]
    assert [generate(decoder, prompts, config, cache) for prompts in (PROMPTS, [[1], [2, 3]])] == expected
    with pytest.raises(ValueError, match="1 prompts do not fit a cache for 2"):
        generate(decoder, [[1]], config, cache)
    with pytest.raises(ValueError, match="too full for 1 more"):
        generate(decoder, PROMPTS, config, decoder.new_cache(2, 8))


@pytest.mark.parametrize(
    ("prompts", "num_new", "message"),
    [
        ([], 1, "^there is no prompt; "),
        ([[1], []], 1, "^prompt 1 is empty; give at least one token"),
        ([[1], [1] * 41], 1, "^prompt 1 has 41 tokens, over context_length 40; shorten it$"),
        ([[1] * 30], 11, "^30 prompt tokens and 11 new ones are over context_length 40; use .* 10 or less"),
        ([[1, 53]], 1, "^prompt 0 holds token 53, outside the vocabulary of 53; use the tokenizer"),
        ([[-1, 2]], 1, "^prompt 0 holds token -1, outside"),
    ],
)  # fmt: skip
def test_bad_prompts_are_refused_in_one_line(prompts, num_new, message, decoder):
    config = GenerationConfig(max_new_tokens=num_new)
    for run in (lambda: generate(decoder, prompts, config), lambda: list(stream(decoder, prompts, config))):
        with pytest.raises(ValueError, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stop_tokens", [(), (0,)])
@pytest.mark.parametrize("kind", ["simple", "packed"])
def test_nan_logits_are_an_error_that_says_where(kind, stop_tokens, make_model):
    model = make_model("gpt2", tied_embeddings=False)
    with torch.no_grad():
        model.position_embeddings.weight[6] = float("nan")
    decoder = (
        SimpleDecoder(model) if kind == "simple" else PackedDecoder(model, DecoderConfig(precision="fp32"))
    )
    config = GenerationConfig(max_new_tokens=8, stop_tokens=stop_tokens)
    prompts = [[1], [1, 2, 3, 4, 5]]
    with pytest.raises(
        ValueError, match=r"logits of prompt 1 are nan at new token 2: .*try --precision bf16"
    ):
        generate(decoder, prompts, config)
    assert generate(decoder, prompts, GenerationConfig(max_new_tokens=2, stop_tokens=stop_tokens))


def test_text_in_text_out(make_model):
    decoder = SimpleDecoder(make_model("llama", vocab_size=256))
    tokenizer = ByteTokenizer()
    config = GenerationConfig(max_new_tokens=6)
    texts = ["héllo", "a"]
    rows = generate(decoder, [list(text.encode()) for text in texts], config)
    assert generate_text(decoder, tokenizer, texts, config) == [
        bytes(row).decode(errors="replace") for row in rows
    ]
    stopping = GenerationConfig(max_new_tokens=6, stop_tokens=(rows[0][0], rows[1][0]))
    assert generate_text(decoder, tokenizer, texts, stopping) == ["", ""]
