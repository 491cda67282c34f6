"""Plain timestamped lines, one for each event worth one, and between them what the phases print.

For pipes, files, CI and `docker logs`: no colour unless the terminal has it, no cursor movements, whole lines only.
"""

import re
import time
from typing import TextIO

from homerun.console.words import clock, gauge_words, last_words, words
from homerun.console.writer import Writer
from homerun.journal import Event
from homerun.state import RunState

GAUGE_SECONDS = 300.0
LONGEST = 16_384  # bytes of a line without an end that are held back, and of a line that is shown
CROWD, SHOWN = 4000, 100  # a chunk with more lines than CROWD is shown by its last SHOWN ones
# Escape sequences (CSI, OSC, two-character ones) and control characters other than tab and newline.
_CONTROL = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]?|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]"
)


class Lines:
    """Output in any chunks → whole lines as a terminal would have left them: progress by \\r is its last state."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:  # keep what a later \r has not overwritten yet
            self._rest = self._rest.rpartition(b"\r")[2][-LONGEST:]
        left_out = len(whole) - SHOWN if len(whole) > CROWD else 0
        lines = [clean(line) for line in whole[left_out:]]
        return [f"… {left_out} lines left out; `homerun logs` has them", *lines] if left_out else lines

    def flush(self) -> list[str]:
        rest, self._rest = self._rest, b""
        return [clean(rest)] if rest.strip() else []


def clean(line: bytes) -> str:
    """One line as it would have stayed on a screen, without escape sequences; at most `LONGEST` bytes of it."""
    line = line.rstrip(b"\r").rpartition(b"\r")[2][:LONGEST]
    return _CONTROL.sub(b"", line).decode("utf-8", "replace")


class Plain:
    """See the module."""

    def __init__(self, out: TextIO):
        self._writer = Writer(out)
        self._lines: dict[str, Lines] = {}
        self._running: list[str] = []
        self._told_gauge: float | None = None

    def event(self, event: Event) -> None:
        if event["type"] == "phase.begin":
            self._running.append(event["phase"])
        elif event["type"] == "phase.end" and event["phase"] in self._running:
            self._flush(event["phase"])
            self._running.remove(event["phase"])
        elif event["type"] == "gauge":
            self._tell_gauge(event)
        self._stamp(event["t"], words(event))

    def _tell_gauge(self, event: Event) -> None:
        if self._told_gauge is not None and event["t"] - self._told_gauge >= GAUGE_SECONDS:
            self._stamp(event["t"], gauge_words(event))
            self._told_gauge = event["t"]
        self._told_gauge = self._told_gauge or event["t"]

    def text(self, phase: str, data: bytes) -> None:
        self._show(phase, self._lines.setdefault(phase, Lines()).feed(data))

    def say(self, text: str) -> None:
        self._stamp(time.time(), text)

    def end(self, state: RunState) -> None:
        for phase in list(self._lines):
            self._flush(phase)
        self._stamp(time.time(), last_words(state))
        self.close()

    def close(self) -> None:
        self._writer.close()

    def _flush(self, phase: str) -> None:
        self._show(phase, self._lines.pop(phase, Lines()).flush())

    def _show(self, phase: str, lines: list[str]) -> None:
        if lines:
            tag = f"{phase}| " if len(self._running) > 1 else ""
            self._writer.write("".join(f"{tag}{line}\n" for line in lines))

    def _stamp(self, t: float, text: str | None) -> None:
        if text:
            self._writer.write("".join(f"[{clock(t)}] {line}\n" for line in text.splitlines()))
