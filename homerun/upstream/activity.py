"""Is anything still happening? Log growth, CPU time and bytes written of a tree of processes."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from homerun.upstream.guard import descendants

# A process that waits for something that never comes still wakes up: torchrun's agent polls its workers (about 0.5 % of
# a core), threads tick. What works uses more; a download writes what it gets.
BUSY_CORES = 0.05
BUSY_BYTES_PER_SECOND = 16384
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Activity:
    """Asked from time to time, tells since when nothing has happened; resolution: the time between two questions."""

    def __init__(self) -> None:
        self._asked = self._active = time.monotonic()
        self._size = self._ticks = self._written = 0

    def idle_seconds(self, root: int, logs: Iterable[Path], gpu_busy: bool) -> float:
        """Seconds since the processes below `root` last did anything. Call it every few seconds: 2 ms each."""
        now = time.monotonic()
        below = descendants(root) if root else {}
        size = sum(_size(path) for path in logs)
        ticks = sum(process.ticks for process in below.values())
        written = sum(_written(pid) for pid in below)
        elapsed = max(now - self._asked, 0.01)
        if (
            gpu_busy
            or size != self._size
            or (ticks - self._ticks) / TICKS_PER_SECOND / elapsed > BUSY_CORES
            or (written - self._written) / elapsed > BUSY_BYTES_PER_SECOND
        ):
            self._active = now
        self._asked, self._size, self._ticks, self._written = now, size, ticks, written
        return now - self._active


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _written(pid: int) -> int:
    """Bytes that a process has handed to write(2); 0 where we may not know."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            return int(next(line for line in file if line.startswith(b"wchar")).split()[1])
    except (OSError, StopIteration):
        return 0
