"""What the fake services share: a threaded HTTP server on a free port, a log of requests, and scripted faults."""

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    status: int = 200
    body: Any = b""  # bytes, or something to send as JSON
    headers: dict[str, str] = field(default_factory=dict)
    stream: list[bytes] | None = None  # sent as chunks; the connection just ends after them unless `whole`
    whole: bool = True
    lose: bool = False  # the service did its work, but no answer comes


@dataclass
class Fault:
    method: str
    pattern: str
    reply: Reply
    times: int
    after: bool  # whether the service does its work before the fault


class FakeService:
    """Subclass it with `answer(request) -> Reply`. Use it as a context manager; `url` is its address."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def answer(self, request: Request) -> Reply:
        raise NotImplementedError

    def fail(self, method: str, pattern: str, reply: Reply, times: int = 1, after: bool = False) -> None:
        """Answer the next `times` requests that match with `reply`."""
        self.faults.append(Fault(method, pattern, reply, times, after))

    def count(self, method: str, pattern: str) -> int:
        return sum(r.method == method and re.search(pattern, r.path) is not None for r in self.requests)

    def _handle(self, request: Request) -> Reply:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and fault.method == request.method and re.search(fault.pattern, request.path):
                    fault.times -= 1
                    if fault.after:
                        self.answer(request)
                    return fault.reply
            return self.answer(request)

    def __enter__(self) -> "FakeService":
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _serve(self) -> None:
                parts = urlsplit(self.path)
                query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {key.lower(): value for key, value in self.headers.items()}
                request = Request(self.command, parts.path, query, headers, body)
                reply = service._handle(request)
                if reply.lose:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for key, value in reply.headers.items():
                    self.send_header(key, value)
                if reply.stream is not None:
                    self._stream(reply)
                    return
                data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                if not isinstance(reply.body, bytes) and "Content-Type" not in reply.headers:
                    self.send_header("Content-Type", "application/json")
                if "Content-Length" not in reply.headers:
                    self.send_header("Content-Length", str(len(data)))
                else:
                    self.close_connection = True
                self.end_headers()
                if request.method != "HEAD":
                    self.wfile.write(data)

            def _stream(self, reply: Reply) -> None:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for chunk in reply.stream or []:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
                    time.sleep(0.005)
                if reply.whole:
                    self.wfile.write(b"0\r\n\r\n")
                self.close_connection = True

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = do_HEAD = _serve

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()
