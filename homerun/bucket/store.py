"""What a bucket must be able to do, whichever it is: an S3 service (`s3.py`) or a folder (`folder.py`).

Keys are whole (`<run-id>/manifest.json`); ETags are opaque strings without quotes. Every call retries what can pass by
itself, up to the store's deadline, and otherwise raises one of the few errors below, each saying what to do about it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from homerun.errors import Exit, HomerunError, UnprovenError

if TYPE_CHECKING:
    import threading

    from homerun.settings import Settings

# Small files are a round trip each: with the store 40 ms away 2,000 of them took 3.4 s 32 at a time and 1.6 s at 128;
# with one on the same two cores 1.3 s at 8 to 128.
FILES_AT_ONCE = 128
Progress = Callable[[int], None]  # told how many more bytes have been moved


@dataclass(frozen=True)
class Head:
    """One object as the store lists it. etag is None where a listing does not know it (folders)."""

    key: str
    bytes: int
    etag: str | None
    modified: float = 0.0  # Unix seconds


@dataclass(frozen=True)
class Uploaded:
    """A file that has been stored: the store checked every part against a checksum of ours. Proven once `confirm`ed."""

    bytes: int
    sha256: str
    etag: str


class StoreError(HomerunError):
    """The store could not do it; the subclasses say why."""

    code = Exit.UNPROVEN


class Missing(StoreError):
    """No such object."""

    code = Exit.REQUEST


class Changed(StoreError):
    """The object is not (or no longer) the version that was asked for: a compare-and-swap or If-Match failed."""


class Denied(StoreError):
    """The store refuses: bad keys, an expired token, no permission, no such bucket. Trying again does not help."""

    code = Exit.PREFLIGHT


class Unreachable(StoreError):
    """The store did not answer, or asked to slow down, until the deadline."""


class FileChanged(HomerunError):
    """The local file changed (or went) while it was being uploaded; nothing of it is named anywhere."""

    code = Exit.UNPROVEN


class Corrupt(UnprovenError):
    """Bytes arrived that are not what the manifest says, more than once."""


class Stopped(StoreError):
    """The store's `stop` was set while it was at work."""


class Store(Protocol):
    """A bucket. `url` is for people and holds no secret; `stop` makes every call in progress give up (`Stopped`)."""

    url: str
    stop: "threading.Event"

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        """Write a small object; its ETag. With a condition, Changed when it does not hold."""

    def get(self, key: str) -> tuple[bytes, str]:
        """A small object's bytes and ETag; Missing."""

    def head(self, key: str) -> Head | None: ...

    def list(self, prefix: str) -> Iterator[Head]:
        """The objects under `prefix`, sorted by key."""

    def folders(self) -> Iterator[str]:
        """The names before the first slash of all keys."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete; keys that are not there are no error."""

    def upload(self, path: Path, key: str, *, state: Path | None = None, progress: Progress | None = None) -> Uploaded:
        """Store a file. `state`: where to note an unfinished upload, so that another process can go on with it.

        FileChanged when the file is not the same before and after, or is gone."""

    def confirm(self, landed: Mapping[str, Uploaded]) -> None:
        """Ask the store what lies under these keys; Corrupt unless it is what was uploaded."""

    def download(
        self, key: str, dest: Path, *, etag: str, bytes: int, sha256: str, progress: Progress | None = None
    ) -> None:
        """Bring an object home: verified, then renamed to `dest`; goes on where an earlier call stopped.

        Changed when the object is no longer `etag`; Corrupt when its bytes are not `sha256`."""

    def chunks(self, key: str, *, etag: str) -> Iterator[bytes]:
        """An object's bytes in order, in constant memory; Changed, Missing."""

    def sweep(self, prefix: str, keep: Iterable[Path] = ()) -> int:
        """Abort unfinished uploads under `prefix`, but for those noted in the state files `keep`; how many."""

    def clock_skew(self) -> float:
        """Seconds by which this machine's clock is ahead of the store's."""


def disagreement(key: str, head: Head | None, landed: Uploaded) -> Corrupt | None:
    """What `confirm` raises where the store shows `head` for what was uploaded as `landed`."""
    if head and (head.bytes, head.etag) == (landed.bytes, landed.etag):
        return None
    return Corrupt(f"{key} is not there as it was stored: {head}", "Somebody else writes to this run's folder")


def open_store(settings: "Settings") -> Store:
    """The bucket that the settings name: S3/R2, or the folder `HOMERUN_DIR/bucket` when no R2 variables are set."""
    if not settings.has_bucket:
        from homerun.bucket.folder import FolderStore

        return FolderStore(settings.homerun_dir / "bucket")
    from homerun.bucket.s3 import S3Store

    return S3Store.from_settings(settings)


def open_for_a_person(settings: "Settings") -> Store:
    """The same for someone who waits at a terminal: half a minute of patience, where a job has a quarter of an hour."""
    return open_store(settings.model_copy(update={"homerun_upload_minutes": 0.5}))


@dataclass(frozen=True)
class Stat:
    """What tells one state of a file from another."""

    inode: int
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path | str | int) -> "Stat":
        """Raises FileChanged when there is no such file."""
        try:
            stat = os.stat(path)  # noqa: PTH116 (a descriptor, too)
        except FileNotFoundError:
            raise FileChanged(f"{path} is gone") from None
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


def check_unchanged(path: Path, fd: int, before: Stat) -> None:
    """FileChanged unless the open file, and what `path` names now, are still in the state `before`."""
    if Stat.of(fd) != before or Stat.of(path) != before:
        raise FileChanged(f"{path} changed while it was being uploaded", "It is uploaded again once it is whole")


def write_atomic(path: Path, data: bytes | str | dict[str, Any], sync: bool = False) -> None:
    """Replace `path` in one step (temporary name beside it, rename); a reader sees the old bytes or the new ones."""
    if isinstance(data, dict):
        data = json.dumps(data, separators=(",", ":"))
    if isinstance(data, str):
        data = data.encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def sha256_of(path: Path, chunk: int = 1 << 19) -> str:
    with open(path, "rb", buffering=0) as file:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(chunk))
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()
