"""Wrong implementations of what measures: timing, ranges, sums of few bits, types; and of checkpointing."""

import contextlib
import functools
import itertools
import statistics
import time

import torch
import torch.nn.functional as F
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from mutants.mutant import Mutant


def mutants(problem, adapter, wrong):
    """Wrong functions for one adapter: name of the mistake, what must be said of it, the function."""
    return [Mutant(problem, name, {adapter: function}, says) for name, says, function in wrong]


# Timing


def benchmark(
    make_inputs, step, synchronize, clock, warmup_steps, steps, *,
    before=True, after=True, warm_up=True, counts_warm_up=False, times_inputs=False, reuses_inputs=False,
    finish=lambda samples: samples,
):  # fmt: skip
    """Right when nothing is changed."""
    inputs = make_inputs() if reuses_inputs else None
    samples = []
    for number in range(warmup_steps + steps if warm_up else steps):
        if not (times_inputs or reuses_inputs):
            inputs = make_inputs()
        if before:
            synchronize()
        start = clock()
        if times_inputs:
            inputs = make_inputs()
        step(inputs)
        if after:
            synchronize()
        if counts_warm_up or not warm_up or number >= warmup_steps:
            samples.append(clock() - start)
        if number == warmup_steps - 1:
            synchronize()
    return finish(samples)


def benchmark_with_own_clock(make_inputs, step, synchronize, clock, warmup_steps, steps):
    return benchmark(make_inputs, step, synchronize, time.perf_counter, warmup_steps, steps)


def benchmark_guessing(make_inputs, step, synchronize, clock, warmup_steps, steps):
    benchmark(make_inputs, step, synchronize, clock, warmup_steps, steps)
    return [4.25] * steps


def benchmark_whole_loop(make_inputs, step, synchronize, clock, warmup_steps, steps):
    for _ in range(warmup_steps):
        step(make_inputs())
    inputs = [make_inputs() for _ in range(steps)]
    synchronize()
    start = clock()
    for some in inputs:
        step(some)
    synchronize()
    return [(clock() - start) / steps] * steps


def benchmark_first_samples(make_inputs, step, synchronize, clock, warmup_steps, steps):
    return benchmark(make_inputs, step, synchronize, clock, 0, warmup_steps + steps)[:steps]


def repeat_mean(samples):
    return [statistics.fmean(samples)] * len(samples)


def add_up_samples(samples):
    return list(itertools.accumulate(samples))


def to_milliseconds(samples):
    return [1000 * sample for sample in samples]


# Ranges


class PushAndPop:
    """Ranges on a stack, as NVTX has them; one that an exception leaves is not taken off."""

    stack = []  # noqa: RUF012

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.stack.append(record_function(self.name))
        self.stack[-1].__enter__()

    def __exit__(self, error, value, traceback):
        if error is None:
            self.stack.pop().__exit__(None, None, None)


@contextlib.contextmanager
def annotate_swallowing(name):
    with contextlib.suppress(KeyError), record_function(name):
        yield


def annotate_nothing(name):
    with record_function(name):
        return contextlib.nullcontext()


class FlatRange:
    """A range that ends the one around it."""

    opened = None

    def __init__(self, name):
        self.range = record_function(name)

    def __enter__(self):
        if FlatRange.opened is not None:
            FlatRange.opened.__exit__(None, None, None)
        FlatRange.opened = self.range
        self.range.__enter__()

    def __exit__(self, *error):
        if FlatRange.opened is self.range:
            self.range.__exit__(None, None, None)
            FlatRange.opened = None


class InRange(torch.autograd.Function):
    """function(*inputs) in a range, and its backward in another, both by autograd itself."""

    @staticmethod
    def forward(ctx, name, backward_name, function, *inputs):
        ctx.name, ctx.inputs = backward_name, [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad(), record_function(name) if name else contextlib.nullcontext():
            ctx.output = function(*ctx.inputs)
        return ctx.output.detach()

    @staticmethod
    def backward(ctx, gradient):
        with record_function(ctx.name) if ctx.name else contextlib.nullcontext():
            gradients = torch.autograd.grad(ctx.output, ctx.inputs, gradient)
        return None, None, None, *gradients


def attend(
    q, k, v, is_causal, *,
    scale=0.5, diagonal=0, mask_in_range=True, empty=(), no_backward=(), exchanged=False, everything=False,
):  # fmt: skip
    """Right when nothing is changed."""
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(diagonal).logical_not()

    def hide(scores):
        return scores.masked_fill(hidden, -torch.inf) if is_causal else scores

    def multiply(q, k):
        scores = q @ k.mT * scale
        return hide(scores) if mask_in_range else scores

    def run(name, function, *inputs):
        backward_name = None if name in no_backward else f"attention {name} (backward)"
        if name in empty:
            with record_function(f"attention {name}"):
                pass
            return InRange.apply(None, backward_name, function, *inputs)
        return InRange.apply(f"attention {name}", backward_name, function, *inputs)

    if everything:
        functions = functools.partial(lambda q, k, v: hide(q @ k.mT * scale).softmax(-1) @ v)
        with record_function("attention scores"), record_function("attention softmax"):
            return run("final matmul", functions, q, k, v)
    scores = run("scores", multiply, q, k)
    if not mask_in_range:
        scores = hide(scores)
    weights = run("softmax", lambda scores: scores.softmax(-1), scores)
    return run("final matmul", lambda weights, v: weights @ v, weights, v)


def attend_with_backward_ranges_in_forward(q, k, v, is_causal):
    with contextlib.ExitStack() as ranges:
        for name in ("scores", "softmax", "final matmul"):
            ranges.enter_context(record_function(f"attention {name} (backward)"))
        return attend(q, k, v, is_causal, no_backward=("scores", "softmax", "final matmul"))


def attend_without_ranges(q, k, v, is_causal):
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)


def attend_detached(q, k, v, is_causal):
    return attend(q, k.detach(), v, is_causal)


# Sums of few bits


def add_up(value, num_terms, sum_dtype, term_dtype, *, start=0.0, step=lambda total, term: total + term):
    """Right when nothing is changed."""
    term, total = torch.tensor(value, dtype=term_dtype), torch.tensor(start, dtype=sum_dtype)
    for _ in range(num_terms):
        total = step(total, term)
    return float(total)


def multiply(value, num_terms, sum_dtype, term_dtype):
    return float(torch.tensor(value, dtype=term_dtype).to(sum_dtype) * num_terms)


def add_unrounded(value, num_terms, sum_dtype, term_dtype):
    return add_up(value, num_terms, sum_dtype, sum_dtype)


def add_in_wide(value, num_terms, sum_dtype, term_dtype):
    return float(torch.tensor(add_up(value, num_terms, torch.float32, term_dtype), dtype=sum_dtype))


def add_in_wide_alone(value, num_terms, sum_dtype, term_dtype):
    return add_up(value, num_terms, torch.float32, term_dtype)


def add_starting_at_the_value(value, num_terms, sum_dtype, term_dtype):
    return add_up(value, num_terms, sum_dtype, term_dtype, start=float(torch.tensor(value, dtype=term_dtype)))


def add_in_the_type_of_the_terms(value, num_terms, sum_dtype, term_dtype):
    return add_up(value, num_terms, term_dtype, term_dtype)


def add_and_return_the_tensor(value, num_terms, sum_dtype, term_dtype):
    return torch.tensor(add_up(value, num_terms, sum_dtype, term_dtype), dtype=sum_dtype)


# Types under autocast


def find_types(
    model, inputs, targets, dtype, *,
    autocast=True, loss_inside=True, backward_inside=False, convert=False, children_only=False,
    containers=False, guess_gradients=None, guess_outputs=False, remove=True, evaluate=False,
):  # fmt: skip
    """Right when nothing is changed."""
    found, handles = {}, []
    if convert:
        model.to(dtype)
    if evaluate:
        model.eval()

    def note(name):
        return lambda module, args, output: found.update({f"outputs.{name}": output.dtype})

    for name, module in model.named_children() if children_only else model.named_modules():
        if name and (containers or not list(module.children())):
            handles.append(module.register_forward_hook(note(name)))
    with contextlib.ExitStack() as stack:
        if autocast:
            stack.enter_context(torch.autocast(inputs.device.type, dtype=dtype))
        if convert and inputs.is_floating_point():
            inputs = inputs.to(dtype)
        output = model(inputs)
        if not loss_inside:
            stack.close()
        loss = F.cross_entropy(output, targets)
        found["loss"] = loss.dtype
        if not backward_inside:
            stack.close()
        loss.backward()
    for name, parameter in model.named_parameters():
        found[f"parameters.{name}"] = parameter.dtype
        found[f"gradients.{name}"] = guess_gradients or parameter.grad.dtype
    if guess_outputs:
        found.update({name: dtype for name in found if name.startswith("outputs.")})
    if remove:
        for handle in handles:
            handle.remove()
    return found


def guess_low_gradients(model, inputs, targets, dtype):
    return find_types(model, inputs, targets, dtype, guess_gradients=dtype)


def types_by_heart(model, inputs, targets, dtype):
    weights = {name: weight.dtype for name, weight in model.named_parameters()}
    leaves = [name for name, module in model.named_modules() if name and not list(module.children())]
    return (
        {f"parameters.{name}": kind for name, kind in weights.items()}
        | {f"outputs.{name}": dtype for name in leaves}
        | {f"gradients.{name}": kind for name, kind in weights.items()}
        | {"loss": torch.float32}
    )


def types_without_backward(model, inputs, targets, dtype):
    with torch.enable_grad():
        found = find_types(model, inputs, targets, dtype)
    return {name: kind for name, kind in found.items() if not name.startswith("gradients.")}


# Checkpointing


def in_order(blocks, x):
    for block in blocks:
        x = block(x)
    return x


def checkpoint_blocks(
    blocks, x, size, *, reentrant=False, zero=0, drop_last=False, first_only=False, twice=False
):
    """Right when nothing is changed."""
    size = size or zero
    if not size:
        return in_order(blocks, x)
    for start in range(0, len(blocks), size):
        group = blocks[start : start + size]
        if drop_last and len(group) < size:
            break
        if first_only and start:
            x = in_order(group, x)
            continue
        run = functools.partial(checkpoint_blocks, size=1) if twice and size > 1 else in_order
        x = checkpoint(run, group, x, use_reentrant=reentrant)
    return x


def checkpoint_each(blocks, x, size):
    return checkpoint_blocks(blocks, x, min(size, 1))


def checkpoint_all(blocks, x, size):
    return checkpoint_blocks(blocks, x, len(blocks) if size else 0)


def keep_everything(blocks, x, size):
    return in_order(blocks, x)


def checkpoint_detached(blocks, x, size):
    for block in blocks:
        x = checkpoint(block, x.detach().requires_grad_(), use_reentrant=False)
    return x


def checkpoint_the_last_group(blocks, x, size):
    if not size:
        return in_order(blocks, x)
    for start in range(0, len(blocks), size):
        group = blocks[start : start + size]
        x = checkpoint(lambda x: in_order(group, x), x, use_reentrant=False)  # noqa: B023  the mistake
    return x


TIMING = mutants(
    "benchmarking_script",
    "run_benchmark",
    [
        ("no-wait-before", "while earlier work is in the queue", functools.partial(benchmark, before=False)),
        (
            "no-wait-after",
            "until it is asked for, not until it is done",
            functools.partial(benchmark, after=False),
        ),
        (
            "no-wait",
            "until it is asked for, not until it is done",
            functools.partial(benchmark, before=False, after=False),
        ),
        ("no-warm-up", "warm-up was left out", functools.partial(benchmark, warm_up=False)),
        ("warm-up-returned", "done but not counted", functools.partial(benchmark, counts_warm_up=True)),
        ("warm-up-counted", "the samples are the warm-up's", benchmark_first_samples),
        (
            "inputs-timed",
            "inputs are made while the clock runs",
            functools.partial(benchmark, times_inputs=True),
        ),
        ("inputs-reused", "its result used again", functools.partial(benchmark, reuses_inputs=True)),
        ("mean-repeated", "the mean is repeated", functools.partial(benchmark, finish=repeat_mean)),
        (
            "counted-from-the-start",
            "start of the loop, not of its step",
            functools.partial(benchmark, finish=add_up_samples),
        ),
        ("milliseconds", "are in milliseconds", functools.partial(benchmark, finish=to_milliseconds)),
        ("total-shared-out", "divided by the steps", benchmark_whole_loop),
        ("constant", r"returned \[4.25, .* the steps took \[8.5,", benchmark_guessing),
        ("own-clock", "the clock that was given was never read", benchmark_with_own_clock),
        ("mean-alone", "expected a list", functools.partial(benchmark, finish=statistics.fmean)),
    ],
)
NAMES = ("scores", "softmax", "final matmul")
RANGES = [
    *mutants(
        "nsys_profile",
        "get_annotate",
        [
            ("nothing-annotated", "shows no range", lambda: lambda name: contextlib.nullcontext()),
            ("closed-at-once", "closed too early", lambda: annotate_nothing),
            ("open-after-an-exception", "an exception left", lambda: PushAndPop),
            ("exception-swallowed", "swallowed an exception", lambda: annotate_swallowing),
            ("flat", "opened inside of another ended the outer", lambda: FlatRange),
        ],
    ),
    *mutants(
        "nsys_profile",
        "run_annotated_attention",
        [
            ("scale-missing", "not divided by sqrt", functools.partial(attend, scale=1.0)),
            ("mask-shifted", "off by one", functools.partial(attend, diagonal=1)),
            ("ranges-around-nothing", "contains no matrix product", functools.partial(attend, empty=NAMES)),
            ("softmax-range-empty", "contains no exponential", functools.partial(attend, empty=("softmax",))),
            ("mask-outside", "the mask .* runs outside", functools.partial(attend, mask_in_range=False)),
            (
                "all-in-the-last",
                "do not stand one after the other",
                functools.partial(attend, everything=True),
            ),
            (
                "no-backward-ranges",
                r"no range '.* \(backward\)'",
                functools.partial(attend, no_backward=NAMES),
            ),
            (
                "backward-ranges-in-forward",
                "stands in the forward pass",
                attend_with_backward_ranges_in_forward,
            ),
            ("graph-cut", "gradient", attend_detached),
            ("no-ranges", "shows no range 'attention scores'", attend_without_ranges),
            ("no-graph", "must leave the graph whole", torch.no_grad()(attend)),
        ],
    ),
]
SUMS = mutants(
    "mixed_precision_accumulation",
    "run_accumulation",
    [
        ("multiplied", "multiplied in", multiply),
        ("term-not-rounded", "terms are not rounded to their own type", add_unrounded),
        ("rounded-once", "rounded once, as torch.sum does", add_in_wide),
        ("sum-never-rounded", "never rounded to its type", add_in_wide_alone),
        ("started-at-the-value", "starts at the value", add_starting_at_the_value),
        ("type-of-the-terms", "has the type of the terms", add_in_the_type_of_the_terms),
        ("tensor-returned", "returned a tensor", add_and_return_the_tensor),
    ],
)
TYPES = mutants(
    "benchmarking_mixed_precision",
    "run_autocast_dtypes",
    [
        (
            "outside-the-context",
            "runs outside of torch.autocast",
            functools.partial(find_types, autocast=False),
        ),
        ("loss-outside", "loss is computed outside", functools.partial(find_types, loss_inside=False)),
        ("backward-inside", "backward ran inside", functools.partial(find_types, backward_inside=True)),
        ("model-converted", "The model was converted", functools.partial(find_types, convert=True)),
        ("one-level-of-modules", "sees one level", functools.partial(find_types, children_only=True)),
        (
            "containers-too",
            "not submodules without submodules",
            functools.partial(find_types, containers=True),
        ),
        ("gradients-guessed", "has the type of its parameter", guess_low_gradients),
        (
            "gradients-all-fp32",
            "has the type of its parameter",
            functools.partial(find_types, guess_gradients=torch.float32),
        ),
        ("outputs-guessed", "Not every module's output", functools.partial(find_types, guess_outputs=True)),
        ("hooks-left", "a hook was left", functools.partial(find_types, remove=False)),
        ("left-in-evaluation", "left in evaluation mode", functools.partial(find_types, evaluate=True)),
        ("no-gradients", "has no gradients", types_without_backward),
        ("known-by-heart", "never run", types_by_heart),
        ("nothing-done", "returned a NoneType", lambda model, inputs, targets, dtype: None),
    ],
)
CHECKPOINTING = mutants(
    "gradient_checkpointing",
    "run_checkpointed_blocks",
    [
        ("reentrant", "use_reentrant=True", functools.partial(checkpoint_blocks, reentrant=True)),
        ("nothing-checkpointed", "ran no block again", keep_everything),
        ("each-block-alone", "as if it were 1", checkpoint_each),
        ("one-for-all", r"blocks \[0\] are kept", checkpoint_all),
        ("last-group-dropped", "are left out", functools.partial(checkpoint_blocks, drop_last=True)),
        ("first-group-only", "still keep values", functools.partial(checkpoint_blocks, first_only=True)),
        ("zero-checkpoints-too", "0 keeps everything", functools.partial(checkpoint_blocks, zero=1)),
        ("nested", "inside of one another", functools.partial(checkpoint_blocks, twice=True)),
        ("group-looked-up-late", "looks its variables up when it is called", checkpoint_the_last_group),
        ("detached", "got no gradient", checkpoint_detached),
    ],
)
MUTANTS = [*TIMING, *RANGES, *SUMS, *TYPES, *CHECKPOINTING]
