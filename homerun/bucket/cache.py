"""The input cache: what runs are fed, kept in the bucket for the next one, off unless asked for.

    _cache/objects/<sha256>      one object a content, whoever uses it
    _cache/index/<unit>.json     the files of a unit: path, bytes, sha256, ETag, or where a link points

An object is in the bucket before an index names it, and what an index names is read with its hash. A unit appears on
the disk in one step, whole; its files lie in a folder beside it until then.
"""

import json
import posixpath
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from homerun.bucket.outbox import Outbox, Receipt, Request
from homerun.bucket.restore import safe_path
from homerun.bucket.store import (
    FILES_AT_ONCE,
    Changed,
    Corrupt,
    FileChanged,
    Missing,
    Stat,
    Stopped,
    Store,
    StoreError,
    sha256_of,
)
from homerun.errors import HomerunError, UnprovenError

INDEX, OBJECTS = "_cache/index/", "_cache/objects/"


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of a unit. path: relative to the folder that the unit lies in. link: the target, of a symbolic link."""

    path: str
    bytes: int = 0
    sha256: str = ""
    etag: str = ""
    link: str = ""


def names(store: Store) -> Iterator[str]:
    """The units in the cache."""
    for head in store.list(INDEX):
        yield head.key.removeprefix(INDEX).removesuffix(".json")


def keep(store: Store, request: Request, run_dir: Path, wait: Callable[[], None]) -> int:
    """Bring the cache up to the files of a unit (the request's group); bytes sent, as content that is there is not.

    wait() is called before each file, and returns when something may be sent. StoreError; FileChanged."""
    found, sent = [], 0
    for file in request.files:
        path = run_dir / file.path
        wait()
        if path.is_symlink():
            found.append(Kept(file.key, link=str(path.readlink())))
            continue
        sha256 = sha256_of(path)
        head = store.head(OBJECTS + sha256)
        etag = head.etag if head and head.bytes == file.bytes else None
        if etag is None:
            landed = store.upload(path, OBJECTS + sha256)
            store.confirm({OBJECTS + sha256: landed})
            etag, sent = landed.etag, sent + landed.bytes
            if landed.sha256 != sha256:
                store.delete([OBJECTS + sha256])
                raise FileChanged(f"{path} changed while it was being uploaded")
        if Stat.of(path) != file.stat:
            raise FileChanged(f"{path} changed while it was being uploaded")
        found.append(Kept(file.key, file.bytes, sha256, etag))
    _add(store, request.group, found)
    return sent


@dataclass
class Keeper:
    """Fills the cache for a run's uploader: `units` one after the other, each answered in the outbox."""

    store: Store
    outbox: Outbox
    run_dir: Path
    wait: Callable[[], None]
    units: list[Request] = field(default_factory=list)

    def keep_one(self) -> None:
        if not self.units:
            return
        request, begun = self.units[0], time.monotonic()
        try:
            sent = keep(self.store, request, self.run_dir, self.wait)
        except Stopped:
            return
        except (HomerunError, OSError) as error:
            why = "changed" if isinstance(error, FileChanged) else "refused"
            receipt = Receipt(request.seq, False, why=why, text=str(error))
        else:
            seconds, at = round(time.monotonic() - begun, 3), round(time.time(), 3)
            receipt = Receipt(request.seq, True, sent, seconds, at)
        self.outbox.answer(receipt)
        self.units.remove(request)


def _add(store: Store, name: str, found: list[Kept]) -> None:
    """Name files in a unit's index, beside those that other runs named."""
    key = f"{INDEX}{name}.json"
    while True:
        try:
            data, etag = store.get(key)
            before = {file.path: file for file in _read(data)}
        except Missing:
            before, etag = {}, None
        now = before | {file.path: file for file in found}
        if now == before:
            return
        lines = [{field: value for field, value in asdict(now[path]).items() if value} for path in sorted(now)]
        text = ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
        with suppress(Changed):  # another run's write came first
            store.put(key, f'{{"version": 1, "files": [\n{text}\n]}}\n'.encode(), if_match=etag, if_none_match=not etag)
            return


def _read(data: bytes) -> list[Kept]:
    try:
        return [Kept(**file) for file in json.loads(data)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UnprovenError(f"the input cache's index cannot be read ({error})", "Delete `_cache/`") from None


def bring(store: Store, name: str, place: Path, partial: bool = False) -> tuple[int, int]:
    """A unit home to `place`, which is not there yet: (files, bytes), verified. partial: what can be had of it.

    HomerunError when it cannot be had; an object with wrong bytes is deleted, so that the next run replaces it."""
    files = _read(store.get(f"{INDEX}{name}.json")[0])
    staging = place.parent / f".{place.name}.homerun"  # a leading dot: nobody's artifact, nobody's input
    failed: list[HomerunError] = []

    def fetch(file: Kept) -> int:
        path = _inside(staging, place.name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.link:
            path.unlink(missing_ok=True)
            path.symlink_to(file.link)
            return 0
        if path.is_file() and path.stat().st_size == file.bytes and sha256_of(path) == file.sha256:
            return file.bytes
        key = OBJECTS + file.sha256
        try:
            store.download(key, path, etag=file.etag, bytes=file.bytes, sha256=file.sha256)
        except (Corrupt, StoreError) as error:
            if isinstance(error, Corrupt | Changed):
                with suppress(StoreError):
                    store.delete([key])
            for begun in path.parent.glob(f"{path.name}.part*"):
                begun.unlink()
            failed.append(error)
            return 0
        return file.bytes

    try:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            moved = sum(pool.map(fetch, files))
    except OSError:  # a full disk gets its space back
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if failed and not (partial and (staging / place.name).exists()):
        shutil.rmtree(staging, ignore_errors=True)
        raise failed[0]
    (staging / place.name).rename(place)
    shutil.rmtree(staging)
    return len(files) - len(failed), moved


def _inside(staging: Path, top: str, file: Kept) -> Path:
    """Where a file goes; UnprovenError where it, or what it links to, is outside its unit."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), file.link)) if file.link else file.path
    for path in (file.path, target):
        if path != top and not path.startswith(f"{top}/"):
            raise UnprovenError(f"the input cache names a file outside {top}: {path!r}", "Do not trust this bucket")
    return safe_path(staging, file.path)
