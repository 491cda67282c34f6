"""What the job does while the script runs: tail, record, hand over, watch. One `tick`, a few times a second.

Nothing here can block or slow the script: its output lies in files, the uploads are another process's, and a tick does
a bounded amount of work.
"""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from homerun.bucket.outbox import Outbox, Receipt, Request, describe
from homerun.bucket.store import FileChanged
from homerun.cost import dollars, money
from homerun.job.children import Child
from homerun.job.gauge import Gauge
from homerun.job.run import Run
from homerun.journal import Emit
from homerun.machine import sample
from homerun.redact import Redactor
from homerun.settings import Settings
from homerun.upstream.artifacts import Group, Watch
from homerun.upstream.metrics import LogReader
from homerun.upstream.runner import Runner
from homerun.upstream.tail import Tail

# Upstream's own report lies in its tree where ours lies in the bucket.
UPSTREAM_REPORT, REPORT = "upstream_report/", "report/"
SCAN_SECONDS = 2.0  # artifacts: a checkpoint is whole after two equal scans
MACHINE_SECONDS = 15.0
GAUGE_SECONDS = 10.0
WATCHDOG_SECONDS = 5.0


class Supervisor:
    """Ties one Runner to the journal, the outbox and the console."""

    def __init__(
        self,
        *,
        run: Run,
        settings: Settings,
        outbox: Outbox,
        uploads: Child,
        web: Child | None,
        emit: Emit,
        text: Callable[[str, bytes], None],
        redactor: Redactor,
        attempt: int,
    ):
        """text(phase, new output) goes to the console."""
        self.run, self.settings, self.outbox = run, settings, outbox
        self.uploads, self.web = uploads, web
        self.emit, self.text, self.redactor = emit, text, redactor
        self.logs = run.logs(attempt)
        self.groups: dict[int, Group] = {}  # offered and not yet answered, by number
        self.refused: dict[str, str] = {}  # group → why it is not in the bucket
        self._tails: dict[str, Tail] = {}
        self._closed: set[str] = set()
        self._due: dict[str, float] = {}

    def watch_over(
        self, runner: Runner, watch: Watch, gauge: Gauge, limits: Callable[[], tuple[str, str] | None]
    ) -> None:
        """limits() → (why, sentence) when money or time end the run."""
        self.runner, self.watch, self.gauge, self.limits = runner, watch, gauge, limits

    # -- the tick ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called by the runner a few times a second, and at phase borders."""
        try:
            self.read_logs()
            self.receive()
            if self._is_due("scan", SCAN_SECONDS):
                self.hand_over(force=False)
            if self._is_due("machine", MACHINE_SECONDS):
                self.emit("machine", **sample(self.run.dir))
            if self._is_due("gauge", GAUGE_SECONDS):
                status = self.outbox.status()
                reading = self.gauge.read(time.time(), status.get("pending_bytes"), status.get("journal_at", 0.0))
                self.emit("gauge", **reading)
            if self._is_due("watchdog", WATCHDOG_SECONDS):
                self._watchdog()
            self.check_children()
            if self.uploads.over:
                self.runner.stop("lease", "another runner took this run over")
            if limit := self.limits():
                self.runner.stop(*limit)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.runner.stop("disk", f"the disk of {self.run.dir} is full")

    def check_children(self) -> None:
        for child in filter(None, (self.uploads, self.web)):
            if word := child.check():
                self.emit("warning", text=word, hint="training goes on; what is saved stays on disk and is sent later")

    def _is_due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + seconds
        return True

    def busy(self) -> bool:
        """Whether a phase is running."""
        return any(phase.status is None for phase in self.runner.phases)

    # -- logs ----------------------------------------------------------------------------------------------------

    def read_logs(self) -> None:
        """Copy what is new from the raw logs, redacted; metrics into the journal; text to the console."""
        self._follow("script", self.runner.script_log)
        for phase in self.runner.phases:
            if phase.name in self._closed:
                continue
            over = phase.status is not None  # asked before reading, so that the last words are read too
            self._follow(phase.name, phase.log)
            if over:
                self._close_log(phase.name, phase.log)

    def _follow(self, name: str, raw: Path) -> None:
        if not raw.exists():
            return
        if name not in self._tails:
            shown = self.logs / raw.name
            self._tails[name] = Tail(raw, shown, self.redactor, LogReader(), lambda data: self.text(name, data))
            shown.touch()
            self._offer_log("open-log", name, raw)
        while True:
            tail = self._tails[name]
            before = tail.offset
            self._record(name, tail.poll())
            if tail.offset == before:
                return

    def _close_log(self, name: str, raw: Path) -> None:
        self._closed.add(name)
        if name in self._tails:
            self._record(name, self._tails[name].finish())
            self._offer_log("log", name, raw)
            self.gauge.log_offered(f"logs/{self.logs.name}/{raw.name}", name)

    def _offer_log(self, kind: str, name: str, raw: Path) -> None:
        key = f"logs/{self.logs.name}/{raw.name}"
        self.outbox.offer(kind, key, [describe(self.run.dir, key, key)], phase=name)

    def _record(self, name: str, events: list[tuple[str, dict]]) -> None:
        phase = name if name != "script" else self._speaker()
        for type, data in events:
            if type != "downloaded":  # the judge reads that line itself
                self.emit(type, phase=phase, **data)

    def _speaker(self) -> str:
        """Whose words appear in the script's own output: the running phase's, where it is piped there (`… | tee`)."""
        running = [phase for phase in self.runner.phases if phase.status is None and not phase.background]
        return running[0].name if running else "script"

    def close_logs(self) -> None:
        """At the end: every log whole and offered."""
        self.read_logs()
        for phase in self.runner.phases:
            if phase.name not in self._closed:
                self._close_log(phase.name, phase.log)
        self._close_log("script", self.runner.script_log)

    # -- artifacts -----------------------------------------------------------------------------------------------

    def hand_over(self, force: bool) -> None:
        """Offer the groups that are whole. force: the script has ended, nothing writes any more."""
        ended = {phase.name for phase in self.runner.phases if phase.verdict == "ok"}
        for group in self.watch.poll(ended, settled=force):
            self._offer(group)
        if force:
            for path in self.watch.unoffered():
                self.refused[path] = "it is not whole"
                self.emit("warning", text=f"{path} is not whole, and stays on this machine", hint="")

    def _offer(self, group: Group) -> None:
        phase = self._maker(group)
        base = self.run.base.relative_to(self.run.dir)
        try:
            files = [describe(self.run.dir, str(base / file.path), bucket_key(file.path)) for file in group.files]
        except FileChanged:
            files = []
        if [(file.bytes, file.mtime_ns) for file in files] != [(file.bytes, file.mtime_ns) for file in group.files]:
            self.watch.forget(group.name)  # written again since it was found whole
            return
        about: dict[str, Any] = {"phase": phase, "keep": group.keep, "step": group.step, "score": group.score}
        number = self.outbox.offer("artifact", group.name, files, **about)
        self.groups[number] = group
        self.gauge.offered(group, phase)
        size = sum(file.bytes for file in files)
        self.emit("group", group=group.name, kind=group.kind, bytes=size, files=len(files), **about)

    def _maker(self, group: Group) -> str:
        """The phase that made a group: the newest one that had begun when its last file was written."""
        written = max(file.mtime_ns for file in group.files) / 1e9
        began = [phase for phase in self.runner.phases if phase.began <= written + 1 and not phase.background]
        return began[-1].name if began else ""

    def receive(self) -> None:
        """The uploader's receipts → `secured` events."""
        for request, receipt in self.outbox.receipts():
            group = self.groups.pop(request.seq, None)
            if request.kind == "cache":
                self._kept(request, receipt)
            elif receipt.ok:
                self.refused.pop(request.group, None)
                if group:
                    self.gauge.secured(group)
                    self.emit("secured", group=group.name, bytes=receipt.bytes, seconds=receipt.seconds, at=receipt.at)
                elif request.kind == "log" and request.phase in self._closed:  # one of this attempt
                    self.gauge.log_secured(request.group)
            elif group and receipt.why in ("changed", "gone"):
                self.watch.forget(group.name)  # offered again when it is whole again
            else:
                self.refused[request.group] = receipt.text or receipt.why or ""
                self.emit("warning", text=f"{request.group} is not in the bucket: {receipt.text}")

    def _kept(self, request: Request, receipt: Receipt) -> None:
        """A unit of the input cache: no part of the run, and no reason to fail it."""
        name, size, files = request.group, receipt.bytes, len(request.files)
        if receipt.ok:
            self.emit("cache", way="kept", unit=name, files=files, bytes=size, seconds=receipt.seconds)
        elif receipt.why != "changed":  # else it is offered again as it then is
            self.emit("warning", text=f"{name} is not in the input cache: {receipt.text}", hint="")

    # -- the watchdog --------------------------------------------------------------------------------------------

    def _watchdog(self) -> None:
        idle = self.runner.idle_seconds()
        if idle > self.settings.homerun_watchdog_minutes * 60:
            names = ", ".join(phase.name for phase in self.runner.phases if phase.status is None) or "the script"
            usd = dollars(idle, self.gauge.price_per_hour)
            paid = "" if usd is None else f", which cost {money(usd)}"
            text = f"{names} printed nothing and used no CPU or GPU for {idle / 60:.0f} minutes{paid}"
            self.runner.stop("watchdog", text)


def bucket_key(path: str) -> str:
    """Where a file of the script's tree lies in the run's folder of the bucket: at its own path, the report aside."""
    return UPSTREAM_REPORT + path.removeprefix(REPORT) if path.startswith(REPORT) else path


def tree_path(key: str) -> str:
    """The inverse of `bucket_key`."""
    return REPORT + key.removeprefix(UPSTREAM_REPORT) if key.startswith(UPSTREAM_REPORT) else key
