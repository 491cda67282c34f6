"""Follows what grows while a run lives: the journal, the logs of open phases, metadata.json.

A growing file goes up in segments, `<key>NNNNNN`; the last one is written again as it grows, at most every few seconds
(R2 takes one write a second a key), and sealed at 256 KiB. So a day's journal is a few dozen objects, and what a dead
machine can lose of it is what was written in the last seconds. Where a file's segments end is read from the bucket.
"""

import json
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from homerun.bucket.outbox import Receipt, Request
from homerun.bucket.store import Store
from homerun.journal import read_events

SEAL = 256 << 10


@dataclass
class Segments:
    """One growing file. key: what segments' names begin with; suffix: what they end with; start: the file's offset at
    which segment `number` begins; lines: whether segments end at lines' ends (but for lines longer than a segment)."""

    store: Store
    path: Path
    key: str
    suffix: str = ""
    number: int = 1
    start: int = 0
    lines: bool = True
    end: tuple[str, int] = ("", 0)  # the last segment written, and its bytes
    _sent: int = 0  # bytes of segment `number` that are in the bucket

    def sync(self) -> bool:
        """Bring the bucket up to the file's end; whether anything was new."""
        news = False
        while True:
            try:
                with open(self.path, "rb") as file:
                    file.seek(self.start)
                    data = file.read(SEAL)
            except FileNotFoundError:
                return news
            full = len(data) == SEAL
            if self.lines and (b"\n" in data or not full):
                data = data[: data.rfind(b"\n") + 1]
            if len(data) <= self._sent:
                return news
            self.store.put(self.name, data)
            self._sent, self.end, news = len(data), (self.name, len(data)), True
            if full:
                self.start, self.number, self._sent = self.start + len(data), self.number + 1, 0

    @property
    def name(self) -> str:
        return f"{self.key}{self.number:06d}{self.suffix}"


def follow_journal(store: Store, run: str, path: Path, attempt: int) -> Segments:
    """The journal's segments of this attempt, beginning after the last event that the bucket has."""
    names = [head.key for head in store.list(f"{run}/journal/")]
    key = f"{run}/journal/a{attempt:02d}-"
    mine = [name for name in names if name.startswith(key)]
    number = 1 + max((int(re.sub(r"\D", "", name[len(key) :])) for name in mine), default=0)
    last = -1
    if names:
        last = max((event["seq"] for event in read_events(store.get(names[-1])[0])), default=-1)
    return Segments(store, path, key, ".jsonl", number, _offset_after(path, last))


def _offset_after(path: Path, seq: int) -> int:
    offset = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    if json.loads(line)["seq"] > seq:
                        break
                except (ValueError, KeyError, TypeError):
                    pass
                offset += len(line)
    except FileNotFoundError:
        pass
    return offset


def follow_log(store: Store, run: str, path: Path, key: str) -> Segments:
    """An open log's segments, going on after those that the bucket has."""
    prefix = f"{run}/{key}."
    heads = [head for head in store.list(prefix) if head.key[len(prefix) :].isdigit()]
    return Segments(store, path, prefix, "", len(heads) + 1, sum(head.bytes for head in heads), lines=False)


@dataclass
class Follower:
    """All that grows in one run. `sync` is called again and again by one thread; the rest may be called by any."""

    store: Store
    run: str
    run_dir: Path
    attempt: int
    journal: Segments | None = None
    metadata: bytes = b""  # what is in the bucket
    _logs: dict[str, Segments] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sync(self) -> None:
        """One pass over journal, open logs and metadata. StoreError when the store is at fault."""
        with self._lock:
            if self.journal is None:
                self.journal = follow_journal(self.store, self.run, self.run_dir / "journal.jsonl", self.attempt)
            self.journal.sync()
            for segments in list(self._logs.values()):
                segments.sync()
            try:
                metadata = (self.run_dir / "metadata.json").read_bytes()
            except FileNotFoundError:
                return
            if metadata != self.metadata:
                self.store.put(f"{self.run}/metadata.json", metadata)
                self.metadata = metadata

    def open_logs(self, request: Request) -> Receipt:
        with self._lock:
            for file in request.files:
                if file.key not in self._logs:
                    self._logs[file.key] = follow_log(self.store, self.run, self.run_dir / file.path, file.key)
        return Receipt(request.seq, True, at=round(time.time(), 3))

    def close_logs(self, request: Request) -> None:
        """A log is in the bucket as a whole: its segments are no longer needed."""
        with self._lock:
            for file in request.files:
                self._logs.pop(file.key, None)
                prefix = f"{self.run}/{file.key}."
                names = [head.key for head in self.store.list(prefix)]
                self.store.delete([name for name in names if name[len(prefix) :].isdigit()])

    def position(self) -> dict[str, object]:
        """Where the journal in the bucket ends."""
        assert self.journal
        segment, size = self.journal.end
        return {"segment": segment.removeprefix(f"{self.run}/"), "bytes": size}
