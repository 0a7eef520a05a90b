"""The engines that generate: ours and Hugging Face's, on the same random weights, behind one interface."""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cs_systems.bench.generation_case import GenerationCase, int8_obstacle
from cs_systems.bench.generation_peer import peer_settings
from cs_systems.device import DTYPES
from cs_systems.estimator.parameters import parameter_shapes
from cs_systems.inference.decoding import Decoder, SimpleDecoder
from cs_systems.inference.engine import generate, stream
from cs_systems.inference.packed import PackedDecoder
from cs_systems.inference.settings import DecoderConfig, GenerationConfig
from cs_systems.model.config import ModelConfig
from cs_systems.model.hugging_face_weights import state_from_hugging_face
from cs_systems.model.transformer import TransformerLM

WEIGHT_STD = 0.02
"""Of the random weights of matrices; norms start as ones and biases as zeros."""

Prompts = Sequence[Sequence[int]]
OnToken = Callable[[], object]


@runtime_checkable
class Engine(Protocol):
    """Weights that are ready to generate."""

    weight_bytes: int

    def generate(self, prompts: Prompts, new_tokens: int, on_token: OnToken | None) -> list[list[int]]:
        """The greedy new tokens of each prompt.

        `on_token` is called when those of a step are on the host; without it nobody waits for a GPU before
        the end.
        """
        ...


class OurEngine:
    """One of our decoders, with a cache that all generations share."""

    def __init__(self, decoder: Decoder, weight_bytes: int) -> None:
        self.decoder, self.weight_bytes = decoder, weight_bytes
        self.cache = None

    def generate(self, prompts: Prompts, new_tokens: int, on_token: OnToken | None) -> list[list[int]]:
        """As in `Engine`; all prompts of one engine have one length."""
        config = GenerationConfig(max_new_tokens=new_tokens)
        if self.cache is None:
            self.cache = self.decoder.new_cache(len(prompts), len(prompts[0]) + new_tokens - 1)
        if on_token is None:
            return generate(self.decoder, prompts, config, self.cache)
        rows: list[list[int]] = [[] for _ in prompts]
        for tokens in stream(self.decoder, prompts, config, self.cache):
            on_token()
            for row, token in zip(rows, tokens, strict=True):
                assert token is not None  # there are no stop tokens
                row.append(token)
        return rows


class HuggingFaceEngine:
    """`generate` of a Hugging Face model, with its default cache, which grows, or a static one."""

    def __init__(self, model: Any, cache: str | None, device: torch.device) -> None:
        self.model, self.cache, self.device = model, cache, device
        tensors = {tensor.data_ptr(): tensor for tensor in model.parameters()}
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors.values())

    def generate(self, prompts: Prompts, new_tokens: int, on_token: OnToken | None) -> list[list[int]]:
        """As in `Engine`."""
        ids = torch.tensor(prompts, device=self.device)
        result = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False,
            cache_implementation=self.cache, streamer=_Ticker(on_token) if on_token else None,
        )  # fmt: skip
        return result[:, ids.shape[1] :].tolist()


class _Ticker:
    """What `generate` calls a streamer: it is given the prompt, then the tokens of each step on the host."""

    def __init__(self, on_token: OnToken) -> None:
        self.on_token, self.has_prompt = on_token, False

    def put(self, _: Tensor) -> None:
        if self.has_prompt:
            self.on_token()
        self.has_prompt = True

    def end(self) -> None:
        pass


def find_obstacle(case: GenerationCase) -> str | None:
    """Why the engine cannot run this model in this precision here; None when it can be tried."""
    engine, precision = case.workload.engine, case.workload.precision
    if engine.startswith("ours"):
        if engine == "ours-simple" and precision == "int8":
            return "ours-simple runs the model's own layers, which have no int8; use ours"
        return int8_obstacle(case.model) if precision == "int8" else None
    package = {"deepspeed": "deepspeed", "vllm": "vllm"}.get(engine, "transformers")
    if importlib.util.find_spec(package) is None:
        extra = "'cs_systems[peers]'" if package == "transformers" else package
        return f"{package} is not installed; try pip install {extra}"
    if engine == "vllm":
        return "vllm is installed, but it reads models from files only, and these weights are random"
    if precision == "int8":
        return (
            f"int8 of {engine} needs bitsandbytes and its own quantised weights, which is not measured here"
        )
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed; try pip install 'cs_systems[peers]'"
    if peer_settings(case.model) is None:
        return f"no family of Hugging Face models that is read here has the shape of {case.label}"
    return None


def load_engine(case: GenerationCase, device: torch.device) -> Engine:
    """The engine of a case with its weights: those of the same seed are the same for every engine."""
    work = case.workload
    if work.engine.startswith("ours"):
        return load_ours(case, load_model(case.model, work.seed, device))
    peer = load_peer(case.model, work.seed, DTYPES[work.precision], device)
    if work.engine == "deepspeed":
        import deepspeed  # pyright: ignore[reportMissingImports]  # of no extra: has to be installed by hand

        peer = deepspeed.init_inference(
            peer,
            dtype=DTYPES[work.precision],
            replace_with_kernel_inject=True,
            max_out_tokens=case.model.context_length,
        ).module
    return HuggingFaceEngine(peer, "static" if work.engine == "hf-static" else None, device)


def load_ours(case: GenerationCase, model: TransformerLM) -> OurEngine:
    """Our engine around an fp32 model, which is not changed."""
    work = case.workload
    if work.engine == "ours-simple":
        model = model.to(DTYPES[work.precision])
        return OurEngine(SimpleDecoder(model), sum(tensor.nbytes for tensor in model.parameters()))
    settings = DecoderConfig(
        precision=work.precision, compile=work.engine == "ours-compiled", expected_batch_size=case.batch_size
    )
    decoder = PackedDecoder(model, settings)
    return OurEngine(decoder, decoder.weight_bytes)


def load_model(config: ModelConfig, seed: int, device: torch.device) -> TransformerLM:
    """Our model in fp32 with the random weights of `seed`, if possible those of the Hugging Face model."""
    with device:
        model = TransformerLM(config)
    settings = peer_settings(config) if importlib.util.find_spec("transformers") else None
    if settings is None:
        state = random_weights(parameter_shapes(config), seed, device)
        if config.tied_embeddings:
            state["lm_head.weight"] = state["token_embeddings.weight"]
    else:
        import transformers  # of the extra `peers`

        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(**settings)
            )
        weights = random_weights(_trained_shapes(empty), seed, device)
        state = state_from_hugging_face(settings["model_type"], config, weights)
    model.load_state_dict(state)
    return model


def load_peer(config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device) -> Any:
    """The Hugging Face model with the random weights of `seed`, ready to generate greedily to the end."""
    import transformers  # of the extra `peers`

    settings = peer_settings(config)
    assert settings is not None  # `find_obstacle` said so
    transformers.logging.set_verbosity_error()
    with device:
        peer = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**settings), dtype=dtype
        )
    peer.eval()
    weights = random_weights(_trained_shapes(peer), seed, device)
    missing = peer.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    peer.generation_config.eos_token_id, peer.generation_config.pad_token_id = None, 0
    return peer


def _trained_shapes(peer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in peer.named_parameters()}


def random_weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int, device: torch.device
) -> dict[str, Tensor]:
    """fp32 weights by name: matrices drawn in the order of `shapes`, norms of ones, biases of zeros."""
    generator = torch.Generator(device).manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            state[name] = WEIGHT_STD * torch.randn(shape, generator=generator, device=device)
        else:
            state[name] = torch.full(shape, float(name.endswith("weight")), device=device)
    return state


def timed_generate(
    engine: Engine, prompts: Prompts, new_tokens: int
) -> tuple[list[list[int]], float, list[float]]:
    """The new tokens, when the generation began, and when the tokens of each step were on the host."""
    ticks: list[float] = []
    start = time.perf_counter()
    rows = engine.generate(prompts, new_tokens, lambda: ticks.append(time.perf_counter()))
    return rows, start, ticks
