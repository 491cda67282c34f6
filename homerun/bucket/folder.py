"""A bucket that is a folder: what runs use when no R2 variables are set, and what `--bucket` of a laptop is.

An object is a plain file at its key, so `cp -r` gives a usable model. Its ETag is its SHA-256, which survives copying
the folder. Writes go to `.tmp/` and are fsynced and renamed; compare-and-swap holds one flock on `.lock`.
"""

import fcntl
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from homerun.bucket.store import (
    FILES_AT_ONCE,
    Changed,
    Corrupt,
    Denied,
    Head,
    Missing,
    Progress,
    Stat,
    Stopped,
    Uploaded,
    check_unchanged,
    disagreement,
    sha256_of,
)

CHUNK = 1 << 20


class FolderStore:
    """See `Store`. root: the bucket's folder, made when the first object is written."""

    def __init__(self, root: Path):
        self.root, self.url, self.stop = root, str(root), threading.Event()

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        with self._locked():
            path = self._path(key)
            if if_none_match and path.exists():
                raise Changed(f"{key} is already there")
            if if_match is not None and (not path.exists() or sha256_of(path) != if_match):
                raise Changed(f"{key} is no longer the version that was read")
            with self._temporary() as (temporary, fd):
                os.write(fd, data) if len(data) < CHUNK else _write_all(fd, data)
                self._publish(temporary, fd, path)
        return hashlib.sha256(data).hexdigest()

    def get(self, key: str) -> tuple[bytes, str]:
        try:
            data = self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise Missing(f"no {key} in {self.url}", "`homerun runs` lists what is there") from None
        return data, hashlib.sha256(data).hexdigest()

    def head(self, key: str) -> Head | None:
        path = self._path(key)
        if not path.is_file():
            return None
        stat = path.stat()
        return Head(key, stat.st_size, sha256_of(path), stat.st_mtime)

    def list(self, prefix: str) -> Iterator[Head]:
        folder = self.root / prefix.rpartition("/")[0]
        found = []
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if Path(parent) != self.root or name != ".tmp"]
            for name in names:
                key = os.path.relpath(f"{parent}/{name}", self.root)
                if key.startswith(prefix) and key != ".lock":
                    found.append(key)
        for key in sorted(found):
            try:
                stat = (self.root / key).stat()
            except FileNotFoundError:
                continue
            yield Head(key, stat.st_size, None, stat.st_mtime)

    def folders(self) -> Iterator[str]:
        if self.root.is_dir():
            yield from sorted(path.name for path in self.root.iterdir() if path.is_dir() and path.name != ".tmp")

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self.root:
                    break
                try:
                    parent.rmdir()
                except OSError:
                    break

    def upload(self, path: Path, key: str, *, state: Path | None = None, progress: Progress | None = None) -> Uploaded:
        before = Stat.of(path)
        with open(path, "rb", buffering=0) as source, self._temporary() as (temporary, fd):
            digest, buffer, copied = hashlib.sha256(), memoryview(bytearray(CHUNK)), 0
            while copied < before.bytes and (size := source.readinto(buffer)):  # a file that grows is not chased
                if self.stop.is_set():
                    raise Stopped("stopped")
                digest.update(buffer[:size])
                _write_all(fd, buffer[:size])
                copied += size
                if progress:
                    progress(size)
            check_unchanged(path, source.fileno(), before)
            self._publish(temporary, fd, self._path(key))
        return Uploaded(copied, digest.hexdigest(), digest.hexdigest())

    def confirm(self, landed: Mapping[str, Uploaded]) -> None:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for head, (key, one) in zip(pool.map(self.head, landed), landed.items(), strict=True):
                if found := disagreement(key, head, one):
                    raise found

    def download(
        self, key: str, dest: Path, *, etag: str, bytes: int, sha256: str, progress: Progress | None = None
    ) -> None:
        dest.parent.mkdir(parents=True, exist_ok=True)
        part = dest.with_name(dest.name + ".part")
        digest = hashlib.sha256()
        with open(part, "wb") as file:
            for chunk in self.chunks(key, etag=etag):
                digest.update(chunk)
                file.write(chunk)
                if progress:
                    progress(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            part.unlink()
            if etag == sha256:  # as written by this store: somebody changed or replaced the object
                raise Changed(f"{key} is not the version that the manifest names")
            raise Corrupt(f"{key} is not what the manifest says", "`homerun verify` tells which files are whole")
        part.replace(dest)

    def chunks(self, key: str, *, etag: str) -> Iterator[bytes]:
        try:
            file = open(self._path(key), "rb", buffering=0)  # noqa: SIM115 (closed below)
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"no {key} in {self.url}", "`homerun runs` lists what is there") from None
        with file:
            while chunk := file.read(CHUNK):
                if self.stop.is_set():
                    raise Stopped("stopped")
                yield chunk

    def sweep(self, prefix: str, keep: Iterable[Path] = ()) -> int:
        swept = 0
        for path in (self.root / ".tmp").glob("*"):
            with suppress(FileNotFoundError, BlockingIOError), open(path, "rb") as file:  # published, or being written
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                swept += 1
        return swept

    def clock_skew(self) -> float:
        return 0.0

    def _path(self, key: str) -> Path:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"not a key: {key!r}")
        return self.root / key

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._writable():
            self.root.mkdir(parents=True, exist_ok=True)
            with open(self.root / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    @contextmanager
    def _temporary(self) -> Iterator[tuple[Path, int]]:
        """A new file that its writer holds locked, so that `sweep` can tell a live one from what a dead writer left."""
        with self._writable():
            folder = self.root / ".tmp"
            folder.mkdir(parents=True, exist_ok=True)
            path, fd = _locked_file(folder)
            try:
                yield path, fd
            finally:
                path.unlink(missing_ok=True)
                os.close(fd)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except (PermissionError, NotADirectoryError) as error:
            where = error.filename or self.root
            raise Denied(
                f"{where} cannot be written ({error.strerror})", "Set HOMERUN_DIR to a folder of yours"
            ) from None
        except OSError as error:
            if error.errno not in (28, 122):  # ENOSPC, EDQUOT
                raise
            free = shutil.disk_usage(self.root).free
            raise Denied(f"no space left for {self.root} ({free >> 20} MiB free)", "Free some, or use R2") from None

    def _publish(self, temporary: Path, fd: int, path: Path) -> None:
        os.fsync(fd)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _locked_file(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / uuid.uuid4().hex
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if path.exists():
            return path, fd
        os.close(fd)  # a sweep came between the two, and took it for a dead writer's


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
