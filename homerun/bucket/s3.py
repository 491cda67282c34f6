"""A bucket on an S3 service: Cloudflare R2 first, any other that checks `x-amz-checksum-*` and honours If-Match.

Files up to 16 MiB are one PUT with their SHA-256, larger ones go in parts (`multipart.py`). What has landed is compared
with what the store then says: by HEAD, or by one listing where that takes fewer requests.
"""

import base64
import email.utils
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from homerun.bucket.fetch import RANGE, fetch_file
from homerun.bucket.multipart import PART, Multipart
from homerun.bucket.store import (
    FILES_AT_ONCE,
    Changed,
    Corrupt,
    Denied,
    FileChanged,
    Head,
    Missing,
    Progress,
    Stat,
    Uploaded,
    check_unchanged,
    disagreement,
    write_atomic,
)
from homerun.bucket.wire import BLOCK, Endpoint, FilePart, Throttle, Wire
from homerun.errors import RequestError

if TYPE_CHECKING:
    from homerun.settings import Settings

LISTED = 1000  # keys in one answer
FEW = 4  # objects that are asked for one by one
# Bytes a write to disk: with 1 MiB each the kernel took three times as long for the same file (ext4, large folios).
WRITE = 64 << 10
# Parts and ranges at once, of all files together. With the store 40 ms away a download takes two thirds of the time
# that it takes with 4; with one on the same two cores a tenth longer. 16 are slower near and far.
CONCURRENCY = 8


class S3Store:
    """See `Store`. patience: seconds for which one request is tried again; concurrency: parts and ranges at once."""

    def __init__(self, endpoint: Endpoint, *, patience: float = 900.0, concurrency: int = CONCURRENCY):
        self.url = f"s3://{endpoint.bucket} at {urlsplit(endpoint.url).netloc}"
        self.stop = threading.Event()
        self.wire = Wire(endpoint, patience, Throttle(max(FILES_AT_ONCE, concurrency)), self.stop)
        self._workers = ThreadPoolExecutor(concurrency, "s3")
        self.multipart = Multipart(self.wire, self._workers, concurrency)

    @classmethod
    def from_settings(cls, settings: "Settings") -> "S3Store":
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
        return cls(endpoint, patience=settings.homerun_upload_minutes * 60)

    # Small objects

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        headers = _checksum(hashlib.sha256(data))
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
        return self._list(prefix)

    def _list(self, prefix: str, **query: str) -> Iterator[Head]:
        query = {"list-type": "2", "prefix": prefix, **query}
        while True:
            tree = self.wire.request("GET", query=query).xml()
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
            tree = self.wire.request("GET", query=query).xml()
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
            if before.bytes > PART:
                sha256, etag = self.multipart.upload(fd, path, key, before, state, progress)
            else:
                sha256, etag = self._upload_small(fd, path, key, before)
            check_unchanged(path, fd, before)
        finally:
            os.close(fd)
        if progress and before.bytes <= PART:
            progress(before.bytes)
        return Uploaded(before.bytes, sha256, etag)

    def _upload_small(self, fd: int, path: Path, key: str, before: Stat) -> tuple[str, str]:
        if before.bytes > BLOCK:  # read twice, so that many at once take little memory
            with open(fd, "rb", closefd=False) as file:
                digest = hashlib.file_digest(file, "sha256")
            body = FilePart(fd, 0, before.bytes, before)
            return digest.hexdigest(), self.wire.request("PUT", key, headers=_checksum(digest), body=body).etag
        data = os.pread(fd, before.bytes + 1, 0)
        if len(data) != before.bytes:
            raise FileChanged(f"{path} changed while it was being uploaded")
        return hashlib.sha256(data).hexdigest(), self.put(key, data)

    def confirm(self, landed: Mapping[str, Uploaded]) -> None:
        unseen = set(landed)
        if len(unseen) > FEW:
            with suppress(Denied):  # a key that may not list
                unseen -= self._listed(landed)
        for key, head in zip(unseen, self._workers.map(self.head, unseen), strict=True):
            if found := disagreement(key, head, landed[key]):
                raise found

    def _listed(self, landed: Mapping[str, Uploaded]) -> set[str]:
        """The keys that a listing of about as many keys of their run shows as they landed."""
        keys = sorted(landed)
        most = len(keys) + LISTED
        listing = self._list(keys[0].partition("/")[0] + "/", **{"start-after": keys[0][:-1]})
        seen = {head.key: head for head, _ in zip(listing, range(most), strict=False)}
        return {key for key in keys if not disagreement(key, seen.get(key), landed[key])}

    def sweep(self, prefix: str, keep: Iterable[Path] = ()) -> int:
        return self.multipart.sweep(prefix, keep)

    def download(
        self, key: str, dest: Path, *, etag: str, bytes: int, sha256: str, progress: Progress | None = None
    ) -> None:
        if bytes <= BLOCK:
            self._download_small(key, dest, etag, sha256)
            if progress:
                progress(bytes)
            return

        writing = threading.Lock()  # who waits for the kernel's own lock of the file burns CPU: half of a download's

        def read_range(offset: int, length: int, fd: int) -> None:
            def sink(response: HTTPResponse) -> None:
                done = 0
                for block in _blocks(response, length, self.wire.buffer()):
                    written = 0
                    with writing:
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


def _checksum(digest: Any) -> dict[str, str]:
    return {"x-amz-checksum-sha256": base64.b64encode(digest.digest()).decode()}


def _head(key: str, headers: Any) -> Head:
    modified = headers.get("last-modified")
    seconds = email.utils.parsedate_to_datetime(modified).timestamp() if modified else 0.0
    return Head(key, int(headers.get("content-length", 0)), (headers.get("etag") or "").strip('"'), seconds)
