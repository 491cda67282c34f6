"""A script in upstream's form → the plan: which of its commands are phases, where, and under what conditions.

`read_plan` never runs the script. What it does not recognise it says in `Plan.drift` instead of guessing.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from homerun.upstream.script import Command, Script, read_script
from homerun.upstream.table import HOUSEKEEPING, lookup

BUILTINS = frozenset(
    """. : [ alias bg bind break builtin caller cd command compgen complete compopt continue declare dirs disown echo
    enable eval exec exit export false fc fg getopts hash help history jobs kill let local logout mapfile popd printf
    pushd pwd read readarray readonly return set shift shopt source suspend test times trap true type typeset ulimit
    umask unalias unset wait""".split()  # noqa: SIM905
)
SHELLS = ("sh", "bash", "dash", "zsh")
_PYTHON = re.compile(r"(?:.*/)?(?:python[\d.]*|torchrun)[\"']?$")
MAKES_VENV = {"uv", "venv", "virtualenv"}
_SAFE_SOURCES = re.compile(r"(?:\.venv/bin/activate|\.cargo/env)[\"']?$")


@dataclass(frozen=True)
class Step:
    """One phase as the script has it.

    name: safe in a file name, unique in the plan. line: 1-based, bash's LINENO, which is the first one. index: position
    among the phases that start on that line, from 0. words: the argv as written, unexpanded. piped: in a pipeline or
    inside $( ). captured: inside $( ), its output is a value. tested: its status is a condition, so the script handles
    its failure itself. counted: False where it cannot be told how often it runs (loop, function, branch).
    """

    name: str
    line: int
    index: int
    command: str
    words: tuple[str, ...]
    launcher: str
    module: str | None
    section: str
    background: bool
    piped: bool
    captured: bool
    tested: bool
    counted: bool
    end: int  # the last line that bash may name instead, inside a `$( )` of several lines

    @property
    def outputs(self) -> tuple[str, ...]:
        """Globs, relative to the base dir, of the files that it must leave."""
        known = lookup(self.module, self.launcher)
        if known is None:
            return ()
        folder = known.makes_checkpoint
        return known.outputs + ((f"{folder}/*/model_*.pt", f"{folder}/*/meta_*.json") if folder else ())


@dataclass(frozen=True)
class Plan:
    """The phases of a script in the order of its text. drift: sentences about what was not recognised."""

    sha256: str
    steps: tuple[Step, ...]
    drift: tuple[str, ...]

    def launchers(self) -> tuple[str, ...]:
        """The external commands to wrap. One that is computed (`$CMD`) cannot be told."""
        return tuple(dict.fromkeys(step.launcher for step in self.steps if "$" not in step.launcher))

    def find(self, line: int, launcher: str, argv: Sequence[str]) -> Step | None:
        """The step that a traced command is: by line, launcher, module, and the words they share."""
        here = [step for step in self.steps if step.line <= line <= step.end]
        here = [step for step in here if step.launcher == launcher] or [step for step in here if "$" in step.launcher]
        module = module_of(argv)
        here = [step for step in here if step.module == module] or here
        here = [step for step in here if step.line == line] or here
        return max(here, key=lambda step: sum(word.strip("\"'") in argv for word in step.words), default=None)


def read_plan(source: bytes) -> Plan:
    """The plan of a script's bytes. Raises RequestError, with the line, where bash would refuse the script."""
    script = read_script(source)
    drift = [
        (line, "not understood here, though bash reads it: commands in it may go unseen") for line in script.unread
    ]
    steps: list[Step] = []
    for command in script.commands:
        words, remark = _phase(command, script)
        if remark:
            drift.append((command.line, remark))
        if command.words[1:2] == (".venv/bin/activate",) and not any(MAKES_VENV & {*step.words} for step in steps):
            drift.append((command.line, "it activates .venv, which nothing before makes: begin with `uv sync`"))
        if words:
            steps.append(_step(command, words, steps, script))
    for step in steps:
        if step.module and lookup(step.module) is None:
            drift.append((step.line, f"{step.module} is not a known module: its exit status alone will judge it"))
    sentences = [f"line {line}: {text}" for line, text in sorted(drift)]
    if not steps:
        sentences.append("no phase was found: nothing that this script runs would be followed")
    return Plan(hashlib.sha256(source).hexdigest(), tuple(steps), tuple(sentences))


def _phase(command: Command, script: Script) -> tuple[tuple[str, ...], str]:
    """(the argv of the phase that a command is, or () if it is none; what a person should know, or "")."""
    words = command.words
    first = words[0] if words else ""
    match first:
        case "" if not words:
            return (), ""
        case "eval":
            return (), "`eval` is run as it comes: what it runs cannot be told"
        case "source" | ".":
            known = len(words) < 2 or _SAFE_SOURCES.search(words[1])
            return (), "" if known else f"{words[1]} is sourced: commands in it are followed but not planned"
        case "exec" | "command" | "builtin":
            inner = words[1:]
            if inner and (inner[0].startswith("-") or inner[0] in HOUSEKEEPING | BUILTINS):  # `command -v uv`
                return (), ""
            return inner, f"`{first} {inner[0]}` escapes the tracer: its status is the script's alone" if inner else ""
    if "$" in first or "`" in first:
        if module_of(words):
            return words, f"the command `{first}` is computed: it is followed only if it is another phase's, or python"
        return (), f"the command `{first}` is computed: what it runs cannot be told"
    if first in script.functions or first in BUILTINS or first.rpartition("/")[2] in HOUSEKEEPING:
        return (), ""
    if command.heredoc and (first in SHELLS or _PYTHON.match(first)):
        return words, f"{first} reads a script from the lines below: one phase, whatever it does"
    if module_of(words) is None and lookup(None, first) is None:
        return words, f"`{first}` is not a known command: its exit status alone will judge it"
    return words, ""


def module_of(argv: Sequence[str]) -> str | None:
    """The module that python or torchrun runs with -m, behind prefixes as in `uv run` or `env X=1`; else None."""
    start = next((i for i, word in enumerate(argv) if _PYTHON.match(word) or ("$" in word and i == 0)), len(argv))
    words = iter(argv[start + 1 :])
    for word in words:
        if word in ("-m", "--module"):
            module = next(words, None)
            if module not in ("torch.distributed.run", "torch.distributed.launch"):
                return module
        elif word in ("-c", "-", "--") or word.endswith(".py"):
            return None
    return None


def _step(command: Command, words: tuple[str, ...], before: list[Step], script: Script) -> Step:
    module = module_of(words)
    stem = re.sub(r"[^\w.+-]+", "_", _stem(words, module)).strip("_.-")[:60] or "command"
    taken = {step.name for step in before}
    names = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3)))
    return Step(
        name=next(name for name in names if name not in taken),
        line=command.line,
        index=sum(step.line == command.line for step in before),
        command=command.text,
        words=words,
        launcher=words[0],
        module=module,
        section=_section(script.comments, command.line),
        background=command.background,
        piped=command.piped,
        captured=command.captured,
        tested=command.tested,
        counted=command.counted,
        end=command.end,
    )


def _stem(words: tuple[str, ...], module: str | None) -> str:
    """What a phase is called: its module's last part, or its command, and what tells it apart."""
    launcher = words[0].rpartition("/")[2]
    if module:
        rest = words[words.index(module) + 1 :]
        told = _option(rest, "-i", "--source") or (rest[0] if rest and re.fullmatch(r"[a-z]\w*", rest[0]) else "")
        return f"{module.rpartition('.')[2]}-{told}".rstrip("-")
    if _PYTHON.match(words[0]) or launcher in SHELLS:
        script = next((word for word in words[1:] if not word.startswith("-")), "")
        if words[1:2] == ("-c",):
            return f"{launcher}-c"
        return (
            f"{launcher}-{script.rpartition('/')[2].partition('.')[0]}".rstrip("-") if "-s" not in words else launcher
        )
    if launcher in ("curl", "wget"):
        url = next((word for word in words if "://" in word), "")
        target = download_target(words) or url.partition("://")[2].partition("/")[0]
        return f"{launcher}-{target.rpartition('/')[2]}".rstrip("-")
    if launcher in ("uv", "pip", "git", "cargo", "maturin"):
        return "-".join([launcher, *_leading(words[1:3])])
    return launcher


def _leading(words: tuple[str, ...]) -> list[str]:
    return [word for word in words if re.fullmatch(r"[a-z]\w*", word)] if words[:1] and words[0][0] != "-" else []


def download_target(argv: Sequence[str]) -> str | None:
    """The file that a curl or wget writes to, as its argv names it."""
    return _option(argv, "-o", "-O" if argv[0].endswith("wget") else "-o", "--output", "--output-document")


def _option(words: Sequence[str], *names: str) -> str | None:
    for i, word in enumerate(words):
        if word in names and i + 1 < len(words):
            return words[i + 1]
        if word.partition("=")[0] in names and word.startswith("--"):
            return word.partition("=")[2]
    return None


def _section(comments: dict[int, str], line: int) -> str:
    """The script's own heading over a line: the comment under the last ---- rule, or else over the nearest lines."""
    above = sorted((number for number in comments if number < line), reverse=True)
    for number in above:
        if _is_rule(comments[number]) and comments.get(number + 1) and not _is_rule(comments[number + 1]):
            return comments[number + 1].rstrip(".")
    block = next(iter(above), None)
    while block and comments.get(block - 1):
        block -= 1
    return comments[block].rstrip(".") if block else ""


def _is_rule(comment: str) -> bool:
    return len(comment) >= 8 and not comment.strip("-=#*~ ")
