"""The layers of the package: its imports are parsed, and an edge that points upwards fails the test.

Lower layers know less. A module may import the layers below its own, and its own sub-package as long as that
is no higher; in layer 0 modules may also use each other. The exceptions stand in ONLY and NEVER. A new module
must be given a place in LAYERS.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = "cs_systems"

LAYERS = {
    "cli": 0,
    "device": 0,
    "tables": 0,
    "model.config": 1,
    "model.presets": 1,
    "kernels": 1,
    "tracing": 1,
    "timing": 1,
    "grading": 1,
    "model": 2,
    "optim": 2,
    "estimator": 2,
    "kernels.apply": 3,
    "tracing.annotate_model": 3,
    "mixed_precision": 3,
    "mixed_precision.settings": 1,
    "inference": 3,
    "bench": 4,
    "report": 5,
    "grading.evidence": 5,
    "grading.truths": 5,
    "grading.answers": 5,
    "mixed_precision.__main__": 6,
    "inference.settings": 1,
    "inference.memory": 2,
    "bench.generation": 6,
}
# These see only what is named: the estimator never builds a model, a report never runs one.
ONLY = {
    "estimator": ("tables", "model.config", "model.presets"),
    "report": (
        *("cli", "tables", "model.presets", "timing.stats", "estimator", "tracing", "grading"),
        *("mixed_precision.settings", "bench.record", "bench.measured", "bench.attention_table"),
        "bench.command",
    ),
}
# Below in the table and still out of bounds: the model is pure, what is measured is applied from outside.
NEVER = {"model": ("cs_systems.timing", "cs_systems.device", "cs_systems.cli", "torch.distributed")}
# What a command reads before it measures: --help and a typo are answered at once.
NO_TORCH = (
    *("cli", "tables", "model.config", "model.presets", "timing.stats", "estimator", "report"),
    *("bench.record", "bench.workload", "bench.progress", "bench.sweep", "bench.peers"),
    *("bench.attention", "bench.attention_case", "bench.kernels", "bench.kernel_case"),
    *("bench.command", "bench.turns", "bench.measured"),
    *("bench.leaderboard", "bench.leaderboard_table", "bench.leaderboard_worker"),
    *("grading.submission", "grading.packing", "grading.archive", "grading.receipt"),
    *("grading.handout", "grading.markers"),
    *("tracing.trace", "tracing.read", "tracing.chrome", "tracing.nsys", "tracing.attribute"),
    *("tracing.classify", "tracing.idle", "tracing.columns", "tracing.tables", "tracing.kernel_tables"),
    *("tracing.attention_table", "tracing.memory_table"),
    *("mixed_precision.settings", "mixed_precision.__main__", "grading.items", "grading.problems"),
    *("grading.blocks", "grading.symbolic", "grading.units", "grading.check"),
    *("inference.settings", "inference.memory", "bench.generation", "bench.generation_case"),
    *("bench.generation_sweep", "bench.generation_contest_table", "bench.generation_memory"),
    *("bench.generation_energy", "bench.generation_peer"),
)
SCRIPTS = ("benchmark", "profiling", "writeup", "scripts", "tests", "conftest")


def read_modules(root):
    """The parsed modules of the package under `root`: {"model.config": tree}; the package itself is ""."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        modules[name] = ast.parse(path.read_text())
    return modules


def imported_names(tree):
    """Full names of all that a module imports, also inside functions: `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def covers(prefix, name):
    return prefix == name or name.startswith(prefix + ".")


def find_layer(name):
    """The most specific row of LAYERS for a module, or None."""
    rows = [row for row in LAYERS if covers(row, name)]
    return max(rows, key=len) if rows else None


def internal_edges(modules):
    """For each module the modules of this package that it imports."""
    edges = {}
    for module, tree in modules.items():
        names = {name.removeprefix(f"{PACKAGE}.") for name in imported_names(tree) if covers(PACKAGE, name)}
        edges[module] = {name for name in names if name in modules and name != module}
    return edges


def layer_violations(modules):
    found = []
    for module, targets in internal_edges(modules).items():
        row = find_layer(module)
        if module and row is None:
            found.append(f"{module}: has no layer; give it one in LAYERS")
            continue
        for target in targets:
            found += edge_violations(module, row, target)
    return found


def edge_violations(module, row, target):
    """Why `module` (found under `row` of LAYERS) may not import `target`: a list, empty when it may."""
    package = module.split(".")[0]
    if not module:
        return [f"{PACKAGE}/__init__.py imports {target}: importing the package must import nothing"]
    target_row = find_layer(target)
    if target_row is None:
        return []  # reported once, as a module without a layer
    own_package = covers(package, target)
    if package in ONLY and not own_package and not any(covers(only, target) for only in ONLY[package]):
        return [f"{module} imports {target}: {package} may see only {', '.join(ONLY[package])}"]
    level_with = LAYERS[target_row] == LAYERS[row] and (own_package or LAYERS[row] == 0)
    if not (LAYERS[target_row] < LAYERS[row] or level_with):
        return [f"{module} (layer {LAYERS[row]}) imports {target} (layer {LAYERS[target_row]})"]
    return []


def boundary_violations(modules):
    """Imports of other packages that a module must do without, relative imports, imports of scripts."""
    found = []
    for module, tree in modules.items():
        banned = [*SCRIPTS, *NEVER.get(module.split(".")[0], ())]
        if is_torch_free(module):
            banned += ["torch", "jaxtyping", "einops"]
        for name in sorted(imported_names(tree)):
            if name.startswith("."):
                found.append(f"{module}: relative import {name}; write {PACKAGE}...")
            found += [f"{module} imports {name}" for prefix in banned if covers(prefix, name)]
    return found


def is_torch_free(module):
    return module == "" or any(covers(row, module) for row in NO_TORCH)


def find_cycle(edges):
    """One import cycle as a list of modules, or None."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        path.append(module)
        for target in sorted(edges[module]):
            cycle = visit(target)
            if cycle:
                return cycle
        done.add(path.pop())
        return None

    return next((cycle for module in sorted(edges) if (cycle := visit(module))), None)


def code_violations(modules):
    """Habits that the package does without: broad except, `global`, future annotations, stray torch.cuda."""
    found = []
    for module, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and is_broad(node.type):
                found.append(f"{module}:{node.lineno}: broad except; name what becomes a record or a message")
            if isinstance(node, ast.Global):
                found.append(f"{module}:{node.lineno}: global; pass the value instead")
            if module != "device" and isinstance(node, ast.Attribute) and is_torch_cuda(ast.unparse(node)):
                found.append(f"{module}:{node.lineno}: {ast.unparse(node)}; only device.py names it")
        for name in sorted(imported_names(tree)):
            if name == "__future__.annotations":
                found.append(f"{module}: future annotations hide dataclass fields from the shape checks")
            if module != "device" and is_torch_cuda(name):
                found.append(f"{module}: imports {name}; only device.py names it")
    return found


def is_broad(caught):
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(name is None or ast.unparse(name) in ("Exception", "BaseException") for name in names)


def is_torch_cuda(name):
    return covers("torch.cuda", name) or covers("torch.backends.cuda", name)


MODULES = read_modules(ROOT)


def test_no_import_points_upwards():
    assert layer_violations(MODULES) == []


def test_no_module_crosses_its_boundary():
    assert boundary_violations(MODULES) == []


def test_no_import_cycle():
    assert find_cycle(internal_edges(MODULES)) is None


def test_no_broad_except_global_future_annotations_or_stray_torch_cuda():
    scripts = {path.stem: ast.parse(path.read_text()) for path in ROOT.glob("*.py")}
    assert code_violations(MODULES | scripts) == []


def test_every_row_of_the_table_names_something_that_exists():
    rows = {*LAYERS, *ONLY, *NEVER} | {name for names in ONLY.values() for name in names}
    assert [row for row in rows if not any(covers(row, module) for module in MODULES)] == []


@pytest.mark.parametrize("module", [module for module in MODULES if is_torch_free(module)])
def test_importing_it_does_not_load_torch(module):
    name = f"{PACKAGE}.{module}".rstrip(".")
    code = f"import sys, {name}; print({{'torch', 'jaxtyping', 'einops'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("set()\n", "")


def sources(**files):
    return {name.replace("__", "."): ast.parse(code) for name, code in files.items()}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"cli": "", "bench": "", "cli_": "x = 1"}, "cli_: has no layer"),
        ({"timing": "import cs_systems.bench", "bench": ""}, "timing (layer 1) imports bench (layer 4)"),
        (
            {"timing": "def f():\n from cs_systems.bench import x", "bench": ""},
            "timing (layer 1) imports bench",
        ),
        ({"optim": "from cs_systems import model", "model": ""}, "optim (layer 2) imports model (layer 2)"),
        (
            {"model__config": "import cs_systems.model.layers", "model__layers": ""},
            "model.config (layer 1) imp",
        ),
        ({"report": "from cs_systems.bench import sweep", "bench__sweep": ""}, "report may see only"),
        ({"estimator__a": "from cs_systems.model.layers import X", "model__layers": ""}, "may see only"),
    ],
)
def test_an_upward_import_is_caught(files, said):
    assert any(said in found for found in layer_violations(sources(**files)))


def test_a_downward_import_and_one_inside_a_package_are_not():
    files = {
        "model__layers": "from cs_systems.model.config import X\nfrom cs_systems.model import functional",
        "model__config": "",
        "model__functional": "",
        "bench__run": "import cs_systems.model.layers",
        "report": "from cs_systems.bench.record import read_records",
        "bench__record": "",
        "cli": "import cs_systems.tables",
        "tables": "",
    }
    assert layer_violations(sources(**files)) == []


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("bench__run", "import benchmark"),
        ("bench__run", "from tests.conftest import x"),
        ("bench__run", "from .record import x"),
        ("estimator__flops", "def f():\n    import torch"),
        ("model__layers", "from torch import distributed"),
        ("model__layers", "from cs_systems import timing"),
        ("model__presets", "from jaxtyping import Float"),
    ],
)
def test_a_crossed_boundary_is_caught(module, code):
    assert boundary_violations(sources(**{module: code})) != []


def test_torch_in_a_module_that_may_have_it_is_not():
    assert boundary_violations(sources(model__layers="import torch", bench__run="from torch import nn")) == []


def test_a_cycle_is_found_wherever_it_hides():
    files = {
        "model__a": "import cs_systems.model.b",
        "model__b": "def f():\n    from cs_systems.model.c import x",
        "model__c": "from cs_systems.model import b",
    }
    assert find_cycle(internal_edges(sources(**files))) == ["model.b", "model.c", "model.b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept (ValueError, BaseException):\n    pass",
        "def f():\n    global x\n    x = 1",
        "from __future__ import annotations",
        "import torch\ntorch.cuda.synchronize()",
        "from torch import cuda",
        "import torch.backends.cuda",
    ],
)
def test_a_bad_habit_is_caught(code):
    assert code_violations(sources(timing=code)) != []


def test_good_habits_are_not():
    code = "import torch\ntry:\n    f(torch.bfloat16)\nexcept (ValueError, OSError):\n    pass"
    assert code_violations(sources(timing=code)) == []
    assert code_violations(sources(device="import torch\ntorch.cuda.synchronize()")) == []
