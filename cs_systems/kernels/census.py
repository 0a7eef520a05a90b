"""Compile a kernel without a GPU and read what the compiler made of it: registers, spills, instructions.

A kernel that spills its registers to memory is right but slow, and one that wants more shared memory than the
GPU has compiles in silence and fails at launch. Both can be read from the machine code, which Triton makes on
any machine; its wheel holds the tools to take it apart.

`aot.py` runs this module in processes of its own, since a kernel can be compiled only where TRITON_INTERPRET
was not set when it was defined. Such a process gets a request as its argument and prints lines of JSON: what
it is going to compile, then one result for each in that order.
"""

import importlib
import inspect
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.errors import TritonError

from cs_systems.kernels.launch import Variant


@dataclass(frozen=True)
class Census:
    """What one variant needs on one architecture."""

    registers: int
    """Of each thread."""
    stack_bytes: int
    spills: int
    """Instructions that load from or store to the memory behind the registers (LDL, STL)."""
    shared_bytes: int
    num_warps: int
    """Of the compiled form: a warp-specialised kernel has more than were asked for."""
    num_mma: int
    """Tensor-core instructions of a warp (mma.sync)."""
    num_wgmma: int
    """Tensor-core instructions of four warps (wgmma.mma_async), sm_90 only."""


def argument_problems(variant: Variant) -> list[str]:
    """What stands between a variant and its kernel's arguments: constants or types that are missing."""
    parameters = inspect.signature(variant.kernel.fn).parameters
    constexprs = [name for name, parameter in parameters.items() if parameter.annotation is tl.constexpr]
    given = set(variant.constants)
    problems = [f"no constant {name}" for name in constexprs if name not in given]
    problems += [f"no such argument: {name}" for name in sorted(given - set(parameters))]
    pointers = (name for name in parameters if name.endswith("_ptr") and name not in given)
    return problems + [f"no type of {name}" for name in pointers if name not in variant.types]


def compile_variant(variant: Variant, arch: int) -> Any:
    """The kernel compiled for sm_80, sm_90, ..., as a launch with aligned tensors would compile it."""
    names = variant.kernel.arg_names
    signature = {
        name: "constexpr" if name in variant.constants else variant.types.get(name, "i32") for name in names
    }
    aligned = {name for name in names if signature[name].startswith("*")} | set(variant.divisible)
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in aligned},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def take_census(compiled: Any, tools: pathlib.Path) -> Census:
    """Read a compiled kernel with cuobjdump and nvdisasm from the folder `tools`."""

    def read_with(tool: str, option: str) -> str:
        command = [tools / tool, option, cubin.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        pathlib.Path(cubin.name).write_bytes(compiled.asm["cubin"])
        usage = read_with("cuobjdump", "--dump-resource-usage")
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert found, f"cuobjdump said neither registers nor stack: {usage}"
        registers, stack_bytes = map(int, found.groups())
        machine_code = read_with("nvdisasm", "-c") if stack_bytes else ""  # spills live on the stack
    return Census(
        registers=registers,
        stack_bytes=stack_bytes,
        spills=len(re.findall(r"\b(?:LDL|STL)\b", machine_code)),
        shared_bytes=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        num_mma=len(re.findall(r"\bmma\.sync", compiled.asm["ptx"])),
        num_wgmma=len(re.findall(r"\bwgmma\.mma_async", compiled.asm["ptx"])),
    )


def list_variants(module: ModuleType, arch: int) -> list[Variant]:
    """The variants of a kernel's module; those of some depend on the GPU, (9, 0) for sm_90."""
    depends = inspect.signature(module.variants).parameters
    return module.variants(divmod(arch, 10)) if depends else module.variants()


def compile_and_read(variant: Variant, arch: int, tools: pathlib.Path) -> dict[str, Any]:
    """{"census": ...} of a variant, or {"error": ...} in one line."""
    problems = argument_problems(variant)
    if problems:
        return {"error": "; ".join(problems)}
    try:
        return {"census": asdict(take_census(compile_variant(variant, arch), tools))}
    except (TritonError, RuntimeError) as error:  # in the kernel's code, and in a pass of the compiler
        return {"error": f"does not compile: {' '.join(str(error).split())[-300:]}"}


def list_cases(
    modules: list[str], archs: list[int], words: list[str]
) -> list[tuple[dict[str, Any], Variant]]:
    """Each variant whose module, kernel and label hold one of the words (all without words), described."""
    cases = []
    for name in modules:
        for arch in archs:
            for variant in list_variants(importlib.import_module(name), arch):
                kernel = variant.kernel.__name__
                types = [variant.types[arg] for arg in variant.kernel.arg_names if arg in variant.types]
                case = {
                    "index": len(cases),
                    "name": f"{name.rpartition('.')[2]} {kernel} {variant.label}",
                    "kernel": kernel,
                    "variant": variant.label,
                    "arch": arch,
                    "uses_tensor_cores": variant.uses_tensor_cores,
                    "is_16_bit": any(kind in of for kind in ("bf16", "fp16") for of in types),
                    "triton": triton.__version__,
                }
                if not words or any(word in case["name"] for word in words):
                    cases.append((case, variant))
    return cases


def main(request: str) -> None:
    """Compile one share of the variants that the request asks for; see the top of this file."""
    asked = json.loads(request)
    cases = list_cases(asked["modules"], asked["archs"], asked["words"])
    random.Random(0).shuffle(cases)  # every share gets some of the slow ones
    share = cases[asked["share"] :: asked["num_shares"]]
    print(json.dumps([case for case, _ in share]), flush=True)
    for done, (case, variant) in enumerate(share, 1):
        result = compile_and_read(variant, case["arch"], pathlib.Path(asked["tools"]))
        print(json.dumps(result), flush=True)
        if asked["share"] == 0 and sys.stderr.isatty():  # one speaks for all
            print(f"\rcompiled {done / len(share):.0%}", end="\n" * (done == len(share)), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
