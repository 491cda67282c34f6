"""The live view on a terminal: the run at a glance at the bottom, what happened scrolling above it."""

import os
import threading
import time
from collections import deque
from typing import TextIO

from rich.console import Console, ConsoleDimensions
from rich.live import Live as Screen
from rich.text import Text

from homerun.console.plain import Lines
from homerun.console.view import view
from homerun.console.words import clock, last_words, words
from homerun.journal import Event
from homerun.state import RunState

REFRESH_SECONDS = 0.5
TAIL = 4  # lines of the running phase's output
QUIET = ("secured", "phase.skip")  # told by the view itself


class Live:
    """Draws in a thread of its own, so that a slow terminal never holds up the job; gives up when it is closed."""

    def __init__(self, out: TextIO):
        self._out, self._console = out, Console(file=out, highlight=False)
        self._console.size = self._size()
        self._state = RunState()
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._lines: dict[str, Lines] = {}
        self._above: deque[Text] = deque(maxlen=500)  # waits to be printed above the view
        self._printed: deque[Text] = deque(maxlen=100)  # and what was: a resized terminal is filled again
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._draw, name="console", daemon=True)
        self._thread.start()

    def event(self, event: Event) -> None:
        text = None if event["type"] in QUIET else words(event)
        with self._lock:
            self._state.apply(event)
            if event["type"] == "phase.begin":
                self._tail.clear()
            if text:
                self._above.append(Text(f"[{clock(event['t'])}] {text}", _style(event), overflow="fold"))

    def text(self, phase: str, data: bytes) -> None:
        with self._lock:
            lines = self._lines.setdefault(phase, Lines()).feed(data)
            self._tail.extend(line.expandtabs() for line in lines[-TAIL:] if line.strip())

    def say(self, text: str) -> None:
        with self._lock:
            self._above.append(Text(text, "bold", overflow="fold"))

    def end(self, state: RunState) -> None:
        self._stop()
        if not self._thread.is_alive():  # else the terminal stands still, and so would we
            self._print(Text(last_words(state), "bold" if state.code == 0 else "bold red", overflow="fold"))

    def close(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._thread.join(5)

    def _draw(self) -> None:
        try:
            with Screen(console=self._console, auto_refresh=False, vertical_overflow="ellipsis") as screen:
                over = False
                while not over:
                    over = self._over.wait(REFRESH_SECONDS)
                    with self._lock:
                        width, height = size = self._size()
                        resized = size != self._console.size
                        above = [*self._printed][-height:] if resized else []
                        above += self._above
                        self._printed += self._above
                        self._above.clear()
                        picture = view(self._state, time.time(), width, None if over else self._tail, height)
                    if resized:  # the terminal has wrapped the old picture in its own way
                        self._console.size = size
                        self._console.clear()
                    for text in above:
                        screen.console.print(text)
                    screen.update(picture, refresh=True)
        except (OSError, ValueError):
            self._over.set()

    def _size(self) -> ConsoleDimensions:
        """Of the very terminal that is written to, however it was resized; rich asks the standard streams instead."""
        try:
            return ConsoleDimensions(*os.get_terminal_size(self._out.fileno()))
        except OSError:
            return self._console.size

    def _print(self, text: Text) -> None:
        try:
            self._console.print(text)
        except (OSError, ValueError):
            self._over.set()


def _style(event: Event) -> str:
    if event["type"] in ("warning", "check"):
        return "yellow"
    failed = event["type"] == "stop" or (event["type"] == "phase.end" and event.get("verdict") == "failed")
    return "bold red" if failed else "dim"
