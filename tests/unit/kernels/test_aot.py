"""Kernels compiled without a GPU: what the compiler's output says, and which of it may not ship."""

import importlib
import json
import os
import pathlib
import re

import pytest
import torch

from cs_systems.cli import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from cs_systems.kernels import aot

pytest.importorskip("triton", reason="needs Triton (Linux)")

SUBSET = "weighted_sum_backward_kernel fp32 64,softmax_forward_kernel bf16 1024"
"""A few forms that compile quickly; the command without --kernel compiles all."""

FORM = {
    "index": 0, "name": "softmax kernel label", "kernel": "kernel", "variant": "label", "arch": 90,
    "uses_tensor_cores": False, "is_16_bit": True, "triton": "3.7.1", "error": None, "registers": 128,
    "stack_bytes": 0, "spills": 0, "shared_bytes": 1024, "num_warps": 4, "num_mma": 0, "num_wgmma": 0,
}  # fmt: skip

EXAMPLES = '''
"""Kernels that a GPU would not like, and one that it would."""

import triton
import triton.language as tl

from cs_systems.kernels.launch import Variant


@triton.jit
def product_kernel(a_ptr, b_ptr, n, stride, SIDE: tl.constexpr):
    """b += a @ a, many times."""
    i = tl.arange(0, SIDE)
    offset = i[:, None] * stride + i[None, :]
    total = tl.zeros([SIDE, SIDE], tl.float32)
    for i in range(n):
        a = tl.load(a_ptr + offset + i * SIDE)
        total = tl.dot(a, a, total)
    tl.store(b_ptr + offset, total)


@triton.jit
def row_kernel(a_ptr, b_ptr, LENGTH: tl.constexpr):
    """b = a - max a: all of a must be kept."""
    i = tl.arange(0, LENGTH)
    a = tl.load(a_ptr + i)
    tl.store(b_ptr + i, a - tl.max(a))


@triton.jit
def broken_kernel(a_ptr):
    """Names what does not exist."""
    tl.store(a_ptr, missing)


def variants():
    """One of each kind."""
    types = {"a_ptr": "*bf16", "b_ptr": "*fp32"}
    fp32 = {"a_ptr": "*fp32", "b_ptr": "*fp32"}
    return [
        Variant(product_kernel, "good", types, {"SIDE": 64}, 4, 3, ("stride",), uses_tensor_cores=True),
        Variant(product_kernel, "fp32", fp32, {"SIDE": 64}, 4, 3, ("stride",), uses_tensor_cores=True),
        Variant(row_kernel, "spills", types, {"LENGTH": 8192}, 1),
        Variant(product_kernel, "incomplete", {"a_ptr": "*bf16"}, {"SIDES": 64}, 4),
        Variant(broken_kernel, "broken", types, {}, 4),
    ]
'''


@pytest.fixture(scope="module", autouse=True)
def compiler_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module")
def examples(compiler_cache, tmp_path_factory):
    """Rows of the example kernels on sm_90, by label."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "aot_examples.py").write_text(EXAMPLES)
    tools = aot.find_triton(None) / "backends" / "nvidia" / "bin"
    request = {"modules": ["aot_examples"], "archs": [80, 90], "words": [], "tools": str(tools)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        rows = aot.compile_all(request, 2, None)
    assert [row["arch"] for row in rows] == [80] * 5 + [90] * 5, "the shares were not put in order"
    return {(row["variant"], row["arch"]): row for row in rows}


def test_a_good_form_uses_the_tensor_cores_of_its_gpu(examples):
    ampere, hopper = examples["good", 80], examples["good", 90]
    assert aot.problems_of(ampere) == aot.problems_of(hopper) == []
    assert ampere["num_mma"] > 0 == ampere["num_wgmma"]
    assert hopper["num_wgmma"] > 0 == hopper["num_mma"]
    assert 24 <= hopper["registers"] <= 255
    assert hopper["num_warps"] == 4
    # Three stages of 64 x 64 numbers: loads run ahead only where addresses are known to be aligned.
    assert hopper["shared_bytes"] >= 3 * 64 * 64 * 2
    assert not examples["fp32", 90]["is_16_bit"]
    assert aot.problems_of(examples["fp32", 90]) == []


def test_what_is_wrong_with_a_form_is_said(examples):
    assert examples["spills", 90]["spills"] > 0 < examples["spills", 90]["stack_bytes"]
    for label, said in (
        ("spills", "spills: "),
        ("incomplete", "no constant SIDE; no such argument: SIDES; no type of b_ptr"),
        ("broken", "does not compile: .*missing is not defined"),
    ):
        for arch in (80, 90):
            (problem,) = aot.problems_of(examples[label, arch])
            assert re.search(said, problem), problem


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"spills": 2}, "spills: 2"),
        ({"stack_bytes": 8}, "8 B of stack"),
        ({"shared_bytes": 232448}, None),
        ({"shared_bytes": 232449}, "sm_90 has 232448"),
        ({"shared_bytes": 166913, "arch": 80}, "sm_80 has 166912"),
        ({"uses_tensor_cores": True, "num_wgmma": 8}, None),
        ({"uses_tensor_cores": True, "num_mma": 8}, "no wgmma"),
        ({"uses_tensor_cores": True, "num_mma": 8, "is_16_bit": False}, None),
        ({"uses_tensor_cores": True, "num_mma": 8, "arch": 80}, None),
        ({"uses_tensor_cores": True, "is_16_bit": False}, "no tensor-core instruction"),
        ({"uses_tensor_cores": True, "arch": 80}, "no tensor-core instruction"),
        ({"error": "does not compile"}, "does not compile"),
    ],
)
def test_gates(changes, said):
    problems = aot.problems_of(FORM | changes)
    assert (problems == []) if said is None else (len(problems) == 1 and said in problems[0])


@pytest.mark.parametrize(
    ("registers", "shared_kib", "num_warps", "programs"),
    [(113, 41, 4, 4), (193, 48, 4, 2), (240, 65, 8, 1), (40, 0, 4, 12), (16, 0, 1, 32), (32, 228, 4, 0)],
)
def test_programs_on_one_multiprocessor(registers, shared_kib, num_warps, programs):
    needs = {"registers": registers, "shared_bytes": shared_kib * 1024, "num_warps": num_warps}
    assert aot.programs_per_sm(FORM | needs) == programs


@pytest.mark.parametrize("name", aot.MODULES)
def test_variants_name_all_arguments_of_their_kernels(name):
    from cs_systems.kernels.census import argument_problems, list_variants

    module = importlib.import_module(f"cs_systems.kernels.{name}")
    for arch in aot.SHARED_BYTES:
        problems = {form.label: argument_problems(form) for form in list_variants(module, arch)}
        assert {label: said for label, said in problems.items() if said} == {}


def test_no_module_with_variants_is_left_out():
    folder = pathlib.Path(aot.__file__).parent
    having = {path.stem for path in folder.glob("*.py") if "\ndef variants(" in path.read_text()}
    assert having == set(aot.MODULES), "enter the module in MODULES of aot.py"


def test_a_few_forms_are_compiled_and_may_ship(capsys):
    assert aot.main(["--kernel", SUBSET, "--jobs", "1"]) == EXIT_OK, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "\n4 compiled forms under Triton " in out
    summary = json.loads(out.splitlines()[-1])
    assert (summary["experiment"], summary["num_forms"], summary["bad"]) == ("kernels_aot", 4, [])


@pytest.mark.skipif("CS_SYSTEMS_TRITON_DIR" not in os.environ, reason="CS_SYSTEMS_TRITON_DIR names no folder")
def test_the_same_forms_with_another_triton(capsys):
    import triton

    folder = os.environ["CS_SYSTEMS_TRITON_DIR"]
    assert aot.main(["--kernel", SUBSET, "--jobs", "1", "--triton-dir", folder]) == EXIT_OK
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["triton"] != triton.__version__


def test_bad_forms_fail_the_command_and_are_listed(monkeypatch, capsys):
    bad = FORM | {"index": 1, "name": "softmax kernel greedy", "spills": 7, "stack_bytes": 28}
    monkeypatch.setattr(aot, "compile_all", lambda *_: [FORM, bad])
    assert aot.main([]) == EXIT_FAILED
    *table, last = capsys.readouterr().out.splitlines()
    assert table[-2:] == [
        "softmax kernel greedy, sm_90: spills: 7 instructions, 28 B of stack a thread",
        "2 compiled forms under Triton 3.7.1: 1 are bad, see above.",
    ]
    assert [entry["name"] for entry in json.loads(last)["bad"]] == ["softmax kernel greedy"]
    with pytest.raises(SystemExit) as caught:
        aot.main(["--kernel", "kernel,nonsense"])
    assert caught.value.code == EXIT_USAGE
    assert "holds 'nonsense'" in capsys.readouterr().err


def test_a_compiler_that_crashes_costs_its_own_forms_only(tmp_path):
    output = tmp_path / "0.jsonl"
    census = {"registers": 40, "spills": 0}
    output.write_text(f"{json.dumps([FORM, FORM, FORM])}\n{json.dumps({'census': census})}\n")
    rows = aot.read_share(output, -11)
    assert rows[0]["registers"] == 40
    assert [row["error"] and row["error"][:35] for row in rows] == [
        None, *["the compiler died with exit code -1"] * 2
    ]  # fmt: skip
    output.write_text("")
    with pytest.raises(RuntimeError, match="left with 1"):
        aot.read_share(output, 1)


def test_without_triton_or_its_tools_one_line_says_so(tmp_path, monkeypatch, capsys):
    assert aot.main(["--triton-dir", str(tmp_path)]) == EXIT_FAILED
    assert capsys.readouterr().err.endswith(f"there is no Triton in {tmp_path}\n")
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").touch()
    assert aot.main(["--triton-dir", str(tmp_path)]) == EXIT_FAILED
    assert "has no cuobjdump" in capsys.readouterr().err
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    assert aot.main([]) == EXIT_FAILED
    assert "pip install triton" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arch", "75"], "'75' is not one of 80, 90"),
        (["--jobs", "0"], "--jobs"),
        (["--kernels"], "--kernel?"),
    ],
)
def test_bad_flags_are_refused_in_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as caught:
        aot.main(words)
    err = capsys.readouterr().err
    assert (caught.value.code, err.count("\n")) == (EXIT_USAGE, 1)
    assert said in err


def call_weighted_sum(weighted_sum):
    x = torch.randn(3, 64, requires_grad=True)
    torch.autograd.grad(weighted_sum(x, torch.randn(64)), x, torch.randn(3))


def call_softmax(softmax):
    for num_columns in (1024, 65536):
        x = torch.randn(2, num_columns, requires_grad=True)
        torch.autograd.grad(softmax(x), x, torch.randn_like(x))


def call_cross_entropy(cross_entropy):
    for num_columns in (1024, 65536):
        logits, targets = torch.randn(4, num_columns), torch.tensor([0, 1, 2, 3])
        cross_entropy(logits, targets)
        cross_entropy(logits.requires_grad_(), targets).backward(torch.tensor(2.0))


@pytest.mark.parametrize("call", [call_weighted_sum, call_softmax, call_cross_entropy])
def test_what_is_launched_is_what_was_compiled(call, device, monkeypatch):
    """Same constants, types and warps: a form that only `variants` knows would be checked for nothing."""
    if device == "cuda":
        pytest.skip("the interpreter's launches are recorded")
    from triton.runtime.interpreter import GridExecutor

    name = call.__name__.removeprefix("call_")
    module = importlib.import_module(f"cs_systems.kernels.{name}")
    launches, execute = [], GridExecutor.__call__

    def record(self, *args, **kwargs):
        launches.append((self.fn.__name__, dict(zip(self.arg_names, args, strict=False)) | kwargs))
        return execute(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", record)
    call(getattr(module, name))
    assert len({kernel for kernel, _ in launches}) >= 2
    for kernel, launched in launches:
        same = [
            form for form in module.variants() if form.kernel.__name__ == kernel and agrees(form, launched)
        ]
        assert same, f"{kernel} was launched in a form that `variants` does not list: {launched}"


def agrees(form, launched):
    pointers = {
        torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32", torch.bfloat16: "*bf16"
    }  # fmt: skip
    tensors = {name: pointers[value.dtype] for name, value in launched.items() if torch.is_tensor(value)}
    return (
        all(form.types[name] == pointer for name, pointer in tensors.items())
        and all(launched[name] == value for name, value in form.constants.items())
        and (form.num_warps, form.num_stages) == (launched.get("num_warps", 4), launched.get("num_stages", 3))
    )
