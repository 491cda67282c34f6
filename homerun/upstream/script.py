"""Bash, read and never run: every simple command of a script, and under what conditions it would run."""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from homerun.errors import RequestError

# Nodes whose commands run in order; only the last one's status is the whole's.
_SEQUENCES = ("program", "compound_statement", "subshell", "do_group", "else_clause", "elif_clause", "case_item")


@dataclass(frozen=True)
class Command:
    """One simple command. words: the argv as written; () where it only assigns. line: bash's LINENO as it runs.
    end: the last line that LINENO may be instead (inside a `$( )` of several lines, bash versions count differently).
    """

    words: tuple[str, ...] = ()
    text: str = ""
    line: int = 0
    end: int = 0
    function: str | None = None  # the function whose body it is in
    heredoc: bool = False  # reads a here-document or here-string
    background: bool = False
    piped: bool = False  # a member of a pipeline, or inside $( )
    captured: bool = False  # inside $( ): its output is a value
    tested: bool = False  # its status is a condition
    counted: bool = True  # False in a loop, function or branch


@dataclass(frozen=True)
class Script:
    """commands: in the order of the text. comments: whole-line ones, by line. unread: lines not understood."""

    commands: tuple[Command, ...]
    functions: frozenset[str]
    comments: dict[int, str]
    unread: tuple[int, ...]


def read_script(source: bytes) -> Script:
    """Read a script. Raises RequestError, with the line, where bash would refuse it."""
    check_syntax(source)
    root = Parser(Language(tree_sitter_bash.language())).parse(source).root_node
    commands = sorted(_sequence(root, Command()), key=lambda found: found[0])
    lines = source.decode("utf-8", "replace").split("\n")
    comments = {
        node.start_point[0] + 1: _text(node).lstrip("#").strip()
        for node in _all(root, "comment")
        if lines[node.start_point[0]].lstrip().startswith("#") and not _text(node).startswith("#!")
    }
    functions = frozenset(_text(name) for node in _all(root, "function_definition") if (name := node.named_child(0)))
    unread = sorted({node.start_point[0] + 1 for node in _walk(root) if node.is_error or node.is_missing})
    return Script(_settle_functions([command for _, command in commands]), functions, comments, tuple(unread))


def check_syntax(source: bytes) -> None:
    """Raise RequestError with the line where bash would not read the script (`bash -n`), or would misread it."""
    if b"\0" in source:
        raise RequestError("the script holds NUL bytes: it is no shell script", "Check --script")
    for number, line in enumerate(source.split(b"\n"), 1):
        if line.endswith(b"\r"):
            raise RequestError(
                f"line {number} of the script ends in CR LF, and bash takes the CR as part of the command",
                r"Convert it: sed -i 's/\r$//' SCRIPT",
            )
    try:
        done = subprocess.run(["bash", "-n"], input=source, capture_output=True, env=os.environ | {"LC_ALL": "C"})
    except FileNotFoundError:
        raise RequestError("bash is not installed", "Install bash 5 or later") from None
    if done.returncode:
        said = re.search(r"line (\d+): (.*)", done.stderr.decode(errors="replace"))
        where, what = said.groups() if said else ("?", "syntax error")
        raise RequestError(f"line {where} of the script cannot be read: {what}", "Check it with: bash -n SCRIPT")


def _settle_functions(commands: list[Command]) -> tuple[Command, ...]:
    """A function that is only ever called as a condition handles the failures of what its body runs."""
    calls: dict[str, list[bool]] = {}
    for command in commands:
        if command.words:
            calls.setdefault(command.words[0], []).append(command.tested)
    handled = {name for name, tested in calls.items() if all(tested)}
    return tuple(replace(command, tested=True) if command.function in handled else command for command in commands)


def _visit(node: Node, state: Command) -> Iterator[tuple[int, Command]]:
    """(offset, command) of every command under `node`; `state` carries the conditions that `node` runs under."""
    plain = replace(state, tested=False)
    branch = replace(plain, counted=False)
    match node.type:
        case "command":
            yield _command(node, state)
            yield from _each(node.named_children, _enclosed(node, plain))
        case "pipeline":
            *others, last = node.named_children
            yield from _each(others, replace(plain, piped=True))
            yield from _visit(last, replace(state, piped=True, tested=state.tested or _negated(node)))
        case "list":
            first, *rest = node.named_children
            yield from _visit(first, replace(state, tested=True))
            yield from _each(rest, replace(state, counted=False))
        case "negated_command":
            # in `! a | b` the grammar hangs the whole pipeline's `!` on its first member
            yield from _each(node.named_children, replace(state, tested=not state.piped))
        case "if_statement" | "elif_clause" | "while_statement":
            then = next(i for i, child in enumerate(node.children) if child.type in ("then", "do_group"))
            condition = plain if node.type == "if_statement" else branch
            yield from _sequence(node.children[:then], replace(condition, tested=True))
            yield from _sequence(node.children[then:], branch)
        case "for_statement" | "c_style_for_statement":
            yield from _each(node.named_children[:-1], plain)
            yield from _visit(node.named_children[-1], branch)
        case "case_statement":
            yield from _visit(node.named_children[0], plain)
            yield from _each(node.named_children[1:], branch)
        case "function_definition":
            name, *statements = node.named_children
            yield from _each(statements, Command(function=_text(name), counted=False))
        case "command_substitution" | "process_substitution":
            captured = node.type == "command_substitution"
            yield from _sequence(node.children, replace(state, piped=True, captured=captured, background=False))
        case "variable_assignment":
            yield from _each(node.named_children, _enclosed(node, state))
        case "redirected_statement":
            body, *redirects = node.named_children
            heredoc = any(redirect.type.startswith("here") for redirect in redirects)
            # `cat <<END | grep x`: the grammar hangs what follows on the here-document
            yield from _visit(body, replace(state, heredoc=heredoc, piped=state.piped or _pipes(redirects)))
            yield from _each(redirects, _enclosed(node, plain))
        case kind if kind in _SEQUENCES:
            yield from _sequence(node.children, state)
        case "declaration_command" | "test_command":
            yield from _each(node.named_children, _enclosed(node, plain))
        case _:
            yield from _each(node.named_children, plain)


def _each(nodes: Iterable[Node], state: Command) -> Iterator[tuple[int, Command]]:
    for node in nodes:
        yield from _visit(node, state)


def _sequence(nodes: Node | list[Node], state: Command) -> Iterator[tuple[int, Command]]:
    """Statements in order: only the last one's status can be a condition; `&` is for the one before it."""
    children = nodes.children if isinstance(nodes, Node) else nodes
    statements = [i for i, child in enumerate(children) if child.is_named and child.type != "comment"]
    for i in statements:
        background = state.background or (i + 1 < len(children) and children[i + 1].type == "&")
        tested = state.tested and i == statements[-1]
        yield from _visit(children[i], replace(state, background=background, tested=tested))


def _command(node: Node, state: Command) -> tuple[int, Command]:
    name = node.child_by_field_name("name")
    parts = [name, *node.children_by_field_name("argument")] if name else []
    words = [_unquoted(_text(part)) if part is name else _text(part) for part in parts]
    prefixes = 2 if words[:2] == ["time", "-p"] else 1 if words[:1] == ["time"] else 0  # a keyword, not a command
    heredoc = state.heredoc or any(child.type.startswith("herestring") for child in node.children)
    state = _enclosed(node, state)
    return node.start_byte, replace(state, words=tuple(words[prefixes:]), text=_text(node), heredoc=heredoc)


def _enclosed(node: Node, state: Command) -> Command:
    """`state` with the LINENO of a statement; inside a substitution the outer statement's own stays."""
    if state.line:
        return state
    first = node.child_by_field_name("body") if node.type == "redirected_statement" else node
    line = _lineno(first or node)
    return replace(state, line=line, end=line + node.end_point[0] - node.start_point[0])


def _lineno(node: Node) -> int:
    """The line at which bash's parser stands when it begins a simple command: the end of the first token; if that is a
    plain word, the end of the one after it (it might have been a `name ()`).
    """
    if not node.children or node.type not in ("command", "variable_assignment", "declaration_command", "test_command"):
        return node.start_point[0] + 1
    first = node.children[0]
    if node.type == "variable_assignment" or first.type in ("variable_assignment", "file_redirect"):
        return (node if node.type == "variable_assignment" else first).end_point[0] + 1
    if _text(first) == "time" and len(node.children) > 1:
        first = node.children[1]
    source = _root(node).text or b""
    gap = re.compile(rb"(?:[ \t]|\\\n)*").match(source, first.end_byte)
    line = first.end_point[0] + 1 + (gap[0].count(b"\n") if gap else 0)
    after = next((child for child in node.children if gap and child.start_byte == gap.end()), None)
    return after.end_point[0] + 1 if after and after.type != "file_redirect" else line


def _root(node: Node) -> Node:
    while node.parent:
        node = node.parent
    return node


def _negated(pipeline: Node) -> bool:
    """Whether it begins with `!`, which negates all of it."""
    first = pipeline.named_children[0]
    return "negated_command" in (first.type, *(child.type for child in first.named_children[:1]))


def _pipes(redirects: list[Node]) -> bool:
    return any(child.type == "pipeline" for redirect in redirects for child in redirect.children)


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else word.lstrip("\\")


def _text(node: Node) -> str:
    return re.sub(r"\\\n\s*", "", (node.text or b"").decode("utf-8", "replace"))


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _all(root: Node, kind: str) -> Iterator[Node]:
    return (node for node in _walk(root) if node.type == kind)
