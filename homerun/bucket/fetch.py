"""Bring one large object home: ranges side by side into `<name>.part`, verified, then renamed.

`<name>.part.done` notes the version and the ranges that are in, one a line, so that a second call goes on. It is
believed only as far as the hash at the end: what a crash lost is found then, and fetched again. No fsync for the same
reason: a file that a power cut tore is noticed by its hash wherever it is used.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from pathlib import Path

from homerun.bucket.store import Corrupt, Progress

RANGE = 16 << 20
BLOCK = 1 << 20

ReadRange = Callable[
    [int, int, int], None
]  # (offset, length, fd): write that range of the object into fd at its offset


def fetch_file(
    read_range: ReadRange,
    workers: Executor,
    name: str,
    dest: Path,
    version: str,
    size: int,
    sha256: str,
    progress: Progress | None,
) -> None:
    """Fetch `size` bytes through `read_range` into `dest`. Corrupt when the bytes are wrong twice."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    part, notes = dest.with_name(dest.name + ".part"), dest.with_name(dest.name + ".part.done")
    for last in (False, True):
        if _fetch(read_range, workers, part, notes, version, size, progress) == sha256:
            part.replace(dest)
            notes.unlink()
            return
        part.unlink()
        notes.unlink()
        if last:
            raise Corrupt(f"{name} is not what the manifest says", "`homerun verify` tells which files are whole")
        if progress:
            progress(-size)


def _fetch(
    read_range: ReadRange,
    workers: Executor,
    part: Path,
    notes: Path,
    version: str,
    size: int,
    progress: Progress | None,
) -> str:
    """Fetch what `notes` do not have yet; the SHA-256 of what then is in the file."""
    header = f"{version} {size} {RANGE}"
    have = _noted(notes, header) if part.exists() else set()
    count = -(-size // RANGE)
    digest, pending = hashlib.sha256(), dict[Future[None], int]()
    with open(part, "r+b" if have else "w+b", buffering=0) as file, open(notes, "a" if have else "w") as log:
        if not have:
            log.write(header + "\n")
        os.ftruncate(file.fileno(), size)

        def length(index: int) -> int:
            return min(RANGE, size - index * RANGE)

        if progress:
            progress(sum(length(index) for index in have))

        def note(done: Iterable[Future[None]]) -> None:
            failed = None
            for future in done:
                index = pending.pop(future)
                if error := future.exception():
                    failed = error
                    continue
                have.add(index)
                log.write(f"{index}\n")
                log.flush()
                if progress:
                    progress(length(index))
            if failed:
                raise failed

        for index in range(count):
            if index not in have:
                pending[workers.submit(read_range, index * RANGE, length(index), file.fileno())] = index
        try:
            for index in range(count):  # in order, while the others arrive
                while index not in have:
                    note(wait(pending, return_when=FIRST_COMPLETED).done)
                _hash(file.fileno(), index * RANGE, length(index), digest)
        except BaseException:
            for future in pending:
                future.cancel()
            with suppress(Exception):  # what was under way need not come again
                note(future for future in wait(pending).done if not future.cancelled())
            raise
    return digest.hexdigest()


def _noted(notes: Path, header: str) -> set[int]:
    try:
        lines = notes.read_text().split("\n")
    except FileNotFoundError:
        return set()
    if lines[0] != header:
        return set()
    return {int(line) for line in lines[1:-1] if line.isdigit()}


def _hash(fd: int, offset: int, length: int, digest: "hashlib._Hash") -> None:
    buffer, done = memoryview(bytearray(BLOCK)), 0
    while done < length:
        size = os.preadv(fd, [buffer[: min(BLOCK, length - done)]], offset + done)
        digest.update(buffer[:size])
        done += size
