"""One S3 endpoint over HTTP/1.1: connections, signatures, retries with jitter, back-off on SlowDown.

A hand-written client on http.client: little CPU for a small object, no `Expect: 100-continue` (R2 never
answers it), and bodies that come straight from a file. benchmarks/bench_transfer.py holds the comparison.
"""

import base64
import email.utils
import http.client
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from homerun.bucket.sigv4 import query_string, quote_path, sign
from homerun.bucket.store import Changed, Denied, FileChanged, Missing, Stat, Stopped, StoreError, Unreachable

CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0
BLOCK = 1 << 18  # bytes moved between file and socket at a time; 128 KiB to 1 MiB take as long
PASSING = {408, 425, 429, 500, 502, 503, 504}
PASSING_CODES = {"BadDigest", "IncompleteBody", "InternalError", "RequestTimeout", "SlowDown", "TooManyRequests"}

# What a person should look at, for each code that S3 services, R2 first, answer with.
HINTS = {
    "Unauthorized": "Check R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY; the token may have been deleted or cut off",
    "InvalidAccessKeyId": "R2_ACCESS_KEY_ID is unknown to this endpoint: check it, and the account in R2_ENDPOINT_URL",
    "SignatureDoesNotMatch": "R2_SECRET_ACCESS_KEY does not belong to R2_ACCESS_KEY_ID; copy both again from one token",
    "AccessDenied": "The token may not do this: it needs Object Read & Write here, see docs/bucket.md",
    "ExpiredToken": "The temporary credentials have run out: make new ones with a longer life (docs/bucket.md)",
    "InvalidToken": "R2_SESSION_TOKEN does not belong to these keys; set all three from one answer, or unset it",
    "NoSuchBucket": "Check R2_BUCKET_NAME; a bucket with a jurisdiction has its own endpoint (….eu.r2.…)",
    "RequestTimeTooSkewed": "This machine's clock is wrong: set it (`timedatectl set-ntp true`)",
    "ObjectLockedByBucketPolicy": "A bucket lock protects this prefix: narrow the lock rule, or use another bucket",
    "EntityTooLarge": "The object is larger than the service takes",
    "NotImplemented": "This service lacks something that homerun needs; see docs/bucket.md",
}


@dataclass(frozen=True)
class Endpoint:
    url: str  # https://host[:port][/base]
    bucket: str
    access_key: str
    secret_key: str
    session_token: str | None = None

    @property
    def region(self) -> str:
        """`auto` for R2 and everything else that does not name one in its host."""
        match = re.search(r"\bs3[.-]([a-z]{2}-[a-z]+-[0-9a-z]+)\.", urlsplit(self.url).netloc)
        return match.group(1) if match else "auto"


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    tries: int

    @property
    def etag(self) -> str:
        return (self.headers.get("etag") or "").strip('"')

    @property
    def code(self) -> str:
        """The service's word for an error."""
        match = re.search(rb"<Code>([^<]*)</Code>", self.body)
        return match.group(1).decode() if match else http.client.responses.get(self.status, str(self.status))

    def xml(self) -> ElementTree.Element:
        """The body without its namespace."""
        return ElementTree.fromstring(re.sub(rb'\sxmlns="[^"]*"', b"", self.body, count=1))


@dataclass
class FilePart:
    """A request body that is read from an open file while it is sent. FileChanged, and no other try, when the file is
    no longer as it was when its checksum was made."""

    fd: int
    offset: int
    bytes: int
    before: Stat


class StaleConnection(Exception):
    """A connection that was idle ended before it brought an answer."""


class Throttle:
    """At most `limit` requests at once; halved when the store asks to slow down, and slowly raised again."""

    def __init__(self, limit: int):
        self.most = self.limit = limit
        self._busy, self._good = 0, 0
        self._free = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: self._busy < self.limit)
            self._busy += 1
        try:
            yield
        finally:
            with self._free:
                self._busy -= 1
                self._free.notify()

    def slow_down(self) -> None:
        with self._free:
            self.limit, self._good = max(1, self.limit // 2), 0

    def went_well(self) -> None:
        with self._free:
            self._good += 1
            if self.limit < self.most and self._good >= 16:
                self.limit, self._good = self.limit + 1, 0
                self._free.notify()


@dataclass
class Wire:
    """Requests to one endpoint. patience: seconds for which a request is tried again.

    stop: gives up every wait; slowed and last_error are for status displays."""

    endpoint: Endpoint
    patience: float
    throttle: Throttle
    stop: threading.Event
    skew: float = 0.0  # seconds this machine's clock is ahead of the store's, learnt from RequestTimeTooSkewed
    last_error: str = ""
    _idle: list[http.client.HTTPConnection] = field(default_factory=list)
    _local: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint.url)
        self._host, self._base, self._tls = parts.netloc, parts.path.rstrip("/"), None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context()
            if not self._tls.get_ca_certs() and not os.environ.get("SSL_CERT_FILE"):
                import certifi  # a bare image without ca-certificates

                self._tls.load_verify_locations(certifi.where())
        self._proxy = _proxy(self._host) if self._tls else None

    def request(
        self,
        method: str,
        key: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | FilePart = b"",
        *,
        fine: tuple[int | str, ...] = (),
        patience: float | None = None,
        sink: Callable[[http.client.HTTPResponse], None] | None = None,
    ) -> Answer:
        """One request, tried until it is answered. Statuses under 300 and those in `fine` are returned, others raised.

        fine: statuses, or the service's codes, that the caller deals with itself.
        sink: consumes the body of a good answer itself; what it raises of OSError or HTTPException is tried again.
        """
        deadline = time.monotonic() + (self.patience if patience is None else patience)
        denied, tries = 0, 0
        while True:
            tries += 1
            try:
                with self.throttle.slot():
                    answer = self._once(method, key, query or {}, headers or {}, body, sink, tries)
            except StaleConnection:
                continue  # the store had closed it while it was idle; there are only so many of them
            except (OSError, http.client.HTTPException) as error:
                self.last_error = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise Denied(
                        f"{self._host}: {error.verify_message}", "Check R2_ENDPOINT_URL and the clock"
                    ) from None
            else:
                if answer.status < 300 or answer.status in fine or answer.code in fine:
                    self.throttle.went_well()
                    return answer
                code = self.last_error = answer.code
                if answer.status in (429, 503) or code in ("SlowDown", "TooManyRequests"):
                    self.throttle.slow_down()
                if answer.status == 403 and not denied:  # once more, signed afresh and with the store's clock
                    denied = 1
                    self._learn_clock(answer)
                    continue
                if answer.status not in PASSING and code not in PASSING_CODES:
                    raise explain(answer, method, key, self.endpoint)
            wait = random.uniform(0.05, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries - 1, 10)))
            if time.monotonic() + wait > deadline:
                raise Unreachable(
                    f"{self._host} did not take {method} {key or 'a request'}: {self.last_error}",
                    "Check the network and R2_ENDPOINT_URL, then try again",
                )
            if self.stop.wait(wait):
                raise Stopped(f"{method} {key} was given up")

    def _once(self, method, key, query, headers, body, sink, tries) -> Answer:  # type: ignore[no-untyped-def]
        path = quote_path(f"{self._base}/{self.endpoint.bucket}" + (f"/{key}" if key else ""))
        text = query_string(query)
        size = body.bytes if isinstance(body, FilePart) else len(body)
        signed = sign(
            method,
            self._host,
            path,
            text,
            headers,
            access_key=self.endpoint.access_key,
            secret_key=self.endpoint.secret_key,
            session_token=self.endpoint.session_token,
            region=self.endpoint.region,
            now=time.time() - self.skew,
        )
        connection, used = self._take()
        try:
            connection.putrequest(method, f"{path}?{text}" if text else path, skip_host=True, skip_accept_encoding=True)
            for name, value in signed.items():
                connection.putheader(name, value)
            if size or method in ("PUT", "POST"):
                connection.putheader("content-length", str(size))
            try:
                if isinstance(body, FilePart):
                    connection.endheaders()
                    self._send_file(connection, body)
                else:
                    connection.endheaders(body or None)
                cut_short = False
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
                cut_short = True  # an answer may have come before the body was through, e.g. AccessDenied
            try:
                response = connection.getresponse()
            except (ConnectionResetError, BrokenPipeError) as error:  # before a byte of an answer
                if used:
                    raise StaleConnection from error
                raise
            if sink and response.status < 300:
                sink(response)
                answer = Answer(response.status, response.headers, b"", tries)
            else:
                answer = Answer(response.status, response.headers, response.read(), tries)
        except BaseException:
            connection.close()
            raise
        if cut_short:
            connection.close()
        elif connection.sock is not None:
            self._idle.append(connection)
        return answer

    def _send_file(self, connection: http.client.HTTPConnection, part: FilePart) -> None:
        buffer = self.buffer()
        sent = 0
        while sent < part.bytes:
            size = os.preadv(part.fd, [buffer[: min(BLOCK, part.bytes - sent)]], part.offset + sent)
            if not size or Stat.of(part.fd) != part.before:
                raise FileChanged("a file changed while it was being uploaded", "It is uploaded once it is whole")
            if self.stop.is_set():
                raise ConnectionAbortedError("stopped")
            connection.send(buffer[:size])
            sent += size

    def buffer(self) -> memoryview:
        """A buffer of BLOCK bytes of this thread's own."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(bytearray(BLOCK))
        return self._local.buffer

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it has been used before: it may have been closed at the other end since."""
        with suppress(IndexError):
            return self._idle.pop(), True
        connection: http.client.HTTPConnection
        if self._tls and self._proxy:
            netloc, headers = self._proxy
            connection = http.client.HTTPSConnection(netloc, timeout=CONNECT_SECONDS, context=self._tls)
            connection.set_tunnel(self._host, headers=headers)
        elif self._tls:
            connection = http.client.HTTPSConnection(self._host, timeout=CONNECT_SECONDS, context=self._tls)
        else:
            connection = http.client.HTTPConnection(self._host, timeout=CONNECT_SECONDS)
        connection.connect()
        connection.sock.settimeout(READ_SECONDS)
        return connection, False

    def _learn_clock(self, answer: Answer) -> None:
        date = answer.headers.get("date")
        if answer.code == "RequestTimeTooSkewed" and date:
            self.skew = time.time() - email.utils.parsedate_to_datetime(date).timestamp()


def _proxy(host: str) -> tuple[str, dict[str, str]] | None:
    """The proxy that `HTTPS_PROXY` and `NO_PROXY` ask for, and its headers; None for a direct connection."""
    if not (os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")):
        return None
    import urllib.request  # 20 ms that few pay

    url = urllib.request.getproxies()["https"]
    if urllib.request.proxy_bypass(host):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    words = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    headers = {"Proxy-Authorization": f"Basic {base64.b64encode(words).decode()}"} if parts.username else {}
    return parts.netloc.rpartition("@")[2], headers


def explain(answer: Answer, method: str, key: str, endpoint: Endpoint) -> StoreError:
    """The error a person should read for a refused request."""
    code, name = answer.code, key or endpoint.bucket
    if answer.status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict"):
        return Changed(f"{name} is no longer the version that was read")
    if answer.status == 404 and code != "NoSuchBucket":
        return Missing(f"no {name} in bucket {endpoint.bucket}", "`homerun runs` lists what is there")
    what = f"{urlsplit(endpoint.url).netloc} refuses {method} {name}: {answer.status} {code}"
    if answer.status in (401, 403) or code in HINTS:
        fallback = HINTS["Unauthorized"] if answer.status == 401 else HINTS["AccessDenied"]
        return Denied(what, HINTS.get(code, fallback))
    message = re.search(rb"<Message>([^<]*)</Message>", answer.body)
    return Denied(what, message.group(1).decode(errors="replace") if message else "")
