"""What is asked for, put into a phase's argv from outside: GPU count, saving, resuming, the user's own arguments.

The script is never edited. Both of upstream's argument styles let the last value win, so additions go to the end: ours
first, then the user's. Flags are spelled as that commit spells them.
"""

import difflib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from homerun.errors import RequestError
from homerun.upstream.fit import Fit, apply_fit
from homerun.upstream.flags import Flags
from homerun.upstream.plan import Plan, Step, module_of
from homerun.upstream.table import lookup

_NPROC = re.compile(r"--nproc[-_]per[-_]node(?:=(?P<value>.*))?$", re.DOTALL)
# torchrun's flags that take no value; every other one takes the next word where it has no "="
_BARE = frozenset({"--standalone", "--no-python", "--no_python", "--run-path", "--run_path", "-m", "--module"})


@dataclass(frozen=True)
class Wishes:
    """nproc: GPUs; 0: plain `python -m` on the CPU; None: as the script has it. save_every, resume_step: steps of base
    training. fit: what the device batch and FP8 are cut down to. phase_args: {phase or module's last part: arguments}.
    skip: phases, or modules' last parts.
    """

    nproc: int | None = None
    save_every: int | None = None
    resume_step: int | None = None
    fit: Fit | None = None
    phase_args: Mapping[str, str] = field(default_factory=dict)
    skip: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Change:
    """One adaptation of a phase. what: a sentence for a person. added, removed: words of the argv."""

    phase: str
    what: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def adapt(step: Step | None, argv: list[str], wishes: Wishes, flags: Flags | None) -> tuple[list[str], list[Change]]:
    """The argv to run in place of `argv`, and what was changed. flags: those of the phase's module, None if unknown."""
    module = module_of(argv) or (step.module if step else None) or ""
    phase = step.name if step else module.rpartition(".")[2] or argv[0]
    argv, changes = _set_nproc(argv, wishes.nproc, phase)
    own = [
        word for name in _names(phase, module) for word in spelled(shlex.split(wishes.phase_args.get(name, "")), flags)
    ]
    if wishes.fit and flags is not None:
        argv, added, removed = apply_fit(argv, own, flags, wishes.fit)
        if added or removed:
            changes.append(Change(phase, f"fitted: {wishes.fit.why}", added, removed))
    if module.rpartition(".")[2] == "base_train" and flags is not None:
        for wish, value, what in (
            ("save-every", wishes.save_every, "saves every {} steps"),
            ("resume-from-step", wishes.resume_step, "goes on from step {}"),
        ):
            flag = flags.spell(wish)
            if flag and value is not None:
                argv = [*argv, f"{flag}={value}"]
                changes.append(Change(phase, what.format(value), (f"{flag}={value}",)))
    if own:
        argv = [*argv, *own]
        changes.append(Change(phase, "your own arguments, last", tuple(own)))
    return argv, changes


def skip_reason(step: Step, wishes: Wishes) -> str | None:
    """Why a phase is skipped, or None if it runs."""
    if wishes.skip & set(_names(step.name, step.module)):
        return "you asked to skip it"
    known = lookup(step.module) if step.module else None
    return "it would serve for ever" if known and known.serves else None


def check_wishes(plan: Plan, wishes: Wishes, flags_of: Callable[[Step], Flags | None]) -> None:
    """Raise RequestError for a phase that the plan has not, or a flag that its module has not at that commit."""
    known = {name: step for step in plan.steps for name in _names(step.name, step.module)}
    for option, names in (("--phase-args", wishes.phase_args), ("--skip", wishes.skip)):
        for name in sorted(names):
            if name not in known:
                there = ", ".join(step.name for step in plan.steps)
                raise RequestError(f"{option} {name}: the script has no such phase", f"It has {there or 'none'}")
    for name, arguments in wishes.phase_args.items():
        flags = flags_of(known[name])
        for word in spelled(shlex.split(arguments), flags):
            flag = word.partition("=")[0]
            if flags is None or not flag.startswith("--") or flag == "--" or _accepts(flags, flag):
                continue
            near = difflib.get_close_matches(flag, flags.names, 3) or sorted(flags.names)
            raise RequestError(f"--phase-args {name}: its module has no {flag}", f"It has {', '.join(near) or 'none'}")


def spelled(words: Sequence[str], flags: Flags | None) -> list[str]:
    """Arguments as that commit spells them; a configurator also needs `--flag=value` in one word."""
    if flags is None:
        return list(words)
    result: list[str] = []
    joins = False
    for word in words:
        if word.startswith("--") and word != "--":
            name, equals, value = word.partition("=")
            result.append((flags.spell(name) or name) + equals + value)
            joins = flags.style == "configurator" and not equals
        elif joins:
            result[-1] += f"={word}"
            joins = False
        else:
            result.append(word)
    return result


def _accepts(flags: Flags, flag: str) -> bool:
    """argparse takes the beginning of a flag for the flag."""
    return flag in flags.names or (flags.style == "argparse" and any(name.startswith(flag) for name in flags.names))


def _names(phase: str, module: str | None) -> list[str]:
    """What a phase may be called by, the general name first: {`chat_eval`, `chat_eval-sft`}."""
    return list(dict.fromkeys([name for name in ((module or "").rpartition(".")[2], phase) if name]))


def _set_nproc(argv: list[str], nproc: int | None, phase: str) -> tuple[list[str], list[Change]]:
    """torchrun with `nproc` processes; with 0, plain python in its place."""
    at = next((i for i, word in enumerate(argv) if word.rpartition("/")[2] == "torchrun"), None)
    if at is None or nproc is None:
        return argv, []
    end = _end_of_launcher_flags(argv, at + 1)
    launcher, program = argv[at + 1 : end], argv[end:]
    if nproc == 0:
        module = ["-m"] if {"-m", "--module"} & set(launcher) else []
        rest = program[1:]
        if "--" in rest:
            rest.remove("--")  # torchrun swallows the first one, python would hand it on
        python = [argv[at].removesuffix("torchrun") + "python", *module]
        what = "plain python on the CPU in place of torchrun"
        return [*argv[:at], *python, *program[:1], *rest], [Change(phase, what, tuple(python), tuple(argv[at:end]))]
    wanted, removed = f"--nproc_per_node={nproc}", []
    kept: list[str] = []
    words = iter(launcher)
    for word in words:
        if found := _NPROC.match(word):
            removed += [word] if found["value"] is not None else [word, next(words, "")]
            word = wanted
        kept.append(word)
    if removed == [wanted]:
        return argv, []
    kept = kept if removed else [wanted, *kept]  # torchrun alone starts one process
    change = Change(phase, f"{nproc} process{'es' * (nproc != 1)}, one for a GPU", (wanted,), tuple(removed))
    return [*argv[: at + 1], *kept, *program], [change]


def _end_of_launcher_flags(argv: list[str], start: int) -> int:
    """The index of torchrun's program: the first word that is neither a flag of torchrun's nor such a flag's value."""
    i = start
    while i < len(argv) and argv[i].startswith("-"):
        i += 1 if argv[i] in _BARE or "=" in argv[i] else 2
    return min(i, len(argv))
