"""The live page of a long run: 100,000 steps in the journal, a log of 1 GB.

    python -m benchmarks.bench_page [--steps 100000 --log-bytes 1000000000]

The web process is the job's own (`python -m homerun.web`); the page is opened in a headless Chromium, where one is.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from homerun.journal import Journal
from homerun.web.server import listen

TOKEN = "bench-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
LOG = "logs/a01/0001-base_train.log"
WATCHED = 10.0  # seconds for which an open page is left alone


def make_run(folder: Path, steps: int, log_bytes: int) -> None:
    (folder / "logs/a01").mkdir(parents=True)
    journal = Journal(folder / "journal.jsonl", 1)
    journal.emit("run.begin", run="bench-run", recipe="speedrun", bucket="s3://models", version="0")
    journal.emit("attempt.begin", machine={"host": "box", "gpus": []}, nproc=8, price_usd_per_hour=24.0)
    journal.emit("phase.begin", phase="base_train", name="base_train", line=1, argv=["torchrun"], log=LOG)
    for step in range(steps):
        figures = {"loss": 3 + 6 / (1 + step / 500), "tok_per_sec": 1_092_000, "mfu": 47.9, "dt_ms": 480.0}
        journal.emit("step", phase="base_train", step=step, total=2 * steps, **figures)
    journal.close()
    line = b"step %08d | loss: 3.141593 | lrm: 1.00 | dt: 480.00ms | tok/sec: 1,092,000 | mfu: 47.90\n"
    lines = b"".join(line % number for number in range(100_000))
    with (folder / LOG).open("wb") as file:
        while file.tell() < log_bytes:
            file.write(lines)
        file.write(b"the NEEDLE at the end\n")


def timed(what: str, action: Callable[[], str]) -> None:
    begin = time.perf_counter()
    told = action()
    print(f"{what}: {time.perf_counter() - begin:.3f} s {told}".rstrip(), flush=True)


def measure(url: str, process: psutil.Process, steps: int) -> None:
    http = httpx.Client(base_url=url, headers=HEADERS, timeout=60)

    def folded() -> str:
        while http.get("/api/run").json()["last"].get("step") != steps - 1:
            time.sleep(0.2)
        return f"({process.cpu_times().user + process.cpu_times().system:.1f} CPU s since its start)"

    def sized(path: str, **query: str | int) -> Callable[[], str]:
        return lambda: f"({len(http.get(path, params=query).content) / 1000:.0f} kB)"

    def search() -> str:
        offset, asked = 0, 0
        while offset is not None:
            found = http.get("/api/log/search", params={"name": LOG, "q": "needle", "offset": offset}).json()
            offset, asked = found["next"], asked + 1
        return f"({len(found['hits'])} hit, {asked} requests)"

    timed("the journal is folded", folded)
    timed("/api/run", sized("/api/run"))
    timed("/api/curves", sized("/api/curves"))
    timed("the log's last 64 kB", sized("/api/log", name=LOG, offset=-65536))
    timed("64 kB from its middle", sized("/api/log", name=LOG, offset=500_000_000, limit=65536))
    timed("a search through all of it", search)
    print(f"web process: {process.memory_full_info().uss / 1e6:.0f} MB")


def browse(url: str, process: psutil.Process, chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}/login#token={TOKEN}")
        page.wait_for_selector("#tiles .tile")
        begin = time.perf_counter()
        page.goto(url)
        page.wait_for_selector("#plots .reading:not(:empty)")
        page.wait_for_selector("#log:not(:empty)")
        print(f"Chromium, until curves and log are there: {time.perf_counter() - begin:.2f} s")
        asked.clear()
        busy = sum(process.cpu_times()[:2])
        page.wait_for_timeout(WATCHED * 1000)
        busy = sum(process.cpu_times()[:2]) - busy
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
        told = f"{len(asked)} requests, {100 * busy / WATCHED:.1f} % of a core here, {heap:.0f} MB of JavaScript there"
        print(f"an open page, for {WATCHED:.0f} s: {told}")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--log-bytes", type=int, default=1_000_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, listen("127.0.0.1", 0) as listener:
        make_run(Path(folder), arguments.steps, arguments.log_bytes)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        web = subprocess.Popen(
            [sys.executable, "-m", "homerun.web", folder, "--fd", str(listener.fileno())],
            env={**os.environ, "HOMERUN_SERVE_TOKEN": TOKEN},
            pass_fds=[listener.fileno()],
        )
        try:
            process = psutil.Process(web.pid)
            measure(url, process, arguments.steps)
            if chromium := shutil.which("chromium"):
                browse(url, process, chromium)
        finally:
            web.terminate()
            web.wait()


if __name__ == "__main__":
    main()
