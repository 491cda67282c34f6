"""The manifest: every artifact of a run that exists, and which of them are still worth keeping. Pure.

A group is named as a whole or not at all. A key that will be overwritten or deleted is un-named first, changed, and
named again; a reader that follows the manifest, asks for its ETags and checks its hashes never accepts wrong bytes.
"""

import io
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from homerun.errors import UnprovenError


@dataclass(frozen=True, slots=True)
class Entry:
    """One object. key: relative to the run's folder; score: better when lower; at: when it was made, Unix seconds."""

    key: str
    bytes: int
    sha256: str
    etag: str
    group: str
    keep: str = "always"  # always, checkpoint, optimizer
    phase: str | None = None
    at: float = 0.0
    step: int | None = None
    score: float | None = None


_FIELDS = tuple(field.name for field in fields(Entry))
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass
class Manifest:
    """attempt: the newest attempt that has written; an older one may not write any more."""

    run: str
    attempt: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)

    def groups(self) -> dict[str, list[Entry]]:
        groups = defaultdict(list)
        for entry in self.entries.values():
            groups[entry.group].append(entry)
        return dict(groups)

    def name(self, entries: Iterable[Entry]) -> None:
        """Name the entries of one or more whole groups; earlier members of these groups are no longer named."""
        entries = list(entries)
        self.unname({entry.group for entry in entries}, {entry.key for entry in entries})
        self.entries |= {entry.key: entry for entry in entries}

    def unname(self, groups: Iterable[str] = (), keys: Iterable[str] = ()) -> set[str]:
        """Take whole groups out, and every group that one of `keys` belongs to; the keys no longer named."""
        groups = set(groups) | {self.entries[key].group for key in keys if key in self.entries}
        gone = {key for key, entry in self.entries.items() if entry.group in groups}
        for key in gone:
            del self.entries[key]
        return gone

    def to_json(self) -> bytes:
        text = io.BytesIO()  # piece by piece: 100,000 files are 22 MB
        text.write(json.dumps({"version": 1, "run": self.run, "attempt": self.attempt})[:-1].encode())
        separator = ', "entries": [\n'
        for key in sorted(self.entries):
            text.write(f"{separator}{_line(self.entries[key])}".encode())
            separator = ",\n"
        text.write(b"\n]}\n" if self.entries else b', "entries": []}\n')
        return text.getvalue()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        try:
            document: dict[str, Any] = json.loads(data)
            entries = [Entry(**entry) for entry in document["entries"]]
            return cls(document["run"], document["attempt"], {entry.key: entry for entry in entries})
        except (ValueError, KeyError, TypeError) as error:
            raise UnprovenError(
                f"manifest.json cannot be read ({error})", "Was it written by a newer homerun?"
            ) from None


def _line(entry: Entry) -> str:
    """An entry's JSON. A run of 100,000 files writes it millions of times; `asdict` copies deeply, for twice that."""
    return _encode({name: value for name in _FIELDS if (value := getattr(entry, name)) is not None})


def stage(group: str) -> str:
    """What a checkpoint group is one of: `base_checkpoints/d20` of `base_checkpoints/d20/000250.optim`."""
    return group.rpartition("/")[0]


def whole_steps(manifest: Manifest, of: str) -> list[int]:
    """Steps of the stage `of` that have both a model and an optimizer group, ascending."""
    by_keep: dict[str, set[int]] = {"checkpoint": set(), "optimizer": set()}
    for group, entries in manifest.groups().items():
        if stage(group) == of and entries[0].keep in by_keep and entries[0].step is not None:
            by_keep[entries[0].keep].add(entries[0].step)
    return sorted(by_keep["checkpoint"] & by_keep["optimizer"])


def superseded(manifest: Manifest, keep_last: int) -> list[str]:
    """The groups that need not be kept, stage by stage.

    Kept are: of checkpoints the last `keep_last`, the one with the best score, and those of a kept optimizer; of
    optimizers the last two that have their model, which includes the stage's final one (a later phase may warm-start
    from it), and any newer one whose model is still on its way. Groups without a step are never superseded.
    """
    stages: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: {"checkpoint": [], "optimizer": []})
    for group, entries in manifest.groups().items():
        first = entries[0]
        if first.keep in ("checkpoint", "optimizer") and first.step is not None:
            stages[stage(group)][first.keep].append(first)
    gone = []
    for name, kinds in stages.items():
        whole = whole_steps(manifest, name)[-2:]
        steps = sorted(_step(entry) for entry in kinds["checkpoint"])
        scored = [entry for entry in kinds["checkpoint"] if entry.score is not None]
        best = {_step(min(scored, key=lambda entry: (entry.score, -_step(entry))))} if scored else set()
        models = set(steps[-keep_last:]) | best | set(whole)
        newest = whole[-1] if whole else -1
        gone += [entry.group for entry in kinds["checkpoint"] if _step(entry) not in models]
        gone += [entry.group for entry in kinds["optimizer"] if _step(entry) not in whole and _step(entry) < newest]
    return sorted(gone)


def _step(entry: Entry) -> int:
    assert entry.step is not None
    return entry.step
