"""Ranges: who hears them, that they nest and close whatever happens, and that nobody pays for silence."""

import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import threading
import timeit
import types
import warnings
import weakref

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from cs_systems import device as devices
from cs_systems.tracing import annotate as module
from cs_systems.tracing.annotate import annotate, annotate_call, annotation_backend

ATTACHED = {"NVTX_INJECTION64_PATH": "libToolsInjection64.so"}
ROOT = pathlib.Path(__file__).parents[3]


class Recorder(types.ModuleType):
    """Stands for the nvtx package with a tool that listens: what each thread pushed (its name) or popped."""

    def __init__(self):
        super().__init__("nvtx")
        self.events = {}

        class Range:
            def __init__(self, name):
                self.name = name

            def __enter__(_self):
                self.record(_self.name)

            def __exit__(_self, *error):
                self.record("pop")

        self.annotate = Range
        self.get_domain = lambda name: types.SimpleNamespace()

    def record(self, event):
        self.events.setdefault(threading.get_ident(), []).append(event)

    def drain(self):
        """What this thread did since the last call."""
        return self.events.pop(threading.get_ident(), [])


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment without tools; what was decided in another one is forgotten, before and after."""
    for name in (*ATTACHED, "NSYS_PROFILING_SESSION_ID", "NVTX_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)

    def forget():
        annotation_backend.cache_clear()
        module._tool_range.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def tool(monkeypatch):
    """A tool is attached and hears nvtx."""
    recorder = Recorder()
    monkeypatch.setenv(*next(iter(ATTACHED.items())))
    monkeypatch.setitem(sys.modules, "nvtx", recorder)
    return recorder


def no_gpu(monkeypatch):
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cpu"))


def profile():
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


def heard(profiler):
    """Names of the ranges that a finished profiler recorded, in the order of their starts."""
    events = [event for event in profiler.events() if event.is_user_annotation]
    return [event.name for event in sorted(events, key=lambda event: event.time_range.start)]


# Who listens


def test_without_a_tool_nvtx_is_not_even_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)  # importing it would raise
    with annotate("a"):
        assert annotation_backend() == "off"


def test_a_tool_that_listens_hears_nvtx(tool):
    with annotate("a"), annotate("b"):
        pass
    assert annotation_backend() == "nvtx"
    assert tool.drain() == ["a", "b", "pop", "pop"]


def test_nsys_is_known_by_its_session_too(tool, monkeypatch):
    monkeypatch.delenv(*ATTACHED)
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    assert annotation_backend() == "nvtx"


def test_nvtx_disable_is_obeyed(tool, monkeypatch):
    monkeypatch.setenv("NVTX_DISABLE", "1")
    with annotate("a"):
        assert annotation_backend() == "off"
    assert tool.drain() == []


class DummyDomain:
    """What nvtx 0.2.12 and later give for a domain when they believe that nobody listens."""


MUTE = {
    "missing": (None, "pip install nvtx"),
    "dummy": (types.SimpleNamespace(get_domain=lambda name: DummyDomain()), "nvtx==0.2.11, or a newer nsys"),
    "old": (types.SimpleNamespace(), "too old"),
}


@pytest.mark.parametrize("package", MUTE)
def test_ranges_that_no_tool_would_see_are_warned_of_once(tool, monkeypatch, package):
    nvtx, advice = MUTE[package]
    no_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, "nvtx", nvtx)
    use_ranges = annotate("a")(lambda: annotate_call("b", torch.neg, torch.ones(1)))
    with pytest.warns(UserWarning, match=advice):
        assert use_ranges() == -1
    assert use_ranges() == -1  # a second warning would be an error
    assert annotation_backend() == "mute"


@pytest.mark.parametrize("package", MUTE)
def test_on_a_gpu_torch_itself_writes_the_ranges_that_nvtx_cannot(tool, monkeypatch, package):
    monkeypatch.setitem(sys.modules, "nvtx", MUTE[package][0])
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(devices, "push_nvtx_range", tool.record)
    monkeypatch.setattr(devices, "pop_nvtx_range", lambda: tool.record("pop"))
    with annotate("a"), annotate("b"):
        pass
    assert annotation_backend() == "torch.cuda.nvtx"
    assert tool.drain() == ["a", "b", "pop", "pop"]


def test_the_real_nvtx_tells_whether_anybody_listens(monkeypatch):
    pytest.importorskip("nvtx")
    version = tuple(int(part) for part in importlib.metadata.version("nvtx").split("."))
    no_gpu(monkeypatch)
    monkeypatch.setenv(*next(iter(ATTACHED.items())))
    with warnings.catch_warnings(record=True, action="always") as caught, annotate("a"):
        assert annotation_backend() == ("mute" if version > (0, 2, 11) else "nvtx")
    assert len(caught) == (version > (0, 2, 11))


def test_a_torch_profiler_hears_ranges_while_it_records():
    with annotate("before"):
        pass
    with profile() as profiler, annotate("outer"), annotate("inner"):
        torch.ones(2) + 1
    with annotate("after"):
        pass
    assert heard(profiler) == ["outer", "inner"]


def test_a_profiler_may_start_or_stop_inside_a_range():
    profiler = profile()
    with annotate("a"):
        profiler.start()
        with annotate("b"):
            pass
        last = annotate("c")
        last.__enter__()
    profiler.stop()
    last.__exit__(None, None, None)
    assert heard(profiler)[:1] == ["b"]
    with profile() as profiler, annotate("d"):
        pass
    assert heard(profiler) == ["d"]


def test_a_profiler_that_writes_nvtx_does_not_repeat_what_the_tool_has_heard(tool, monkeypatch):
    with profile() as both, annotate("a"):
        pass
    monkeypatch.setattr(module, "_profiler_writes_nvtx", lambda: True)
    with profile() as tool_alone, annotate("a"):
        pass
    assert (heard(both), heard(tool_alone)) == (["a"], [])
    assert tool.drain() == ["a", "pop"] * 2


def test_an_ordinary_profiler_does_not_write_nvtx():
    with profile():
        assert not module._profiler_writes_nvtx()


# Nesting


def test_a_range_closes_when_its_body_raises(tool):
    with annotate("outer"):
        with pytest.raises(KeyError), annotate("inner"):
            raise KeyError
        tool.record("after")
    assert tool.drain() == ["outer", "inner", "pop", "after", "pop"]


def test_a_decorated_function_has_a_range_for_each_call_and_keeps_its_name(tool):
    @annotate("factorial")
    def factorial(n, *, one=1):
        """n!"""
        return n * factorial(n - 1, one=one) if n else one

    assert factorial(2, one=1) == 2
    assert (factorial.__name__, factorial.__doc__) == ("factorial", "n!")
    assert tool.drain() == ["factorial"] * 3 + ["pop"] * 3


def test_threads_do_not_see_each_other(tool):
    meet = threading.Barrier(2, timeout=10)

    def work(name):
        with annotate(name):
            meet.wait()
            with annotate("shared"):
                meet.wait()
        results[name] = tool.drain()

    results = {}
    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: [name, "shared", "pop", "pop"] for name in "ab"}


# Backward


def double(x):
    return x * 2


def test_a_call_has_a_range_in_forward_and_one_in_backward(tool):
    x = torch.ones(3, requires_grad=True)
    y = annotate_call("part", double, x)
    assert tool.drain() == ["part", "pop"]
    y.register_hook(lambda gradient: tool.record("gradient of y"))
    (y * 3).sum().backward()
    assert tool.drain() == ["gradient of y", "part (backward)", "pop"]
    assert x.grad.tolist() == [6, 6, 6]


def test_backward_ranges_nest_as_in_forward_also_when_they_end_with_the_same_operation(tool):
    def inner(x):
        return annotate_call("second", double, annotate_call("first", torch.exp, x))

    annotate_call("outer", inner, torch.ones(3, requires_grad=True)).sum().backward()
    assert tool.drain() == [
        *("outer", "first", "pop", "second", "pop", "pop"),
        *("outer (backward)", "second (backward)", "pop", "first (backward)", "pop", "pop"),
    ]


def test_several_inputs_and_outputs_share_one_backward_range(tool):
    def mix(a, factor, b, unused, constant):
        product = a * factor
        product.register_hook(lambda gradient: tool.record("inside"))
        return product + constant, b.exp(), a.detach()

    a, b, unused = (torch.ones(2, requires_grad=True) for _ in range(3))
    first, second, _ = annotate_call("mix", mix, a, 2.0, b, unused, torch.ones(2))
    tool.drain()
    (first + second).sum().backward()
    assert tool.drain() == ["mix (backward)", "inside", "pop"]
    assert unused.grad is None
    first, second, _ = annotate_call("mix", mix, a, 2.0, b, unused, torch.ones(2))
    tool.drain()
    second.sum().backward()
    assert tool.drain() == ["mix (backward)", "pop"]


@pytest.mark.parametrize("wanted", ["outer", "inner"])
def test_a_backward_that_stops_inside_a_range_closes_it(tool, wanted):
    inside = {}

    def keep(name):
        def function(x):
            inside[name] = x * 2
            return inside[name].exp()

        return function

    def outer(x):
        return keep("outer")(annotate_call("inner", keep("inner"), x))

    y = annotate_call("part", outer, torch.ones(3, requires_grad=True)).sum()
    tool.drain()
    torch.autograd.grad(y, inside[wanted], retain_graph=True)
    opened = ["part (backward)"] + ["inner (backward)"] * (wanted == "inner")
    assert tool.drain() == opened + ["pop"] * len(opened)
    y.backward()  # all of it, through the same nodes
    assert tool.drain() == ["part (backward)", "inner (backward)", "pop", "pop"]


def test_every_backward_through_a_graph_has_its_range(tool):
    y = annotate_call("part", double, torch.ones(3, requires_grad=True)).sum()
    tool.drain()
    for _ in range(2):
        y.backward(retain_graph=True)
        assert tool.drain() == ["part (backward)", "pop"]


def test_a_function_that_returns_its_input_has_no_backward(tool):
    annotate_call("nothing", lambda x: x, torch.ones(3, requires_grad=True).exp()).sum().backward()
    assert tool.drain() == ["nothing", "pop"]


def test_the_graph_goes_away_with_its_output(tool):
    def witness(*gradients):
        pass

    y = annotate_call("outer", lambda x: annotate_call("inner", double, x), torch.ones(3, requires_grad=True))
    y.grad_fn.register_hook(witness)
    seen = weakref.ref(witness)
    y.sum().backward()
    del y, witness
    assert seen() is None


def test_a_profiler_hears_backward_ranges():
    with profile() as profiler:
        annotate_call("part", double, torch.ones(3, requires_grad=True)).sum().backward()
    assert heard(profiler) == ["part", "part (backward)"]


def test_the_output_is_no_view_so_that_its_memory_can_be_used_again(tool):
    y = annotate_call("part", double, torch.ones(3, requires_grad=True))
    assert y._base is None
    y.mul_(3).sum().backward()
    assert tool.drain()[2:] == ["part (backward)", "pop"]


@pytest.mark.gpu
def test_on_a_gpu_backward_opens_and_closes_its_ranges_on_one_thread(tool):
    inside = []

    def part(x):
        inside.append(x * 2)
        return inside[0].exp()

    y = annotate_call("part", part, torch.ones(3, requires_grad=True, device="cuda")).sum()
    tool.drain()
    torch.autograd.grad(y, inside[0], retain_graph=True)  # ends inside
    y.backward()
    assert list(tool.events.values()) == [["part (backward)", "pop"] * 2]


def nodes_below(y):
    found, waiting = [], [y.grad_fn]
    while waiting:
        node = waiting.pop()
        found.append((node.name(), dict(node.metadata)))
        waiting += [below for below, _ in node.next_functions if below is not None]
    return found


def test_the_graph_is_the_plain_one_when_nobody_listens():
    x = torch.ones(3, requires_grad=True)
    assert nodes_below(annotate_call("part", double, x)) == nodes_below(double(x))


def test_without_gradients_there_is_no_backward_range(tool):
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert annotate_call("part", lambda x: x, x) is x
    weight = torch.ones(3, requires_grad=True)
    y = annotate_call("part", lambda x: x * weight, torch.ones(3))  # the gradient of a weight alone
    tool.drain()
    y.sum().backward()
    assert tool.drain() == []


# Cost


@pytest.fixture
def plain():
    """The module without the checks of types that tests add to every function: they take time themselves,
    and torch.compile cannot trace those of a constructor."""
    spec = importlib.util.spec_from_file_location("plain_annotate", module.__file__)
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    return plain


def seconds(function, number=2000):
    return min(timeit.repeat(function, number=number, repeat=5)) / number


def test_a_range_that_nobody_hears_costs_little(plain):
    def with_range():
        with plain.annotate("a"):
            pass

    x = torch.ones(1, requires_grad=True)
    assert seconds(with_range) < 5e-6  # half a microsecond when the machine has nothing else to do
    assert seconds(plain.annotate("a")(lambda: None)) < 5e-6
    assert seconds(lambda: plain.annotate_call("a", lambda x: x, x)) < 5e-6


@pytest.mark.parametrize("attached", [False, True])
def test_torch_compile_makes_one_graph_of_annotated_code(attached, request, plain):
    tool = request.getfixturevalue("tool") if attached else None

    @plain.annotate("function")
    def function(x):
        with plain.annotate("block"):
            y = x.sin()
        return plain.annotate_call("call", double, y)

    counter = CompileCounter()
    x = torch.ones(3, requires_grad=True)
    y = torch.compile(function, backend=counter, fullgraph=True)(x)
    y.sum().backward()
    assert (counter.frame_count, counter.op_count) == (1, 2)
    torch.testing.assert_close(y, x.sin() * 2)
    if tool:
        assert tool.drain() == []


@pytest.mark.skipif(shutil.which("nsys") is None, reason="nsys is not on PATH")
def test_nsys_records_the_ranges(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from cs_systems.tracing.annotate import annotate_call, annotation_backend\n"
        "annotate_call('part', torch.exp, torch.ones(3, requires_grad=True)).sum().backward()\n"
        "print(annotation_backend())\n"
    )
    command = ["nsys", "profile", "-t", "nvtx", "--sample=none", "--cpuctxsw=none", "--export=sqlite"]
    result = subprocess.run(
        [*command, "-o", tmp_path / "trace", sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if "mute" in result.stdout:
        assert "it will see no ranges" in result.stderr
        return
    with sqlite3.connect(tmp_path / "trace.sqlite") as database:
        rows = database.execute(
            "SELECT coalesce(n.text, s.value) FROM NVTX_EVENTS n LEFT JOIN StringIds s ON s.id = n.textId "
            "WHERE n.eventType = 59 ORDER BY n.start"
        )
        assert [name for (name,) in rows] == ["part", "part (backward)"]
