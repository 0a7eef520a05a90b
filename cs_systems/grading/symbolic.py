"""Says whether two formulas are the same function, without ever running what a student typed.

A formula is parsed, every part of it is checked against a short list, and both are evaluated at the same
points: if they agree at all of them, they are the same. Values are exact fractions until a root or a
logarithm makes them floats, so that rounding cannot tell equal formulas apart. Size limits come before any
arithmetic, and what has too many digits goes on in floats, where it overflows at once: `9**9**9**9` costs
nothing.
"""

import ast
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 300
MAX_NODES = 150
MAX_BRACKETS = 30
"""How deep brackets may be nested."""

Exact = Fraction | float

_INCOMPLETE = "this is no complete formula: something is missing at an operator or a bracket"
_EXACT_BITS = 500  # a ratio of two such numbers is still a float
_REL_TOL = 1e-9
_UPPER = (8, 64, 1024, 65536)
_NUM_TRIALS = 24

_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<operator>\*\*|//|[-+*/(),])",
    re.ASCII,
)
_TYPED = str.maketrans(
    {"^": "**", "\N{MULTIPLICATION SIGN}": "*", "\N{MIDDLE DOT}": "*", "\N{DOT OPERATOR}": "*"}
    | {"\N{DIVISION SIGN}": "/", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-"}
    | {"\N{SUPERSCRIPT TWO}": "**2", "\N{SUPERSCRIPT THREE}": "**3"}
)
"""Signs that an editor or a keyboard makes of ours."""


@dataclass(frozen=True)
class Comparison:
    """How an answer relates to the truth."""

    same: bool
    constant_factor: float | None = None
    """The answer over the truth where that is the same number everywhere, and not 1."""
    missing_names: tuple[str, ...] = ()
    """Names in the truth that the answer does not have."""
    extra_names: tuple[str, ...] = ()
    """Names in the answer that the truth does not have."""


def compare(answer: str, truth: str, names: Sequence[str]) -> Comparison:
    """Compare two formulas in `names`, which stand for positive whole numbers.

    Raises:
        ValueError: when one of them cannot be read, as `parse_formula`, or the answer has no value anywhere.
    """
    tree, true_tree = parse_formula(answer, names), parse_formula(truth, names)
    pairs = []
    for point in _points(names):
        expected = _value(true_tree, point)
        if expected is not None:
            pairs.append((_value(tree, point), expected))
    if all(given is None for given, _ in pairs):
        raise ValueError("this has no finite value: it divides by zero, or its numbers are too large")
    used, true_used = _names_in(tree), _names_in(true_tree)
    return Comparison(
        same=all(given is not None and _close(given, expected) for given, expected in pairs),
        constant_factor=_constant_factor(pairs),
        missing_names=tuple(name for name in names if name in true_used - used),
        extra_names=tuple(name for name in names if name in used - true_used),
    )


def parse_formula(text: str, names: Sequence[str]) -> ast.expr:
    """Parse a formula of numbers, `names`, + - * / ^, brackets and the functions in `FUNCTIONS`.

    Raises:
        ValueError: in one line that says what cannot be used and what to write instead.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"this is longer than {MAX_CHARACTERS} characters; simplify it")
    typed = " ".join(text.translate(_TYPED).split())
    if not typed:
        raise ValueError("there is no formula")
    _check_brackets(typed)
    tokens = list(_tokens(typed, names))
    _check_products(tokens, names)
    try:
        tree = ast.parse(" ".join(text for _, text in tokens), mode="eval").body
    except SyntaxError:
        raise ValueError(_INCOMPLETE) from None
    if sum(isinstance(node, ast.expr) for node in ast.walk(tree)) > MAX_NODES:
        raise ValueError(f"this has more than {MAX_NODES} numbers, names and operations; simplify it")
    for node in ast.walk(tree):
        _check_node(node)
    return tree


def _check_brackets(text: str) -> None:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
        if depth > MAX_BRACKETS:
            raise ValueError(f"brackets are nested more than {MAX_BRACKETS} deep; simplify it")
    if depth:
        raise ValueError("an opening and a closing bracket do not match")


def _tokens(text: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs (kind, text); the kinds are number, name, function and operator."""
    position = 0
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        found = _TOKEN.match(text, position)
        if not found:
            raise ValueError(_unusable(text[position], names))
        kind = str(found.lastgroup)
        if found[0] == "//":
            raise ValueError("// drops the remainder; write / (and ceil to round up)")
        if kind == "name" and found[0] in FUNCTIONS:
            kind = "function"
        yield kind, found[0]
        position = found.end()


def _unusable(character: str, names: Sequence[str]) -> str:
    if character == "=":
        return "write only what stands behind the ="
    if character == ".":
        return "a dot only stands inside a number; multiply with *"
    if character in "[]{}":
        return "write round brackets"
    return f"{character!r} cannot be used; write numbers, {_listed(names)}, + - * / ^ and brackets"


def _check_products(tokens: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Refuse unknown names and products without a `*`, showing how to write them."""
    written, has_gap, before = [], False, "operator"
    for kind, text in [*tokens, ("operator", "")]:
        factors = [text] if kind != "name" or text in names else _split(text, names)
        if not factors:
            raise ValueError(
                f"{text[:20]!r} is not known here; use {_listed(names)} and {_listed(list(FUNCTIONS))}"
            )
        if before == "function" and text != "(":
            raise ValueError("a function needs brackets around its value, as in sqrt(...)")
        opens = kind != "operator" or text == "("
        is_gap = opens and before in ("number", "name", ")")
        has_gap |= is_gap or len(factors) > 1
        written += ["*"] * is_gap + ["*".join(factors)]
        before = text if text == ")" else kind
    if has_gap:
        product = "".join(written).replace("**", "^")
        raise ValueError(f"a product needs its signs: write {product!r}")


def _split(text: str, names: Sequence[str]) -> list[str]:
    """`BD` as B, D; empty when the text is not made of names and numbers."""
    longest_first = sorted(names, key=len, reverse=True)
    one = "|".join([*(re.escape(name) for name in longest_first), r"\d+"])
    whole = re.fullmatch(f"(?>(?:{one})+)", text)  # atomic: tries one way, not exponentially many
    return re.findall(one, text) if whole else []


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "no names"


def _check_node(node: ast.AST) -> None:
    match node:
        case ast.Constant(value=int() | float() as number):
            if not math.isfinite(number):
                raise ValueError("a number is too large")
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            many = name in ("min", "max")
            if (len(args) < 2) if many else (len(args) != 1):
                raise ValueError(f"{name} takes {'two values or more' if many else 'one value'}")
        case ast.Tuple(elts=[_, *_]):
            raise ValueError(
                "a comma only separates the values of min and max; write a dot in 1.5 and 1000 as 1000"
            )
        case (
            ast.Name() | ast.UnaryOp(op=ast.USub() | ast.UAdd()) | ast.Load() | ast.unaryop() | ast.operator()
        ):
            pass
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            pass
        case ast.Tuple():
            raise ValueError(_INCOMPLETE)
        case _:
            raise ValueError(
                "only + - * / ^, brackets and the functions " + _listed(list(FUNCTIONS)) + " can be used"
            )


def _points(names: Sequence[str]) -> Iterator[dict[str, Fraction]]:
    """Small, middling and large values of every name, in all orders: min and max show both of their sides."""
    for trial in range(_NUM_TRIALS):
        upper = _UPPER[trial % len(_UPPER)]
        yield {name: Fraction(round(upper ** random.Random(f"{name} {trial}").random())) for name in names}


def _value(node: ast.expr, values: Mapping[str, Fraction]) -> Exact | None:
    """Value of a checked tree; None where it has none."""
    try:
        value = _evaluate(node, values)
        return value if isinstance(value, Fraction) or math.isfinite(value) else None
    except (ArithmeticError, ValueError):  # division by zero, overflow, logarithm of a negative number
        return None


def _evaluate(node: ast.expr, values: Mapping[str, Fraction]) -> Exact:
    match node:
        case ast.Constant(value=int() | float() as number):
            return _bounded(Fraction(repr(number)))  # as typed: 0.1 is a tenth
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=op, operand=operand):
            value = _evaluate(operand, values)
            return -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return _bounded(OPERATORS[type(op)](_evaluate(left, values), _evaluate(right, values)))
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name](*(_evaluate(argument, values) for argument in args))
    raise AssertionError(ast.dump(node))  # parse_formula lets nothing else through


def _bounded(value: Exact) -> Exact:
    """The value, in floats where it has too many digits to stay cheap."""
    return float(value) if isinstance(value, Fraction) and _num_bits(value) > _EXACT_BITS else value


def _num_bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _power(base: Exact, exponent: Exact) -> Exact:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        num_bits = _num_bits(base) * abs(exponent)
        if num_bits <= _EXACT_BITS:
            return base ** int(exponent)
    result = float(base) ** float(exponent)
    if isinstance(result, complex):
        raise ValueError("root of a negative number")
    return result


OPERATORS: Mapping[type[ast.operator], Callable[[Exact, Exact], Exact]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: _power,
}
FUNCTIONS: Mapping[str, Callable[..., Exact]] = {
    "log": math.log,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "ceil": lambda value: Fraction(math.ceil(value)),
    "min": min,
    "max": max,
}


def _close(a: Exact, b: Exact) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return math.isclose(a, b, rel_tol=_REL_TOL)


def _constant_factor(pairs: Sequence[tuple[Exact | None, Exact]]) -> float | None:
    ratios = [given / expected for given, expected in pairs if given is not None and expected != 0]
    same_zeros = all(given is not None and (given == 0) == (expected == 0) for given, expected in pairs)
    if not same_zeros or not ratios or _close(ratios[0], Fraction(1)):
        return None
    return float(ratios[0]) if all(_close(ratio, ratios[0]) for ratio in ratios) else None


def _names_in(tree: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(FUNCTIONS)
