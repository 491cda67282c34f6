"""Journal → terminal: a live view where a person watches, plain timestamped lines everywhere else."""

import os
from collections.abc import Mapping
from typing import Protocol, TextIO

from homerun.journal import Event
from homerun.state import RunState


class Console(Protocol):
    """What the job tells. Nothing in here may raise: a closed terminal must not end a run."""

    def event(self, event: Event) -> None: ...

    def text(self, phase: str, data: bytes) -> None:
        """New output of a phase, redacted, in any chunks."""

    def say(self, text: str) -> None:
        """A word of the job itself, such as the question after Ctrl-C."""

    def end(self, state: RunState) -> None:
        """The last words of an attempt."""

    def close(self) -> None: ...


def open_console(out: TextIO, environ: Mapping[str, str] | None = None) -> Console:
    """The console for this output: live on a terminal, plain in a pipe, a file, CI, or a dumb terminal."""
    environ = os.environ if environ is None else environ
    if out.isatty() and not environ.get("CI") and environ.get("TERM", "dumb") != "dumb":
        from homerun.console.live import Live

        return Live(out)
    from homerun.console.plain import Plain

    return Plain(out)
