"""Arithmetic that is written in a task: its value, its operations, and the numbers of a text. Nothing is executed."""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_NAMES = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d{3})+(?![\d])|\d+(?:[.,]\d+)?")
_WORDS = {
    "en": "zero two three four five six seven eight nine ten eleven twelve",
    "it": "zero due tre quattro cinque sei sette otto nove dieci undici dodici",
}
_LONGEST = 400  # characters of an expression
_POWER = 12


def value_of(expression: str) -> Fraction:
    """The exact value of sums, differences, products, quotients and whole powers of numbers.

    Args:
        expression: such as ``(3 + 4) * 2.5``; ``×``, ``·``, ``:``, ``÷`` and ``^`` are understood, ``%`` after a number too.
    Raises:
        ValueError: anything else in it, or a division by zero.
    """
    return _value(_parsed(expression), expression)


def operations(expression: str) -> list[str]:
    """The operations in the order in which they are carried out.

    Raises:
        ValueError: see `value_of`.
    """
    value_of(expression)
    found: list[str] = []

    def visit(node: ast.expr) -> None:
        if isinstance(node, ast.BinOp):
            visit(node.left)
            visit(node.right)
            found.append(_NAMES[type(node.op)])
        elif isinstance(node, ast.UnaryOp):
            visit(node.operand)

    visit(_parsed(expression))
    return found


def numbers_in(text: str, *, lang: str = "en") -> Counter[Fraction]:
    """How often each number stands in a text, in digits (decimal point or comma, thousands apart) or as a word from two to twelve.

    Raises:
        ValueError: an unknown language.
    """
    if lang not in _WORDS:
        raise ValueError(f"lang: expected 'it' or 'en', got {lang!r}")
    found = Counter(_number(token) for token in _NUMBER.findall(text))
    values = [0, *range(2, 13)]
    for word, value in zip(_WORDS[lang].split(), values, strict=True):
        count = len(re.findall(rf"\b{word}\b", text.lower()))
        if count:
            found[Fraction(value)] += count
    return found


def _number(token: str) -> Fraction:
    if re.fullmatch(r"\d{1,3}([.,]\d{3})+", token) and not token.startswith("0"):
        return Fraction(re.sub(r"[.,]", "", token))
    return Fraction(token.replace(",", "."))


def _parsed(expression: str) -> ast.expr:
    text = expression.replace("×", "*").replace("·", "*").replace("÷", "/").replace(":", "/").replace("^", "**").replace("−", "-")
    text = re.sub(r"(\d+(?:\.\d+)?)\s*%", r"(\1/100)", text).strip()
    if not text or len(text) > _LONGEST:
        raise ValueError(f"solution: expected arithmetic, got {expression[:40]!r}")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"solution: expected arithmetic, got {expression[:40]!r}") from None


def _value(node: ast.expr, expression: str) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand, expression)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, expression), _value(node.right, expression)
        if isinstance(node.op, ast.Pow) and right.denominator == 1 and 0 <= right <= _POWER:
            return left ** int(right)
        if isinstance(node.op, ast.Div) and right == 0:
            raise ValueError(f"solution: expected no division by zero, got {expression[:40]!r}")
        if type(node.op) in _BINARY:
            return _BINARY[type(node.op)](left, right)
    raise ValueError(f"solution: expected numbers and + - * / ** alone, got {expression[:40]!r}")
