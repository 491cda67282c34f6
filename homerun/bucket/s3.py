"""A bucket on an S3 service: Cloudflare R2 first, any other that checks `x-amz-checksum-*` and honours If-Match.

Small files are one PUT with their SHA-256. Larger ones are multipart in equal parts, each with a CRC-32 that the store
checks: zlib's costs 0.14 CPU seconds a GiB where a second SHA-256 costs 0.5 and MD5 1.2, and CRC-64/NVME and CRC-32C
need a native extension. The hash of the file is made in the pass that makes the CRCs, so what was stored is what was
hashed. An unfinished upload is noted in a state file; another process lists its parts and sends only what is missing.
"""

import base64
import email.utils
import hashlib
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from homerun.bucket.fetch import RANGE, fetch_file
from homerun.bucket.store import (
    Changed,
    Corrupt,
    Denied,
    FileChanged,
    Head,
    Missing,
    Progress,
    Stat,
    StoreError,
    Uploaded,
    check_unchanged,
    write_atomic,
)
from homerun.bucket.wire import BLOCK, Endpoint, FilePart, Throttle, Wire
from homerun.errors import RequestError

if TYPE_CHECKING:
    from homerun.settings import Settings

PART = 16 << 20  # also the largest file sent in one request
MOST_PARTS = 5000  # parts grow beyond that; S3's own limit is 10,000
# Bytes a write to disk: with 1 MiB each the kernel took three times as long for the same file (ext4, large folios).
WRITE = 64 << 10
# Connections. Each is a thread that wants the interpreter: with eight on two cores a download of 256 MiB took twice as
# long as with four or with one. A network with a round trip is what more are for, and machines there have the cores.
CONCURRENCY = max(4, min(8, 2 * (os.cpu_count() or 1)))


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


class S3Store:
    """See `Store`. patience: seconds for which one request is tried again; concurrency: requests at once."""

    def __init__(self, endpoint: Endpoint, *, patience: float = 900.0, concurrency: int = CONCURRENCY):
        self.url = f"s3://{endpoint.bucket} at {urlsplit(endpoint.url).netloc}"
        self.stop = threading.Event()
        self.wire = Wire(endpoint, patience, Throttle(concurrency), self.stop)
        self.concurrency = concurrency
        self._workers = ThreadPoolExecutor(concurrency, "s3")

    @classmethod
    def from_settings(cls, settings: "Settings", concurrency: int = CONCURRENCY) -> "S3Store":
        url, bucket = str(settings.r2_endpoint_url).rstrip("/"), str(settings.r2_bucket_name)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or not parts.netloc.isascii():
            raise RequestError(
                f"R2_ENDPOINT_URL is {url!r}, not a URL", "Set it like https://<account id>.r2.cloudflarestorage.com"
            )
        url = url.removesuffix(f"/{bucket}")  # as R2's dashboard shows it
        key, secret, token = settings.r2_access_key_id, settings.r2_secret_access_key, settings.r2_session_token
        assert key and secret
        endpoint = Endpoint(
            url, bucket, key.get_secret_value(), secret.get_secret_value(), token.get_secret_value() if token else None
        )
        return cls(endpoint, patience=settings.homerun_upload_minutes * 60, concurrency=concurrency)

    # Small objects

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        headers = {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(data).digest()).decode()}
        if if_match is not None:
            headers["if-match"] = f'"{if_match}"'
        if if_none_match:
            headers["if-none-match"] = "*"
        fine = (412, 409) if if_match is not None or if_none_match else ()
        answer = self.wire.request("PUT", key, headers=headers, body=data, fine=fine)
        if answer.status >= 300:
            # A condition that fails on a second try may fail because the first one, whose answer was lost, succeeded.
            if answer.tries > 1:
                with suppress(Missing):
                    stored, etag = self.get(key)
                    if stored == data:
                        return etag
            raise Changed(f"{key} is no longer the version that was read")
        return answer.etag

    def get(self, key: str) -> tuple[bytes, str]:
        answer = self.wire.request("GET", key)
        if answer.headers.get("content-length") not in (None, str(len(answer.body))):
            raise Corrupt(f"{key} arrived cut off")
        return answer.body, answer.etag

    def head(self, key: str) -> Head | None:
        answer = self.wire.request("HEAD", key, fine=(404,))
        return None if answer.status == 404 else _head(key, answer.headers)

    def list(self, prefix: str) -> Iterator[Head]:
        query = {"list-type": "2", "prefix": prefix}
        while True:
            tree = _xml(self.wire.request("GET", query=query).body)
            for item in tree.iter("Contents"):
                modified = datetime.fromisoformat(item.findtext("LastModified", "")).timestamp()
                etag = item.findtext("ETag", "").strip('"')
                yield Head(item.findtext("Key", ""), int(item.findtext("Size", "0")), etag, modified)
            token = tree.findtext("NextContinuationToken")
            if tree.findtext("IsTruncated") != "true" or not token:
                return
            query["continuation-token"] = token

    def folders(self) -> Iterator[str]:
        query = {"list-type": "2", "delimiter": "/"}
        while True:
            tree = _xml(self.wire.request("GET", query=query).body)
            for item in tree.iter("CommonPrefixes"):
                yield item.findtext("Prefix", "").rstrip("/")
            token = tree.findtext("NextContinuationToken")
            if tree.findtext("IsTruncated") != "true" or not token:
                return
            query["continuation-token"] = token

    def delete(self, keys: Iterable[str]) -> None:
        """One request a key (they are free on R2, and DeleteObjects' quiet failures are not)."""
        list(self._workers.map(lambda key: self.wire.request("DELETE", key, fine=(404,)), keys))

    def clock_skew(self) -> float:
        answer = self.wire.request("HEAD", "", fine=(404, 403, 401, 400))
        date = answer.headers.get("date")
        return time.time() - email.utils.parsedate_to_datetime(date).timestamp() if date else 0.0

    # Files

    def upload(self, path: Path, key: str, *, state: Path | None = None, progress: Progress | None = None) -> Uploaded:
        before = Stat.of(path)
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise FileChanged(f"{path} is gone") from None
        try:
            if before.bytes <= PART:
                sha256, etag = self._upload_small(fd, path, key, before)
            else:
                sha256, etag = self._upload_parts(fd, path, key, before, state, progress)
            check_unchanged(path, fd, before)
        finally:
            os.close(fd)
        if progress and before.bytes <= PART:
            progress(before.bytes)
        landed = self.head(key)
        if landed is None or (landed.bytes, landed.etag) != (before.bytes, etag):
            raise Corrupt(f"{key} is not there as it was stored: {landed}", "Somebody else writes to this run's folder")
        return Uploaded(before.bytes, sha256, etag)

    def _upload_small(self, fd: int, path: Path, key: str, before: Stat) -> tuple[str, str]:
        data = os.pread(fd, before.bytes + 1, 0)
        if len(data) != before.bytes:
            raise FileChanged(f"{path} changed while it was being uploaded")
        return hashlib.sha256(data).hexdigest(), self.put(key, data)

    def _upload_parts(
        self, fd: int, path: Path, key: str, before: Stat, state: Path | None, progress: Progress | None
    ) -> tuple[str, str]:
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
                body = FilePart(fd, offset, length)
                future = self._workers.submit(self._put_part, key, unfinished.upload_id, number, crc, body)
                pending[future] = (number, crc)
                if len(pending) > self.concurrency:  # hash one part ahead, not the whole file: it is still in memory
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
        tree = _xml(self.wire.request("POST", key, {"uploads": ""}, headers).body)
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
            tree = _xml(self.wire.request("GET", key, query).body)
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
            etag = (_xml(answer.body).findtext("ETag") or "").strip('"')
            if expected and etag != expected:
                raise Corrupt(f"{key} was put together from other parts", "It is uploaded again")
            return etag
        # 404 when an earlier try's answer was lost: then the object is there, with the ETag that its parts make.
        landed = self.head(key)
        if landed and landed.bytes == size and expected and landed.etag == expected:
            return expected
        raise Missing(f"the upload of {key} is gone from the store")

    def _abort(self, key: str, upload_id: str) -> None:
        with suppress(StoreError):
            self.wire.request("DELETE", key, {"uploadId": upload_id}, fine=(404,), patience=30)

    def sweep(self, prefix: str, keep: Iterable[Path] = ()) -> int:
        kept = {unfinished.upload_id for path in keep if (unfinished := Unfinished.read(path))}
        swept = 0
        try:
            tree = _xml(self.wire.request("GET", query={"uploads": "", "prefix": prefix}).body)
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

    def download(
        self, key: str, dest: Path, *, etag: str, bytes: int, sha256: str, progress: Progress | None = None
    ) -> None:
        if bytes <= PART:
            self._download_small(key, dest, etag, sha256)
            if progress:
                progress(bytes)
            return

        def read_range(offset: int, length: int, fd: int) -> None:
            def sink(response: HTTPResponse) -> None:
                done = 0
                for block in _blocks(response, length, self.wire.buffer()):
                    written = 0
                    while written < len(block):
                        written += os.pwrite(fd, block[written : written + WRITE], offset + done + written)
                    done += len(block)

            self._get_range(key, etag, offset, length, sink)

        fetch_file(read_range, self._workers, key, dest, etag, bytes, sha256, progress)

    def _download_small(self, key: str, dest: Path, etag: str, sha256: str) -> None:
        for _ in range(2):
            body = self.wire.request("GET", key, headers={"if-match": f'"{etag}"'}).body
            if hashlib.sha256(body).hexdigest() == sha256:
                write_atomic(dest, body)
                return
        raise Corrupt(f"{key} is not what the manifest says", "`homerun verify` tells which files are whole")

    def chunks(self, key: str, *, etag: str) -> Iterator[bytes]:
        head = self.head(key)
        if head is None:
            raise Missing(f"no {key} in {self.url}", "`homerun runs` lists what is there")
        if head.etag != etag:
            raise Changed(f"{key} is not the version that the manifest names")

        def fetch(offset: int) -> bytearray:
            length = min(RANGE // 2, head.bytes - offset)
            data = bytearray(length)

            def sink(response: HTTPResponse) -> None:
                done = 0
                for block in _blocks(response, length, self.wire.buffer()):
                    data[done : done + len(block)] = block
                    done += len(block)

            self._get_range(key, etag, offset, length, sink)
            return data

        offsets = range(0, head.bytes, RANGE // 2)
        coming = self._workers.submit(fetch, 0) if head.bytes else None
        for offset in offsets:
            assert coming
            data = coming.result()
            following = offset + RANGE // 2
            coming = self._workers.submit(fetch, following) if following < head.bytes else None
            yield bytes(data)

    def _get_range(self, key: str, etag: str, offset: int, length: int, sink: Callable[[HTTPResponse], None]) -> None:
        headers = {"if-match": f'"{etag}"', "range": f"bytes={offset}-{offset + length - 1}"}

        def checked(response: HTTPResponse) -> None:
            got = response.headers.get("content-range", "")
            if response.status != 206 or not got.startswith(f"bytes {offset}-{offset + length - 1}/"):
                raise ConnectionError(f"asked for {headers['range']}, got {response.status} {got}")
            sink(response)

        self.wire.request("GET", key, headers=headers, sink=checked)


def _blocks(response: HTTPResponse, length: int, buffer: memoryview) -> Iterator[memoryview]:
    """Exactly `length` bytes of a body, through `buffer`; a body that ends early is a ConnectionError."""
    done = 0
    while done < length:
        size = response.readinto(buffer[: min(len(buffer), length - done)])
        if not size:
            raise ConnectionError(f"the body ended after {done} of {length} bytes")
        yield buffer[:size]
        done += size
    response.read()  # its end, so that the connection can be used again


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


def _head(key: str, headers: Any) -> Head:
    modified = headers.get("last-modified")
    seconds = email.utils.parsedate_to_datetime(modified).timestamp() if modified else 0.0
    return Head(key, int(headers.get("content-length", 0)), (headers.get("etag") or "").strip('"'), seconds)


def _xml(body: bytes) -> ElementTree.Element:
    """An answer's XML without its namespace."""
    return ElementTree.fromstring(re.sub(rb'\sxmlns="[^"]*"', b"", body, count=1))
