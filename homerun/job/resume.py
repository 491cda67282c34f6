"""Which phases need not run again: those whose own artifacts are here and proven. Pure.

A phase is known by the script's sha256 (checked before), its line, its index on that line and its occurrence; inside a
loop or a condition by its arguments too, as the order of its executions may differ. A line in a log proves nothing: a
phase is done when the journal says that it ended well AND what it left is whole on this disk (checkpoints, tokenizer),
or, for a phase that leaves only figures, when its log is in the bucket.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from homerun.journal import Event
from homerun.upstream.table import KNOWN

if TYPE_CHECKING:
    from homerun.upstream.runner import Phase

Identity = tuple[int, int, int]  # line, index, occurrence

TOKENIZER = "tokenizer"  # the group
# Phases that put caches and environments on the disk, which nothing brings home: they run again, and are quick where
# their files are still there.
ALWAYS_AGAIN = frozenset({"dataset"})


@dataclass
class Past:
    """What earlier attempts say of one phase."""

    phase: str
    attempt: int
    log: str
    original: list[str]
    ended_well: bool = False
    groups: dict[str, int] = field(default_factory=dict)  # artifact group → step, −1 where it has none


def history(events: Iterable[Event]) -> dict[Identity, Past]:
    """The newest attempt's word on every phase."""
    found: dict[Identity, Past] = {}
    running: dict[tuple[int, str], Past] = {}
    for event in events:
        key = (event["attempt"], event.get("phase", ""))
        if event["type"] == "phase.begin":
            identity = (event["line"], event["index"], event["occurrence"])
            past = Past(event["phase"], event["attempt"], event["log"], event["original"])
            if identity in found:
                past.groups |= found[identity].groups
            found[identity] = running[key] = past
        elif event["type"] == "phase.end" and key in running:
            running[key].ended_well = event["verdict"] == "ok"
        elif event["type"] == "group" and key in running and event["kind"] in ("checkpoint", "tokenizer"):
            running[key].groups[event["group"]] = event.get("step", -1)
    return found


def required(past: Past) -> set[str]:
    """The groups without which a phase is not done: of each folder of checkpoints the newest; else its log."""
    newest: dict[str, tuple[int, str]] = {}
    for group, step in past.groups.items():
        if group.endswith(".optim"):
            continue
        folder = group.rpartition("/")[0] or group
        newest[folder] = max(newest.get(folder, (-2, "")), (step, group))
    return {group for _, group in newest.values()} or {_log_group(past.log)}


def _log_group(log: str) -> str:
    attempt, _, name = log.removeprefix("logs/").partition("/raw/")
    return f"logs/{attempt}/{name}"


class Resume:
    """Answers for each phase that begins: skip it, and why?

    proven: groups that are whole here with the sha256 of the manifest, and logs that the manifest names. made: groups
    and their steps by phase, as the manifest has them.
    """

    def __init__(
        self, events: Iterable[Event], proven: Collection[str], made: Mapping[str, Mapping[str, int]] | None = None
    ):
        self.past, self.proven, self.made = history(events), frozenset(proven), made or {}
        self._anew = False  # something that later phases build on was made again

    def step_to_resume(self, phase: "Phase") -> int | None:
        """The newest step from which a phase that did not end can go on: its model and its optimizer are both here."""
        past = self._past_of(phase)
        if past is None and not (phase.step and phase.step.counted):
            return None
        return self._newest(phase.name, past)

    def newest(self) -> tuple[str, int] | None:
        """(phase, step) of the unfinished phase that will go on, for those who want to know beforehand."""
        by_name = {past.phase: past for past in self.past.values()}
        for name in reversed([*by_name, *(name for name in self.made if name not in by_name)]):
            past = by_name.get(name)
            step = self._newest(name, past)
            if step is not None and not (past and past.ended_well):
                return name, step
        return None

    def _newest(self, name: str, past: Past | None) -> int | None:
        groups = {**self.made.get(name, {}), **(past.groups if past else {})}
        steps = [step for group, step in groups.items() if {group, f"{group}.optim"} <= self.proven]
        return max(steps, default=None)

    def _past_of(self, phase: "Phase") -> Past | None:
        past = self.past.get((phase.line, phase.index, phase.occurrence))
        same = past and ((phase.step and phase.step.counted) or past.original == phase.original)
        return past if same else None

    def reason_to_skip(self, phase: "Phase") -> str | None:
        module = (phase.step.module or "").rpartition(".")[2] if phase.step else ""
        if not module or module in ALWAYS_AGAIN:
            return None
        past = self._past_of(phase)
        if past is None and module == "tok_train" and TOKENIZER in self.proven:
            return "its tokenizer came from the input cache, and is here and proven"
        if past and past.ended_well and not self._anew and required(past) <= self.proven:
            return f"done in attempt {past.attempt}: what it made is here and proven"
        if not _only_looks(module) and (past is None or past.groups or not past.ended_well):
            self._anew = True
        return None


def _only_looks(module: str) -> bool:
    """Whether a phase leaves nothing that later ones build on: an evaluation, however it ended."""
    known = KNOWN.get(module)
    return known is not None and not known.outputs and not known.makes_checkpoint
