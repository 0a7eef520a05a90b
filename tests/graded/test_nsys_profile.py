"""get_annotate and run_annotated_attention: ranges around the work that they name, forward and backward."""

import torch
from graded_support.compare import check_tensor, fail, rounding_bound
from graded_support.recording import (
    EXPONENTIALS,
    MASKS,
    PRODUCTS,
    SCALES,
    find_outside,
    find_range,
    names_inside,
    record,
)

SCORES, SOFTMAX, FINAL = "attention scores", "attention softmax", "attention final matmul"
BACKWARD = " (backward)"


def make_inputs(queries=5, keys=5, *, needs_grad=False):
    q = torch.randn(2, 3, queries, 4)
    k, v = torch.randn(2, 3, keys, 4), torch.randn(2, 3, keys, 4)
    return [tensor.requires_grad_(needs_grad) for tensor in (q, k, v)]


def attend(q, k, v, *, is_causal, diagonal=1, scale=0.5):
    """Attention in float64, by another formula for the mask."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()) * scale
    if is_causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=torch.float64).triu(diagonal)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v.double())


def check_values(actual, q, k, v, is_causal):
    mistakes = {
        "the scores are not divided by sqrt(d)": lambda: attend(q, k, v, is_causal=is_causal, scale=1.0),
        "the mask is missing": lambda: attend(q, k, v, is_causal=False),
        "the mask is used although is_causal is False": lambda: attend(q, k, v, is_causal=True),
        "a query sees the key after it: the mask is off by one": lambda: attend(
            q, k, v, is_causal=is_causal, diagonal=2
        ),
    }
    check_tensor(
        actual,
        attend(q, k, v, is_causal=is_causal).detach(),
        what=f"run_annotated_attention with is_causal={is_causal}",
        # A mean of v with weights: d + keys additions, an exponential of scores that are below 8 in size.
        allowed=rounding_bound(torch.float32, 8 + 4 + k.shape[2], float(v.detach().abs().max())),
        dtype=torch.float32,
        mistakes=mistakes,
        hint="Ranges change nothing about the values: softmax(Q K^T / sqrt(d)) V.",
    )


def test_a_range_stands_around_its_work(adapters):
    annotate = adapters.get_annotate()
    x = torch.randn(3, 3)

    def run():
        with annotate("forward"):
            x @ x
        x.exp()

    events = record(run)
    inside = names_inside(events, find_range(events, "forward"))
    if "aten::mm" not in inside:
        fail("the range 'forward' does not contain the product that ran in it: it was closed too early")
    if "aten::exp" in inside:
        fail("the range 'forward' contains what ran after it: it was closed too late")


def test_ranges_stand_inside_of_one_another(adapters):
    annotate = adapters.get_annotate()
    x = torch.randn(3, 3)

    def run():
        with annotate("outer"):
            for name in ("first", "second"):
                with annotate(name):
                    x @ x
            x.exp()

    events = record(run)
    outer, first, second = (find_range(events, name) for name in ("outer", "first", "second"))
    if not (outer.holds(first) and outer.holds(second)) or "aten::exp" not in names_inside(events, outer):
        fail("a range that is opened inside of another ended the outer one; it goes on until its own end")
    if first.holds(second) or first.end_us > second.start_us:
        fail("two ranges, one after the other, overlap: the first was closed too late")


def test_an_exception_closes_the_range_and_passes_through(adapters):
    annotate = adapters.get_annotate()
    x = torch.randn(3, 3)
    caught = []

    def run():
        try:
            with annotate("fails"):
                raise KeyError("from the test")
        except KeyError:
            caught.append(True)
        x.exp()

    events = record(run)
    if not caught:
        fail("the range swallowed an exception: __exit__ must not return True")
    if "fails" not in [event.name for event in events]:
        fail("a range that an exception left is never closed: close it in __exit__, or in a `finally`")
    if "aten::exp" in names_inside(events, find_range(events, "fails")):
        fail("a range that an exception left contains what ran after it: close it in a `finally`")


def test_ranges_change_no_value_of_attention(adapters):
    for is_causal in (False, True):
        q, k, v = make_inputs(keys=5 if is_causal else 7)
        outputs = []
        events = record(lambda: outputs.append(adapters.run_annotated_attention(q, k, v, is_causal)))  # noqa: B023
        check_values(outputs[0], q, k, v, is_causal)
        for name in (SCORES, SOFTMAX, FINAL):  # without ranges this would be easy
            find_range(events, name)


def test_three_ranges_are_all_of_attention(adapters):
    q, k, v = make_inputs()
    events = record(lambda: adapters.run_annotated_attention(q, k, v, True))
    ranges = {name: find_range(events, name) for name in (SCORES, SOFTMAX, FINAL)}
    scores, softmax, final = (names_inside(events, ranges[name]) for name in ranges)
    if (
        not ranges[SCORES].end_us
        <= ranges[SOFTMAX].start_us
        <= ranges[SOFTMAX].end_us
        <= ranges[FINAL].start_us
    ):
        fail("the three ranges do not stand one after the other: scores, softmax, final matmul")
    for name, operators in ((SCORES, scores), (FINAL, final)):
        if not set(PRODUCTS) & set(operators):
            fail(f"the range {name!r} contains no matrix product: it must be open while the product runs")
    if not set(EXPONENTIALS) & set(softmax):
        fail(f"the range {SOFTMAX!r} contains no exponential: it must be open while softmax runs")
    if set(PRODUCTS) & set(softmax):
        fail(f"the range {SOFTMAX!r} contains a matrix product, which belongs to the ranges around it")
    if set(EXPONENTIALS) & set(scores + final):
        fail(f"an exponential runs outside of the range {SOFTMAX!r}")
    left_out = {
        "a matrix product": find_outside(events, [ranges[SCORES], ranges[FINAL]], PRODUCTS),
        "the mask": find_outside(events, [ranges[SCORES]], MASKS),
        "the scale": find_outside(events, list(ranges.values()), SCALES),
    }
    for what, operators in left_out.items():
        if operators:
            fail(
                f"{what} ({operators[0]}) runs outside of the range that it belongs to: {SCORES!r} is "
                f"product, scale and mask, and the three ranges are all of attention"
            )


def test_backward_has_ranges_of_its_own(adapters):
    """Autograd runs backward when the ranges of forward are long closed."""
    q, k, v = make_inputs(needs_grad=True)
    gradient = torch.randn(2, 3, 5, 4)
    outputs, events = [], []

    def run():
        with torch.profiler.record_function("the whole forward"):
            outputs.append(adapters.run_annotated_attention(q, k, v, True))
        if not isinstance(outputs[0], torch.Tensor):
            fail(f"run_annotated_attention returned a {type(outputs[0]).__name__}; expected a torch.Tensor")
        if not outputs[0].requires_grad:
            fail("the result of run_annotated_attention has no gradient: ranges must leave the graph whole")
        outputs[0].backward(gradient)

    events = record(run)
    expected = torch.autograd.grad(attend(q, k, v, is_causal=True), (q, k, v), gradient.double())
    for name, tensor, truth in zip("QKV", (q, k, v), expected, strict=True):
        if tensor.grad is None:
            fail(f"{name} got no gradient through run_annotated_attention: ranges must leave the graph whole")
        check_tensor(
            tensor.grad,
            truth.double(),
            what=f"the gradient of {name} of run_annotated_attention",
            # Three products in a row, of up to 5 terms each; sizes of all factors together stay below 30.
            allowed=rounding_bound(torch.float32, 20, 30.0),
            dtype=torch.float32,
            hint="A range must not change gradients: pass them through as they come.",
        )
    ranges = {name: find_range(events, name + BACKWARD) for name in (SCORES, SOFTMAX, FINAL)}
    forward = find_range(events, "the whole forward")
    for name, found in ranges.items():
        if found.start_us < forward.end_us:
            fail(
                f"the range {name + BACKWARD!r} stands in the forward pass; what it names runs in "
                f"out.backward(): open and close it there, in an autograd.Function or in hooks of the graph"
            )
    scores, softmax, final = (names_inside(events, ranges[name]) for name in ranges)
    for name, operators in ((SCORES, scores), (FINAL, final)):
        if not set(PRODUCTS) & set(operators):
            fail(f"the range {name + BACKWARD!r} contains no matrix product, and its backward is two")
    if set(PRODUCTS) & set(softmax) or not softmax:
        what = "a matrix product" if softmax else "nothing"
        fail(f"the range {SOFTMAX + BACKWARD!r} contains {what}: it is the backward of softmax alone")
    later = [event for event in events if event.start_us >= forward.end_us]
    if left_out := find_outside(later, [ranges[SCORES], ranges[FINAL]], PRODUCTS):
        fail(f"{len(left_out)} matrix products of backward run outside of all ranges")
