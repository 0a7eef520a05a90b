"""Adapters that do nothing and return zeros, of the right shape where a signature tells it.

They know what is asked for and compute none of it: what a test gives them, it gives for nothing.
"""

import contextlib

import torch
import triton
import triton.language as tl


def zeros(like, *shape):
    """Zeros of the type of a tensor, and of its shape if no other is given, with a gradient of zeros."""
    return like.new_zeros(shape or like.shape) + 0 * like.nan_to_num(posinf=0, neginf=0).sum()


@triton.jit
def zeros_kernel(to, size, tile: tl.constexpr):
    places = tl.arange(0, tile)
    tl.store(to + places, 0.0, mask=places < size)


def zeros_of_a_kernel(shape, like):
    result = torch.empty(shape, dtype=like.dtype, device=like.device)
    zeros_kernel[(1,)](result, result.numel(), triton.next_power_of_2(result.numel()))
    return result


def zeros_of_torch(shape, like):
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


def zeros_function(make, *, axes=2):
    """Class of an autograd.Function whose result has so many axes of its first argument, and is all zeros.

    Gradients are zeros too, and so is the logarithm of sums that flash attention keeps.
    """

    class Zeros(torch.autograd.Function):
        @staticmethod
        def forward(ctx, first, *others):
            tensors = [first, *(value for value in others if isinstance(value, torch.Tensor))]
            ctx.num_plain = 1 + len(others) - len(tensors)
            result = make(first.shape[:axes], first)
            ctx.save_for_backward(*tensors, result, torch.zeros(first.shape[:-1], device=first.device))
            return result

        @staticmethod
        def backward(ctx, gradient):
            gradients = [make(tensor.shape, tensor) for tensor in ctx.saved_tensors[:-2]]
            return *gradients, *[None] * ctx.num_plain

    return Zeros


class IdleOptimizer(torch.optim.Optimizer):
    """Takes what an optimizer takes; a step changes nothing."""

    def __init__(self, params, **settings):
        super().__init__(params, settings)

    def step(self, closure=None):
        return closure() if closure else None


def run_linear(d_in, d_out, weights, in_features):
    return zeros(in_features, *in_features.shape[:-1], d_out)


def run_embedding(vocab_size, d_model, weights, token_ids):
    return zeros(weights, *token_ids.shape, d_model)


def run_rmsnorm(d_model, eps, weights, in_features):
    return zeros(in_features)


def run_silu(in_features):
    return zeros(in_features)


def run_swiglu(d_model, d_ff, w1_weight, w2_weight, w3_weight, in_features):
    return zeros(in_features)


def run_rope(d_k, theta, max_seq_len, in_query_or_key, token_positions):
    return zeros(in_query_or_key)


def run_softmax(in_features, dim):
    return zeros(in_features)


def run_cross_entropy(inputs, targets):
    return zeros(inputs.float()).sum()


def run_scaled_dot_product_attention(Q, K, V, mask=None):
    return zeros(Q, *Q.shape[:-1], V.shape[-1])


def run_multihead_self_attention(d_model, num_heads, q, k, v, output, in_features):
    return zeros(in_features)


def run_multihead_self_attention_with_rope(
    d_model, num_heads, max_seq_len, theta, q, k, v, output, in_features, token_positions=None
):
    return zeros(in_features)


def run_transformer_block(d_model, num_heads, d_ff, max_seq_len, theta, weights, in_features):
    return zeros(in_features)


def run_transformer_lm(vocab_size, *sizes_and_weights):
    in_indices = sizes_and_weights[-1]
    return zeros(in_indices.float(), *in_indices.shape, vocab_size)


def get_adamw_cls():
    return IdleOptimizer


def run_gradient_clipping(parameters, max_l2_norm):
    pass


def run_get_lr_cosine_schedule(it, max_learning_rate, min_learning_rate, warmup_iters, cosine_cycle_iters):
    return 0.0


def run_get_batch(dataset, batch_size, context_length, device):
    inputs, targets = torch.zeros(2, batch_size, context_length, dtype=torch.int64, device=device)
    return inputs, targets


def run_save_checkpoint(model, optimizer, iteration, out):
    pass


def run_load_checkpoint(src, model, optimizer):
    return 0


def run_benchmark(make_inputs, step, synchronize, clock, warmup_steps, steps):
    return [0.0] * steps


def get_annotate():
    return lambda name: contextlib.nullcontext()


def run_annotated_attention(Q, K, V, is_causal):
    return zeros(Q, *Q.shape[:-1], V.shape[-1])


def run_accumulation(value, num_terms, sum_dtype, term_dtype):
    return 0.0


def run_autocast_dtypes(model, inputs, targets, dtype):
    return {}


def run_checkpointed_blocks(blocks, x, blocks_per_checkpoint):
    return zeros(x)


def get_weighted_sum_autograd_function_triton():
    return zeros_function(zeros_of_a_kernel, axes=1)


def get_softmax_autograd_function_triton():
    return zeros_function(zeros_of_a_kernel)


def get_flashattention_autograd_function_pytorch():
    return zeros_function(zeros_of_torch, axes=3)


def get_flashattention_autograd_function_triton():
    return zeros_function(zeros_of_a_kernel, axes=3)
