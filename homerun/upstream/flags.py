"""Which flags a module of that very commit takes, and how it spells them: read from its source, never imported.

Two styles: argparse (underscores in flags until January 2026, dashes since), and until then also a configurator, which
turns every global that is assigned above it into a `--name=value` flag.
"""

import ast
import importlib.util
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_ARITHMETIC: dict[type, Any] = {
    ast.Mult: operator.mul,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Pow: operator.pow,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Flags:
    """names: as spelled, with their dashes (`--save-every`, `-n`). defaults: {name: value}, where it can be read."""

    names: frozenset[str]
    defaults: dict[str, object]
    style: Literal["argparse", "configurator"]

    def spell(self, flag: str) -> str | None:
        """`save-every`, `--save_every` … as this commit spells it, with its dashes; None if it has no such flag."""
        plain = _plain(flag)
        return next((name for name in self.names if name.startswith("--") and _plain(name) == plain), None)

    def value(self, words: Sequence[str], flag: str) -> object:
        """What these arguments set a flag to, the last one counting, else its default; None where neither is known."""
        name = self.spell(flag)
        for place in reversed(range(len(words)) if name else ()):
            said, equals, value = words[place].partition("=")
            if said == name:
                return value if equals or place + 1 == len(words) else words[place + 1]
        return self.defaults.get(name or "")


def module_flags(root: Path, module: str) -> Flags | None:
    """The flags of a module of the worktree `root`, or of one of ours; None where its source is not found."""
    path = root.joinpath(*module.split("."))
    candidates = [path.with_suffix(".py"), path / "__main__.py"]
    if module.startswith("homerun."):
        spec = importlib.util.find_spec(module)
        candidates = [Path(spec.origin)] if spec and spec.origin else []
    for candidate in candidates:
        if candidate.is_file():
            return read_flags(candidate.read_text(encoding="utf-8", errors="replace"))
    return None


def read_flags(source: str) -> Flags:
    """The flags of a module's source; none at all (not an error) where it is not Python or takes no arguments."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return Flags(frozenset(), {}, "argparse")
    above = _above_configurator(tree)
    if above is not None:
        defaults = dict(pair for statement in above for pair in _globals(statement))
        return Flags(frozenset(defaults), defaults, "configurator")
    names: set[str] = set()
    defaults = {}
    for call in _argument_calls(tree):
        spelled = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        flags = [name for name in spelled if name.startswith("-")]
        names.update(flags)
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        if "default" in keywords:
            defaults |= dict.fromkeys(flags, _value(keywords["default"]))
        elif isinstance(action := keywords.get("action"), ast.Constant) and action.value == "store_true":
            defaults |= dict.fromkeys(flags, False)
    return Flags(frozenset(names), defaults, "argparse")


def _above_configurator(tree: ast.Module) -> list[ast.stmt] | None:
    """The statements above `exec(open(… 'configurator.py' …).read())`; None where there is no such line."""
    for i, statement in enumerate(tree.body):
        text = ast.unparse(statement) if isinstance(statement, ast.Expr) else ""
        if text.startswith("exec(") and "configurator.py" in text:
            return tree.body[:i]
    return None


def _globals(statement: ast.stmt) -> Iterator[tuple[str, object]]:
    """(flag, value) of each global that an assignment gives a plain value."""
    if isinstance(statement, ast.Assign):
        targets, value = statement.targets, _value(statement.value)
        plain = value is not None or (isinstance(statement.value, ast.Constant) and statement.value.value is None)
        for target in targets:
            if plain and isinstance(target, ast.Name) and not target.id.startswith("_"):
                yield f"--{target.id}", value


def _argument_calls(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls of `add_argument`, also under another name (`add = parser.add_argument`)."""
    aliases = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "add_argument"
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (
            (isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument")
            or (isinstance(node.func, ast.Name) and node.func.id in aliases)
        ):
            yield node


def _value(node: ast.expr) -> object:
    """The value of a literal or of arithmetic on literals (`20*524288`); None for anything else."""
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left), _value(node.right)
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        # A power of this size is no default of anyone's, and could take for ever.
        if numbers and not (isinstance(node.op, ast.Pow) and right > 64):  # type: ignore[operator]
            try:
                return _ARITHMETIC[type(node.op)](left, right)
            except (ZeroDivisionError, OverflowError):
                return None
        return None
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError):
        return None
    return value if isinstance(value, int | float | str | bool) else None


def _plain(flag: str) -> str:
    return flag.lstrip("-").replace("_", "-")
