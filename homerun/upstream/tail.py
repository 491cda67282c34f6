"""Follows one raw log: what is new goes, redacted, to the copy that may be shown, and as events to the journal.

The raw file is written by the phase and never leaves the machine. A secret that lies across two reads is hidden too:
what may be the beginning of one waits for the next read.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from homerun.redact import Redactor
from homerun.upstream.metrics import LogReader

READ_BYTES = 8 << 20  # at most this much a poll: a flood must not keep the job from its other work


class Tail:
    """raw: the file that grows; shown: its redacted copy; text: takes what was added to the copy, for the console.

    A job that starts again goes on where the copy ends: the copy is made anew from the raw file, which is whole.
    """

    def __init__(
        self,
        raw: Path,
        shown: Path,
        redactor: Redactor,
        reader: LogReader | None = None,
        text: Callable[[bytes], None] = lambda data: None,
    ):
        self.raw, self.redactor, self.reader, self.text = raw, redactor, reader, text
        self.offset = 0  # bytes of the raw file that have been read
        self._held = b""
        self._raw_fd = os.open(raw, os.O_RDONLY)
        self._shown_fd = os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)

    def poll(self, limit: int = READ_BYTES) -> list[tuple[str, dict[str, Any]]]:
        """Take what is new, at most `limit` bytes; the journal events in it. OSError when the copy cannot be written:
        nothing is lost then, the next poll tries again."""
        size = os.fstat(self._raw_fd).st_size
        if size < self.offset:  # the phase emptied its own log: what is in it now is new
            self.offset = 0
        if size == self.offset:
            return []
        data = os.pread(self._raw_fd, min(limit, size - self.offset), self.offset)
        return self._take(data, last=False)

    def finish(self) -> list[tuple[str, dict[str, Any]]]:
        """Everything that is left, what was held back included; the copy is closed."""
        events: list[tuple[str, dict[str, Any]]] = []
        before = -1
        while before != self.offset:
            before = self.offset
            events += self.poll()
        events += self._take(b"", last=True)
        if self.reader:
            events += self.reader.flush()
        os.close(self._raw_fd)
        os.close(self._shown_fd)
        return events

    def _take(self, data: bytes, last: bool) -> list[tuple[str, dict[str, Any]]]:
        data = self._held + data
        cut = len(data) if last else len(data) - self.redactor.held_back(data)
        ready = self.redactor.bytes(data[:cut])
        self._write(ready)
        self.offset += len(data) - len(self._held)
        self._held = data[cut:]
        if ready:
            self.text(ready)
        return self.reader.feed(ready) if self.reader and ready else []

    def _write(self, data: bytes) -> None:
        start, written = os.fstat(self._shown_fd).st_size, 0
        try:
            while written < len(data):
                written += os.write(self._shown_fd, memoryview(data)[written:])
        except OSError:
            if written:
                os.ftruncate(self._shown_fd, start)
            raise
