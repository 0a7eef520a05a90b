"""The seam between the graded tests and an implementation: one function for each thing that is tested.

The tests know nothing of your code but these functions, so arrange your code as you like and let each of
them build what it needs, hand over the arguments, and return the result. Compute nothing else here. To have
another package tested, write a module with the same functions and name it:

    CS_SYSTEMS_ADAPTERS=my_package.adapters pytest tests/graded

Names and meanings are those of the course. Weights are stored as (out, in), embeddings as (vocab, d_model).
Arguments are left as they were. What a function returns has the dtype and the device of its first tensor,
unless its docstring says otherwise. What you do not have yet raises NotImplementedError, and only its own
problem goes without points.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# --- The model --------------------------------------------------------------------------------------------


def run_linear(
    d_in: int, d_out: int, weights: Float[Tensor, "d_out d_in"], in_features: Float[Tensor, "... d_in"]
) -> Float[Tensor, "... d_out"]:
    """Multiply the last axis by a weight, without bias, whatever axes stand before it.

    For example, weights [[1, 2]] and in_features [3, 4] give [11].
    """
    # BEGIN SOLUTION linear
    from cs_systems.model.layers import Linear

    return _load(Linear(d_in, d_out), {"weight": weights})(in_features)
    # END SOLUTION


def run_embedding(
    vocab_size: int,
    d_model: int,
    weights: Float[Tensor, "vocab_size d_model"],
    token_ids: Int[Tensor, "..."],
) -> Float[Tensor, "... d_model"]:
    """Look up one row of `weights` for each id.

    For example, weights [[1, 2], [3, 4]] and token_ids [1, 0] give [[3, 4], [1, 2]].
    """
    # BEGIN SOLUTION embedding
    from cs_systems.model.layers import Embedding

    return _load(Embedding(vocab_size, d_model), {"weight": weights})(token_ids)
    # END SOLUTION


def run_rmsnorm(
    d_model: int, eps: float, weights: Float[Tensor, " d_model"], in_features: Float[Tensor, "... d_model"]
) -> Float[Tensor, "... d_model"]:
    """x / sqrt(mean(x^2) + eps) * weights over the last axis, computed in fp32, returned in the dtype of x.

    For example, weights [1, 1], eps 0 and in_features [3, 4] give [0.8485, 1.1314].
    """
    # BEGIN SOLUTION rmsnorm
    from cs_systems.model.layers import RMSNorm

    return _load(RMSNorm(d_model, eps), {"weight": weights})(in_features)
    # END SOLUTION


def run_silu(in_features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x * sigmoid(x) of each element.

    For example, in_features [0, 1] give [0, 0.7311].
    """
    # BEGIN SOLUTION swiglu
    return torch.nn.functional.silu(in_features)
    # END SOLUTION


def run_swiglu(
    d_model: int,
    d_ff: int,
    w1_weight: Float[Tensor, "d_ff d_model"],
    w2_weight: Float[Tensor, "d_model d_ff"],
    w3_weight: Float[Tensor, "d_ff d_model"],
    in_features: Float[Tensor, "... d_model"],
) -> Float[Tensor, "... d_model"]:
    """W2 (silu(W1 x) * (W3 x)): the feed-forward layer, without biases.

    For example, w1 [[1]], w3 [[2]], w2 [[3]] and in_features [1] give [4.3864].
    """
    # BEGIN SOLUTION swiglu
    from cs_systems.model.layers import FeedForward

    config = _model_config(d_model=d_model, d_ff=d_ff, position="learned")
    state = {"w1.weight": w1_weight, "w2.weight": w2_weight, "w3.weight": w3_weight}
    return _load(FeedForward(config), state)(in_features)
    # END SOLUTION


def run_rope(
    d_k: int,
    theta: float,
    max_seq_len: int,
    in_query_or_key: Float[Tensor, "*batch seq d_k"],
    token_positions: Int[Tensor, "#*batch seq"],
) -> Float[Tensor, "*batch seq d_k"]:
    """Turn each pair of channels (2i, 2i + 1), in and out, by the angle position / theta^(2i / d_k).

    Leading axes of token_positions are those of in_query_or_key, or broadcast to them, as (1, seq) does.

    For example, d_k 2, in_query_or_key [[1, 0]] and token_positions [1] give [[cos 1, sin 1]].
    """
    # BEGIN SOLUTION rope
    from cs_systems.model.functional import apply_rope, rope_tables

    cos, sin = (table.to(in_query_or_key.device) for table in rope_tables(max_seq_len, d_k, theta))
    return apply_rope(in_query_or_key, cos[token_positions], sin[token_positions])
    # END SOLUTION


def run_softmax(in_features: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """exp(x_i) / sum_j exp(x_j) along `dim`, also where exp(x_i) alone would overflow.

    For example, in_features [1000, 1000] and dim 0 give [0.5, 0.5].
    """
    # BEGIN SOLUTION softmax
    from cs_systems.model.functional import softmax

    return softmax(in_features, dim)
    # END SOLUTION


def run_cross_entropy(
    inputs: Float[Tensor, "batch vocab_size"], targets: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Mean over the batch of -log(softmax(inputs)[target]), in nats, also for logits of thousands.

    Computed and returned in fp32 for 16-bit logits.

    For example, inputs [[0, 0]] and targets [1] give 0.6931.
    """
    # BEGIN SOLUTION cross_entropy
    from cs_systems.model.functional import cross_entropy

    return cross_entropy(inputs, targets)
    # END SOLUTION


def run_scaled_dot_product_attention(
    Q: Float[Tensor, "... queries d_k"],
    K: Float[Tensor, "... keys d_k"],
    V: Float[Tensor, "... keys d_v"],
    mask: Bool[Tensor, "... queries keys"] | None = None,
) -> Float[Tensor, "... queries d_v"]:
    """softmax(Q K^T / sqrt(d_k)) V, in which a key counts where `mask` is True.

    Any number of axes may stand before the last two. Every query has at least one key that counts.

    For example, one query, two keys of zeros and V [[1], [3]] give [[2]], and with mask [[True, False]]
    [[1]].
    """
    # BEGIN SOLUTION scaled_dot_product_attention
    from cs_systems.model.functional import softmax

    scores = Q @ K.mT * Q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores, -1) @ V
    # END SOLUTION


def run_multihead_self_attention(
    d_model: int,
    num_heads: int,
    q_proj_weight: Float[Tensor, "d_model d_model"],
    k_proj_weight: Float[Tensor, "d_model d_model"],
    v_proj_weight: Float[Tensor, "d_model d_model"],
    o_proj_weight: Float[Tensor, "d_model d_model"],
    in_features: Float[Tensor, "batch seq d_model"],
) -> Float[Tensor, "batch seq d_model"]:
    """Causal self-attention without positions; the rows of a projection are ordered by head.

    For example, with one token of a sequence the result is W_o W_v x, whatever W_q and W_k are.
    """
    # BEGIN SOLUTION multihead_self_attention
    from cs_systems.model.attention import SelfAttention

    attention = SelfAttention(_model_config(d_model=d_model, num_heads=num_heads, position="learned"))
    weights = (q_proj_weight, k_proj_weight, v_proj_weight, o_proj_weight)
    return _load(attention, _projections(*weights))(in_features)
    # END SOLUTION


def run_multihead_self_attention_with_rope(
    d_model: int,
    num_heads: int,
    max_seq_len: int,
    theta: float,
    q_proj_weight: Float[Tensor, "d_model d_model"],
    k_proj_weight: Float[Tensor, "d_model d_model"],
    v_proj_weight: Float[Tensor, "d_model d_model"],
    o_proj_weight: Float[Tensor, "d_model d_model"],
    in_features: Float[Tensor, "batch seq d_model"],
    token_positions: Int[Tensor, "#batch seq"] | None = None,
) -> Float[Tensor, "batch seq d_model"]:
    """The same with rotated queries and keys (`run_rope`); positions are 0, 1, 2, ... when not given.

    Positions only rotate: causal means the order in which tokens stand.

    For example, when the same number is added to all positions, the result stays the same.
    """
    # BEGIN SOLUTION multihead_self_attention
    from cs_systems.model.attention import SelfAttention
    from cs_systems.model.functional import rope_tables

    attention = SelfAttention(_model_config(d_model=d_model, num_heads=num_heads))
    weights = (q_proj_weight, k_proj_weight, v_proj_weight, o_proj_weight)
    if token_positions is None:
        token_positions = torch.arange(in_features.shape[1], device=in_features.device)[None]
    cos, sin = (
        table.to(in_features.device) for table in rope_tables(max_seq_len, d_model // num_heads, theta)
    )
    rotation = cos[token_positions][:, None], sin[token_positions][:, None]
    return _load(attention, _projections(*weights))(in_features, rotation)
    # END SOLUTION


def run_transformer_block(
    d_model: int,
    num_heads: int,
    d_ff: int,
    max_seq_len: int,
    theta: float,
    weights: Mapping[str, Tensor],
    in_features: Float[Tensor, "batch seq d_model"],
) -> Float[Tensor, "batch seq d_model"]:
    """x + attention(norm(x)), then x + feed-forward(norm(x)): RMSNorm with eps 1e-5, RoPE, SwiGLU.

    Args:
        d_model: width of the residual stream.
        num_heads: heads of attention.
        d_ff: width inside the feed-forward layer.
        max_seq_len: longest sequence.
        theta: base of RoPE.
        weights: attn.{q,k,v,output}_proj.weight, ln1.weight, ln2.weight, ffn.{w1,w2,w3}.weight.
        in_features: the residual stream.

    For example, with all matrices zero the result is in_features.
    """
    # BEGIN SOLUTION transformer_block
    from cs_systems.model.functional import rope_tables
    from cs_systems.model.transformer import TransformerBlock

    config = _model_config(d_model=d_model, num_heads=num_heads, d_ff=d_ff, context_length=max_seq_len)
    seq = in_features.shape[1]
    cos, sin = (table[:seq].to(in_features.device) for table in rope_tables(seq, config.rotary_dim, theta))
    return _load(TransformerBlock(config), weights)(in_features, (cos, sin))
    # END SOLUTION


def run_transformer_lm(
    vocab_size: int,
    context_length: int,
    d_model: int,
    num_layers: int,
    num_heads: int,
    d_ff: int,
    rope_theta: float,
    weights: Mapping[str, Tensor],
    in_indices: Int[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq vocab_size"]:
    """Logits of the whole model, for sequences of any length up to context_length.

    Args:
        vocab_size: number of different ids.
        context_length: longest sequence.
        d_model: width of the residual stream.
        num_layers: number of blocks.
        num_heads: heads of attention.
        d_ff: width inside the feed-forward layer.
        rope_theta: base of RoPE.
        weights: token_embeddings.weight, layers.{i}.<names of run_transformer_block>, ln_final.weight,
            lm_head.weight.
        in_indices: token ids.

    For example, with lm_head.weight zero all logits are 0.
    """
    # BEGIN SOLUTION transformer_lm
    from cs_systems.model.transformer import TransformerLM

    config = _model_config(
        vocab_size=vocab_size, context_length=context_length, d_model=d_model, num_layers=num_layers,
        num_heads=num_heads, d_ff=d_ff, rope_theta=rope_theta,
    )  # fmt: skip
    return _load(TransformerLM(config), weights).to(in_indices.device)(in_indices)
    # END SOLUTION


# --- Training ---------------------------------------------------------------------------------------------


def get_adamw_cls() -> type[torch.optim.Optimizer]:
    """The class of an AdamW: (params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01).

    For example, get_adamw_cls()(model.parameters(), lr=3e-4).step() changes the weights as
    torch.optim.AdamW does.
    """
    # BEGIN SOLUTION adamw
    from cs_systems.optim import AdamW

    return AdamW
    # END SOLUTION


def run_gradient_clipping(parameters: Iterable[nn.Parameter], max_l2_norm: float) -> None:
    """Multiply all gradients, in place, by min(1, max_l2_norm / (norm + 1e-6)); norm is of all together.

    Parameters without a gradient are passed over.

    For example, a single gradient [3, 4] and max_l2_norm 1 leave [0.6, 0.8].
    """
    # BEGIN SOLUTION gradient_clipping
    from cs_systems.optim import clip_gradients

    clip_gradients(parameters, max_l2_norm)
    # END SOLUTION


def run_get_lr_cosine_schedule(
    it: int,
    max_learning_rate: float,
    min_learning_rate: float,
    warmup_iters: int,
    cosine_cycle_iters: int,
) -> float:
    """Learning rate of step `it`: linear from 0, half a cosine down to the least at the end of the cycle.

    After the cycle it stays at the least.

    For example, (5, 1.0, 0.1, 10, 20) gives 0.5, and (15, 1.0, 0.1, 10, 20) gives 0.55.
    """
    # BEGIN SOLUTION learning_rate_schedule
    from cs_systems.optim import cosine_learning_rate

    return cosine_learning_rate(
        it,
        max_lr=max_learning_rate,
        min_lr=min_learning_rate,
        warmup_steps=warmup_iters,
        cosine_steps=cosine_cycle_iters,
    )
    # END SOLUTION


def run_get_batch(
    dataset: np.ndarray, batch_size: int, context_length: int, device: str
) -> tuple[Int[Tensor, "batch_size context_length"], Int[Tensor, "batch_size context_length"]]:
    """Windows of token ids drawn at random from one long row of them, and the ids that follow each, in int64.

    There are len(dataset) - context_length windows, each as likely. torch's own generator draws, so that
    torch.manual_seed repeats a batch. `device` is where the tensors are wanted, such as "cpu".

    For example, dataset [0, 1, 2, 3], batch_size 1 and context_length 3 give ([[0, 1, 2]], [[1, 2, 3]]).
    """
    # BEGIN SOLUTION data_loading
    starts = torch.randint(len(dataset) - context_length, (batch_size,)).tolist()
    rows = np.stack([dataset[start : start + context_length + 1] for start in starts]).astype(np.int64)
    windows = torch.from_numpy(rows).to(device)
    return windows[:, :-1], windows[:, 1:]
    # END SOLUTION


def run_save_checkpoint(
    model: nn.Module, optimizer: torch.optim.Optimizer, iteration: int, out: str | BinaryIO | IO[bytes]
) -> None:
    """Write the state of a model and of its optimizer, and the number of the step, to a path or a file.

    For example, run_save_checkpoint(model, optimizer, 100, "run.pt").
    """
    # BEGIN SOLUTION save_and_load
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
    torch.save(state, out)
    # END SOLUTION


def run_load_checkpoint(
    src: str | BinaryIO | IO[bytes], model: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Put back what `run_save_checkpoint` wrote, and return the number of the step.

    For example, run_load_checkpoint("run.pt", model, optimizer) returns 100.
    """
    # BEGIN SOLUTION save_and_load
    state = torch.load(src, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"]
    # END SOLUTION


# --- Measuring --------------------------------------------------------------------------------------------


def run_benchmark(
    make_inputs: Callable[[], Any],
    step: Callable[[Any], object],
    synchronize: Callable[[], None],
    clock: Callable[[], float],
    warmup_steps: int,
    steps: int,
) -> list[float]:
    """Seconds of each of `steps` calls of `step`, after `warmup_steps` calls that are not counted.

    Args:
        make_inputs: makes the inputs of one call; called anew for each, and not part of what is timed, even
            where it gives work to the device.
        step: the work. On a GPU it returns before the work is done.
        synchronize: returns when all work that was started is done.
        clock: the time in seconds.
        warmup_steps: calls before the first that counts.
        steps: calls that count.

    For example, warmup_steps 2 and steps 3 call make_inputs and step 5 times and return 3 numbers.
    """
    # BEGIN SOLUTION benchmarking_script
    from cs_systems.timing.timer import TimingConfig, measure_passes

    inputs = []

    def prepare() -> None:
        inputs[:] = [make_inputs()]

    config = TimingConfig(warmup_steps=warmup_steps, steps=steps, max_seconds=float("inf"))
    measured = measure_passes(
        {"step": lambda: step(inputs[0])}, config, synchronize=synchronize, prepare=prepare, clock=clock
    )
    return measured.samples_s["step"]
    # END SOLUTION


def get_annotate() -> Callable[[str], AbstractContextManager]:
    """What names a stretch of a program for a profiler: `with annotate("forward"):`.

    torch.profiler shows each range under its name, ranges may be nested, and an exception closes them.

    For example, a profile of `with get_annotate()("forward"): x @ y` has the event "forward" around
    aten::mm.
    """
    # BEGIN SOLUTION nsys_profile
    from cs_systems.tracing.annotate import annotate

    return annotate
    # END SOLUTION


def run_annotated_attention(
    Q: Float[Tensor, "batch heads queries d_head"],
    K: Float[Tensor, "batch heads keys d_head"],
    V: Float[Tensor, "batch heads keys d_head"],
    is_causal: bool,
) -> Float[Tensor, "batch heads queries d_head"]:
    """Attention by its formula in three ranges, which together are all of it.

    The ranges are "attention scores" (product, scale 1/sqrt(d_head), and with is_causal a mask that hides
    key j from query i < j), "attention softmax", and "attention final matmul". Backward of each stands in a
    range of the same name with " (backward)" behind it: a range around forward does not contain what
    autograd runs later.

    For example, a profile of one call shows each of the three once, and of its backward the other three.
    """
    # BEGIN SOLUTION nsys_profile
    from cs_systems.tracing.annotate_model import naive_attention_in_ranges

    return naive_attention_in_ranges(Q, K, V, is_causal=is_causal)
    # END SOLUTION


# --- Mixed precision --------------------------------------------------------------------------------------


def run_accumulation(value: float, num_terms: int, sum_dtype: torch.dtype, term_dtype: torch.dtype) -> float:
    """Add `value`, stored in term_dtype, to a sum stored in sum_dtype, one after the other, starting at 0.

    For example, (0.1, 3, torch.bfloat16, torch.bfloat16) gives 0.30078125.
    """
    # BEGIN SOLUTION mixed_precision_accumulation
    from cs_systems.mixed_precision.accumulation import loop

    return float(loop(torch.tensor(value, dtype=term_dtype), sum_dtype, num_terms)[-1])
    # END SOLUTION


def run_autocast_dtypes(
    model: nn.Module, inputs: Tensor, targets: Int[Tensor, " batch"], dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """The types of a training step under torch.autocast with `dtype`, on the device of `inputs`.

    The loss is torch.nn.functional.cross_entropy of the result, computed inside the context; backward runs
    outside of it.

    Returns:
        By name: "parameters.NAME" and "gradients.NAME" of each parameter, as it is in the context and after
        backward; "outputs.NAME" of each submodule that has no submodules; "loss". The model is left as it
        was.

    For example, nn.Sequential(nn.Embedding(4, 2), nn.Flatten()) has the names parameters.0.weight,
    outputs.0, outputs.1, loss and gradients.0.weight.
    """
    # BEGIN SOLUTION benchmarking_mixed_precision
    from cs_systems.mixed_precision.autocast import step_dtypes

    return step_dtypes(model, inputs, targets, dtype)
    # END SOLUTION


# --- Memory -----------------------------------------------------------------------------------------------


def run_checkpointed_blocks(
    blocks: Sequence[Callable[[Tensor], Tensor]], x: Tensor, blocks_per_checkpoint: int
) -> Tensor:
    """The blocks one after the other, of which only every `blocks_per_checkpoint`-th input is kept.

    What is missing is computed again in backward. 0 keeps everything.

    For example, 4 blocks and blocks_per_checkpoint 2 keep 2 inputs, and backward runs each block once more.
    """
    # BEGIN SOLUTION gradient_checkpointing
    from cs_systems.model.apply import run_checkpointed
    from cs_systems.model.transformer import run_in_order

    if blocks_per_checkpoint == 0:
        return run_in_order(blocks, x)
    return run_checkpointed(blocks, x, blocks_per_checkpoint=blocks_per_checkpoint)
    # END SOLUTION


# --- Kernels ----------------------------------------------------------------------------------------------


def get_weighted_sum_autograd_function_triton() -> type[torch.autograd.Function]:
    """Class of an autograd.Function in Triton: .apply(x, weight) = sum_j x_ij weight_j for each row of x.

    x is (rows, columns) with any strides, weight (columns,). Added up in fp32. There are gradients of both.

    For example, .apply([[1, 2]], [3, 4]) gives [11].
    """
    # BEGIN SOLUTION weighted_sum
    from cs_systems.kernels.weighted_sum import WeightedSum

    return WeightedSum
    # END SOLUTION


def get_softmax_autograd_function_triton() -> type[torch.autograd.Function]:
    """Class of an autograd.Function in Triton: .apply(x) = softmax of each row of (rows, columns).

    One kernel forward, one backward, rows of any length, any strides, fp32 inside.

    For example, .apply([[0, 0]]) gives [[0.5, 0.5]].
    """
    # BEGIN SOLUTION softmax_kernel
    from cs_systems.kernels.softmax import Softmax

    return Softmax
    # END SOLUTION


def get_flashattention_autograd_function_pytorch() -> type[torch.autograd.Function]:
    """Class of an autograd.Function in plain PyTorch: .apply(q, k, v, is_causal) by FlashAttention-2.

    q is (batch, queries, d), k and v (batch, keys, d); queries and keys may differ in number; the scale is
    1 / sqrt(d). Numbers of queries and keys are powers of two from 16 on, d is a power of two from 16 to
    128. is_causal hides key j from query i < j, whatever the lengths are. Kept for backward are q, k, v,
    the result, and L, the natural logarithm of the sum of the exponentials of the scaled scores, in fp32
    and of shape (batch, queries): L is found by that shape, so nothing else that is kept may have it.
    Gradients are those of q, k and v. torch.compile of .apply works.

    For example, with one key .apply(q, k, v, False) repeats v for every query, and L is q k^T / sqrt(d).
    """
    # BEGIN SOLUTION flash_forward
    from cs_systems.kernels.flash_attention_torch import FlashAttentionTorch

    return FlashAttentionTorch
    # END SOLUTION


def get_flashattention_autograd_function_triton() -> type[torch.autograd.Function]:
    """The same with Triton kernels: a GPU runs them, a CPU interprets them (TRITON_INTERPRET=1).

    torch.compile of it is not asked for.

    For example, get_flashattention_autograd_function_triton().apply(q, k, v, True) is causal.
    """
    # BEGIN SOLUTION flash_forward
    from cs_systems.kernels.flash_attention import FlashAttention

    return FlashAttention
    # END SOLUTION


# --- Several devices --------------------------------------------------------------------------------------


def get_ddp(module: nn.Module) -> nn.Module:
    """Wrap `module` for data parallelism: each rank has its part of the batch, gradients are averaged.

    Parameters and buffers, frozen ones too, come from rank 0. The wrapper passes `forward` through, keeps
    the original as `.module`, and has `finish_gradient_synchronization()`. Communication may start during
    backward. Tied weights are sent once; a parameter without a gradient does not make the others wait.

    For example, get_ddp(model)(x) computes the same as model(x) does on rank 0.
    """
    # BEGIN SOLUTION ddp_overlap_individual_parameters
    raise NotImplementedError(_NO_PARALLEL)
    # END SOLUTION


def ddp_on_after_backward(ddp_model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What a training loop calls between backward and the optimizer step.

    For example, it calls ddp_model.finish_gradient_synchronization(), which waits for all gradients.
    """
    # BEGIN SOLUTION ddp_overlap_individual_parameters
    raise NotImplementedError(_NO_PARALLEL)
    # END SOLUTION


def get_ddp_bucketed(module: nn.Module, bucket_size_mb: float | None) -> nn.Module:
    """As get_ddp, with gradients sent together in buckets of at most bucket_size_mb (1 MB is 10^6 bytes).

    Buckets are filled in the reverse order of the parameters. A larger parameter has a bucket of its own;
    None means one bucket for all.

    For example, get_ddp_bucketed(model, 25.0).
    """
    # BEGIN SOLUTION ddp_overlap_bucketed
    raise NotImplementedError(_NO_PARALLEL)
    # END SOLUTION


def ddp_bucketed_on_after_backward(ddp_model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What a training loop calls between backward and the optimizer step.

    For example, it calls ddp_model.finish_gradient_synchronization(), which waits for all gradients.
    """
    # BEGIN SOLUTION ddp_overlap_bucketed
    raise NotImplementedError(_NO_PARALLEL)
    # END SOLUTION


def ddp_bucketed_on_train_batch_start(ddp_model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What a training loop calls before the forward pass of each batch; it may do nothing.

    For example, it may forget which gradients of the last batch have arrived.
    """
    # BEGIN SOLUTION ddp_overlap_bucketed
    raise NotImplementedError(_NO_PARALLEL)
    # END SOLUTION


def get_sharded_optimizer(
    params: Iterable[Any], optimizer_cls: type[torch.optim.Optimizer], **kwargs: Any
) -> torch.optim.Optimizer:
    """An optimizer whose state is shared out over the ranks; after a step all have all new parameters.

    `params` are tensors or groups; kwargs go to optimizer_cls. A rank may own no parameter, and a learning
    rate that is changed in the groups of the wrapper counts. `step` takes a closure, and groups may be
    added later.

    For example, get_sharded_optimizer(model.parameters(), torch.optim.AdamW, lr=1e-3).step() on each rank
    does what torch.optim.AdamW alone does on one.
    """
    # BEGIN SOLUTION optimizer_state_sharding
    raise NotImplementedError(_NO_PARALLEL)
    # END SOLUTION


def get_fsdp(module: nn.Module, compute_dtype: torch.dtype | None = None) -> nn.Module:
    """Wrap `module` so that each rank keeps a part of every Linear and Embedding weight (along axis 0).

    Linear and Embedding are known by the names of their classes, so those of torch.nn count too. Rank 0 has
    the first rows; where they do not divide evenly, the last part may be filled up. All ranks begin with the
    weights of rank 0.

    A whole weight is gathered just before it is used and freed after. Everything else stays on every rank.
    With a compute_dtype weights are cast before they are gathered and activations have that type; what is
    kept and updated is fp32, and gradients are summed in fp32.

    For example, on 2 ranks a weight of (10, 4) becomes a parameter of (5, 4) on each.
    """
    # BEGIN SOLUTION fsdp
    raise NotImplementedError(_NO_PARALLEL)
    # END SOLUTION


def fsdp_on_after_backward(fsdp_model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What a training loop calls between backward and the optimizer step.

    After it, every parameter has an fp32 gradient of its own shape, averaged over the ranks.

    For example, it calls fsdp_model.finish_gradient_synchronization().
    """
    # BEGIN SOLUTION fsdp
    raise NotImplementedError(_NO_PARALLEL)
    # END SOLUTION


def fsdp_gather_full_params(fsdp_model: nn.Module) -> dict[str, Tensor]:
    """Every parameter, whole, by its name in the module that was wrapped.

    For example, {"0.weight": tensor of (10, 4)}.
    """
    # BEGIN SOLUTION fsdp
    raise NotImplementedError(_NO_PARALLEL)
    # END SOLUTION


# BEGIN INSTRUCTOR
_NO_PARALLEL = "this package has no parallel strategies yet"


def _model_config(**given: Any) -> Any:
    """The course's model; what a layer does not need has a small value.

    position "learned" is for layers that rotate nothing, and may have odd widths.
    """
    from cs_systems.model.config import ModelConfig

    defaults = {"vocab_size": 8, "context_length": 8, "num_layers": 1, "num_heads": 1}
    return ModelConfig(**(defaults | given))


def _projections(q: Tensor, k: Tensor, v: Tensor, output: Tensor) -> dict[str, Tensor]:
    names = ("q_proj", "k_proj", "v_proj", "output_proj")
    return {f"{name}.weight": weight for name, weight in zip(names, (q, k, v, output), strict=True)}


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """`module` with these weights, in their dtype and on their device."""
    module.load_state_dict(dict(state), assign=True)
    return module


# END INSTRUCTOR
