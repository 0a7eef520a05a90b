"""Formulas of students against formulas of the truth, with sympy as the oracle of what is the same."""

import ast
import operator

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cs_systems.grading import symbolic
from cs_systems.grading.symbolic import Comparison, compare, parse_formula

NAMES = ("B", "S", "d", "NF")


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("B*S*d*4", "4*B*S*d"),
        ("4 * B * S\n* d", "4*B*S*d"),
        ("2*(B + B)*S*d", "4*B*S*d"),
        ("(B + S)^2", "B**2 + 2*B*S + S**2"),
        ("(S+1)**4 - S**4 - 4*S**3 - 6*S**2", "4*S + 1"),  # floats would cancel to garbage
        ("0.1*B + 0.2*B", "0.3*B"),
        ("1e2*B", "100*B"),
        ("log(B)/log(2)", "log2(B)"),
        ("sqrt(B)*B^0.5", "B"),
        ("B^-1", "1/B"),
        ("-B", "0 - B"),
        ("max(B, S)", "B + S - min(S, B)"),
        ("min(B, S, d)", "min(B, min(d, S))"),
        ("max(1, S)", "S"),  # names are positive whole numbers
        ("ceil(B)", "B"),
        ("ceil(0.1*10*B)", "B"),  # 0.1 is a tenth, not a little more
        ("log(B - S)", "log(B - S)"),  # has no value where S is greater
        ("2\u00b7B\u00b2 \u2212 B\u00d7S", "2*B^2 - B*S"),
        ("B*S/S", "B"),
    ],
)
def test_formulas_that_are_the_same(answer, truth):
    assert compare(answer, truth, NAMES).same
    assert compare(truth, answer, NAMES).same


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("4*B*S*d + 1", "4*B*S*d"),
        ("ceil(S/B)", "S/B"),
        ("max(B, S)", "B"),
        ("max(B, S)", "S"),
        ("min(B, S)", "max(B, S)"),
        ("min(S, 1024)", "S"),
        ("2^B", "B^2"),
        ("sqrt(B - S)", "B"),  # no value at half of the points
        ("0*B", "B"),
    ],
)
def test_formulas_that_differ_somewhere(answer, truth):
    compared = compare(answer, truth, NAMES)
    assert not compared.same
    assert compared.constant_factor is None


def test_a_comparison_says_how_a_wrong_formula_differs():
    assert compare("2*B*S", "4*B*S", NAMES) == Comparison(False, 0.5)
    assert compare("4*B*1.000001", "4*B", NAMES) == Comparison(False, 1.000001)
    assert compare("2*B - 2*S", "B - S", NAMES) == Comparison(False, 2.0)  # both are 0 where B is S
    assert compare("-B", "B", NAMES) == Comparison(False, -1.0)
    assert compare("log(S)", "log2(S)", NAMES).constant_factor == pytest.approx(0.6931471805599453)
    assert compare("4*B", "4*B*S*NF", NAMES) == Comparison(False, None, ("S", "NF"), ())
    assert compare("4*B*d", "4*B*S", NAMES) == Comparison(False, None, ("S",), ("d",))
    assert compare("4*B", "4*B", NAMES) == Comparison(True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("4BS", "write '4*B*S'"),
        ("4 B S", "write '4*B*S'"),
        ("2NFd", "write '2*NF*d'"),
        ("2(B+S)d^2", r"write '2*(B+S)*d^2'"),
        ("B(S)", "write 'B*(S)'"),
        ("2log2(S)", "write '2*log2(S)'"),
        ("B2", "write 'B*2'"),
        ("4*b", "'b' is not known here; use B, S, d, NF"),
        ("exp(B)", "'exp' is not known here"),
        ("lambda: 1", "cannot be used"),
        ("lambda", "not known"),
        ("B if S else d", "not known"),
        ("True", "not known"),
        ("1j", "not known"),
        ("1_000", "not known"),
        ('__import__("os")', "cannot be used"),
        ("__import__(os)", "'__import__' is not known"),
        ("B.real", "dot"),
        ("B.__class__()", "dot"),
        ("B[0]", "round brackets"),
        ("{B}", "round brackets"),
        ("'B'", "cannot be used"),
        ("$4BS$", "'$' cannot be used"),
        ("\\frac{B}{S}", "cannot be used"),
        ("B @ S", "cannot be used"),
        ("B % S", "cannot be used"),
        ("B == S", "behind the ="),
        ("4*B = B*4", "behind the ="),
        ("min(B, S, d=d)", "behind the ="),
        ("B // S", "ceil"),
        ("min(B)", "min takes two values or more"),
        ("log(B, 2)", "log takes one value"),
        ("sqrt()", "sqrt takes one value"),
        ("max(*B, S)", "only + - "),
        ("max(B, **S)", "only + - "),
        ("log", "needs brackets"),
        ("B*log", "needs brackets"),
        ("log B", "needs brackets"),
        ("1,5*B", "comma"),
        ("B, S", "comma"),
        ("(B", "do not match"),
        ("B)(", "do not match"),
        ("B*", "no complete formula"),
        ("()", "no complete formula"),
        ("01*B", "no complete formula"),
        ("", "no formula"),
        (" \n", "no formula"),
        ("1e999", "too large"),
        ("B" + "+B" * 150, "longer than"),
        ("(" * 250 + "B" + ")" * 250, "longer than"),
        ("(" * 140 + "B" + ")" * 140, "nested more than"),
        ("-" * 280 + "B", "more than 150"),
        ("B" + "+B" * 149, "more than 150"),
        ("B" + "1" * 200 + "z", "not known"),
        ("B" * 200 + "z", "not known"),
        ("9**9**9**9", "no finite value"),
        ("((((9**8)**8)**8)**8)**8", "no finite value"),
        ("((((B+1)^200)^200)^200)^200", "no finite value"),
        ("10^10^10*B", "no finite value"),
        ("1/0", "no finite value"),
        ("1/(B-B)", "no finite value"),
        ("log(0)", "no finite value"),
        ("(-B)^0.5", "no finite value"),
        ("9" * 290 + "^99", "no finite value"),
    ],
)
def test_what_cannot_be_read_says_why_in_one_line(answer, words):
    with pytest.raises(ValueError, match=r"^.{10,200}$") as error:
        compare(answer, "4*B*S*d", NAMES)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "answer",
    ["(" * 140 + "B" + ")" * 140, "B" + "+B" * 149, "9" * 301, "B.real", "x", "min(B)", "2B", "1e999"],
)
def test_refusals_come_before_any_arithmetic(answer, monkeypatch):
    def evaluated(*_):
        raise AssertionError("evaluated")

    monkeypatch.setattr(symbolic, "_evaluate", evaluated)
    with pytest.raises(ValueError, match=r".{10}"):
        compare(answer, "B", NAMES)
    with pytest.raises(AssertionError, match="evaluated"):
        compare("2*B", "B", NAMES)


def test_a_power_of_thousands_of_digits_is_never_built():
    three = parse_formula("3^3^30", NAMES)  # 2e14 digits
    assert symbolic._value(three, {}) is None
    exact = symbolic._value(parse_formula("3^200", NAMES), {})
    assert exact == 3**200
    for digits in ("9" * 290, "1e300", "7^170", "0.1^299"):
        value = symbolic._value(parse_formula(f"{digits}*{digits[:2]}1", NAMES), {})
        assert isinstance(value, float) or max(value.numerator, value.denominator).bit_length() <= 1000


def _formulas(leaves):
    pair = st.tuples(leaves, st.sampled_from("+-*/"), leaves)
    return pair.map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})") | leaves.map(
        lambda leaf: f"{leaf}^2"
    )


FORMULAS = st.recursive(st.sampled_from([*NAMES[:3], "2", "3", "0.5"]), _formulas, max_leaves=6)
SYMBOLS = {name: sympy.Symbol(name, positive=True, integer=True) for name in NAMES}


def _sympy(text):
    """Built node by node from our own strings; ast again, but sympy's arithmetic."""
    operators = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.Pow: operator.pow,
    }

    def build(node):
        if isinstance(node, ast.Constant):
            return sympy.Rational(str(node.value))
        if isinstance(node, ast.Name):
            return SYMBOLS[node.id]
        return operators[type(node.op)](build(node.left), build(node.right))

    return build(ast.parse(text.replace("^", "**"), mode="eval").body)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(FORMULAS, FORMULAS)
def test_two_formulas_are_the_same_where_sympy_says_so(answer, truth):
    expressions = [_sympy(answer), _sympy(truth)]
    assume(not any(expression.has(sympy.zoo, sympy.nan) for expression in expressions))
    difference = sympy.cancel(expressions[0] - expressions[1])
    assert compare(answer, truth, NAMES).same == (difference == 0)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(FORMULAS, st.sampled_from([sympy.expand, sympy.factor, sympy.together, sympy.cancel]))
def test_what_sympy_rewrites_stays_the_same_and_what_it_changes_does_not(truth, rewrite):
    expression = _sympy(truth)
    assume(not expression.has(sympy.zoo, sympy.nan))
    answer = str(rewrite(expression))
    assume(len(answer) < 200)
    assert compare(answer, truth, NAMES).same
    assert not compare(f"{answer} + 1/1000", truth, NAMES).same
    doubled = compare(f"2*({answer})", truth, NAMES)
    assert (doubled.same, doubled.constant_factor) == ((True, None) if expression == 0 else (False, 2.0))


@settings(derandomize=True, deadline=None, max_examples=120)
@given(st.text(st.sampled_from("BSd12(),.+-*/^ e_lmaxogin="), max_size=40) | st.text(max_size=20))
def test_any_text_is_compared_or_refused_in_one_line(text):
    message = ""
    try:
        assert isinstance(compare(text, "4*B*S*d", NAMES), Comparison)
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 250
