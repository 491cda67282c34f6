"""Takes groups of files from the run's folder to the bucket, in the order that keeps every reader right.

Un-name what will be overwritten, upload, let the store confirm it, name it in the manifest, and only then delete what
retention no longer wants. The manifest is written by compare-and-swap, at most every `spacing` seconds; small groups
share one write of it.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
SOONEST = 1.1  # seconds between two writes of the manifest once the script is over: R2 takes one a second


@dataclass(eq=False)
class Sent:
    """A batch whose files are in the bucket, to be named. entries: of the requests that were not there as they are."""

    requests: list[Request]
    entries: dict[int, list[Entry]]
    failed: dict[int, Receipt]
    begun: float  # monotonic, like the next
    ended: float = 0.0

    def named(self) -> list[Entry]:
        return [entry for seq, group in self.entries.items() if seq not in self.failed for entry in group]


@dataclass
class Landing:
    """The one writer of a run's artifacts. keep_last: checkpoints that retention keeps; spacing: seconds between two
    writes of the manifest.

    `send` uploads a batch, `name` names what has been sent; two threads may do so side by side. `land` does both."""

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
    sent: list[Sent] = field(init=False, default_factory=list)
    _sending: set[str] = field(init=False, default_factory=set)  # keys that are being uploaded
    _landed: dict[str, int] = field(init=False, default_factory=dict)  # what of each group has landed last, hashed
    _written: float = field(init=False, default=0.0)
    _hurried: bool = field(init=False, default=False)
    _succeeded: bool = field(init=False, default=False)
    # Held where the manifest is written, and where keys are deleted or begin to be uploaded.
    _lock: threading.RLock = field(init=False, default_factory=threading.RLock)

    def open(self) -> None:
        """Read the manifest and mark it as this attempt's, which keeps an older attempt from writing it ever again."""
        self.manifest, self.etag = self._read()
        self._succeeded = self.store.head(f"{self.run}/_SUCCESS") is not None
        if self.manifest.attempt != self.attempt:
            self._write(lambda manifest: None)
        self.store.sweep(f"{self.run}/", self.uploads())

    def uploads(self) -> list[Path]:
        return sorted((self.run_dir / "outbox" / "uploads").glob("*.json"))

    def batch(self, requests: Iterable[Request]) -> list[Request]:
        """The first of `requests` that can be sent together: small ones, no key or group twice, also not of what is
        still to be named."""
        chosen: list[Request] = []
        seen = {name for sent in list(self.sent) for request in sent.requests for name in _names(request)}
        total = 0
        for request in requests:
            names = _names(request)
            total += request.bytes
            if names & seen or (chosen and (total > BATCH_BYTES or len(chosen) >= BATCH_GROUPS)):
                break
            chosen.append(request)
            seen |= names
        return chosen

    def land(self, requests: list[Request]) -> list[Receipt]:
        """Take a batch to the bucket; a receipt for each. StoreError when the store is at fault: nothing is answered,
        nothing new is named, and the same batch can be tried again."""
        receipts: list[Receipt] = []
        self.send(requests)
        try:
            self.name(lambda request, receipt: receipts.append(receipt))
        finally:
            self.sent.clear()
        return receipts

    def send(self, requests: list[Request]) -> None:
        """Upload a batch, after un-naming what it overwrites; `name` comes next. StoreError: nothing has been sent."""
        with self._lock:  # from here on nobody deletes them
            self._sending = {file.key for request in requests for file in request.files}
        try:
            sent = self._look_at(requests)
            overwritten = {entry.key for entry in sent.named() if not entry.etag}
            if overwritten & self.manifest.entries.keys():
                self._write(lambda manifest: manifest.unname(keys=overwritten))
            self.guard()
            self._upload(sent)
            sent.ended = time.monotonic()
            self.sent.append(sent)
        finally:
            self._sending = set()

    def _look_at(self, requests: list[Request]) -> Sent:
        """Which files of a batch are to be uploaded: entries without an ETag."""
        sent = Sent(requests, {}, {}, time.monotonic())
        for request in requests:
            try:
                if not self._is_landed(request):
                    sent.entries[request.seq] = [self._entry(request, file) for file in request.files]
                for file in request.files:
                    self._unchanged(file)
            except FileChanged as error:
                sent.entries.pop(request.seq, None)
                sent.failed[request.seq] = _failure(request, error)
        return sent

    def due(self, more: bool) -> bool:
        """Whether what has been sent is to be named now. more: more is on its way, which may share the write."""
        sent = list(self.sent)
        if not any(batch.named() for batch in sent):
            return bool(sent)
        if more and time.monotonic() < sent[0].ended + self.spacing:
            return False
        return not self._pause()

    def name(self, answer: Callable[[Request, Receipt], None]) -> None:
        """Name what has been sent, un-name and delete what retention no longer wants; `answer` each request, and only
        then take it out of `sent`. StoreError when the store is at fault: it is still to be named."""
        ready = list(self.sent)
        with self._lock:
            entries = [entry for sent in ready for entry in sent.named()]
            if any(self.manifest.entries.get(entry.key) != entry for entry in entries):
                gone = self._name(entries)
                later = [entry.key for sent in list(self.sent) if sent not in ready for entry in sent.named()]
                self._delete(gone - self._sending - set(later))
        for sent in ready:
            seconds, at = round(time.monotonic() - sent.begun, 3), round(time.time(), 3)
            for request in sent.requests:
                receipt = sent.failed.get(request.seq)
                if receipt is None:
                    self._landed[request.group] = _fingerprint(request)
                    receipt = Receipt(request.seq, True, request.bytes, seconds, at)
                answer(request, receipt)
            self.sent.remove(sent)

    def _is_landed(self, request: Request) -> bool:
        """Whether the very same files have landed under this group and are still named; asks nobody."""
        named = self.manifest.entries.get(request.files[0].key) if request.files else None
        same = self._landed.get(request.group) == _fingerprint(request)
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

    def _upload(self, sent: Sent) -> None:
        landed: dict[str, Uploaded] = {}

        def send(request: Request, index: int, file: File) -> None:
            state = self.run_dir / "outbox" / "uploads" / f"{hashlib.sha1(file.key.encode()).hexdigest()[:16]}.json"
            key, entries = f"{self.run}/{file.key}", sent.entries[request.seq]
            try:
                there = self.store.upload(self.run_dir / file.path, key, state=state, progress=self.progress)
                self._unchanged(file)
            except FileChanged as error:
                sent.failed[request.seq] = _failure(request, error)
                return
            landed[key] = there
            entries[index] = replace(entries[index], sha256=there.sha256, etag=there.etag)

        with ThreadPoolExecutor(FILES_AT_ONCE, "files") as pool:
            jobs = [
                pool.submit(send, request, index, request.files[index])
                for request in sent.requests
                for index, entry in enumerate(sent.entries.get(request.seq, ()))
                if not entry.etag
            ]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self.store.confirm(landed)

    def _name(self, entries: list[Entry]) -> set[str]:
        """Name the entries, un-name what retention no longer wants; the keys that may be deleted now."""
        gone: set[str] = set()

        def change(manifest: Manifest) -> None:
            nonlocal gone
            before = set(manifest.entries) | {entry.key for entry in entries}
            manifest.name(entries)
            manifest.unname(superseded(manifest, self.keep_last))
            gone = before - set(manifest.entries)

        self._write(change)
        return gone

    def _delete(self, keys: Iterable[str]) -> None:
        """Delete objects. A token that may not delete leaves them for `homerun prune`."""
        with suppress(StoreError):
            self.store.delete([f"{self.run}/{key}" for key in keys])

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

    def hurry(self) -> None:
        """The script is over: from now on write the manifest as soon as the store takes it."""
        self._hurried = True

    def _pause(self) -> float:
        """Seconds until the manifest may be written again."""
        spacing = min(self.spacing, SOONEST) if self._hurried else self.spacing
        return max(0.0, self._written + spacing - time.monotonic())

    def _write(self, change: Callable[[Manifest], object]) -> None:
        """Apply `change` to the manifest in the bucket. LeaseError when a newer attempt has written it."""
        with self._lock:
            if self._succeeded:  # what it vouches for is about to change
                self.store.delete([f"{self.run}/_SUCCESS"])
                self._succeeded = False
            while True:
                manifest = replace(self.manifest, attempt=self.attempt, entries=dict(self.manifest.entries))
                change(manifest)
                if pause := self._pause():
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


def _names(request: Request) -> set[str]:
    return {request.group, *(file.key for file in request.files)}


def _fingerprint(request: Request) -> int:
    return hash(replace(request, seq=0))  # 8 bytes, where the request of a large group takes 300 a file


def _failure(request: Request, error: FileChanged) -> Receipt:
    why = "gone" if "is gone" in error.what else "changed"
    return Receipt(request.seq, False, at=round(time.time(), 3), why=why, text=error.what)
