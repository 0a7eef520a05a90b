"""The language model and its loss, replayed on tensors without data.

This follows cs_systems.model line by line, because what is alive depends on which variable still refers to it:
a local that stays in use there stays in use here. Nothing is computed, so 175 billion parameters take a second.
"""

import contextlib
from collections.abc import Iterator

from cs_systems.estimator.parameters import parameter_shapes
from cs_systems.estimator.products import Eager
from cs_systems.estimator.tape import Checkpoint, Leaf, StopRecomputation
from cs_systems.estimator.tensors import Tensor
from cs_systems.model.config import ModelConfig

Rotation = tuple[Tensor, Tensor]


class Replay:
    """A model on a tape, with its parameters and buffers allocated as building it does."""

    def __init__(self, config: ModelConfig, tape: Eager, param_dtype: str, attention: str) -> None:
        self.config, self.tape, self.attention = config, tape, attention
        self.parameters: dict[str, Tensor] = {}
        for name, shape in parameter_shapes(config).items():
            weight = tape.new(shape, param_dtype, name, role="parameters")
            weight.node = Leaf()
            self.parameters[name] = weight
        self.buffers: dict[str, Tensor] = {}
        if config.position == "rope":
            table = config.context_length, config.rotary_dim // 2
            for name in ("rope_cos", "rope_sin"):
                self.buffers[name] = tape.new(table, "fp32", name, role="buffers")
        elif config.position == "alibi":
            self.buffers["alibi_slopes"] = tape.new((config.num_heads,), "fp32", "slopes", role="buffers")

    def loss(self, token_ids: Tensor, targets: Tensor, blocks_per_checkpoint: int) -> Tensor:
        """Forward pass and cross-entropy, as in a training step."""
        return self._cross_entropy(self._model(token_ids, blocks_per_checkpoint), targets)

    def _model(self, token_ids: Tensor, blocks_per_checkpoint: int) -> Tensor:
        """`TransformerLM.forward`: the logits."""
        tape, config = self.tape, self.config
        seq = token_ids.shape[1]
        x = self._embedding("token_embeddings", token_ids)
        rotation = bias = None
        if config.position == "learned":
            positions = tape.new((1, seq), "int64", "positions")
            rows = self._embedding("position_embeddings", tape.shift(positions, "positions + offset"))
            x = tape.add(x, rows, "token + position")
            del rows
        elif config.position == "rope":
            pairs = config.rotary_dim // 2
            cos, sin = self.buffers["rope_cos"], self.buffers["rope_sin"]
            rotation = cos.view((seq, pairs), (pairs, 1)), sin.view((seq, pairs), (pairs, 1))
        else:
            bias = self._alibi_bias(seq)
        if config.embedding_norm:
            x = self._norm("embedding_norm", x)
        if blocks_per_checkpoint and tape.grad:
            x = self._run_checkpointed(x, rotation, bias, blocks_per_checkpoint)
        else:
            x = self._run_in_order(range(config.num_layers), x, rotation, bias)
        logits = self._linear("lm_head", self._norm("ln_final", x), "logits")
        logits.storage.set_role("logits")
        return logits

    def _run_in_order(
        self, blocks: range, x: Tensor, rotation: Rotation | None, bias: Tensor | None
    ) -> Tensor:
        """`transformer.run_in_order` for the blocks of these numbers."""
        for block in blocks:
            with self._scope(f"layers.{block}"):
                x = self._block(x, rotation, bias)
        return x

    def _run_checkpointed(
        self, x: Tensor, rotation: Rotation | None, bias: Tensor | None, blocks_per_checkpoint: int
    ) -> Tensor:
        """`apply.run_checkpointed`: a group of blocks keeps its inputs and runs again in backward."""
        tape, num_layers = self.tape, self.config.num_layers
        for start in range(0, num_layers, blocks_per_checkpoint):
            group = range(start, min(start + blocks_per_checkpoint, num_layers))

            def recompute(checkpoint: Checkpoint, group: range = group) -> None:
                scope, tape.scope = tape.scope, ""
                tape.checkpoint, tape.is_recomputing, tape.grad = checkpoint, True, True
                with contextlib.suppress(StopRecomputation):
                    inputs = checkpoint.inputs
                    self._run_in_order(group, inputs["x"], rotation, inputs.get("bias"))
                tape.checkpoint, tape.is_recomputing, tape.grad, tape.scope = None, False, False, scope
                tape.cast_cache.clear()

            tape.checkpoint = Checkpoint({"x": x} if bias is None else {"x": x, "bias": bias}, recompute)
            x = self._run_in_order(group, x, rotation, bias)
            tape.checkpoint = None
        return x

    def _block(self, x: Tensor, rotation: Rotation | None, bias: Tensor | None) -> Tensor:
        """`TransformerBlock.forward`."""
        tape = self.tape
        normed = self._norm("ln1", x)
        x = tape.add(x, self._self_attention(normed, rotation, bias), "stream after attention")
        if self.config.residual == "parallel":
            return tape.add(x, self._feed_forward(normed), "stream after block")
        return tape.add(x, self._feed_forward(self._norm("ln2", x)), "stream after block")

    def _norm(self, module: str, x: Tensor) -> Tensor:
        """`RMSNorm.forward` or `LayerNorm.forward`."""
        tape = self.tape
        with self._scope(module):
            wide = tape.cast(x, "fp32", "input in fp32")
            if self.config.norm == "rmsnorm":
                mean = tape.mean(tape.square(wide, "square"))
                inverse_rms = tape.from_result("rsqrt", tape.shift(mean, "mean + eps"), "1 / rms")
                del mean
                out = tape.mul(tape.mul(wide, inverse_rms, "input / rms"), self._weight("weight"), "output")
                return tape.cast(out, x.dtype, "output in the input's type")
            centred = tape.sub(wide, tape.mean(wide), "centred input")
            variance = tape.mean(tape.square(centred, "square"))
            inverse_std = tape.from_result("rsqrt", tape.shift(variance, "variance + eps"), "1 / std")
            del variance
            out = tape.addcmul(
                self._weight("bias"),
                tape.mul(centred, inverse_std, "centred input / std"),
                self._weight("weight"),
                "output",
            )
            return tape.cast(out, x.dtype, "output in the input's type")

    def _embedding(self, module: str, ids: Tensor) -> Tensor:
        """`Embedding.forward`."""
        with self._scope(module):
            return self.tape.embedding(ids, self._weight("weight"), "output")

    def _linear(self, module: str, x: Tensor, name: str) -> Tensor:
        """`Linear.forward`."""
        with self._scope(module):
            weight = self._weight("weight")
            if f"{self.tape.scope}.bias" in self.parameters:
                return self.tape.linear_with_bias(x, weight, self._weight("bias"), name)
            return self.tape.linear(x, weight, name)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """`FeedForward.forward`."""
        tape, activation = self.tape, self.config.activation
        with self._scope("ffn"):
            if activation == "swiglu":
                gate = tape.from_input("silu", self._linear("w1", x, "gate"), "silu(gate)")
                hidden = tape.mul(gate, self._linear("w3", x, "up"), "silu(gate) * up")
                del gate
            elif activation == "relu":
                hidden = tape.from_result("relu", self._linear("w1", x, "hidden"), "relu(hidden)")
            else:
                hidden = tape.from_input("gelu", self._linear("w1", x, "hidden"), "gelu(hidden)")
            return self._linear("w2", hidden, "output")

    def _self_attention(self, x: Tensor, rotation: Rotation | None, bias: Tensor | None) -> Tensor:
        """`SelfAttention.forward`."""
        config = self.config
        with self._scope("attn"):
            q = self._split_heads(self._linear("q_proj", x, "q"), config.num_heads)
            k = self._split_heads(self._linear("k_proj", x, "k"), config.num_kv_heads)
            v = self._split_heads(self._linear("v_proj", x, "v"), config.num_kv_heads)
            if rotation is not None:
                q, k = self._rotate(q, rotation, "rotated q"), self._rotate(k, rotation, "rotated k")
            attend = self._naive_attention if self.attention == "naive" else self._sdpa_attention
            heads = attend(q, k, v, bias)
            joined = self.tape.reshape(self.tape.permute(heads, (0, 2, 1, 3)), x.shape)
            return self._linear("output_proj", joined, "output")

    def _split_heads(self, x: Tensor, num_heads: int) -> Tensor:
        """Rearrange "b s (h d) -> b h s d"."""
        split = self.tape.reshape(x, (*x.shape[:2], num_heads, self.config.d_head))
        return self.tape.permute(split, (0, 2, 1, 3))

    def _rotate(self, x: Tensor, rotation: Rotation, name: str) -> Tensor:
        """`functional.apply_rope`."""
        tape = self.tape
        cos, _ = rotation
        rotary_dim = 2 * cos.shape[-1]
        rotated = tape.narrow(x, rotary_dim)
        rest = tape.narrow(x, x.shape[-1] - rotary_dim) if rotary_dim < x.shape[-1] else None
        wide = tape.cast(rotated, "fp32", "input of rope in fp32")
        if any(stride % 2 for stride in wide.strides[:-1]):
            wide = tape.clone(wide, "even copy")
        turned = tape.mul(tape.as_complex(wide), tape.new(cos.shape, "complex64", "cos + i sin"), name)
        rotated = tape.cast(tape.as_real(turned), x.dtype, name)
        del turned
        return rotated if rest is None else tape.concatenate(rotated, rest, name)

    def _naive_attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """`attention.naive_attention`."""
        tape = self.tape
        batch, kv_heads, keys, d_head = k.shape
        heads, queries = q.shape[1:3]
        stacked_queries = heads // kv_heads * queries
        split = tape.reshape(tape.scale(q, "scaled q"), (batch, kv_heads, heads // kv_heads, queries, d_head))
        stacked = tape.reshape(split, (batch, kv_heads, stacked_queries, d_head))
        del split
        products = tape.matmul(stacked, tape.transpose(k), "scores")
        scores = tape.reshape(products, (batch, heads, queries, keys))
        del products
        if bias is not None:
            scores = tape.add(scores, bias, "biased scores")
        else:
            ones = tape.new((queries, keys), "bool", "ones")
            later = tape.new((queries, keys), "bool", "causal mask")
            del ones
            scores = tape.masked_fill(scores, later, "masked scores")
        weights = tape.reshape(self._softmax(scores), (batch, kv_heads, stacked_queries, keys))
        out = tape.matmul(tape.cast(weights, v.dtype, f"weights in {v.dtype}"), v, "output per head")
        return tape.reshape(out, q.shape)

    def _softmax(self, x: Tensor) -> Tensor:
        """`functional.softmax` over the last axis."""
        tape = self.tape
        exponentials = tape.from_result("exp", tape.sub(x, tape.amax(x), "scores - maximum"), "exponentials")
        return tape.div(exponentials, tape.sum(exponentials, keep_axis=True, name="row sums"), "weights")

    def _sdpa_attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """`attention.sdpa_attention`."""
        if bias is not None:
            bias = self.tape.cast(bias, q.dtype, f"bias in {q.dtype}")
        return self.tape.fused_attention(q, k, v, bias, "output per head")

    def _alibi_bias(self, seq: int) -> Tensor:
        """`functional.alibi_bias`."""
        tape, num_heads = self.tape, self.config.num_heads
        with self._scope("alibi"):
            position = tape.new((seq,), "int64", "position")
            distance = tape.new((seq, seq), "int64", "distance")
            slopes = self.buffers["alibi_slopes"].view((num_heads, 1, 1), (1, 1, 1))
            bias = tape.mul(slopes, distance, "slope * distance")
            later = tape.new((seq, seq), "bool", "later")
            masked = tape.masked_fill(bias, later, "bias")
            del position
            return masked

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`functional.cross_entropy`."""
        tape = self.tape
        num_tokens = targets.shape[0] * targets.shape[1]
        with self._scope("loss"):
            wide = tape.cast(logits, "fp32", "logits in fp32")
            wide = tape.reshape(wide, (num_tokens, wide.shape[-1]))
            shifted = tape.sub(wide, tape.amax(wide), "logits - maximum")
            sums = tape.sum(tape.from_result("exp", shifted, "exponentials"), keep_axis=False, name="sums")
            log_sum_exp = tape.from_input("log", sums, "log-sum-exp")
            del sums
            rows = tape.new((num_tokens,), "int64", "row numbers")
            is_valid = tape.new((num_tokens,), "bool", "is valid")
            ids = tape.new((num_tokens,), "int64", "checked targets")
            del is_valid
            chosen = tape.index(shifted, rows, ids, "logits of targets")
            return tape.mean_of_all(tape.sub(log_sum_exp, chosen, "losses"), "loss")

    @contextlib.contextmanager
    def _scope(self, name: str) -> Iterator[None]:
        """Allocations inside are named under `name`, and `_weight` looks there."""
        before = self.tape.scope
        self.tape.scope = f"{before}.{name}" if before else name
        yield
        self.tape.scope = before

    def _weight(self, name: str) -> Tensor:
        """The parameter `name` of the module whose scope is open."""
        path = f"{self.tape.scope}.{name}"
        if path == "lm_head.weight" and self.config.tied_embeddings:
            path = "token_embeddings.weight"
        return self.parameters[path]
