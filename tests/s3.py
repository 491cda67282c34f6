"""A real S3 server for tests (`weed mini`, one process, free ports) and a proxy in front of it that breaks things.

`with serve(folder) as server:` gives endpoint, keys and a bucket; `with FaultProxy(server.endpoint) as proxy:` gives
`proxy.endpoint`, through which `proxy.faults` decide what happens to each request.
"""

import contextlib
import http.client
import http.server
import json
import os
import random
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from homerun.bucket.s3 import S3Store
from homerun.bucket.wire import Endpoint
from homerun.settings import Settings

WEED = Path(sys.executable).with_name("weed")
ACTIONS = {
    "full": ["Admin", "Read", "List", "Tagging", "Write"],
    "read": ["Read", "List"],
    "scoped": ["Read:runs/scoped/*", "List:runs/scoped/*", "Write:runs/scoped/*"],  # one run's folder
}
KEYS = {name: (f"{name}-key", f"{name}-secret-key") for name in ACTIONS}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, and whose number plus 10,000 (weed's gRPC twin) is free too."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20000, 32000)
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


@dataclass
class Server:
    """A running S3 server with one bucket. kill/start keep its data."""

    dir: Path
    bucket: str = "runs"
    access_key: str = KEYS["full"][0]
    secret_key: str = KEYS["full"][1]
    ports: list[int] = field(default_factory=lambda: free_ports(5))
    process: subprocess.Popen | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        self.dir.mkdir(parents=True, exist_ok=True)
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ACTIONS[name]}
            for name, (key, secret) in KEYS.items()
        ]
        config = self.dir / "s3.json"
        config.write_text(json.dumps({"identities": identities}))
        s3, master, volume, filer, admin = self.ports
        command = [
            str(WEED), "mini", f"-dir={self.dir / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}",
            f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-admin.port={admin}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}", "-master.telemetry=false",
            "-admin.ui=false", "-webdav=false", "-debug=false",
        ]  # fmt: skip
        (self.dir / "data").mkdir(exist_ok=True)
        with open(self.dir / "weed.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.dir, start_new_session=True
            )
        self._wait()

    def _wait(self) -> None:
        store = self.store(patience=1)
        for _ in range(240):
            assert self.process and self.process.poll() is None, (self.dir / "weed.log").read_text()[-2000:]
            with contextlib.suppress(Exception):
                store.wire.request("PUT", fine=(409,), patience=0.5)  # the bucket
                store.put("_ready", b"ready")
                store.delete(["_ready"])
                return
            time.sleep(0.25)
        raise TimeoutError((self.dir / "weed.log").read_text()[-2000:])

    def kill(self) -> None:
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def vacuum(self) -> None:
        """Give the space of deleted objects back to the disk; by itself it does so every quarter of an hour."""
        urllib.request.urlopen(f"http://127.0.0.1:{self.ports[1]}/vol/vacuum?garbageThreshold=0.01", timeout=60).read()

    def store(self, endpoint: str | None = None, bucket: str | None = None, patience: float = 60.0, keys: str = "full"):
        access, secret = KEYS[keys]
        return S3Store(Endpoint(endpoint or self.endpoint, bucket or self.bucket, access, secret), patience=patience)

    def environ(self, endpoint: str | None = None) -> dict[str, str]:
        return {
            "R2_ACCESS_KEY_ID": self.access_key,
            "R2_SECRET_ACCESS_KEY": self.secret_key,
            "R2_ENDPOINT_URL": endpoint or self.endpoint,
            "R2_BUCKET_NAME": self.bucket,
        }

    def settings(self, dir: Path, endpoint: str | None = None, **more: str) -> Settings:
        return Settings.load({"HOMERUN_DIR": str(dir), **self.environ(endpoint), **more})


@contextlib.contextmanager
def serve(dir: Path) -> Iterator[Server]:
    server = Server(dir)
    for last in (False, False, True):
        try:
            server.start()
            break
        except (AssertionError, TimeoutError):  # another process took one of the ports meanwhile
            server.kill()
            if last:
                raise
            server.ports = free_ports(5)
    try:
        yield server
    finally:
        server.kill()


@dataclass
class Seen:
    """One request that passes the proxy, as a fault sees it."""

    method: str
    path: str
    query: str
    number: int  # how many came before it


# A fault gets a request and answers with what to do: None (pass it on), or one of
#   ("status", 503, "SlowDown"): answer so, without passing it on
#   ("reset", n): close the connection after n bytes of the request's body
#   ("truncate", n): close it after n bytes of the answer's body
#   ("flip-up",) / ("flip-down",): flip one bit of the request's / the answer's body
#   ("lose",): pass it on, and close the connection instead of answering
Fault = Callable[[Seen], tuple | None]


class FaultProxy:
    """An HTTP proxy to `upstream`; `fault` may be set at any time. `seen`: the requests; `body_bytes`: uploaded."""

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None):
        self.upstream, self.fault = urlsplit(upstream), None
        self.seen: list[Seen] = []
        self.body_bytes = 0
        self.lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

            def __getattr__(self, name: str):  # do_GET, do_PUT …
                if name.startswith("do_"):
                    return lambda: proxy._pass(self)
                raise AttributeError(name)

        class Threads(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self.server = Threads(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _pass(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        with self.lock:
            seen = Seen(handler.command, parts.path, parts.query, len(self.seen))
            self.seen.append(seen)
            action = (self.fault(seen) if self.fault else None) or ("pass",)
        size = int(handler.headers.get("content-length") or 0)
        if action[0] == "reset":
            handler.rfile.read(min(size, action[1]))
            return self._drop(handler)
        body = bytearray(handler.rfile.read(size))
        with self.lock:
            self.body_bytes += len(body)
        if action[0] == "status":
            status, code = action[1:3]
            xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
            return self._answer(handler, status, [("Content-Type", "application/xml")], xml)
        if action[0] == "flip-up" and body:
            body[len(body) // 2] ^= 1
        connection = http.client.HTTPConnection(self.upstream.netloc, timeout=60)
        try:
            connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                connection.putheader(name, value)
            connection.endheaders(bytes(body) or None)
            response = connection.getresponse()
            data = bytearray(response.read())
        except (OSError, http.client.HTTPException):
            return self._drop(handler)
        finally:
            connection.close()
        if action[0] == "lose":
            return self._drop(handler)
        if action[0] == "flip-down" and data:
            data[len(data) // 2] ^= 1
        headers = [(n, v) for n, v in response.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
        cut = action[1] if action[0] == "truncate" else None
        self._answer(handler, response.status, headers, bytes(data), cut)

    def _answer(self, handler, status: int, headers: list, data: bytes, cut: int | None = None) -> None:
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or handler.command == "HEAD":
                handler.send_header(name, value)
        if handler.command != "HEAD":
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self._drop(handler)

    def _drop(self, handler) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)
