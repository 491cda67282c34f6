"""One large file to an S3 service, in equal parts that another process can go on with.

Each part carries a CRC-32 that the store checks: zlib's costs 0.14 CPU seconds a GiB where a second SHA-256 costs 0.5
and MD5 1.2, and CRC-64/NVME and CRC-32C need a native extension. The hash of the file is made in the pass that makes
the CRCs, so what was stored is what was hashed. An unfinished upload is noted in a state file; whoever comes next lists
its parts and sends only what is missing.
"""

import base64
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from homerun.bucket.store import (
    Corrupt,
    Denied,
    FileChanged,
    Missing,
    Progress,
    Stat,
    StoreError,
    check_unchanged,
    write_atomic,
)
from homerun.bucket.wire import BLOCK, FilePart, Wire

PART = 16 << 20  # also the largest file sent in one request
MOST_PARTS = 5000  # parts grow beyond that; S3's own limit is 10,000


def part_bytes(size: int) -> int:
    """The size of all parts but the last: 16 MiB, or whole MiBs such that `size` has at most `MOST_PARTS` of them."""
    return max(PART, -(-size // (MOST_PARTS << 20)) << 20)


def multipart_etag(etags: list[str]) -> str | None:
    """The ETag that a multipart object of these parts gets (MD5 of their MD5s); None where a store's are not MD5s."""
    if not all(re.fullmatch("[0-9a-f]{32}", etag) for etag in etags):
        return None
    return f"{hashlib.md5(bytes.fromhex(''.join(etags)), usedforsecurity=False).hexdigest()}-{len(etags)}"


@dataclass
class Unfinished:
    """The state file of a multipart upload: what it is of, its id, and the parts that have landed, as (ETag, CRC)."""

    key: str
    upload_id: str
    stat: Stat
    parts: dict[int, tuple[str, str]]

    @classmethod
    def read(cls, path: Path | None) -> "Unfinished | None":
        try:
            data = json.loads(path.read_bytes()) if path else None
            if not data:
                return None
            parts = {int(number): (etag, crc) for number, (etag, crc) in data["parts"].items()}
            return cls(data["key"], data["upload_id"], Stat(**data["stat"]), parts)
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass
class Multipart:
    """Multipart uploads through `wire`. workers: the threads that send parts, `at_once` of them."""

    wire: Wire
    workers: Executor
    at_once: int

    def upload(
        self, fd: int, path: Path, key: str, before: Stat, state: Path | None, progress: Progress | None
    ) -> tuple[str, str]:
        """The open file's SHA-256 and the object's ETag. FileChanged when it is not as it was `before`."""
        unfinished = self._resume(key, before, state) or self._begin(key, before, state)
        size, digest = part_bytes(before.bytes), hashlib.sha256()
        count = -(-before.bytes // size)
        pending: dict[Future[str], tuple[int, str]] = {}

        def collect(done: Iterable[Future[str]]) -> None:
            for future in done:
                number, crc = pending.pop(future)
                unfinished.parts[number] = (future.result(), crc)
                if progress:
                    progress(min(size, before.bytes - (number - 1) * size))
            if state:
                write_atomic(state, asdict(unfinished))

        try:
            for number in range(1, count + 1):
                offset = (number - 1) * size
                length = min(size, before.bytes - offset)
                crc = _hash_part(fd, path, offset, length, digest)
                known = unfinished.parts.get(number)
                if known and known[1] == crc:
                    if progress:
                        progress(length)
                    continue
                check_unchanged(path, fd, before)  # before 16 MiB more are sent for nothing
                body = FilePart(fd, offset, length, before)
                future = self.workers.submit(self._put_part, key, unfinished.upload_id, number, crc, body)
                pending[future] = (number, crc)
                if len(pending) > self.at_once:  # hash one part ahead, not the whole file: it is still in memory
                    collect(wait(pending, return_when=FIRST_COMPLETED).done)
            while pending:
                collect(wait(pending, return_when=FIRST_COMPLETED).done)
            check_unchanged(path, fd, before)
            etag = self._complete(key, unfinished, before.bytes)
        except BaseException as error:
            wait(pending)  # nobody may read from `fd` after it is closed
            if isinstance(error, FileChanged | Missing | Corrupt):
                self._abort(key, unfinished.upload_id)
                if state:
                    state.unlink(missing_ok=True)
            if isinstance(error, Missing):  # NoSuchUpload: aborted elsewhere, e.g. by a lifecycle rule
                raise FileChanged(f"the upload of {key} was aborted by the store", "It is begun again") from None
            raise
        if state:
            state.unlink(missing_ok=True)
        return digest.hexdigest(), etag

    def _put_part(self, key: str, upload_id: str, number: int, crc: str, body: FilePart) -> str:
        query = {"partNumber": str(number), "uploadId": upload_id}
        return self.wire.request("PUT", key, query, {"x-amz-checksum-crc32": crc}, body).etag

    def _begin(self, key: str, before: Stat, state: Path | None) -> Unfinished:
        headers = {"x-amz-checksum-algorithm": "CRC32"}
        tree = self.wire.request("POST", key, {"uploads": ""}, headers).xml()
        unfinished = Unfinished(key, tree.findtext("UploadId", ""), before, {})
        if state:
            write_atomic(state, asdict(unfinished))
        return unfinished

    def _resume(self, key: str, before: Stat, state: Path | None) -> Unfinished | None:
        """The upload that `state` notes, with the parts that the store confirms; None when it cannot go on."""
        unfinished = Unfinished.read(state)
        if unfinished is None:
            return None
        if (unfinished.key, unfinished.stat) == (key, before):
            with suppress(Missing):
                there = dict(self._list_parts(key, unfinished.upload_id))
                parts = unfinished.parts
                unfinished.parts = {n: part for n, part in parts.items() if there.get(n) == part[0]}
                return unfinished
        self._abort(unfinished.key, unfinished.upload_id)
        return None

    def _list_parts(self, key: str, upload_id: str) -> Iterator[tuple[int, str]]:
        query = {"uploadId": upload_id}
        while True:
            tree = self.wire.request("GET", key, query).xml()
            for part in tree.iter("Part"):
                yield int(part.findtext("PartNumber", "0")), part.findtext("ETag", "").strip('"')
            marker = tree.findtext("NextPartNumberMarker")
            if tree.findtext("IsTruncated") != "true" or not marker:
                return
            query["part-number-marker"] = marker

    def _complete(self, key: str, unfinished: Unfinished, size: int) -> str:
        parts = [(number, *unfinished.parts[number]) for number in sorted(unfinished.parts)]
        expected = multipart_etag([etag for _, etag, _ in parts])
        body = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{escape(etag)}&quot;</ETag>"
            f"<ChecksumCRC32>{crc}</ChecksumCRC32></Part>"
            for number, etag, crc in parts
        )
        body = f"<CompleteMultipartUpload>{body}</CompleteMultipartUpload>"
        query = {"uploadId": unfinished.upload_id}
        answer = self.wire.request("POST", key, query, body=body.encode(), fine=(404, "BadDigest", "InvalidPart"))
        if answer.status == 400 or (answer.status < 300 and b"<Error>" in answer.body):
            raise Corrupt(f"{key} could not be put together: {answer.code}", "It is uploaded again")
        if answer.status != 404:
            etag = (answer.xml().findtext("ETag") or "").strip('"')
            if expected and etag != expected:
                raise Corrupt(f"{key} was put together from other parts", "It is uploaded again")
            return etag
        # 404 when an earlier try's answer was lost: then the object is there, with the ETag that its parts make.
        there = self.wire.request("HEAD", key, fine=(404,))
        if there.headers.get("content-length") == str(size) and expected and there.etag == expected:
            return expected
        raise Missing(f"the upload of {key} is gone from the store")

    def _abort(self, key: str, upload_id: str) -> None:
        with suppress(StoreError):
            self.wire.request("DELETE", key, {"uploadId": upload_id}, fine=(404,), patience=30)

    def sweep(self, prefix: str, keep: Iterable[Path]) -> int:
        """See `Store.sweep`."""
        kept = {unfinished.upload_id for path in keep if (unfinished := Unfinished.read(path))}
        swept = 0
        try:
            tree = self.wire.request("GET", query={"uploads": "", "prefix": prefix}).xml()
        except Denied:  # a token for objects alone may not list them; the bucket's lifecycle rule takes them in 7 days
            return 0
        for upload in tree.iter("Upload"):
            key, upload_id = upload.findtext("Key", ""), upload.findtext("UploadId", "")
            if key.startswith(f"{prefix}_check-"):  # preflight's proof, which may be under way at this moment
                continue
            if key.startswith(prefix) and upload_id not in kept:
                self._abort(key, upload_id)
                swept += 1
        return swept


def _hash_part(fd: int, path: Path, offset: int, length: int, digest: Any) -> str:
    """Feed a part into the file's hash; the part's CRC-32 as S3 writes it."""
    buffer, crc, done = memoryview(bytearray(min(BLOCK, length))), 0, 0
    while done < length:
        size = os.preadv(fd, [buffer[: min(BLOCK, length - done)]], offset + done)
        if not size:
            raise FileChanged(f"{path} became shorter while it was being uploaded")
        digest.update(buffer[:size])
        crc = zlib.crc32(buffer[:size], crc)
        done += size
    return base64.b64encode(crc.to_bytes(4, "big")).decode()
