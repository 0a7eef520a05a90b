"""What keeps tests from being spoiled, and what the instructor hears of: settings, answers, remarks."""

import pytest
import torch
import torch.nn.functional as F
from graded_support.fence import imports_answers
from graded_support.remarks import find_classes, watch
from graded_support.settings import put_back, read_settings

CHANGES = {
    "gradients": (lambda: torch.set_grad_enabled(False), "left torch with gradients switched off"),
    "type": (lambda: torch.set_default_dtype(torch.float64), "with the default type torch.float64"),
    "device": (lambda: torch.set_default_device("meta"), "with the default device meta"),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "with set_num_threads("),
    "precision": (
        lambda: torch.set_float32_matmul_precision("high"),
        "with set_float32_matmul_precision('high')",
    ),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        "with deterministic algorithms switched on",
    ),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_a_changed_setting_is_told_and_put_back(change, says):
    before = read_settings()
    change()
    assert says in put_back(before)
    assert read_settings() == before
    assert put_back(before) == ""


def test_a_changed_folder_is_put_back(tmp_path, monkeypatch):
    before = read_settings()
    monkeypatch.chdir(tmp_path)
    assert "changed the working folder" in put_back(before)
    assert read_settings() == before


NAMING = {
    "import graded_support.adamw as truth": True,
    "def f():\n    from graded_support import model_truth": True,
    "import importlib\nx = importlib.import_module('graded_support.numbers')": True,
    "from graded_supporting import x": False,
    "from .graded_support import x": False,
    "# import graded_support": False,
    '"""The adapters of graded_support."""': False,
    "graded_support is broken": False,
}


@pytest.mark.parametrize(("text", "names"), NAMING.items())
def test_an_import_of_the_answers_is_told_from_words(text, names, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(text)
    assert imports_answers(str(path)) == names


def test_a_file_that_is_gone_imports_nothing(tmp_path):
    assert not imports_answers(str(tmp_path / "gone.py"))


SOFTMAX = ("torch.softmax", "torch.nn.functional.softmax", "torch.Tensor.softmax")


class SoftmaxInside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.softmax(x, -1)

    @staticmethod
    def backward(ctx, dy):
        return dy.softmax(-1)


def clip(x):
    x.grad = torch.ones_like(x)
    torch.nn.utils.clip_grad_norm_([x], 1.0)


CALLS = {
    "function": (SOFTMAX, lambda x: torch.softmax(x, -1), ["torch.softmax"]),
    "functional": (SOFTMAX, lambda x: F.softmax(x, -1), ["torch.nn.functional.softmax"]),
    "method": (SOFTMAX, lambda x: x.softmax(-1), ["torch.Tensor.softmax"]),
    "module": (("torch.nn.functional.linear",), torch.nn.Linear(4, 2), ["torch.nn.functional.linear"]),
    "autograd": (
        SOFTMAX,
        lambda x: SoftmaxInside.apply(x).sum().backward(),
        ["torch.softmax"],  # torch suspends the watch in backward
    ),
    "known by its code": (("torch.nn.utils.clip_grad_norm_",), clip, ["torch.nn.utils.clip_grad_norm_"]),
    "allowed": (SOFTMAX, lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True), []),
}


@pytest.mark.parametrize(("names", "call", "expected"), CALLS.values(), ids=CALLS)
def test_calls_of_what_is_not_allowed_are_remarked_with_their_place(names, call, expected, tmp_path):
    x = torch.randn(3, 4, requires_grad=True)
    remarks = []
    with watch(names, str(tmp_path), remarks):
        for _ in range(2):  # said once
            call(x)
    assert [remark.split(" calls ")[1].split(",")[0] for remark in remarks] == expected
    assert all(remark.startswith(f"{__file__}, line ") for remark in remarks)


def test_what_is_compiled_computes_the_same_under_the_watch():
    def normalise(x):
        return torch.softmax(2 * x, -1) + 1

    x = torch.randn(3, 4)
    torch.compiler.reset()
    with watch(SOFTMAX, "", []):
        compiled = torch.compile(normalise, backend="eager", fullgraph=True)(x)
    assert torch.equal(compiled, normalise(x))


class Mine(torch.optim.Optimizer):
    pass


class Borrowed(torch.optim.AdamW):
    pass


def test_a_class_of_torch_and_one_made_from_it_are_remarked():
    given = [("get_it", Mine), ("get_it", Borrowed), ("get_it", torch.optim.AdamW), ("get_it", Borrowed)]
    assert find_classes(["torch.optim.AdamW"], given) == [
        "get_it returns a class made from torch.optim.AdamW, which writeup/code.md rules out",
        "get_it returns torch.optim.AdamW, which writeup/code.md rules out",
    ]
