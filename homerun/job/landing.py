"""Bringing it home: everything handed over, proven, and only then called good."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from homerun.bucket.outbox import Outbox
from homerun.job.uploads import Uploads

POLL_SECONDS = 0.1


class Landing:
    """The end of an attempt.

    drain(until) waits for the uploader to answer for everything offered; finish() asks for `_SUCCESS`.
    """

    def __init__(self, outbox: Outbox, uploads: Uploads, receive: Callable[[], None], hurry: Callable[[], bool]):
        """receive() takes receipts in; hurry() is true when the user wants the end at once."""
        self.outbox, self.uploads, self.receive, self.hurry = outbox, uploads, receive, hurry

    def drain(self, seconds: float) -> bool:
        """Whether all that was offered has been answered within `seconds`."""
        until = time.monotonic() + seconds
        while self.outbox.pending():
            self.uploads.check()
            if self.uploads.lost or self.hurry() or time.monotonic() > until:
                return False
            time.sleep(POLL_SECONDS)
            self.receive()
        return True


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Atomically: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
