"""The outbox: how the job hands groups of files to the uploader, and how the uploader answers. See docs/design.md.

`NNNNNN.json` are requests, numbered from 1 without gaps; `NNNNNN.done.json` the receipts. Both appear in one step,
so a reader polls one name and never sees half of one.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from homerun.bucket.store import Stat, write_atomic

# over: the script has ended, so the machine waits for nothing but the bucket. finish: write `_SUCCESS`.
KINDS = ("artifact", "log", "open-log", "report", "metadata", "over", "finish", "cache")
NAMED = ("artifact", "log", "report")  # the kinds that go into the manifest


@dataclass(frozen=True, slots=True)
class File:
    """path: relative to the run's folder on this machine; key: relative to the run's folder in the bucket."""

    path: str
    key: str
    bytes: int = 0
    mtime_ns: int = 0
    inode: int = 0

    @property
    def stat(self) -> Stat:
        return Stat(self.inode, self.bytes, self.mtime_ns)


def describe(run_dir: Path, path: str, key: str) -> File:
    """`path` as it is now; FileChanged when it is gone."""
    stat = Stat.of(run_dir / path)
    return File(path, key, stat.bytes, stat.mtime_ns, stat.inode)


@dataclass(frozen=True)
class Request:
    seq: int
    kind: str
    group: str
    files: tuple[File, ...] = ()
    phase: str | None = None
    keep: str = "always"
    step: int | None = None
    score: float | None = None

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Receipt:
    """The uploader's answer to request `seq`. ok: proven in the bucket. why, when not ok: `changed`, `gone` (offer it
    again when it is whole), `refused`, `unreachable`, `unproven`; text is for people and holds no secret."""

    seq: int
    ok: bool
    bytes: int = 0
    seconds: float = 0.0
    at: float = 0.0
    why: str | None = None
    text: str | None = None


@dataclass
class Outbox:
    """One run's outbox, from either side. The job writes with `offer` and polls `receipts`; the uploader polls
    `requests` and answers with `answer`. Polling costs one stat a waiting request, whatever the outbox has held."""

    dir: Path
    _next: int = 1
    _open: dict[int, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dir.mkdir(parents=True, exist_ok=True)
        for request in self.requests():
            if not self._receipt_path(request.seq).exists():
                self._open[request.seq] = request

    def offer(
        self,
        kind: str,
        group: str,
        files: Iterable[File] = (),
        *,
        phase: str | None = None,
        keep: str = "always",
        step: int | None = None,
        score: float | None = None,
    ) -> int:
        """Ask for a group to be taken to the bucket; its number. The only writer of requests is the job."""
        assert kind in KINDS, kind
        request = Request(self._next, kind, group, tuple(files), phase, keep, step, score)
        data = {name: value for name, value in asdict(request).items() if value is not None}
        write_atomic(self._request_path(request.seq), data)
        self._open[request.seq] = request
        self._next += 1
        return request.seq

    def receipts(self) -> list[tuple[Request, Receipt]]:
        """The requests that have been answered since the last call (or since this object was made)."""
        answered = []
        for seq in sorted(self._open):
            try:
                data = json.loads(self._receipt_path(seq).read_bytes())
            except FileNotFoundError:
                continue
            answered.append((self._open.pop(seq), Receipt(seq, **data)))
        return answered

    def pending(self) -> list[Request]:
        """The requests without a receipt, as of the last `receipts` call."""
        return [self._open[seq] for seq in sorted(self._open)]

    def requests(self) -> Iterator[Request]:
        """The requests that this object has not given out yet, in order."""
        while request := self._read(self._next):
            self._next += 1
            yield request

    def all(self) -> Iterator[Request]:
        """Every request there ever was, in order."""
        for seq in range(1, self._next):
            if request := self._read(seq):
                yield request

    def _read(self, seq: int) -> Request | None:
        try:
            data: dict[str, Any] = json.loads(self._request_path(seq).read_bytes())
        except FileNotFoundError:
            return None
        return Request(**{**data, "files": tuple(File(**file) for file in data["files"])})

    def answered(self, seq: int) -> Receipt | None:
        try:
            return Receipt(seq, **json.loads(self._receipt_path(seq).read_bytes()))
        except FileNotFoundError:
            return None

    def answer(self, receipt: Receipt) -> None:
        data = {name: value for name, value in asdict(receipt).items() if name != "seq" and value is not None}
        write_atomic(self._receipt_path(receipt.seq), data)

    def status(self) -> dict[str, Any]:
        """The uploader's own word on how it is doing; empty before it has said any."""
        try:
            return dict(json.loads((self.dir / "uploader.json").read_bytes()))
        except (FileNotFoundError, ValueError):
            return {}

    def lost_lease(self) -> str | None:
        """Why the uploader has lost the lease, if it has: the job must stop the script (exit 7)."""
        try:
            return str(json.loads((self.dir / "lost.json").read_bytes())["text"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _request_path(self, seq: int) -> Path:
        return self.dir / f"{seq:06d}.json"

    def _receipt_path(self, seq: int) -> Path:
        return self.dir / f"{seq:06d}.done.json"
