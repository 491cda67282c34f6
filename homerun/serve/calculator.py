"""The calculator that nanochat's models may call: `<|python_start|>12*(3+4)<|python_end|>`.

Arithmetic on plain numbers, and `'word'.count('letter')`: what upstream's calculator answers. Nothing is executed: the
expression is parsed, its tree walked, and anything else refused. There is no power operator and at most `LONGEST`
characters, so no answer takes longer than a millisecond and no timer is needed, on whichever thread.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

from homerun.trainer.tokenizer import Tokenizer

LONGEST = 256  # characters; a product of that many digits is the dearest thing that fits
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculate(expression: str) -> str | None:
    """The value of `expression` as text, or None where it is not one that the calculator answers."""
    if len(expression) > LONGEST:
        return None
    try:
        try:
            return str(_number(ast.parse(expression.replace(",", "").strip(), mode="eval").body))
        except TypeError:
            return str(_count(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None


def _number(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_number(left), _number(right))
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_number(operand))
    raise TypeError("not arithmetic")


def _count(node: ast.expr) -> int:
    match node:
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(part))],
            keywords=[],
        ):
            return text.count(part)
    raise TypeError("not 'text'.count('part')")


class Caller:
    """Watches one answer's tokens for a call; says which tokens must come next."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._start, self._end, self._output, self._output_end = (
            tokenizer.special(f"<|{name}|>") for name in ("python_start", "python_end", "output_start", "output_end")
        )
        self._expression: list[int] | None = None

    def see(self, token: int) -> list[int]:
        """The tokens to force after `token`: the calculator's answer when a call ends with it, else none."""
        if token == self._start:
            self._expression = []
        elif token == self._end and self._expression is not None:
            answer = calculate(self._tokenizer.decode(self._expression))
            self._expression = None
            if answer is not None:
                return [self._output, *self._tokenizer.encode(answer), self._output_end]
        elif self._expression is not None:
            self._expression.append(token)
        return []
