"""The language model, its loss and its optimizer, replayed on tensors without data.

This follows cs_systems.model line by line, because what is alive depends on which variable still refers to it:
where a local stays in use there, it stays here. Nothing is computed, so a 175-billion model takes a second.
"""

import contextlib
import math
from collections.abc import Iterator

from cs_systems.estimator.parameters import parameter_shapes
from cs_systems.estimator.products import Products
from cs_systems.estimator.tape import Checkpoint, Leaf, StopRecomputation
from cs_systems.estimator.tensors import Tensor
from cs_systems.model.config import ModelConfig

Rotation = tuple[Tensor, Tensor]


class Replay:
    """A model on a tape. `parameters` and `buffers` are allocated at once, as building the model does."""

    def __init__(self, config: ModelConfig, tape: Products, param_dtype: str, attention: str) -> None:
        self.config, self.tape, self.attention_name = config, tape, attention
        self.parameters: dict[str, Tensor] = {}
        for name, shape in parameter_shapes(config).items():
            weight = tape.new(shape, param_dtype, name, role="parameters")
            weight.node = Leaf(name)
            self.parameters[name] = weight
        self.buffers: dict[str, Tensor] = {}
        if config.position == "rope":
            table = config.context_length, config.rotary_dim // 2
            for name in ("rope_cos", "rope_sin"):
                self.buffers[name] = tape.new(table, "fp32", name, role="buffers")
        elif config.position == "alibi":
            self.buffers["slopes"] = tape.new((config.num_heads,), "fp32", "slopes", role="buffers")

    # -- model.transformer ------------------------------------------------------------------------------

    def model(self, token_ids: Tensor, checkpoint_blocks: int) -> Tensor:
        """`TransformerLM.forward`: logits."""
        tape, config = self.tape, self.config
        seq = token_ids.shape[1]
        x = self.embedding("token_embeddings", token_ids)
        rotation = bias = None
        if config.position == "learned":
            positions = tape.new((1, seq), "int64", "positions")
            rows = self.embedding("position_embeddings", tape.shift(positions, "positions"))
            x = tape.add(x, rows, "residual stream")
            del rows
        elif config.position == "rope":
            pairs = config.rotary_dim // 2
            cos, sin = self.buffers["rope_cos"], self.buffers["rope_sin"]
            rotation = cos.view((seq, pairs), (pairs, 1)), sin.view((seq, pairs), (pairs, 1))
        else:
            bias = self.alibi_bias(seq)
        if config.embedding_norm:
            x = self.norm("embedding_norm", x)
        x = self.run_checkpointed(x, rotation, bias, checkpoint_blocks) if checkpoint_blocks else (
            self.run_in_order(range(config.num_layers), x, rotation, bias)
        )
        normed = self.norm("ln_final", x)
        return self.linear("lm_head", normed, "logits")

    def run_in_order(
        self, blocks: range, x: Tensor, rotation: Rotation | None, bias: Tensor | None
    ) -> Tensor:
        """`transformer.run_in_order` for the blocks of these numbers."""
        for block in blocks:
            with self.scope(f"layers.{block}"):
                x = self.block(x, rotation, bias)
        return x

    def run_checkpointed(
        self, x: Tensor, rotation: Rotation | None, bias: Tensor | None, blocks_per_checkpoint: int
    ) -> Tensor:
        """`apply.run_checkpointed`: each group keeps its inputs and is run again in backward."""
        tape, num_layers = self.tape, self.config.num_layers
        for start in range(0, num_layers, blocks_per_checkpoint):
            group = range(start, min(start + blocks_per_checkpoint, num_layers))
            if not tape.grad:
                x = self.run_in_order(group, x, rotation, bias)
                continue
            inputs = {"x": x} if bias is None else {"x": x, "bias": bias}

            def recompute(checkpoint: Checkpoint, group: range = group) -> None:
                checkpoint.recomputed = {}
                scope, grad = tape.scope, tape.grad
                tape.checkpoint, tape.is_recomputing, tape.grad = checkpoint, True, True
                try:
                    kept = checkpoint.inputs
                    self.run_in_order(group, kept["x"], rotation, kept.get("bias"))
                except StopRecomputation:
                    pass
                tape.checkpoint, tape.is_recomputing, tape.grad, tape.scope = None, False, grad, scope

            tape.checkpoint = Checkpoint(inputs, recompute)
            x = self.run_in_order(group, x, rotation, bias)
            tape.checkpoint = None
        return x

    def block(self, x: Tensor, rotation: Rotation | None, bias: Tensor | None) -> Tensor:
        """`TransformerBlock.forward`."""
        tape = self.tape
        normed = self.norm("ln1", x)
        if self.config.residual == "parallel":
            x = tape.add(x, self.self_attention(normed, rotation, bias), "residual stream")
            return tape.add(x, self.feed_forward(normed), "residual stream")
        x = tape.add(x, self.self_attention(normed, rotation, bias), "residual stream after attention")
        return tape.add(x, self.feed_forward(self.norm("ln2", x)), "residual stream")

    # -- model.layers -----------------------------------------------------------------------------------

    def norm(self, module: str, x: Tensor) -> Tensor:
        """`RMSNorm.forward` or `LayerNorm.forward`."""
        tape = self.tape
        with self.scope(module):
            weight = self.weight("weight")
            wide = tape.cast(x, "fp32", "input in fp32")
            if self.config.norm == "rmsnorm":
                inverse_rms = tape.rsqrt(tape.shift(tape.mean(tape.square(wide))), "1 / rms")
                scaled = tape.mul(wide, inverse_rms, "input / rms")
                return tape.cast(tape.mul(scaled, weight, "output"), x.dtype, "output")
            centred = tape.sub(wide, tape.mean(wide), "centred input")
            inverse_std = tape.rsqrt(tape.shift(tape.mean(tape.square(centred))), "1 / std")
            scaled = tape.mul(centred, inverse_std, "centred input / std")
            return tape.cast(tape.addcmul(self.weight("bias"), scaled, weight, "output"), x.dtype, "output")

    def embedding(self, module: str, ids: Tensor) -> Tensor:
        """`Embedding.forward`."""
        with self.scope(module):
            return self.tape.embedding(ids, self.weight("weight"), "output")

    def linear(self, module: str, x: Tensor, name: str) -> Tensor:
        """`Linear.forward`."""
        with self.scope(module):
            weight = self.weight("weight")
            if self.has_weight("bias"):
                return self.tape.linear_with_bias(x, weight, self.weight("bias"), name)
            return self.tape.linear(x, weight, name)

    def feed_forward(self, x: Tensor) -> Tensor:
        """`FeedForward.forward`."""
        tape = self.tape
        with self.scope("ffn"):
            match self.config.activation:
                case "swiglu":
                    gate = tape.from_input("silu", self.linear("w1", x, "w1 output"), "silu(w1)", "derivative of silu")
                    hidden = tape.mul(gate, self.linear("w3", x, "w3 output"), "silu(w1) * w3")
                    del gate
                case "relu":
                    hidden = tape.relu(self.linear("w1", x, "w1 output"), "relu(w1)")
                case _:
                    hidden = tape.from_input(
                        "gelu", self.linear("w1", x, "w1 output"), "gelu(w1)", "derivative of gelu"
                    )
            return self.linear("w2", hidden, "output")

    # -- model.attention --------------------------------------------------------------------------------

    def self_attention(self, x: Tensor, rotation: Rotation | None, bias: Tensor | None) -> Tensor:
        """`SelfAttention.forward`."""
        config = self.config
        with self.scope("attn"):
            q = self.split_heads(self.linear("q_proj", x, "q"), config.num_heads)
            k = self.split_heads(self.linear("k_proj", x, "k"), config.num_kv_heads)
            v = self.split_heads(self.linear("v_proj", x, "v"), config.num_kv_heads)
            if rotation is not None:
                q, k = self.apply_rope(q, rotation, "rotated q"), self.apply_rope(k, rotation, "rotated k")
            attend = self.naive_attention if self.attention_name == "naive" else self.sdpa_attention
            heads = attend(q, k, v, bias)
            batch, _, seq, _ = heads.shape
            merged = self.tape.reshape(self.tape.permute(heads, (0, 2, 1, 3)), (batch, seq, config.d_model))
            return self.linear("output_proj", merged, "output")

    def split_heads(self, x: Tensor, num_heads: int) -> Tensor:
        """Rearrange "b s (h d) -> b h s d"."""
        split = self.tape.reshape(x, (*x.shape[:2], num_heads, self.config.d_head))
        return self.tape.permute(split, (0, 2, 1, 3))

    def apply_rope(self, x: Tensor, rotation: Rotation, name: str) -> Tensor:
        """`functional.apply_rope`."""
        tape = self.tape
        cos, _ = rotation
        rotary_dim = 2 * cos.shape[-1]
        rotated = tape.slice_last(x, rotary_dim)
        rest = tape.slice_last(x, x.shape[-1] - rotary_dim) if rotary_dim < x.shape[-1] else None
        wide = tape.cast(rotated, "fp32", "input in fp32")
        if any(stride % 2 for stride in wide.strides[:-1]):
            wide = tape.contiguous(wide)
        turn = tape.new(cos.shape, "complex64", "cos + i sin")
        turned = tape.mul(tape.as_complex(wide), turn, name)
        rotated = tape.cast(tape.as_real(turned), x.dtype, name)
        return rotated if rest is None else tape.concatenate(rotated, rest, name)

    def naive_attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """`attention.naive_attention`."""
        tape = self.tape
        batch, kv_heads, keys, _ = k.shape
        heads, queries = q.shape[1:3]
        group = heads // kv_heads
        stacked = tape.reshape(
            tape.reshape(tape.scale(q, "scaled q"), (batch, kv_heads, group, queries, q.shape[3])),
            (batch, kv_heads, group * queries, q.shape[3]),
        )
        scores = tape.reshape(
            tape.matmul(stacked, tape.transpose(k), "scores"), (batch, heads, queries, keys)
        )
        if bias is not None:
            scores = tape.add(scores, bias, "biased scores")
        else:
            ones = tape.new((queries, keys), "bool", "ones")
            later = tape.new((queries, keys), "bool", "causal mask")
            del ones
            scores = tape.masked_fill(scores, later, "masked scores")
        weights = tape.reshape(self.softmax(scores), (batch, kv_heads, group * queries, keys))
        out = tape.matmul(tape.cast(weights, v.dtype, "weights"), v, "output")
        return tape.reshape(out, q.shape)

    def softmax(self, x: Tensor) -> Tensor:
        """`functional.softmax` over the last axis."""
        tape = self.tape
        exponentials = tape.exp(tape.sub(x, tape.amax(x)))
        return tape.div(exponentials, tape.sum(exponentials, keep_axis=True, name="row sums"), "weights")

    def sdpa_attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """`attention.sdpa_attention`."""
        if bias is not None:
            bias = self.tape.cast(bias, q.dtype, "bias")
        return self.tape.fused_attention(q, k, v, bias)

    def alibi_bias(self, seq: int) -> Tensor:
        """`functional.alibi_bias`."""
        tape = self.tape
        position = tape.new((seq,), "int64", "position")
        distance = tape.new((seq, seq), "int64", "distance")
        slopes = self.buffers["slopes"]
        bias = tape.mul(slopes.view((self.config.num_heads, 1, 1), (1, 1, 1)), distance, "bias")
        later = tape.new((seq, seq), "bool", "later")
        biased = tape.masked_fill(bias, later, "alibi bias")
        del position
        return biased

    # -- model.functional: the loss ---------------------------------------------------------------------

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`functional.cross_entropy`."""
        tape = self.tape
        with self.scope("loss"):
            wide = tape.cast(logits, "fp32", "logits in fp32")
            num_tokens = math.prod(targets.shape)
            wide = tape.reshape(wide, (num_tokens, wide.shape[-1]))
            shifted = tape.sub(wide, tape.amax(wide), "logits - maximum")
            sums = tape.sum(tape.exp(shifted, "exponentials of logits"), keep_axis=False, name="sums")
            log_sum_exp = tape.from_input("log", sums, "log-sum-exp", "derivative of log")
            rows = tape.new((num_tokens,), "int64", "row numbers")
            chosen = tape.index(shifted, rows, targets.view((num_tokens,), (1,)))
            return tape.mean_of_all(tape.sub(log_sum_exp, chosen))

    # -- names ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Allocations inside are named under `name`, and parameters are found there."""
        before = self.tape.scope
        self.tape.scope = f"{before}.{name}" if before else name
        yield
        self.tape.scope = before

    def weight(self, name: str) -> Tensor:
        """The parameter `name` of the module whose scope is open."""
        path = f"{self.tape.scope}.{name}"
        if path == "lm_head.weight" and self.config.tied_embeddings:
            path = "token_embeddings.weight"
        return self.parameters[path]

    def has_weight(self, name: str) -> bool:
        """Whether the module whose scope is open has a parameter `name`."""
        return f"{self.tape.scope}.{name}" in self.parameters
