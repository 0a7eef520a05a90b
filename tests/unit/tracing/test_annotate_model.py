"""An annotated model: each part has its ranges, around the right work, and computes what it did before."""

import collections
import copy
import json

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from cs_systems.model.apply import apply_attention, apply_checkpointing
from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import cross_entropy
from cs_systems.model.transformer import TransformerLM
from cs_systems.tracing.annotate import annotate
from cs_systems.tracing.annotate_model import annotate_model, remove_annotations

LAYERS, STEPS = 3, 2
STEPS_OF_NAIVE = ("attention scores", "attention softmax", "attention final matmul")
PER_BLOCK = {"block": 1, "norm": 2, "feed-forward": 1, "attention": 1}
BACKWARD = " (backward)"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_model(attention="naive", **settings):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=17, context_length=12, d_model=16, num_heads=4, num_kv_heads=2,
        **{"num_layers": LAYERS} | settings,
    )  # fmt: skip
    model = TransformerLM(config).double()
    apply_attention(model, attention)
    return model


def draw_tokens():
    tokens = torch.randint(17, (2, 13), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def run(model):
    """Loss and gradients of one step, in the ranges of its phases."""
    token_ids, targets = draw_tokens()
    model.zero_grad()
    with annotate("forward"):
        logits = model(token_ids)
    with annotate("loss"):
        loss = cross_entropy(logits, targets)
    with annotate("backward"):
        loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in model.parameters())]


def assert_same(results, expected):
    """Losses to the bit; gradients that meet at the input of a range are added up in another order."""
    assert torch.equal(results[0], expected[0])
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-11, atol=1e-13)


class Recorded:
    """Some steps of a model under torch.profiler, read from the file that it writes."""

    def __init__(self, model, path, steps=STEPS):
        cpu = torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[cpu]) as profiler:
            self.results = [run(model) for _ in range(steps)]
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
        self.ranges = sorted(
            (event for event in events if event.get("cat") == "user_annotation" and event["ph"] == "X"),
            key=lambda event: (event["ts"], -event["dur"]),
        )
        self.ops = {event["ts"]: event for event in events if event.get("cat") == "cpu_op"}
        flows = [event for event in events if event.get("cat") == "fwdbwd"]
        starts = {event["id"]: event for event in flows if event["ph"] == "s"}
        self.flows = [(starts[event["id"]], event) for event in flows if event["ph"] == "f"]

    def counts(self):
        return collections.Counter(event["name"] for event in self.ranges)

    def path_at(self, time):
        """Names of the ranges that are open at `time`, outermost first."""
        return [event["name"] for event in self.ranges if event["ts"] <= time <= end_of(event)]


def end_of(event):
    return event["ts"] + event["dur"]


@pytest.fixture
def trace_path(tmp_path):
    return tmp_path / "trace.json"


def expected_counts(attention, recomputed=False):
    """How often each range occurs in STEPS steps."""
    per_block = PER_BLOCK | (dict.fromkeys(STEPS_OF_NAIVE, 1) if attention == "naive" else {})
    counts = collections.Counter(dict.fromkeys(("forward", "loss", "backward"), STEPS))
    for name, times in per_block.items():
        counts[name] += times * LAYERS * STEPS * (1 + recomputed)
        counts[name + BACKWARD] += times * LAYERS * STEPS
    for name in ("norm", "head"):  # once after the blocks
        counts[name] += STEPS
        counts[name + BACKWARD] += STEPS
    return counts


@pytest.mark.parametrize(
    ("attention", "settings"),
    [
        ("naive", {}),
        ("naive", {"position": "alibi", "residual": "parallel", "norm": "layernorm"}),
        ("sdpa", {"position": "learned", "activation": "gelu"}),
        ("flash-torch", {"position": "alibi"}),
    ],
)
def test_every_operation_runs_backward_in_the_range_that_it_ran_forward_in(attention, settings, trace_path):
    """By autograd's own bookkeeping, which node of backward belongs to which operation."""
    model = make_model(attention, **settings)
    annotate_model(model)
    recorded = Recorded(model, trace_path)
    expected = expected_counts(attention)
    if settings.get("residual") == "parallel":
        for name in ("norm", "norm" + BACKWARD):
            expected[name] -= LAYERS * STEPS
    assert recorded.counts() == expected
    seen = collections.Counter()
    for forward, backward in recorded.flows:
        path = recorded.path_at(forward["ts"])
        # The engine's event of a node begins before a range that the node opens.
        end = end_of(recorded.ops[backward["ts"]])
        assert path[0] in ("forward", "loss")
        assert recorded.path_at(end) == ["backward", *(name + BACKWARD for name in path[1:])]
        seen[tuple(path[1:])] += 1
    assert {name for path in seen for name in path} == {
        name.removesuffix(BACKWARD) for name in expected if name.endswith(BACKWARD)
    }
    assert seen["block", "attention", *STEPS_OF_NAIVE[1:2]] == (
        4 * LAYERS * STEPS if attention == "naive" else 0
    )


@pytest.mark.parametrize("attention", ["naive", "sdpa", "flash-torch"])
def test_loss_and_gradients_are_the_same(attention, trace_path):
    model = make_model(attention)
    expected = run(model)
    annotate_model(model)
    assert all(map(torch.equal, run(model), expected))  # nobody listens: the very same graph
    for result in Recorded(model, trace_path).results:
        assert_same(result, expected)


@pytest.mark.parametrize("blocks_per_checkpoint", [1, 2])
def test_recomputed_blocks_have_their_ranges_in_backward_once_more(blocks_per_checkpoint, trace_path):
    model = make_model()
    expected = run(model)
    annotate_model(model)
    apply_checkpointing(model, blocks_per_checkpoint)
    recorded = Recorded(model, trace_path)
    assert_same(recorded.results[0], expected)
    counts = expected_counts("naive", recomputed=True)
    assert {name: count for name, count in recorded.counts().items() if counts[name] != count} == {}
    phases = collections.Counter(
        recorded.path_at(event["ts"])[0] for event in recorded.ranges if event["name"] == "block"
    )
    assert phases == {"forward": LAYERS * STEPS, "backward": LAYERS * STEPS}


def test_annotating_twice_is_annotating_once(trace_path):
    model = make_model()
    annotate_model(model)
    annotate_model(model)
    assert Recorded(model, trace_path).counts() == expected_counts("naive")


def test_another_attention_function_needs_new_annotations(tmp_path):
    model = make_model()
    annotate_model(model)
    apply_attention(model, "sdpa")
    assert Recorded(model, tmp_path / "a.json", steps=1).counts()["attention"] == 0
    annotate_model(model)
    assert Recorded(model, tmp_path / "b.json").counts() == expected_counts("sdpa")


def test_removal_restores_the_model(trace_path):
    model, untouched = make_model(), make_model()
    remove_annotations(model)  # of which there are none yet
    annotate_model(model)
    remove_annotations(model)
    for module, other in zip(model.modules(), untouched.modules(), strict=True):
        assert vars(module).keys() == vars(other).keys()
        assert getattr(module, "attention", None) is getattr(other, "attention", None)
    assert Recorded(model, trace_path, steps=1).counts() == {"forward": 1, "loss": 1, "backward": 1}


def test_weights_keep_their_names_and_a_copy_is_independent(trace_path):
    model = make_model()
    names = list(model.state_dict())
    annotate_model(model)
    twin = copy.deepcopy(model)
    remove_annotations(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert list(twin.state_dict()) == names
    recorded = Recorded(twin, trace_path)
    assert recorded.counts() == expected_counts("naive")
    assert_same(recorded.results[0], run(make_model()))


def test_nothing_is_kept_for_backward_that_was_not_before():
    def saved(model):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append((x.shape, x.dtype)) or x, lambda x: x
        ):
            logits = model(draw_tokens()[0])
        return kept, logits

    model = make_model()
    plain, _ = saved(model)
    annotate_model(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        annotated, logits = saved(model)
    assert annotated == plain
    assert logits._base is None  # so that a loss may still write its gradient over them


def test_a_compiled_model_is_one_graph_without_annotations(no_shape_checks):
    model = make_model(num_layers=1)
    token_ids, targets = draw_tokens()

    def compiled_run():
        counter = CompileCounter()
        model.zero_grad()
        logits = torch.compile(model, backend=counter, fullgraph=True)(token_ids)
        cross_entropy(logits, targets).backward()
        gradients = [weight.grad.clone() for weight in model.parameters()]
        torch._dynamo.reset()
        return (counter.frame_count, counter.op_count), [logits.detach(), *gradients]

    graph, expected = compiled_run()
    annotate_model(model)
    annotated_graph, result = compiled_run()
    assert graph == annotated_graph
    assert graph[0] == 1
    assert all(map(torch.equal, result, expected))
