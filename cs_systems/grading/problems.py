"""The registry: every problem and part, what is asked in each, and for how many points.

Points are those of the course's 2026 edition; communication_accounting and ddp_bucketed_benchmarking are of
the 2025 edition. Points of a problem include its code, which tests check and no write-up does. The questions
stand in writeup/questions.md; a test holds both together.
"""

from collections.abc import Sequence

from cs_systems.grading.items import (
    Choice,
    Dtype,
    Item,
    Number,
    Order,
    OwnNumber,
    Part,
    Problem,
    Prose,
    Symbolic,
    Text,
)

DIGITS = 1e-5
"""Relative difference to a sum that is printed with four decimals."""
EXACT = 0.0

_MODEL = Text("model", "one of your models, the name of a preset")
_CONTEXT = Number("context_length", "tokens of a sequence", rel_tol=EXACT)
_BATCH = Number("batch_size", "sequences of a batch", rel_tol=EXACT)
_CASE = (_MODEL, _CONTEXT, _BATCH)
_PROFILED = (_MODEL, _CONTEXT)
_SHAPE = (
    _BATCH,
    Number("num_heads", "heads; 0 where there is no axis of heads", rel_tol=EXACT),
    Number("d_head", "width of a head", rel_tol=EXACT),
    Number("seq_len", "positions of a sequence", rel_tol=EXACT),
)
_CHANGES = ("falls", "same", "rises")
_KINDS = ("feed-forward", "scores", "logits", "stream")
_GROWTHS = ("1", "log N", "sqrt N", "N", "N log N", "N^2")
_LAYER = ("B", "D", "F", "N", "C", "W")
_GRID = ("B", "D", "F", "NF", "NT", "C", "W")


def _seconds(key: str, what: str) -> OwnNumber:
    return OwnNumber(key, what, "s")


def _ratio(key: str, what: str) -> OwnNumber:
    return OwnNumber(key, what, "")


def _bytes(key: str, what: str) -> Number:
    return Number(key, what, "B")


def _count(key: str, what: str) -> Number:
    return Number(key, what, rel_tol=EXACT)


def _formula(key: str, what: str, names: Sequence[str]) -> Symbolic:
    return Symbolic(key, f"{what}, in {', '.join(names)}", tuple(names))


def _choice(key: str, what: str, *choices: str) -> Choice:
    return Choice(key, f"{what}: {', '.join(choices[:-1])} or {choices[-1]}", choices)


def _order(key: str, what: str, *choices: str) -> Order:
    return Order(
        key, f"{what}, greatest first: {', '.join(choices[:-1])} and {choices[-1]}, as a > b > c", choices
    )


def _problem(name: str, title: str, points: int, *parts: tuple[str, Sequence[Item], Prose | None]) -> Problem:
    return Problem(
        name,
        title,
        points,
        tuple(Part(f"{name}.{letter}", tuple(items), prose) for letter, items, prose in parts),
    )


PROBLEMS: tuple[Problem, ...] = (
    _problem(
        "benchmarking_script", "time a training step", 4,
        ("a", (*_CASE,
               Number("num_parameters", "parameters of this model", rel_tol=1e-3),
               Number("forward_flops", "operations of the matrix products of one forward pass", "FLOP")),
         Prose(1, 3)),
        ("b", (*_CASE,
               _seconds("forward_median", "median of forward, for example 12.3 ms"),
               _seconds("backward_median", "median of backward alone"),
               _ratio("backward_over_forward", "ratio of these two medians"),
               _seconds("forward_std", "standard deviation of forward")), Prose(1, 2)),
        ("c", (*_CASE,
               _seconds("forward_mean", "mean of forward without warm-up"),
               _choice("effect", "how much longer than with warm-up", "none", "small", "large", "huge"),
               _choice("where", "which steps cost the difference", "first", "spread")), Prose(2, 3)),
    ),
    _problem(
        "nsys_profile", "profile a training step", 5,
        ("a", (*_PROFILED,
               _seconds("profiler_forward", "forward with its loss, by the profiler"),
               _seconds("timer_forward", "the same by the timer without a profiler"),
               _choice("agreement", "within 10 % of each other, or which is longer",
                       "close", "profiler longer", "timer longer")), Prose(1, 2)),
        ("b", (*_PROFILED,
               Text("top_forward", "kernel (or operator) with the most time in forward"),
               _ratio("calls", "calls of it in one forward pass"),
               _choice("same_in_backward", "is the same one first in backward", "yes", "no"),
               _count("num_gemms", "matrix products of one forward pass, by counting in the model")),
         Prose(1, 2)),
        ("c", (*_PROFILED,
               Text("other_kernel", "the one with the most time in forward that multiplies no matrices"),
               _ratio("other_share", "its share of the time of forward, for example 4.2 %")), Prose(1, 2)),
        ("d", (*_PROFILED,
               _ratio("matmul_in_forward", "share of matrix products in forward, for example 80 %"),
               _ratio("matmul_in_step", "their share in the whole step"),
               _choice("change", "second share against the first; same within 1 percent point", *_CHANGES),
               _order("classes", "time in the whole step", "matmul", "elementwise", "reduction"),
               _order("phases", "time of the phases", "forward", "backward", "optimizer")), Prose(1, 2)),
        ("e", (*_PROFILED,
               _ratio("time_ratio", "time of softmax over time of the two products, in forward"),
               Number("flops_ratio", "operations of softmax over those of the two products", rel_tol=0.02)),
         Prose(1, 3)),
    ),
    _problem(
        "mixed_precision_accumulation", "sums of few bits", 1,
        ("a", (Number("fp32", "sum and terms in fp32, all digits that are printed", rel_tol=DIGITS),
               Number("fp16", "sum and terms in fp16", rel_tol=DIGITS),
               Number("mixed", "sum in fp32, terms in fp16", rel_tol=DIGITS),
               Number("mixed_cast", "sum in fp32, terms in fp16 and cast to fp32", rel_tol=DIGITS),
               Number("bf16", "sum and terms in bf16", rel_tol=DIGITS),
               _choice("error_of_fp16", "what most of the error of fp16 comes from", "terms", "additions"),
               _choice("error_of_mixed", "what most of the error of mixed comes from", "terms", "additions")),
         Prose(2, 4)),
    ),
    _problem(
        "benchmarking_mixed_precision", "autocast", 2,
        ("a", (Dtype("parameters", "the parameters, while the context is open"),
               Dtype("fc1", "output of the first linear layer"),
               Dtype("layer_norm", "output of the layer norm"),
               Dtype("logits", "output of the last linear layer"),
               Dtype("loss", "the cross-entropy loss"),
               Dtype("gradients", "gradients of the parameters"),
               Dtype("loss_mean", "the loss, if it were logits.mean()")), None),
        ("b", (Dtype("layer_norm_bf16", "output of the layer norm when autocast is told to use bf16"),
               Number("overflow_fp16", "least power of two whose square is infinite in fp16"),
               Number("overflow_bf16", "the same in bf16, for example 2^20", rel_tol=0.03)), Prose(2, 4)),
        ("c", (*_CASE,
               _seconds("forward_fp32", "median of forward in fp32"),
               _seconds("forward_bf16", "median of forward under bf16 autocast"),
               _ratio("forward_speedup", "how many times as fast forward is with bf16"),
               _ratio("backward_speedup", "the same for backward")), Prose(2, 3)),
    ),
    _problem(
        "memory_profiling", "where the memory goes", 4,
        ("a", (*_PROFILED,
               _choice("phase", "phase with the highest peak", "forward", "loss", "backward", "optimizer")),
         Prose(2, 3)),
        ("b", (*_PROFILED,
               OwnNumber("forward_peak", "peak of forward alone, for example 1.2 GiB", "B"),
               OwnNumber("step_peak", "peak of a whole step", "B"),
               _bytes("training_state", "of 2.7B: parameters, gradients and AdamW's state together")), None),
        ("c", (*_PROFILED,
               OwnNumber("forward_peak", "peak of forward alone under bf16 autocast", "B"),
               OwnNumber("step_peak", "peak of a whole step under bf16 autocast", "B"),
               _choice("forward_change", "against fp32; within 1 % is same", *_CHANGES),
               _choice("step_change", "against fp32; within 1 % is same", *_CHANGES),
               _bytes("weight_copies", "of 2.7B: all bf16 copies of weights that autocast makes")),
         Prose(2, 3)),
        ("d", (_formula("formula", "bytes of a tensor of the residual stream", ("B", "S", "d")),
               _bytes("at_128", "the same for 128 tokens, for example 1.5 MiB"),
               _bytes("at_512", "for 512 tokens"),
               _bytes("at_2048", "for 2048 tokens")), None),
        ("e", (_choice("largest_128", "largest tensor of forward at 128 tokens", *_KINDS),
               _choice("largest_512", "at 512 tokens", *_KINDS),
               _choice("largest_2048", "at 2048 tokens", *_KINDS),
               _count("flips_at", "context length at which the scores have caught up")), Prose(1, 2)),
        ("f", (_bytes("saved", "bytes that one block keeps for backward"),
               _formula("formula", "the same without what is small", ("B", "S", "d", "f", "H")),
               _order("order", "bytes of all tensors of one shape", "feed-forward", "scores", "stream"),
               _bytes("gradients", "bytes of the gradients of one block"),
               _bytes("change", "at 2048 tokens: by how much memory falls over the backward of one block")),
         Prose(1, 3)),
    ),
    _problem(
        "gradient_checkpointing", "keep less, compute again", 4,
        ("a", (_choice("residuals", "blocks whose residuals exist at one time, in proportion to", *_GROWTHS),
               _choice("inputs", "inputs of blocks that are kept at one time, in proportion to", *_GROWTHS),
               _choice("work", "blocks that are computed forward in all, in proportion to", *_GROWTHS)),
         Prose(2, 4)),
        ("b", (_count("best_size", "blocks of a checkpoint with the lowest peak"),
               _bytes("gap", "how much higher the peak is with two blocks in a checkpoint than with one")),
         Prose(1, 3)),
        ("c", (*_PROFILED,
               _ratio("best_size", "blocks of a checkpoint with the lowest peak of your runs"),
               OwnNumber("lowest_peak", "that peak", "B")), Prose(1, 2)),
    ),
    _problem(
        "pytorch_attention", "attention by its formula", 2,
        ("a", (*_SHAPE,
               _seconds("forward_median", "median of forward of naive attention in fp32"),
               _seconds("backward_median", "median of its backward"),
               OwnNumber("held", "memory that forward leaves for backward", "B")), None),
        ("b", (_bytes("score_array", "one array of scores at 16384 positions"),
               _formula("kept", "bytes of what forward keeps for each pair of positions", ("B", "S", "d")),
               _count("fails_8", "least length of the grid at which 8 GB (8e9 B) are too few"),
               _count("fails_24", "least length of the grid at which 24 GB (24e9 B) are too few")),
         Prose(2, 3)),
    ),
    _problem(
        "torch_compile", "let the compiler fuse", 2,
        ("a", (*_SHAPE,
               _ratio("forward_speedup", "how many times as fast forward of attention is when compiled"),
               _ratio("backward_speedup", "the same for backward")), Prose(1, 2)),
        ("b", (*_CASE,
               _ratio("forward_speedup", "how many times as fast forward of the model is when compiled"),
               _ratio("step_speedup", "the same for the whole step")), Prose(1, 2)),
    ),
    _problem(
        "flash_forward", "FlashAttention-2, forward", 15,
        ("a", (_formula("kept", "bytes that forward keeps for backward", ("B", "S", "d")),), Prose(1, 2)),
        ("b", (_count("programs", "programs of the grid"),
               _count("tiles", "tiles of the whole score matrix"),
               _count("visible", "tiles that have a score that counts"),
               _count("masked", "of these, tiles that also have a hidden score")), Prose(1, 2)),
    ),
    _problem(
        "flash_backward", "FlashAttention-2, backward", 5,
        ("a", (_formula("dS", "gradient of one score", ("P", "dP", "D")),
               _count("products", "products of matrices in backward"),
               Number("flops_ratio", "operations of backward over those of forward")), Prose(1, 2)),
    ),
    _problem(
        "flash_benchmarking", "tiles against whole arrays", 5,
        ("a", (*_SHAPE,
               Text("precision", "fp32, bf16 or fp16"),
               Text("implementation", "flash, flash-torch or sdpa"),
               _seconds("flash_forward", "median of its forward"),
               _seconds("naive_forward", "median of forward of naive attention, same case"),
               _ratio("forward_speedup", "how many times as fast as naive forward is"),
               _ratio("both_speedup", "the same for forward and backward together")), Prose(2, 3)),
    ),
    _problem(
        "communication_accounting", "what a large model asks of the network (2025 edition)", 10,
        ("a", (Number("num_parameters", "parameters of the model"),
               _bytes("state", "bytes of weights, gradients and AdamW's moments"),
               _count("gpus", "GPUs of 80 GB (80e9 B) that hold them"),
               _bytes("activations", "bytes that one token keeps for backward")), None),
        ("b", (_formula("formula", "bytes on one device", ("P", "A", "N")),
               _count("devices", "least N without activations")), None),
        ("c", (Number("tokens", "tokens of the whole batch"),
               Number("tokens_per_device", "tokens for each of the devices")), Prose(1, 2)),
    ),
    _problem(
        "optimizer_state_sharding_accounting", "share the optimizer", 5,
        ("a", (_bytes("after_init", "after the model was made"),
               _bytes("plain", "before the optimizer step, nothing shared"),
               _bytes("sharded", "the same with the optimizer state shared")), None),
        ("c", (_formula("ours", "bytes that a rank sends in a step, our way", ("P", "N")),
               _formula("zero1", "bytes that a rank sends in a step, ZeRO stage 1", ("P", "N"))),
         Prose(1, 3)),
    ),
    _problem(
        "fsdp_accounting", "share everything", 5,
        ("a", (_bytes("held", "weights, gradients and moments on one rank"),
               _bytes("saved", "less than with only the optimizer state shared")), None),
        ("b", (Number("gather", "time to gather the weights of one block", "s"),
               Number("compute", "time of the forward products of one block", "s"),
               _choice("in_time", "does the gathering hide behind the block before", "yes", "no")),
         Prose(1, 2)),
    ),
    _problem(
        "alternate_ring_all_reduce", "another ring", 1,
        ("a", (_formula("time", "time until every device has the sum", ("S", "N", "W")),
               _formula("usual", "time of the usual ring", ("S", "N", "W"))), None),
    ),
    _problem(
        "data_parallel_calcs", "data parallelism by formula", 3,
        ("a", (_formula("flops", "operations of backward on one device", _LAYER),
               _formula("time", "time of the communication", _LAYER),
               _formula("largest_n", "largest N", _LAYER)), None),
    ),
    _problem(
        "fsdp_calcs", "sharded weights by formula", 3,
        ("a", (_formula("flops", "operations of forward on one device", _LAYER),
               _formula("time", "time of the communication", _LAYER),
               _formula("largest_n", "largest N", _LAYER)), None),
        ("b", (_formula("flops", "operations of backward on one device", _LAYER),
               _formula("time", "time of the communication", _LAYER),
               _formula("largest_n", "largest N", _LAYER)), None),
    ),
    _problem(
        "tp_calcs", "tensor parallelism by formula", 4,
        ("a", (_choice("reduced", "gradient to be summed over the devices", "dx", "dW1", "dW2", "dW3"),),
         Prose(1, 12)),
        ("b", (_formula("flops", "operations of forward on one device", _LAYER),
               _formula("time", "time of the communication", _LAYER),
               _formula("largest_n", "largest N", _LAYER)), None),
        ("c", (_formula("flops", "operations of backward on one device", _LAYER),
               _formula("time", "time of the communication", _LAYER),
               _formula("largest_n", "largest N", _LAYER)), None),
    ),
    _problem(
        "fsdp_tp_calcs", "both at once by formula", 6,
        ("a", (_formula("flops", "operations of forward on one device", _GRID),
               _formula("fsdp_time", "time to gather weights", _GRID),
               _formula("tp_time", "time to sum results", _GRID)), None),
        ("b", (_formula("overlapped", "largest NF NT, a network for each axis", ("B", "F", "C", "W")),
               _formula("shared", "largest NF NT, one network for both", ("B", "F", "C", "W"))), Prose(1, 3)),
    ),
    _problem(
        "ddp_bucketed_benchmarking", "how many buckets (2025 edition)", 3,
        ("b", (_formula("overhead", "overhead of a step", ("s", "w", "n", "o")),
               _formula("best_n", "number of buckets with the least overhead", ("s", "w", "o")),
               _formula("best_bytes", "bytes of such a bucket", ("s", "w", "o"))), None),
    ),
    _problem(
        "leaderboard", "the step that counts", 10,
        ("a", (Number("num_parameters", "parameters of the model"),
               _bytes("state", "bytes of weights, gradients and AdamW's moments in fp32"),
               _bytes("logits", "bytes of all logits in fp32"),
               Number("step_flops", "operations of one step", "FLOP"),
               Number("baseline_rate", "operations a second of one GPU at the baseline", "FLOP/s")),
         Prose(1, 4)),
    ),
)  # fmt: skip
"""All problems in the order of writeup/questions.md."""
