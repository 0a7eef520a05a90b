"""What a kernel does, by the operator that launched it or by its own name."""

import functools
import re

from cs_systems.tracing.trace import Kernel

OP_CLASSES = ("matmul", "softmax", "reduction", "elementwise", "copy", "optimizer", "other")
"""In the order of tables."""

# The first that matches wins, in any case. What is fused by torch.compile says so: pointwise, reduction, ...
_PATTERNS = {
    "matmul": r"gemm|cutlass|::(mm|bmm|mv|dot|addmv|linear)$|addmm|addbmm|baddbmm|matmul|xmma|cublas|nvjet"
    r"|_mm_|wgmma|sm\d+_.*tensorop|gemv",
    "softmax": r"softmax",
    "reduction": r"reduce|::(sum|mean|max|amax|min|amin|argmax|var|std|logsumexp|cumsum|all|any)$|norm(?!al)"
    r"|triton_(red|per)_",
    "optimizer": r"multi_tensor|foreach|adam|addcdiv|addcmul",
    "copy": r"memcpy|memset|copy|::(clone|contiguous|to|cat|stack)$|CatArray",
    "elementwise": r"elementwise|::(add|mul|div|sub|exp|log|pow|neg|fill|zero|lerp|tril|triu|clamp|where)_?$"
    r"|::(r?sqrt|erf|tanh|sin|cos|reciprocal|bitwise_\w+|[gl][te]|eq|ne)_?$"
    r"|silu|sigmoid|gelu|relu|swiglu|masked_fill|rsqrt|rope|rotary|triton_poi_",
}
_RULES = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _PATTERNS.items()]
_FUSED_ATTENTION = re.compile(r"flash|fmha|sdpa|scaled_dot_product", re.IGNORECASE)
_ENGINE = "autograd::engine"  # its own time, between the operators of backward that it calls
_TEMPLATES = ("Kernel", "Kernel2", "device_kernel")
_FIRST_ARGUMENT = re.compile(r"<\s*(?:\w+::)*(\w+)")
_READ = 4096  # letters of a name that are looked at
_NAMELESS_SCOPE = re.compile(r"\(anonymous namespace\)::|<unnamed>::")


def op_class(kernel: Kernel) -> str:
    """One of `OP_CLASSES`: by the operator when that says it, else by the full name of the kernel."""
    return _class_of(kernel.op, kernel.name)


def is_fused_attention(kernel: Kernel) -> bool:
    """Whether a kernel does all of attention; its class is "other", as it belongs to several."""
    return _is_fused_attention(kernel.op, kernel.name)


@functools.lru_cache(maxsize=4096)
def short_name(name: str) -> str:
    """The name of a kernel without namespaces, template arguments and parameters, as nsys shortens it.

    Profilers spell the full name differently, so it is this one that can be compared.
    """
    if not any(sign in name for sign in ("(", "<", "::")):
        return name
    rest = _without(_without(_NAMELESS_SCOPE.sub("", name), "<", ">"), "(", ")")
    return rest.strip().split(" ")[-1].split("::")[-1] or name


def shown_name(kernel: Kernel) -> str:
    """What tables call it: the short name of a kernel, the full one of an operator or a copy.

    All kernels of CUTLASS have the same few short names; there it is what they are a template of.
    """
    if kernel.kind != "kernel":
        return kernel.name
    short = short_name(kernel.name)
    argument = _FIRST_ARGUMENT.search(kernel.name) if short in _TEMPLATES else None
    return argument[1] if argument else short


def _without(text: str, opening: str, closing: str) -> str:
    """The text without what stands in balanced brackets; brackets without a partner stay."""
    kept: list[str] = []
    opened: list[int] = []  # how much was kept when each bracket opened
    for character in text:
        kept.append(character)
        if character == opening:
            opened.append(len(kept) - 1)
        elif character == closing and opened:
            del kept[opened.pop() :]
    return "".join(kept)


@functools.lru_cache(maxsize=4096)
def _class_of(op: str | None, name: str) -> str:
    if _is_fused_attention(op, name):
        return "other"
    for text in (op, name):
        if text is None or text.startswith(_ENGINE):
            continue
        for found, pattern in _RULES:
            if pattern.search(text[:_READ]):
                return found
    return "other"


@functools.lru_cache(maxsize=4096)
def _is_fused_attention(op: str | None, name: str) -> bool:
    return any(_FUSED_ATTENTION.search(text[:_READ]) is not None for text in (op, name) if text)
