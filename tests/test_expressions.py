from __future__ import annotations

import ast
import math
import operator
import pickle
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermstack.errors import TabularError
from tabular.expressions import Column, Expression, Number, Operation, derived_columns, parse

NAN = math.nan
TABLE = pd.DataFrame(
    {
        "a": [1.0, 2.5, -3.0, 0.0, 1e6],
        "b": [4.0, 0.5, 2.0, 7.0, 3.0],
        "c d": [0.1, 0.2, 0.3, 0.4, 0.5],
        "lo.g": [2.0, 2.0, 5.0, 1.0, 9.0],
    }
)


@pytest.mark.parametrize(
    "text",
    [
        "a", "-a", "+a", "--a", "a + b", "a - b - 1", "a - (b - 1)", "a * b / 2", "a / b / 2", "a / (b * 2)", "-a ** 2",
        "(-a) ** 2", "2 * a ** 3", "b ** -2", "b ** 0.5", "b ** 2 ** 3", "a < b", "a <= b", "a > 2.5", "a >= 2.5",
        "a == 0", "a != 0", "0 < a", "(a > 0) * b", "a + 1e-3 * b", "`c d` * 2 + `lo.g`", "a+`c d`-b", "log(b)",
        "log1p(b)", "sqrt(b)", "abs(a)", "log(abs(a) + 1) / sqrt(`c d`)",
    ],
)  # fmt: skip
def test_values_are_those_of_pandas(text: str) -> None:
    expected = TABLE.eval(text, engine="python")
    np.testing.assert_allclose(parse(text).evaluate(TABLE), np.asarray(expected, np.float64), rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 / a", [1.0, 0.5, NAN, NAN, -0.25]),
        ("a / a", [1.0, 1.0, NAN, NAN, 1.0]),
        ("log(a)", [0.0, math.log(2), NAN, NAN, NAN]),
        ("log1p(a - 1)", [0.0, math.log(2), NAN, NAN, NAN]),
        ("sqrt(a)", [1.0, math.sqrt(2), 0.0, NAN, NAN]),
        ("a ** 0.5", [1.0, math.sqrt(2), 0.0, NAN, NAN]),
        ("a ** -1", [1.0, 0.5, NAN, NAN, -0.25]),
        ("a ** 0", [1.0, 1.0, 1.0, NAN, 1.0]),
        ("a * 1e300 * 1e300", [NAN, NAN, 0.0, NAN, NAN]),
        ("a > 1", [0.0, 1.0, 0.0, NAN, 0.0]),
        ("a != a", [0.0, 0.0, 0.0, NAN, 0.0]),
        ("0 <= a < 2", [1.0, 0.0, 1.0, NAN, 0.0]),
        ("where(a, 5, 6)", [5.0, 5.0, 6.0, NAN, 5.0]),
        ("where(a != 0, 1 / a, 9)", [1.0, 0.5, 9.0, NAN, -0.25]),
        ("where(b > 1, a, b)", [1.0, 1.0, NAN, NAN, 0.0]),
        ("clip(a, 0, 1.5)", [1.0, 1.5, 0.0, NAN, 0.0]),
        ("clip(a, b, 3)", [1.0, 2.0, NAN, NAN, 0.0]),
        ("min(a, b, 1)", [1.0, 1.0, NAN, NAN, -4.0]),
        ("max(a, b)", [1.0, 2.0, NAN, NAN, 0.0]),
        ("abs(a)", [1.0, 2.0, 0.0, NAN, 4.0]),
        ("where(a > 0, 1, 0 * b)", [1.0, 1.0, NAN, NAN, 0.0]),
    ],
)
def test_what_is_not_defined_is_missing(text: str, expected: list[float]) -> None:
    columns = {"a": [1.0, 2.0, 0.0, NAN, -4.0], "b": [1.0, 1.0, NAN, 3.0, 0.0]}
    np.testing.assert_allclose(parse(text).evaluate(columns), expected, rtol=1e-15)


def defined(value: float) -> float:
    return value if math.isfinite(value) else NAN


def attempt(function: object, *values: float) -> float:
    """Computes with Python floats; NaN for a missing argument and for whatever Python refuses."""
    if any(math.isnan(value) for value in values):
        return NAN
    try:
        found = function(*values)  # type: ignore[operator]
        return NAN if isinstance(found, complex) else defined(float(found))
    except (ZeroDivisionError, ValueError, OverflowError):
        return NAN


SIGNS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "<": operator.lt,
    "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
CALLS = {"log": math.log, "log1p": math.log1p, "sqrt": math.sqrt, "abs": abs}
Tree = tuple[str, object]  # a text and a function of the row that computes its value


def binary(sign: str, left: Tree, right: Tree) -> Tree:
    return f"({left[0]}) {sign} ({right[0]})", lambda row: attempt(SIGNS[sign], left[1](row), right[1](row))


def choice(condition: Tree, yes: Tree, no: Tree) -> Tree:
    def value(row: dict[str, float]) -> float:
        asked = condition[1](row)
        return NAN if math.isnan(asked) else (yes if asked else no)[1](row)

    return f"where({condition[0]}, {yes[0]}, {no[0]})", value


def smallest(name: str, parts: list[Tree]) -> Tree:
    function = {"min": min, "max": max}[name]
    return f"{name}({', '.join(p[0] for p in parts)})", lambda row: attempt(function, *(p[1](row) for p in parts))


leaves = st.sampled_from([("x", lambda row: row["x"]), ("`y z`", lambda row: row["y z"])])
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(binary, st.sampled_from(sorted(SIGNS)), inner, inner),
        st.builds(lambda name, t: (f"{name}({t[0]})", lambda row: attempt(CALLS[name], t[1](row))),
                  st.sampled_from(sorted(CALLS)), inner),
        st.builds(lambda t, e: (f"({t[0]}) ** {e}", lambda row: attempt(operator.pow, t[1](row), e)),
                  inner, st.sampled_from([-2, 0, 0.5, 2, 3])),
        st.builds(lambda t: (f"-({t[0]})", lambda row: -t[1](row)), inner),
        st.builds(choice, inner, inner, inner),
        st.builds(smallest, st.sampled_from(["min", "max"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)  # fmt: skip
cells = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e9, 1e9), st.sampled_from([NAN, 1e200, -1e200]))


@settings(max_examples=150)
@given(trees, st.lists(st.tuples(cells, cells), min_size=1, max_size=4))
def test_values_are_those_of_python_floats(tree: Tree, rows: list[tuple[float, float]]) -> None:
    columns = {"x": [row[0] for row in rows], "y z": [row[1] for row in rows]}
    found = parse(tree[0]).evaluate(columns)
    expected = [tree[1](dict(zip(columns, row, strict=True))) for row in rows]  # type: ignore[operator]
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    # A function's last bit may differ from Python's, and then all that is computed of it: such rows only come near.
    np.testing.assert_allclose(found[~same], np.array(expected)[~same], rtol=1e-9)
    assert not np.isinf(found).any()


def test_a_row_alone_has_the_same_bits_as_in_the_table(rng: np.random.Generator) -> None:
    table = pd.DataFrame(rng.normal(3, 2, (999, 3)), columns=["a", "b", "c"])  # strided columns
    expression = parse("log(abs(a)) / b ** 3 + sqrt(abs(c)) * b ** 0.5 + log1p(abs(b)) ** -2")
    together = expression.evaluate(table)
    for row in range(0, 999, 37):
        assert expression.evaluate(table.iloc[[row]]).tobytes() == together[row : row + 1].tobytes()


def test_names_are_read_as_they_are_written() -> None:
    # Python takes the micro sign of a keyboard for a Greek letter and a ligature for two letters.
    expression = parse('µm + ﬁt / `patient\'s "age" [years], {ü}` - class_ * `class` + `log` + log(`log`) + µm')
    assert expression.columns == ("µm", "ﬁt", 'patient\'s "age" [years], {ü}', "class_", "class", "log")
    values = {name: [2.0] for name in expression.columns}
    np.testing.assert_allclose(expression.evaluate(values), [2 + 1 - 4 + 2 + math.log(2) + 2])
    assert parse("`a\tb\n`+\nc").columns == ("a\tb\n", "c")


def test_all_nodes_are_of_this_language() -> None:
    node = parse("where(a > 1, -a, log(`b c`) ** (1 + 1))").node
    assert node == Operation("where", (
        Operation(">", (Column("a"), Number(1))),
        Operation("negative", (Column("a"),)),
        Operation("**", (Operation("log", (Column("b c"),)), Number(2))),
    ))  # fmt: skip


HOSTILE = {
    "": "is empty",
    "   ": "is empty",
    "12 + 3": "uses no column",
    "__import__('os').system('true')": 'character 12: "\'" is not allowed',
    "__import__(os)": "character 1: '__import__' is not a function",
    "a.__class__": "character 1: '.' after a name",
    "(a).b(c)": "character 1: '(a).b' is not a function",
    "a + exec(b)": "character 5: 'exec' is not a function",
    "log(a)(b)": "'log(a)' is not a function",
    "`log`(a)": "'log' is not a function",
    "(lambda: a)()": "character 8: ':' is not allowed",
    "[a for b in c]": "'[' is not allowed",
    "a @ b": "'@' is not allowed",
    "a % b": "'%' is not allowed",
    "a // b": "'a // b' is not allowed",
    "a << 9": "'a << 9' is not allowed",
    "a is b": "'a is b' is not allowed",
    "a not in b": "'a not in b' is not allowed",
    "not a": "'not a' is not allowed",
    "a and b": "multiply comparisons",
    "a if b else c": "write where",
    "a, b": "',' outside of a function",
    "a := 1": "':' is not allowed",
    "a = 1": "invalid syntax",
    "a; b": "';' is not allowed",
    "a # b": "'#' is not allowed",
    "await a": "'await a' is not allowed",
    "a\0": "is not allowed",
    "\ud800": "is not allowed",
    "²": "invalid character",
    "1if a": "invalid",
    "a b": "character 3: invalid syntax",
    "(a": "'(' was never closed",
    "a)": "unmatched",
    "a + `b": "character 5: a name in backticks is empty or has no end",
    "`` + a": "character 1: a name in backticks is empty or has no end",
    "`a``b`": "invalid syntax",
    "log`a`": "invalid syntax",
    "log + a": "character 1: function log without arguments",
    "log()": "log takes 1 argument",
    "log(a, b)": "log takes 1 argument",
    "log(x=a)": "without names",
    "log(a, b=a)": "without names",
    "log(*a)": "'*a' is not allowed",
    "max(**a)": "max takes at least 2 arguments",
    "where(a, b)": "where takes 3 arguments",
    "min(a)": "min takes at least 2 arguments",
    "clip(a, 2, 1)": "give the smaller limit first",
    "True * a": "'True' is not a finite real number",
    "None * a": "'None' is not a finite real number",
    "1j * a": "'1j' is not a finite real number",
    "1e999 * a": "'1e999' is not a finite real number",
    "9" * 400 + " * a": "is not a finite real number",
    "... * a": "is not a finite real number",
    "a / 0": "character 1: 'a / 0' has no finite value",
    "a + (1 / (2 - 2))": "character 6: '1 / (2 - 2)' has no finite value",
    "a * (1e200 * 1e200)": "has no finite value",
    "a * log(0)": "has no finite value",
    "a ** b": "character 6: the exponent of ** must be a number from -16 to 16",
    "a ** 17": "the exponent of",
    "9 ** 9 ** 9 ** 9 * a": "the exponent of",
    "a ** -(9 ** 9)": "the exponent of",
    "µ + `ü ß` ** `c`": "character 15: the exponent of",
    "µm + ü.x": "character 6: '.' after a name",
    "(" * 900 + "a" + ")" * 900: "too many nested parentheses",
    "-" * 1999 + "a": "more than 100 levels",
    "a" + " + a" * 400: "more than 100 levels",
    "abs(" * 150 + "a" + ")" * 150: "more than 100 levels",
    "a" + " + a" * 1_000_000: "has 4,000,001 characters, more than 2,000",
    "a" * 2001: "has 2,001 characters",
}


@pytest.mark.parametrize(("text", "problem"), HOSTILE.items(), ids=lambda text: ascii(text[:20]))
def test_everything_else_ends_in_one_clear_error(text: str, problem: str) -> None:
    with pytest.raises(TabularError, match=re.escape(problem)) as caught:
        parse(text)
    assert len(str(caught.value)) < 600
    assert "expression" in str(caught.value)
    assert "allowed" in str(caught.value) or "split it" in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_a_text_that_exhausts_pythons_parser_ends_in_the_same_error(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ast, "parse", exhausted)
    with pytest.raises(TabularError, match=r"expression 'a', character 1: cannot be read"):
        parse("a")


@pytest.mark.parametrize("text", [None, 5, 1.5, ["a"], b"a"])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(TabularError, match="is not a text"):
        parse(text)  # type: ignore[arg-type]


@settings(max_examples=150)
@given(st.one_of(st.text(max_size=40), st.text("ab1.`()+-*/<=>!, logwhermin\n'_[]", max_size=60)))
def test_any_text_is_an_expression_or_a_clear_error(text: str) -> None:
    try:
        expression = parse(text)
    except TabularError:
        return
    assert expression.columns
    found = expression.evaluate({name: [0.0, 1.5, NAN] for name in expression.columns})
    assert found.shape == (3,)
    assert not np.isinf(found).any()


def test_the_longest_expressions_that_are_allowed_are_evaluated() -> None:
    table = {"a": [1.0, 2.0]}
    assert parse("a" + "+a" * 99).evaluate(table).tolist() == [100, 200]
    assert parse("a" + "<a" * 999).evaluate(table).tolist() == [0, 0]
    assert parse(f"max({','.join('a' * 900)})").evaluate(table).tolist() == [1, 2]
    assert parse("-" * 100 + "a").evaluate(table).tolist() == [1, 2]


def test_an_expression_is_a_value() -> None:
    expression = parse("a / `b c`")
    again = pickle.loads(pickle.dumps(expression))
    assert isinstance(again, Expression)
    assert again == expression
    assert again.evaluate({"a": [6], "b c": [2]}).tolist() == [3]
    assert repr(expression) == "Expression(text='a / `b c`', columns=('a', 'b c'))"


def test_columns_of_any_numeric_type_are_read() -> None:
    values = {"a": pd.Series([1, None, 3], dtype="Int64"), "b": pd.Series([True, False, True], index=[7, 8, 9])}
    np.testing.assert_array_equal(parse("a + b").evaluate(values), [2, NAN, 4])
    np.testing.assert_array_equal(parse("a").evaluate({"a": [np.inf, -np.inf, 1]}), [NAN, NAN, 1])
    assert parse("a").evaluate({"a": np.array([], float)}).shape == (0,)


def test_columns_that_cannot_be_used_are_named() -> None:
    expression = parse("a + `b c`")
    with pytest.raises(TabularError, match=r"expression 'a \+ `b c`' uses column 'b c', which the table lacks"):
        expression.evaluate({"a": [1.0]})
    with pytest.raises(TabularError, match="column 'a' is not numeric"):
        expression.evaluate({"a": ["1"], "b c": [1.0]})
    with pytest.raises(TabularError, match=r"different numbers of rows, \{'a': 2, 'b c': 1\}"):
        expression.evaluate({"a": [1.0, 2.0], "b c": [1.0]})


def test_derived_columns_may_use_earlier_ones() -> None:
    table = TABLE.set_axis([9, 7, 5, 3, 1])
    made = derived_columns(table, {"ratio": parse("a / b"), "double": parse("2 * ratio"), "huge": parse("b * 1e38")})
    assert made.index.tolist() == [9, 7, 5, 3, 1]
    assert made.columns.tolist() == ["ratio", "double", "huge"]
    assert (made.dtypes == np.float32).all()
    np.testing.assert_allclose(made["ratio"], table["a"] / table["b"], rtol=1e-6)
    np.testing.assert_allclose(made["double"], 2 * table["a"] / table["b"], rtol=1e-6)
    np.testing.assert_allclose(made["huge"], [NAN, 0.5e38, NAN, NAN, NAN], rtol=1e-6)
    assert derived_columns(table, {}).shape == (5, 0)
    with pytest.raises(TabularError, match="derived column 'a' is a column of the table too"):
        derived_columns(table, {"a": parse("b")})
    with pytest.raises(TabularError, match="'later', which the table lacks"):
        derived_columns(table, {"sooner": parse("later"), "later": parse("a")})
    doubled = pd.DataFrame([[1.0, 2.0]], columns=["x", "x"])
    with pytest.raises(TabularError, match="uses column 'x', which the table has twice"):
        derived_columns(doubled, {"y": parse("x")})
