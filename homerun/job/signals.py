"""TERM ends the run with a flush; Ctrl-C asks once, ends the run the second time, and ends this process the third."""

import os
import signal
import time
from types import FrameType

from homerun.errors import Exit

ASK_SECONDS = 10.0


class Signals:
    """`with Signals() as signals:` and then `signals.asked` from time to time: None, or how to end.

    say(text) is called for what a person at a terminal should read.
    """

    def __init__(self) -> None:
        self.code: Exit | None = None
        self.words: list[str] = []
        self._last_interrupt = float("-inf")
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        for number, handler in ((signal.SIGTERM, self._term), (signal.SIGHUP, self._term), (signal.SIGINT, self._int)):
            self._old[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _term(self, number: int, frame: FrameType | None) -> None:
        self.code = Exit.TERM

    def _int(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.code == Exit.INTERRUPT:
            os._exit(Exit.INTERRUPT)  # the guard sees our lifeline close and ends the script
        if now - self._last_interrupt < ASK_SECONDS:
            self.code = Exit.INTERRUPT
        else:
            self.words.append(
                f"Ctrl-C: the run goes on. Press it again within {ASK_SECONDS:.0f} s to end it; what is saved is kept "
                "and sent first"
            )
        self._last_interrupt = now
