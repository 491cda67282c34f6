"""Runs small scripts with the real runner, and finds what they leave running."""

import contextlib
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homerun.upstream.plan import read_plan
from homerun.upstream.runner import Decision, Outcome, Phase, Runner

# The interpreter itself: a version manager's `python` would be a shell script that starts slowly.
PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


def go_on(phase: Phase) -> Decision:
    return Decision(phase.original)


@dataclass
class Ran:
    """A script, its folder, and what became of it."""

    dir: Path
    runner: Runner
    events: list[dict[str, Any]] = field(default_factory=list)
    outcome: Outcome | None = None

    def run(self, tick: Callable[[], None] = lambda: None) -> "Ran":
        self.outcome = self.runner.run(tick, every=0.02)
        return self

    @property
    def said(self) -> str:
        return self.runner.script_log.read_text(errors="replace")

    def names(self) -> list[str]:
        return [phase.name for phase in self.runner.phases]

    def verdicts(self) -> dict[str, str | None]:
        return {phase.name: phase.verdict for phase in self.runner.phases}

    def output(self, name: str) -> bytes:
        return next(phase.log for phase in self.runner.phases if phase.name == name).read_bytes()

    def of(self, type: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == type]


def prepare(
    folder: Path,
    script: str | bytes,
    *,
    decide: Callable[[Phase], Decision] = go_on,
    env: dict[str, str] | None = None,
    grace: float = 1.0,
) -> Ran:
    source = script.encode() if isinstance(script, str) else script
    src = folder / "src"
    src.mkdir(parents=True, exist_ok=True)
    (src / "script.sh").write_bytes(source)
    (folder / "home").mkdir(exist_ok=True)
    events: list[dict[str, Any]] = []

    def emit(type: str, /, **data: Any) -> dict[str, Any]:
        events.append({"type": type, **data})
        return events[-1]

    runner = Runner(
        script=src / "script.sh",
        cwd=src,
        env={"PATH": PATH, "HOME": str(folder / "home"), "LANG": "C.UTF-8"} | (env or {}),
        plan=read_plan(source),
        logs=folder / "logs" / "a01",
        attempt=1,
        base_dir=folder / "base",
        emit=emit,
        decide=decide,
        grace_seconds=grace,
    )
    return Ran(folder, runner, events)


def run_script(folder: Path, script: str | bytes, **options: Any) -> Ran:
    return prepare(folder, script, **options).run()


def plain_bash(
    folder: Path, script: str | bytes, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The same script under bash alone, stdout and stderr together."""
    src = folder / "plain"
    src.mkdir(parents=True, exist_ok=True)
    (src / "script.sh").write_bytes(script.encode() if isinstance(script, str) else script)
    return subprocess.run(
        ["bash", "script.sh"],
        cwd=src,
        env={"PATH": PATH, "HOME": str(folder / "home"), "LANG": "C.UTF-8"} | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )


class Marked:
    """Finds every process that carries a mark in its environment: what a script started, however it hid."""

    def __init__(self) -> None:
        self.value = uuid.uuid4().hex
        self.env = {"TEST_MARK": self.value}

    def pids(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if self.value.encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def command_lines(self) -> list[str]:
        lines = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return lines

    def gone(self, seconds: float = 15.0) -> bool:
        return wait_until(lambda: not self.pids(), seconds)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
