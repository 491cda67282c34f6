"""Takes groups of files from the run's folder to the bucket, in the order that keeps every reader right.

Un-name what will be overwritten, upload, let the store confirm it, name it in the manifest, and only then delete what
retention no longer wants. The manifest is written by compare-and-swap, at most every `spacing` seconds; small groups
share one write of it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from homerun.bucket.lease import lost, read
from homerun.bucket.manifest import Entry, Manifest, superseded
from homerun.bucket.outbox import File, Receipt, Request
from homerun.bucket.prune import Waste, waste
from homerun.bucket.store import (
    FILES_AT_ONCE,
    Changed,
    FileChanged,
    Missing,
    Stat,
    Store,
    StoreError,
    Uploaded,
    check_unchanged,
)

BATCH_BYTES, BATCH_GROUPS = 64 << 20, 256  # what may share one write of the manifest
SOONEST = 1.1  # seconds between two writes of the manifest at a run's end: R2 takes one a second


@dataclass
class Landing:
    """The one writer of a run's artifacts. keep_last: checkpoints that retention keeps; spacing: seconds between two
    writes of the manifest; uploads: folder for the state of unfinished uploads."""

    store: Store
    run: str
    run_dir: Path
    attempt: int
    keep_last: int
    spacing: float
    progress: Callable[[int], None] = lambda moved: None
    guard: Callable[[], None] = lambda: None  # raises when the lease may be another's
    manifest: Manifest = field(init=False)
    etag: str | None = field(init=False, default=None)
    _landed: dict[str, Request] = field(init=False, default_factory=dict)  # by group, as last landed; seq 0
    _written: float = field(init=False, default=0.0)
    _succeeded: bool = field(init=False, default=False)

    def open(self) -> None:
        """Read the manifest and mark it as this attempt's, which keeps an older attempt from writing it ever again."""
        self.manifest, self.etag = self._read()
        self._succeeded = self.store.head(f"{self.run}/_SUCCESS") is not None
        if self.manifest.attempt != self.attempt:
            self._write(lambda manifest: None)
        self.store.sweep(f"{self.run}/", self.uploads())

    def uploads(self) -> list[Path]:
        return sorted((self.run_dir / "outbox" / "uploads").glob("*.json"))

    def batch(self, requests: list[Request]) -> list[Request]:
        """The first of `requests` that can share a write: small ones, no key or group twice."""
        chosen: list[Request] = []
        seen: set[str] = set()
        total = 0
        for request in requests:
            names = {request.group, *(file.key for file in request.files)}
            total += request.bytes
            if chosen and (names & seen or total > BATCH_BYTES or len(chosen) >= BATCH_GROUPS):
                break
            chosen.append(request)
            seen |= names
        return chosen

    def land(self, requests: list[Request]) -> list[Receipt]:
        """Take a batch to the bucket; a receipt for each. StoreError when the store is at fault: nothing is answered,
        nothing new is named, and the same batch can be tried again."""
        begun = time.monotonic()
        failed: dict[int, Receipt] = {}
        entries: dict[int, list[Entry]] = {}  # of the requests that are not in the bucket as they are
        for request in requests:
            try:
                if not self._is_landed(request):
                    entries[request.seq] = [self._entry(request, file) for file in request.files]
                for file in request.files:
                    self._unchanged(file)
            except FileChanged as error:
                entries.pop(request.seq, None)
                failed[request.seq] = _failure(request, error)
        soon = any(request.kind == "report" for request in requests)  # it comes last: the machine is paid for meanwhile
        overwritten = {entry.key for group in entries.values() for entry in group if not entry.etag}
        if overwritten & self.manifest.entries.keys():
            self._write(lambda manifest: manifest.unname(keys=overwritten), soon)
        self.guard()
        self._upload([request for request in requests if request.seq in entries], entries, failed)
        named = [entry for seq, group in entries.items() if seq not in failed for entry in group]
        gone: set[str] = set()
        if any(self.manifest.entries.get(entry.key) != entry for entry in named):
            gone = self._name(named, soon)
        if gone:
            self.delete(gone)
        seconds, at = round(time.monotonic() - begun, 3), round(time.time(), 3)
        for request in requests:
            if request.seq not in failed:
                self._landed[request.group] = replace(request, seq=0)
        return [failed.get(r.seq) or Receipt(r.seq, True, r.bytes, seconds, at) for r in requests]

    def _is_landed(self, request: Request) -> bool:
        """Whether the very same files have landed under this group and are still named; asks nobody."""
        named = self.manifest.entries.get(request.files[0].key) if request.files else None
        same = self._landed.get(request.group) == replace(request, seq=0)
        return same and named is not None and named.group == request.group

    def _unchanged(self, file: File) -> None:
        if Stat.of(f"{self.run_dir}/{file.path}") != file.stat:
            raise FileChanged(f"{file.path} is not as it was offered")

    def _entry(self, request: Request, file: File) -> Entry:
        """A file's entry: complete when the bucket has its bytes under this key already, otherwise without an ETag."""
        about = (request.group, request.keep, request.phase)
        made = round(file.mtime_ns / 1e9, 3)
        unsent = Entry(file.key, file.bytes, "", "", *about, made, request.step, request.score)
        entry = self.manifest.entries.get(file.key)
        if entry is None or entry.bytes != file.bytes:
            return unsent
        path = self.run_dir / file.path
        try:
            with open(path, "rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                check_unchanged(path, opened.fileno(), file.stat)
        except FileNotFoundError:
            raise FileChanged(f"{file.path} is gone") from None
        if digest != entry.sha256:
            return unsent
        head = self.store.head(f"{self.run}/{file.key}")
        if head is None or head.etag != entry.etag:
            return unsent
        return replace(unsent, sha256=entry.sha256, etag=entry.etag, at=entry.at)

    def _upload(self, requests: list[Request], entries: dict[int, list[Entry]], failed: dict[int, Receipt]) -> None:
        landed: dict[str, Uploaded] = {}

        def send(request: Request, index: int, file: File) -> None:
            state = self.run_dir / "outbox" / "uploads" / f"{hashlib.sha1(file.key.encode()).hexdigest()[:16]}.json"
            key = f"{self.run}/{file.key}"
            try:
                sent = self.store.upload(self.run_dir / file.path, key, state=state, progress=self.progress)
                self._unchanged(file)
            except FileChanged as error:
                failed[request.seq] = _failure(request, error)
                return
            landed[key] = sent
            entries[request.seq][index] = replace(entries[request.seq][index], sha256=sent.sha256, etag=sent.etag)

        with ThreadPoolExecutor(FILES_AT_ONCE, "files") as pool:
            jobs = [
                pool.submit(send, request, index, file)
                for request in requests
                for index, file in enumerate(request.files)
                if not entries[request.seq][index].etag
            ]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self.store.confirm(landed)

    def _name(self, entries: list[Entry], soon: bool) -> set[str]:
        """Name the entries, un-name what retention no longer wants; the keys that may be deleted now."""
        gone: set[str] = set()

        def change(manifest: Manifest) -> None:
            nonlocal gone
            before = set(manifest.entries) | {entry.key for entry in entries}
            manifest.name(entries)
            manifest.unname(superseded(manifest, self.keep_last))
            gone = before - set(manifest.entries)

        self._write(change, soon)
        return gone

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects that are no longer named. A token that may not delete leaves them for `homerun prune`."""
        keys = [key for key in keys if key not in self.manifest.entries]
        try:
            self.store.delete([f"{self.run}/{key}" for key in keys])
        except StoreError:
            return

    def succeed(self, data: bytes) -> None:
        """Write `_SUCCESS`: nothing of the run changes after it."""
        self.guard()
        self.store.put(f"{self.run}/_SUCCESS", data)
        self._succeeded = True

    def prune(self) -> Waste:
        """Un-name superseded groups, then delete them and whatever nothing names; what that was. A run that was
        finished stays finished."""
        try:
            success, _ = self.store.get(f"{self.run}/_SUCCESS")
        except Missing:
            success = b""
        self.open()
        found = waste(self.manifest, list(self.store.list(f"{self.run}/")), self.keep_last)
        if found.groups:
            self._write(lambda manifest: manifest.unname(found.groups))
        self.store.delete([f"{self.run}/{key}" for key in found.keys])
        if success:
            document = json.loads(success)
            document["manifest"]["sha256"] = hashlib.sha256(self.manifest.to_json()).hexdigest()
            self.succeed((json.dumps(document, indent=1) + "\n").encode())
        return found

    def _read(self) -> tuple[Manifest, str | None]:
        try:
            data, etag = self.store.get(f"{self.run}/manifest.json")
        except Missing:
            return Manifest(self.run), None
        manifest = Manifest.from_json(data)
        if manifest.attempt > self.attempt:
            raise lost(self.run, read(self.store, self.run))
        return manifest, etag

    def _write(self, change: Callable[[Manifest], object], soon: bool = False) -> None:
        """Apply `change` to the manifest in the bucket. LeaseError when a newer attempt has written it."""
        if self._succeeded:  # what it vouches for is about to change
            self.store.delete([f"{self.run}/_SUCCESS"])
            self._succeeded = False
        while True:
            manifest = replace(self.manifest, attempt=self.attempt, entries=dict(self.manifest.entries))
            change(manifest)
            pause = self._written + (min(self.spacing, SOONEST) if soon else self.spacing) - time.monotonic()
            if pause > 0:
                self.store.stop.wait(pause)
            self.guard()
            key, data = f"{self.run}/manifest.json", manifest.to_json()
            try:
                self.etag = self.store.put(key, data, if_match=self.etag, if_none_match=self.etag is None)
            except Changed:
                self.manifest, self.etag = self._read()
                continue
            finally:
                self._written = time.monotonic()
            self.manifest = manifest
            return


def _failure(request: Request, error: FileChanged) -> Receipt:
    why = "gone" if "is gone" in error.what else "changed"
    return Receipt(request.seq, False, at=round(time.time(), 3), why=why, text=error.what)
