"""`homerun logs`: what the phases printed, from this machine or the bucket. Secrets are hidden in both."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import typer

from homerun.bucket.store import Missing, Store
from homerun.commands._runs import Found, find
from homerun.errors import RequestError
from homerun.settings import Settings
from homerun.state import RunState

HERE_SECONDS, BUCKET_SECONDS = 0.3, 4.0
CHUNK = 1 << 20


class Logs(Protocol):
    def sizes(self) -> dict[str, int]:
        """{`a01/0005-base_train.log`: bytes}, in the order in which they began."""

    def read(self, name: str, offset: int) -> bytes:
        """Some bytes from `offset` on, at least `CHUNK` where there are as many; empty at the end."""


class LocalLogs:
    def __init__(self, folder: Path):
        self.folder = folder

    def sizes(self) -> dict[str, int]:
        paths = sorted(self.folder.glob("a*/*.log"))
        return {f"{path.parent.name}/{path.name}": path.stat().st_size for path in paths}

    def read(self, name: str, offset: int) -> bytes:
        with open(self.folder / name, "rb") as file:
            file.seek(offset)
            return file.read(CHUNK)


class BucketLogs:
    """Closed logs are one object; one that grows is `<name>.000001`, `<name>.000002` …"""

    def __init__(self, store: Store, run: str):
        self.store, self.prefix = store, f"{run}/logs/"
        self._parts: dict[str, list[tuple[str, int]]] = {}

    def sizes(self) -> dict[str, int]:
        whole: dict[str, int] = {}
        parts: dict[str, list[tuple[str, int]]] = {}
        for head in self.store.list(self.prefix):
            name, number = re.fullmatch(r"(.*?\.log)(\.\d+)?", head.key.removeprefix(self.prefix)).groups()  # type: ignore[union-attr]
            if number is None:
                whole[name] = head.bytes
            parts.setdefault(name, []).append((head.key, head.bytes))
        self._parts = {
            name: [part for part in found if (name in whole) == part[0].endswith(".log")]
            for name, found in parts.items()
        }
        return {name: sum(size for _, size in found) for name, found in sorted(self._parts.items())}

    def read(self, name: str, offset: int) -> bytes:
        for key, size in self._parts.get(name, []):
            if offset < size:
                try:
                    return self.store.get(key)[0][offset:]
                except Missing:  # closed meanwhile; the next call finds it whole
                    return b""
            offset -= size
        return b""


def command(
    run: str = typer.Argument(
        "latest", help="A run's id, a unique beginning of one, or `latest`; or a phase of the latest."
    ),
    phase: str = typer.Argument(
        None, help="A phase's name, or `script` for what the script itself printed; unset: all."
    ),
    follow: bool = typer.Option(False, "-f", "--follow", help="Go on printing until the run ends."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line: phase, log, text."),
) -> None:
    """Print what the phases of a run printed, in order.

    Examples:

        homerun logs

        homerun logs -f latest base_train

        homerun logs base_train | grep bpb
    """
    settings = Settings.load()
    try:
        found = find(settings, run)
    except RequestError:
        if phase is not None or run == "latest":
            raise
        found, phase = find(settings, "latest"), run
    logs: Logs
    if found.dir is not None:
        logs = LocalLogs(found.dir / "logs")
    else:
        assert found.store is not None
        logs = BucketLogs(found.store, found.id)
    names = {phase_of(name) for name in logs.sizes()}
    if phase and phase not in names and not follow:
        listed = ", ".join(sorted(names)) or "none yet"
        raise RequestError(
            f"{found.id} has no log of a phase {phase!r}; there are: {listed}", f"homerun logs {found.id}"
        )
    before = None
    for name, data in chunks(found, logs, phase, follow):
        if as_json:
            for line in data.decode("utf-8", "replace").splitlines():
                print(json.dumps({"phase": phase_of(name), "log": f"logs/{name}", "text": line}, ensure_ascii=False))
            sys.stdout.flush()
            continue
        if name != before and phase is None:
            print(f"==> {phase_of(name)} (logs/{name})", flush=True)
        before = name
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def phase_of(name: str) -> str:
    """`a01/0005-base_train.log` → `base_train`."""
    return name.rpartition("/")[2].removesuffix(".log").partition("-")[2]


def chunks(found: Found, logs: Logs, phase: str | None, follow: bool) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) in order, whole lines only while it grows; until nothing is new, or with `follow` until the end."""
    offsets: dict[str, int] = {}
    journal, state = found.journal(), RunState()
    while True:
        over = not follow
        while events := journal.poll() if follow else []:
            for event in events:
                state.apply(event)
        over = over or (state.seq >= 0 and state.status != "running")
        for name, size in logs.sizes().items():
            if phase and phase_of(name) != phase:
                continue
            while offsets.get(name, 0) < size:
                data = logs.read(name, offsets.get(name, 0))
                whole = data if over or len(data) >= CHUNK else data[: data.rfind(b"\n") + 1]
                if not whole:
                    break
                offsets[name] = offsets.get(name, 0) + len(whole)
                yield name, whole
        if over:
            return
        time.sleep(HERE_SECONDS if found.dir else BUCKET_SECONDS)
