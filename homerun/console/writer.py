"""Writes to a terminal or pipe from a thread of its own: one that stands still (`| less`) never holds up the job."""

import threading
from typing import TextIO

WAITING = 4 << 20  # characters that may wait; beyond them lines are left out, and counted
PATIENCE_SECONDS = 5.0  # for the last words


class Writer:
    """`write` never blocks and never raises. What a closed output cannot take is dropped: the logs have it."""

    def __init__(self, out: TextIO):
        self._out = out
        self._waiting: list[str] = []
        self._size, self._left_out, self._over = 0, 0, False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="console", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        with self._news:
            if self._over:
                return
            if self._size > WAITING:
                self._left_out += text.count("\n")
                return
            if self._left_out:
                text = f"… {self._left_out} lines left out; `homerun logs` has them\n{text}"
                self._left_out = 0
            self._waiting.append(text)
            self._size += len(text)
            self._news.notify()

    def close(self) -> None:
        """Wait, not for ever, until all is written."""
        with self._news:
            self._over = True
            self._news.notify()
        self._thread.join(PATIENCE_SECONDS)

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._over)
                text = "".join(self._waiting)
                self._waiting.clear()
                last = self._over
            try:
                if text:
                    self._put(text)
            except (OSError, ValueError):  # closed
                with self._news:
                    self._over = True
                return
            with self._news:
                self._size -= len(text)
            if last:
                return

    def _put(self, text: str) -> None:
        try:
            self._out.write(text)
        except UnicodeEncodeError:  # a terminal without UTF-8
            encoding = self._out.encoding or "ascii"
            self._out.write(text.encode(encoding, "replace").decode(encoding))
        self._out.flush()
