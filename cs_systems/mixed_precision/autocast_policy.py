"""What autocast does with each operation, on a GPU and on a CPU: the table, and how to look a name up.

Autocast keeps lists of operations. It casts the inputs of those on the first list to fp16 or bf16, of those
on the second to fp32, and of those on the third to the widest type among them. Every other operation runs in
whatever types it is given. The lists of CUDA and of the CPU differ. The table states them for torch 2.11 to
2.13; `autocast_derive` finds them in torch itself, and a test compares the two.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["lower", "fp32", "widest", "unlisted"]

TITLES: dict[Kind, str] = {
    "lower": "lower precision",
    "fp32": "fp32",
    "widest": "widest input",
    "unlisted": "not listed",
}
"""The four kinds of rules in words."""


@dataclass(frozen=True)
class Rule:
    """What becomes of one operation under both policies."""

    op: str
    """Its name as functions and methods of torch have it: `torch.Tensor.softmax` is softmax."""
    cuda: Kind
    cpu: Kind
    why: str
    """The reason in words."""
    parts: tuple[str, ...]
    """Names in the dispatcher that decide: its own, or those of the operations that it is composed of."""


_PRODUCT = "a matrix product: tensor cores multiply fp16 or bf16 and add up in fp32"
_VECTOR = "a product of a matrix and a vector: only CUDA has it on its list"
_EXPONENTIAL = "exp overflows fp16 above 11, and small differences become large: fp32 on a GPU"
_LOGARITHM = "small inputs underflow in fp16, and the result is mostly summed afterwards: fp32 on a GPU"
_SQUARE = "a square overflows fp16 from 256 on: fp32 on a GPU"
_INVERSE = "its input may be tiny, its result large: fp32 on a GPU"
_SUM = "a long sum loses digits and overflows: fp32 on a GPU"
_PRODUCT_OF_ALL = "a long product over- or underflows at once: fp32 on both"
_NORM = "mean, variance and 1/sqrt are sensitive to rounding: fp32 on a GPU"
_RMS_NORM = "the mean of squares is sensitive to rounding: fp32 on a GPU since torch 2.12"
_LOSS = "a loss subtracts, squares or takes logarithms, then averages: fp32 on both"
_ELEMENTWISE = "elementwise: limited by memory, so it keeps the type it is given"
_PROMOTES = "keeps the type it is given; fp16 with fp32 becomes fp32 as everywhere in torch"
_MEAN = "not on any list, although it is a sum: a mean of fp16 is fp16"
_LARGEST = "chooses among its inputs: nothing is rounded"
_LOOKUP = "copies rows of fp32 weights: an embedding stays fp32, and so does the residual stream"
_JOINS = "joins tensors: one type for all, the widest"
_WIDEST = "several inputs that must have one type: a GPU takes the widest"

_RMS_NORM_ON_CUDA: Kind = "fp32" if torch.__version__ >= "2.12" else "unlisted"  # pytorch pull request 174824

# Operation | CUDA | CPU | why | names in the dispatcher, where they are not the same
_LISTED: tuple[tuple[str, Kind, Kind, str], ...] = (
    ("linear matmul mm bmm addmm addbmm baddbmm einsum:bmm scaled_dot_product_attention "
     "conv1d conv2d", "lower", "lower", _PRODUCT),
    ("mv", "lower", "unlisted", _VECTOR),
    ("softmax:softmax.int log_softmax:log_softmax.int exp", "fp32", "unlisted", _EXPONENTIAL),
    ("logsumexp log log1p", "fp32", "unlisted", _LOGARITHM),
    ("pow:pow.Tensor_Scalar square:pow.Tensor_Scalar", "fp32", "unlisted", _SQUARE),
    ("rsqrt reciprocal", "fp32", "unlisted", _INVERSE),
    ("sum cumsum norm:norm.Scalar", "fp32", "unlisted", _SUM),
    ("prod", "fp32", "fp32", _PRODUCT_OF_ALL),
    ("layer_norm group_norm", "fp32", "unlisted", _NORM),
    ("rms_norm", _RMS_NORM_ON_CUDA, "unlisted", _RMS_NORM),
    ("cross_entropy:log_softmax.int+nll_loss+cross_entropy_loss nll_loss mse_loss l1_loss "
     "binary_cross_entropy_with_logits", "fp32", "fp32", _LOSS),
    ("relu silu gelu sigmoid tanh sqrt neg clamp masked_fill:masked_fill.Scalar",
     "unlisted", "unlisted", _ELEMENTWISE),
    ("add:add.Tensor sub:sub.Tensor mul:mul.Tensor div:div.Tensor where:where.self",
     "unlisted", "unlisted", _PROMOTES),
    ("mean", "unlisted", "unlisted", _MEAN),
    ("amax max gather", "unlisted", "unlisted", _LARGEST),
    ("embedding", "unlisted", "unlisted", _LOOKUP),
    ("cat stack", "unlisted", "widest", _JOINS),
    ("addcmul addcdiv dot", "widest", "unlisted", _WIDEST),
)  # fmt: skip

_OTHER_NAMES = {
    "__matmul__": "matmul", "__rmatmul__": "matmul", "__pow__": "pow", "__rpow__": "pow",
    "__add__": "add", "__radd__": "add", "__sub__": "sub", "__rsub__": "sub", "rsub": "sub",
    "__mul__": "mul", "__rmul__": "mul", "__truediv__": "div", "__neg__": "neg",
    "__rtruediv__": "reciprocal", "__rdiv__": "reciprocal",  # 1 / x is reciprocal(x) * 1
}  # fmt: skip

MOVES = frozenset({
    "reshape", "view", "view_as", "permute", "transpose", "movedim", "flatten", "unflatten", "squeeze",
    "unsqueeze", "expand", "expand_as", "contiguous", "clone", "detach", "narrow", "select", "chunk", "split",
    "unbind", "complex", "view_as_complex", "view_as_real", "__get__", "__getitem__",
})  # fmt: skip
"""Operations that look at or move numbers without computing any; no rule is needed for them."""

CASTS = frozenset({"to", "type", "type_as", "float", "half", "bfloat16", "double"})
"""Casts that a model asks for itself."""


def _read(listed: tuple[tuple[str, Kind, Kind, str], ...]) -> dict[str, Rule]:
    rules = {}
    for names, cuda, cpu, why in listed:
        for entry in names.split():
            name, _, parts = entry.partition(":")
            rules[name] = Rule(name, cuda, cpu, why, tuple((parts or name).split("+")))
    return rules


RULES: dict[str, Rule] = _read(_LISTED)
"""The rule of each operation by its name."""


def plain_name(function_name: str) -> str:
    """The name of an operation in `RULES`, from that of a function of torch: `__rmatmul__` is matmul."""
    return _OTHER_NAMES.get(function_name, function_name)


def find_kind(op: str, policy: str) -> Kind:
    """The list on which `policy` (cuda or cpu) has the operation; unlisted for one that is not in `RULES`."""
    rule = RULES.get(op)
    if rule is None:
        return "unlisted"
    return rule.cuda if policy == "cuda" else rule.cpu
