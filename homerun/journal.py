"""The journal: a run's one source of truth, append-only events as JSON lines.

Everything else (console, live page, metadata, report, resume, cost) is a fold over these events. One process, the job,
writes; any number read. A line is whole or it is not there: `Journal` cuts a torn last line off before it appends, and
`replay` leaves it out.

Event types are listed in docs/design.md, "The journal". Every event has `seq` (0, 1, 2 … over all attempts), `t` (Unix
seconds), `attempt` (1, 2 …) and `type`; the rest is flat data of that type.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Emit = Callable[..., Event]  # emit(type, **data), as Journal.emit; rooms take it as a parameter


def read_events(data: bytes) -> Iterator[Event]:
    """The whole events in `data`; a torn last line, and lines that are not events, are left out."""
    for line in data.split(b"\n"):
        if event := _parse(line):
            yield event


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "type" in event and "seq" in event else None


def replay(path: Path) -> Iterator[Event]:
    """The whole events of the journal at `path`, in order, in constant memory; none if there is no file."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n") and (event := _parse(line)):
                yield event


class Follower:
    """Reads a journal that grows: `poll()` gives the events that are new and whole since the last call."""

    def __init__(self, path: Path):
        self.path, self.offset = path, 0

    def poll(self, limit: int = 1 << 22) -> list[Event]:
        """At most about `limit` bytes' worth of events; an empty list when there is nothing new."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(limit)
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1
        self.offset += whole
        return list(read_events(data[:whole]))


class Journal:
    """The writer. `emit` appends one event and has it in the kernel's hands when it returns.

    fsync is left to `sync()`, called at phase borders: a process's death loses nothing, and what a machine's death
    could lose is in the bucket.
    """

    def __init__(self, path: Path, attempt: int, redact: Callable[[Any], Any] = lambda value: value):
        self.path, self.attempt, self._redact = path, attempt, redact
        path.parent.mkdir(parents=True, exist_ok=True)
        self.seq = self._heal()
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _heal(self) -> int:
        """Cut a torn last line off; the next sequence number."""
        last = -1
        for event in replay(self.path):
            last = event["seq"]
        if self.path.exists():
            with open(self.path, "rb+") as file:
                size = file.seek(0, os.SEEK_END)
                end = size
                while end > 0:
                    start = max(0, end - 65536)
                    file.seek(start)
                    newline = file.read(end - start).rfind(b"\n")
                    if newline >= 0:
                        end = start + newline + 1
                        break
                    end = start
                if end < size:
                    file.truncate(end)
        return last + 1

    def emit(self, type: str, /, **data: Any) -> Event:
        event = {"seq": self.seq, "t": round(time.time(), 3), "attempt": self.attempt, "type": type}
        event |= self._redact({key: value for key, value in data.items() if value is not None})
        line = (json.dumps(event, ensure_ascii=False, separators=(",", ":"), default=str) + "\n").encode(
            "utf-8", "backslashreplace"
        )
        start = os.lseek(self._fd, 0, os.SEEK_END)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            os.ftruncate(self._fd, start)  # a full disk must not leave half an event before the next one
            raise
        self.seq += 1
        return event

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)
