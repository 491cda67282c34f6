"""Progress of a transfer on stderr: a bar on a terminal, a line every ten seconds elsewhere; data stays on stdout."""

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

LINE_SECONDS = 10.0


class Meter:
    """`with Meter("pulled", total_bytes) as meter: … meter.moved(n)`; `moved` may be called by any thread."""

    def __init__(self, verb: str, total: int):
        self.verb, self.total, self.done = verb, total, 0
        self._lock, self._said = threading.Lock(), time.monotonic()
        self._bar = None
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn(verb), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(verb, total=total)

    def __enter__(self) -> "Meter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def moved(self, bytes: int) -> None:
        with self._lock:
            self.done += bytes
            if self._bar:
                self._bar.update(self._task, completed=self.done)
            elif time.monotonic() - self._said > LINE_SECONDS:
                self._said = time.monotonic()
                print(f"{self.verb} {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB", file=sys.stderr)
