"""Finding a run and reading it, for commands: on this machine first, else in the bucket."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from homerun.bucket import restore
from homerun.bucket.store import Missing, Store, open_for_a_person
from homerun.errors import RequestError
from homerun.journal import Event, Follower, read_events
from homerun.settings import Settings
from homerun.state import RunState

SILENT_SECONDS = 120.0  # a run that lives writes an event at least every 15 s


class Journals(Protocol):
    def poll(self) -> list[Event]:
        """The events that are new since the last call; an empty list when there is none at the moment."""


@dataclass
class BucketJournal:
    """A journal read from its segments in the bucket; the newest one is written again as it grows."""

    store: Store
    run: str
    _taken: dict[str, tuple[int, int]] = field(default_factory=dict)  # segment → its bytes, the events taken from it
    at_once: int = 8

    def poll(self) -> list[Event]:
        heads = [head for head in self.store.list(f"{self.run}/journal/") if head.key.endswith(".jsonl")]
        grown = [head for head in heads if self._taken.get(head.key, (-1, 0))[0] != head.bytes]
        found: list[Event] = []
        with ThreadPoolExecutor(self.at_once) as pool:
            for head, data in zip(grown, pool.map(self._get, [head.key for head in grown]), strict=True):
                events = list(read_events(data))
                found += events[self._taken.get(head.key, (0, 0))[1] :]
                self._taken[head.key] = (len(data), len(events))
        return found

    def _get(self, key: str) -> bytes:
        try:
            return self.store.get(key)[0]
        except Missing:
            return b""


@dataclass(frozen=True)
class Found:
    """A run: `dir` on this machine, or None where only the bucket has it."""

    id: str
    dir: Path | None
    store: Store | None

    def journal(self) -> Journals:
        if self.dir is not None:
            return Follower(self.dir / "journal.jsonl")
        assert self.store is not None
        return BucketJournal(self.store, self.id)

    def events(self) -> Iterator[Event]:
        """All events that there are now."""
        journal = self.journal()
        while events := journal.poll():
            yield from events

    def state(self) -> RunState:
        state = RunState()
        for event in self.events():
            state.apply(event)
        return state


def local_runs(settings: Settings) -> dict[str, Path]:
    """{id: folder} of the runs on this machine, the one written to last at the end."""
    journals = sorted((settings.homerun_dir / "runs").glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name: path.parent for path in journals}


def find(settings: Settings, wanted: str) -> Found:
    """The run called `wanted`: an id, a unique beginning of one, or `latest`. Raises RequestError."""
    here = local_runs(settings)
    if wanted == "latest" and here and not settings.has_bucket:
        return Found(*list(here.items())[-1], None)
    matches = [wanted] if wanted in here else [id for id in here if id.startswith(wanted)]
    if len(matches) == 1:
        return Found(matches[0], here[matches[0]], None)
    if len(matches) > 1:
        raise RequestError(f"{len(matches)} runs begin with {wanted!r}", "`homerun runs` lists them")
    store = open_for_a_person(settings)
    id = _newest(store, here) if wanted == "latest" else restore.find_run(store, wanted)
    return Found(id, here[id], None) if id in here else Found(id, None, store)


def _newest(store: Store, here: dict[str, Path]) -> str:
    """The run last heard of, wherever it is."""
    heard = {run.id: run.at for run in restore.runs(store)}
    heard |= {id: max(heard.get(id, 0.0), (folder / "journal.jsonl").stat().st_mtime) for id, folder in here.items()}
    if not heard:
        raise RequestError("there is no run yet, neither here nor in the bucket", "`homerun train` starts one")
    return max(heard, key=lambda id: heard[id])


def moment(state: RunState) -> float:
    """The time to count a run up to: now for one that lives, else when it was last heard of."""
    now = time.time()
    return now if state.status == "running" and now - state.updated < SILENT_SECONDS else state.updated
