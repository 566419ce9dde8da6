"""Derived columns from expressions in a small checked language: `log(area) / (1 + age)`.

An expression comes from a config or a bundle, so it must not be able to run code. Python's parser reads its syntax;
each node of the result is then checked against a short list and translated into nodes of this module, which are all
that is evaluated. Values are float64, and NaN wherever a result is not defined: missing values, division by 0,
logarithms of 0 and less, roots of negative numbers, and overflow. No result is infinite.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dermstack.errors import TabularError
from tabular.group_features import Floats
from tabular.relative import LARGEST

MAX_LENGTH = 2_000  # characters
MAX_DEPTH = 100  # of nodes inside nodes
MAX_EXPONENT = 16
_SHOWN = 80  # characters of an expression in a message


class _Function(NamedTuple):
    compute: Callable[..., Any]
    fewest: int  # arguments
    most: int


_FUNCTIONS = {
    "log": _Function(np.log, 1, 1),
    "log1p": _Function(np.log1p, 1, 1),
    "sqrt": _Function(np.sqrt, 1, 1),
    "abs": _Function(np.abs, 1, 1),
    "where": _Function(lambda condition, yes, no: np.where(condition != 0, yes, no), 3, 3),
    "clip": _Function(np.clip, 3, 3),
    "min": _Function(lambda *values: np.minimum.reduce(np.broadcast_arrays(*values)), 2, MAX_LENGTH),
    "max": _Function(lambda *values: np.maximum.reduce(np.broadcast_arrays(*values)), 2, MAX_LENGTH),
}
_OPERATORS: dict[type[ast.AST], tuple[str, Callable[..., Any]]] = {
    ast.Add: ("+", np.add),
    ast.Sub: ("-", np.subtract),
    ast.Mult: ("*", np.multiply),
    ast.Div: ("/", np.divide),
    ast.Pow: ("**", np.power),
    ast.Lt: ("<", np.less),
    ast.LtE: ("<=", np.less_equal),
    ast.Gt: (">", np.greater),
    ast.GtE: (">=", np.greater_equal),
    ast.Eq: ("==", np.equal),
    ast.NotEq: ("!=", np.not_equal),
}
_COMPUTE = {name: function.compute for name, function in _FUNCTIONS.items()} | dict(_OPERATORS.values())
_COMPUTE["negative"] = np.negative
ALLOWED = (
    "allowed are numbers, column names (in backticks where they are more than letters, digits and _), parentheses, "
    "+ - * / **, < <= > >= == != and " + ", ".join(_FUNCTIONS)
)
_UNKNOWN_CHARACTER = re.compile(r"[^\w\s+\-*/<>=!().,]")
_HINTS: dict[type[ast.AST], str] = {
    ast.Attribute: "'.' after a name: write a column name with dots in backticks",
    ast.BoolOp: "'and' or 'or': multiply comparisons for 'and', and take their max for 'or'",
    ast.IfExp: "'if': write where(condition, value, other)",
    ast.Tuple: "',' outside of a function",
}


@dataclass(frozen=True)
class Number:
    """A number that is written in an expression, or follows from such numbers alone."""

    value: float


@dataclass(frozen=True)
class Column:
    """A column that an expression names."""

    name: str


@dataclass(frozen=True)
class Operation:
    """A function, operator or comparison (``function`` is its name or sign) with its arguments."""

    function: str
    arguments: tuple[Node, ...]


Node = Number | Column | Operation


@dataclass(frozen=True)
class Expression:
    """A checked expression, made by `parse`: its text and the columns it needs, in the order of their first use."""

    text: str
    columns: tuple[str, ...]
    node: Node = field(repr=False, compare=False)

    def evaluate(self, columns: Mapping[str, ArrayLike] | pd.DataFrame) -> Floats:
        """Returns the values (n,) for columns of n numbers each; NaN where a result is not defined.

        A comparison gives 1 or 0, and NaN if one side is NaN. `where(condition, yes, no)` gives NaN if the condition is
        NaN, and ignores the value that is not taken. A row's value depends on that row only, to the last bit. Raises
        TabularError for columns that are absent, not numeric or of different lengths.
        """
        absent = [name for name in self.columns if name not in columns]
        if absent:
            raise TabularError(
                f"expression {_shorten(self.text)} uses {', '.join(f'column {name!r}' for name in absent[:10])}, which "
                f"the table lacks: correct the name or add the column, with NaN where the value is not known"
            )
        values = {name: self._numbers(name, columns[name]) for name in self.columns}
        lengths = {name: len(column) for name, column in values.items()}
        if len(set(lengths.values())) > 1:
            raise TabularError(f"expression {_shorten(self.text)}: columns have different numbers of rows, {lengths}")
        with np.errstate(all="ignore"):
            return _evaluate(self.node, values)

    def _numbers(self, name: str, column: ArrayLike) -> Floats:
        series = column if isinstance(column, pd.Series) else pd.Series(np.asarray(column))
        if not pd.api.types.is_numeric_dtype(series):
            raise TabularError(
                f"expression {_shorten(self.text)}: column {name!r} is not numeric ({series.dtype}): make it numeric "
                "or leave it out of the expression"
            )
        # A new, contiguous array: functions may round the last bit of a strided one differently.
        return _finite(series.to_numpy(np.float64, na_value=np.nan))


def parse(text: str) -> Expression:
    """Returns the checked expression; raises TabularError that names the expression, the place and what is allowed.

    Names that are no identifiers stand in backticks, as in pandas. Exponents are numbers from -16 to 16. An expression
    has at most 2,000 characters and 100 levels of nesting, and needs at least one column.

    >>> parse("log(area_mm2) / (1 + `patient's age`)").columns
    ('area_mm2', "patient's age")
    """
    if not isinstance(text, str):
        raise TabularError(f"expression {text!r} is not a text: {ALLOWED}")
    if len(text) > MAX_LENGTH:
        raise TabularError(
            f"expression {_shorten(text)} has {len(text):,} characters, more than {MAX_LENGTH:,}: split it into "
            "several derived columns"
        )
    node = _Parser(text).parse()
    columns = tuple(dict.fromkeys(_columns_of(node)))
    if not columns:
        raise TabularError(f"expression {_shorten(text)} uses no column: {ALLOWED}")
    return Expression(text, columns, node)


def derived_columns(frame: pd.DataFrame, expressions: Mapping[str, Expression]) -> pd.DataFrame:
    """Returns one float32 column for each expression, with the index of `frame`; NaN also for values beyond 1e38.

    An expression may use columns that were derived before it. Raises TabularError for a name that the table has.
    """
    columns: dict[str, ArrayLike] = {str(name): frame[name] for name in frame.columns[~frame.columns.duplicated()]}
    made: dict[str, Floats] = {}
    for name, expression in expressions.items():
        if name in columns:
            raise TabularError(f"derived column {name!r} is a column of the table too: give it another name")
        twice = [column for column in expression.columns if (frame.columns == column).sum() > 1]
        if twice:
            raise TabularError(f"derived column {name!r} uses column {twice[0]!r}, which the table has twice")
        values = expression.evaluate(columns)
        made[name] = columns[name] = np.where(np.abs(values) > LARGEST, np.nan, values)
    return pd.DataFrame(made, index=frame.index, columns=list(made)).astype(np.float32)


class _Parser:
    """Translates one text into nodes of this module."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()

    def parse(self) -> Node:
        if not self.text:
            raise self._error(0, "is empty")
        # Names in backticks become identifiers of the same length, so that places in the syntax tree are places in the
        # text, from which names are read: Python's tree holds normalised names ("µ" as another letter).
        self.plain = re.sub(r"`[^`]+`", lambda name: f" {'_' * (len(name[0]) - 2)} ", self.text)
        unknown = _UNKNOWN_CHARACTER.search(self.plain)
        if unknown and unknown[0] == "`":
            raise self._error(unknown.start(), "a name in backticks is empty or has no end")
        if unknown:
            raise self._error(unknown.start(), f"{unknown[0]!r} is not allowed")
        self.plain = re.sub(r"\s", " ", self.plain)
        self.indent = 1 if self.plain.startswith(" ") else 0  # of a first name in backticks
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # "1if" is only warned of
                tree = ast.parse(self.plain[self.indent :], mode="eval")
        except SyntaxError as error:
            place = max((error.offset or 1) - 1, 0) + self.indent
            raise self._error(min(place, len(self.text) - 1), error.msg) from None
        except (ValueError, MemoryError, RecursionError) as error:  # of deep nesting, in some versions of Python
            raise self._error(0, f"cannot be read ({type(error).__name__})") from None
        return self._node(tree.body, 0)

    def _node(self, node: ast.AST, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._error(self._place(node), f"more than {MAX_DEPTH} levels: split it into several derived columns")
        if isinstance(node, ast.Constant):
            return self._number(node)
        if isinstance(node, ast.Name):
            return self._column(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
            operand = self._node(node.operand, depth + 1)
            return operand if isinstance(node.op, ast.UAdd) else self._operation(node, "negative", operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            sides = self._node(node.left, depth + 1), self._node(node.right, depth + 1)
            return self._operation(node, _OPERATORS[type(node.op)][0], *sides)
        if isinstance(node, ast.Compare) and all(type(comparison) in _OPERATORS for comparison in node.ops):
            return self._comparison(node, depth)
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise self._error(self._place(node), _HINTS.get(type(node), f"{_shorten(self._source(node))} is not allowed"))

    def _number(self, node: ast.Constant) -> Node:
        try:
            value = math.nan if type(node.value) not in (int, float) else float(node.value)  # type: ignore[arg-type]
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self._error(self._place(node), f"{_shorten(self._source(node))} is not a finite real number")
        return Number(value)

    def _column(self, node: ast.Name) -> Node:
        name, place = self._source(node), self._place(node)
        if name in _FUNCTIONS and self.text[place - 1 : place] != "`":
            raise self._error(place, f"function {name} without arguments (a column of this name goes in backticks)")
        return Column(name)

    def _comparison(self, node: ast.Compare, depth: int) -> Node:
        sides = [self._node(side, depth + 1) for side in (node.left, *node.comparators)]
        signs = [_OPERATORS[type(comparison)][0] for comparison in node.ops]
        pairs = [self._operation(node, sign, *pair) for sign, pair in zip(signs, pairwise(sides), strict=True)]
        return pairs[0] if len(pairs) == 1 else self._operation(node, "min", *pairs)  # 1 < a < 2: both must hold

    def _call(self, node: ast.Call, depth: int) -> Node:
        place = self._place(node)
        name = self._source(node.func) if isinstance(node.func, ast.Name) else ""
        if name not in _FUNCTIONS or self.text[place - 1 : place] == "`":
            raise self._error(place, f"{_shorten(self._source(node.func))} is not a function")
        function = _FUNCTIONS[name]
        if node.keywords or not function.fewest <= len(node.args) <= function.most:
            wanted = function.fewest if function.fewest == function.most else f"at least {function.fewest}"
            raise self._error(place, f"{name} takes {wanted} argument{'s' if wanted != 1 else ''}, without names")
        arguments = [self._node(argument, depth + 1) for argument in node.args]
        if name == "clip" and all(isinstance(limit, Number) for limit in arguments[1:]):
            lowest, highest = (limit.value for limit in arguments[1:] if isinstance(limit, Number))
            if lowest > highest:
                raise self._error(place, f"clip from {lowest:g} to {highest:g}: give the smaller limit first")
        return self._operation(node, name, *arguments)

    def _operation(self, node: ast.AST, function: str, *arguments: Node) -> Node:
        """Returns the operation, or its value where all arguments are numbers."""
        last = arguments[-1]
        if function == "**" and not (isinstance(last, Number) and abs(last.value) <= MAX_EXPONENT):
            problem = f"the exponent of ** must be a number from -{MAX_EXPONENT} to {MAX_EXPONENT}"
            raise self._error(self._place(getattr(node, "right", node)), problem)
        never = function == "/" and last == Number(0)
        if not never and all(isinstance(argument, Number) for argument in arguments):
            with np.errstate(all="ignore"):
                value = float(_evaluate(Operation(function, arguments), {}))
            if not math.isnan(value):
                return Number(value)
            never = True
        if never:
            raise self._error(self._place(node), f"{_shorten(self._source(node))} has no finite value")
        return Operation(function, arguments)

    def _place(self, node: ast.AST, end: str = "") -> int:
        """Returns the position of a node's beginning or end in the text, in characters: the tree counts bytes."""
        before = self.plain[self.indent :].encode()[: getattr(node, f"{end}col_offset", 0)]
        return len(before.decode()) + self.indent

    def _source(self, node: ast.AST) -> str:
        return self.text[self._place(node) : self._place(node, "end_")]

    def _error(self, place: int, problem: str) -> TabularError:
        return TabularError(f"expression {_shorten(self.text)}, character {place + 1}: {problem}; {ALLOWED}")


def _evaluate(node: Node, columns: Mapping[str, Floats]) -> Floats:
    if isinstance(node, Number):
        return np.array(node.value)
    if isinstance(node, Column):
        return columns[node.name]
    arguments = [_evaluate(argument, columns) for argument in node.arguments]
    values = _finite(np.asarray(_COMPUTE[node.function](*arguments), dtype=np.float64))
    # Some functions give a number for NaN: NaN < 1 is False, and NaN ** 0 is 1.
    needed = arguments[:1] if node.function == "where" else arguments
    for argument in needed:
        values = np.where(np.isnan(argument), np.nan, values)
    return values


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _columns_of(node: Node) -> list[str]:
    if isinstance(node, Operation):
        return [name for argument in node.arguments for name in _columns_of(argument)]
    return [node.name] if isinstance(node, Column) else []


def _shorten(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
