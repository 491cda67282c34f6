"""The bucket at sizes that no test reaches: 100,000 small files, a sparse 100 GB checkpoint, 1,000 checkpoints.

    python -m benchmarks.bench_scale [--gib 100] [--files 100000] [--checkpoints 1000] [--only files]

The store is a sink that reads and forgets (a process of its own), so that what is measured is us: seconds, CPU seconds,
and the peak of resident memory, each part in a process of its own. Files go in groups of 1,000; every checkpoint is a
model and an optimizer group, and retention runs after each.
"""

import argparse
import heapq
import http.server
import json
import multiprocessing
import os
import re
import resource
import socketserver
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from homerun.bucket.landing import Landing
from homerun.bucket.outbox import Request, describe
from homerun.bucket.s3 import S3Store
from homerun.bucket.wire import Endpoint

GROUP = 1000


class Sink(http.server.BaseHTTPRequestHandler):
    """As much of S3 as an upload needs. Remembers sizes; keeps only manifest and control files' bytes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    sizes: dict[str, int] = {}  # noqa: RUF012 (one a process)
    small: dict[str, bytes] = {}  # noqa: RUF012
    buffer = bytearray(1 << 20)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        parts = urlsplit(self.path)
        left = size = int(self.headers["content-length"])
        if parts.path.endswith((".json", "_SUCCESS")):
            self.small[parts.path] = self.rfile.read(size)
        else:
            while left and (got := self.rfile.readinto(memoryview(self.buffer)[: min(left, len(self.buffer))])):
                left -= got
        base = parts.path if not parts.query else f"{parts.path}?{parse_qs(parts.query)['uploadId'][0]}"
        self.sizes[base] = size + (self.sizes.get(base, 0) if parts.query else 0)
        self._answer(200, ETag='"sunk"')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = urlsplit(self.path)
        if "uploads" in parts.query:
            self._answer(200, b"<R><UploadId>u</UploadId></R>")
        else:
            self.sizes[parts.path] = self.sizes.pop(f"{parts.path}?u")
            self._answer(200, b"<R><ETag>sunk</ETag></R>")

    def do_HEAD(self) -> None:
        size = self.sizes.get(self.path)
        if size is None:
            return self._answer(404)
        self._answer(200, ETag='"sunk"', Content_Length=str(size))

    def do_GET(self) -> None:
        data = self.small.get(self.path)
        if "uploads" in self.path:
            return self._answer(200, b"<R></R>")
        if "list-type" in self.path:
            return self._answer(200, self._listing())
        self._answer(404 if data is None else 200, data or b"<Code>NoSuchKey</Code>", ETag='"sunk"')

    def _listing(self) -> bytes:
        query = parse_qs(urlsplit(self.path).query)
        bucket = urlsplit(self.path).path + "/"
        after = bucket + (query.get("continuation-token") or query["start-after"])[0]
        keys = [key for key in self.sizes if key > after]
        page = heapq.nsmallest(1000, keys)
        items = "".join(
            f"<Contents><Key>{key.removeprefix(bucket)}</Key><Size>{self.sizes[key]}</Size><ETag>sunk</ETag>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key in page
        )
        token = page[-1].removeprefix(bucket) if page else ""
        more = str(len(keys) > len(page)).lower()
        return (
            f"<R>{items}<IsTruncated>{more}</IsTruncated><NextContinuationToken>{token}</NextContinuationToken></R>"
        ).encode()

    def do_DELETE(self) -> None:
        self.sizes.pop(self.path, None)
        self._answer(204)


class Threads(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


def serve(pipe) -> None:  # type: ignore[no-untyped-def]
    server = Threads(("127.0.0.1", 0), Sink)
    pipe.send(server.server_address[1])
    server.serve_forever()


def landing(port: int, folder: Path) -> Landing:
    store = S3Store(Endpoint(f"http://127.0.0.1:{port}", "sink", "key", "secret"))
    found = Landing(store, f"run-{os.getpid()}", folder, 1, keep_last=2, spacing=0)
    found.open()
    return found


def sparse(port: int, folder: Path, gib: int) -> dict[str, float]:
    with open(folder / "model.pt", "wb") as file:
        os.truncate(file.fileno(), gib << 30)
    found = landing(port, folder)
    (receipt,) = found.land([Request(1, "artifact", "model", (describe(folder, "model.pt", "model.pt"),))])
    assert receipt.ok
    return {"GiB": gib}


def files(port: int, folder: Path, count: int) -> dict[str, float]:
    for number in range(count):
        (folder / f"{number:06d}").write_bytes(b"%d" % number)
    begun = time.perf_counter()
    found = landing(port, folder)

    def offers() -> Iterator[Request]:
        for start in range(0, count, GROUP):
            names = [f"{number:06d}" for number in range(start, start + GROUP)]
            yield Request(start, "artifact", f"g{start}", tuple(describe(folder, name, name) for name in names))

    for request in offers():
        assert found.land([request])[0].ok
    landed = time.perf_counter()
    for request in offers():
        assert found.land([request])[0].ok
    return {
        "files": count,
        "landing s": round(landed - begun, 1),
        "no-change scan s": round(time.perf_counter() - landed, 2),
        "manifest MB": round(len(found.manifest.to_json()) / 1e6, 1),
    }


def checkpoints(port: int, folder: Path, count: int) -> dict[str, float]:
    found = landing(port, folder)
    for name in ("model", "optim"):
        (folder / name).write_bytes(os.urandom(4096))
    times, most = [], 0
    for step in range(count):
        begun = time.perf_counter()
        for seq, (name, keep) in enumerate((("model", "checkpoint"), ("optim", "optimizer"))):
            key = f"base_checkpoints/d20/{name}_{step:06d}.pt"
            group = f"base_checkpoints/d20/{step:06d}" + (".optim" if name == "optim" else "")
            file = describe(folder, name, key)
            request = Request(2 * step + seq, "artifact", group, (file,), "base_train", keep, step, abs(step - 500.0))
            assert found.land([request])[0].ok
        times.append(time.perf_counter() - begun)
        most = max(most, len(found.manifest.entries))
    tenth = count // 10
    return {
        "checkpoints": count,
        "most entries at once": most,
        "ms each, first tenth": round(1000 * sum(times[:tenth]) / tenth, 1),
        "ms each, last tenth": round(1000 * sum(times[-tenth:]) / tenth, 1),
    }


def part(pipe, work: Callable[..., dict[str, float]], port: int, size: int) -> None:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun = time.perf_counter()
        result = work(port, Path(folder), size)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
        peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        result |= {"s": round(time.perf_counter() - begun, 1), "CPU s": round(cpu, 1)}
        result |= {"peak MiB": int(peak.group(1)) >> 10 if peak else 0}
        pipe.send(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, default=100)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--only", default="sparse,files,checkpoints")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    sink = context.Process(target=serve, args=(theirs,), daemon=True)
    sink.start()
    port = mine.recv()
    for work, sizes in (
        (sparse, (max(1, options.gib // 10), options.gib)),
        (files, (max(GROUP, options.files // 10), options.files)),
        (checkpoints, (max(10, options.checkpoints // 10), options.checkpoints)),
    ):
        for size in sizes if work.__name__ in options.only else ():
            child = context.Process(target=part, args=(theirs, work, port, size))
            child.start()
            while child.is_alive() and not mine.poll(0.2):
                pass
            print(work.__name__, json.dumps(mine.recv() if mine.poll(1) else {"failed": child.exitcode}), flush=True)
            child.join()
    sink.terminate()


if __name__ == "__main__":
    main()
