"""Thirty-two clients that come and go for minutes: nothing hangs, nothing leaks, the same seed writes the same text.

    python -m benchmarks.bench_soak [--seconds 180 --clients 32]

`homerun serve` runs as its own process on a tiny random model. Each client, again and again, does one of: read an
answer whole or as a stream; hang up midway; read slowly; send garbage, too much, a wrong token or a path that leads
out. Told are the answers by status, and memory, threads and open files of the server after a warm-up and at the end.
They all come from one address, which has 20 requests a second: most 429s are that limit's.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.serve_tree import make_tree

TOKEN = "soak-token-canary-0123456789"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
KINDS = ("whole", "stream", "stream", "leave", "leave", "slow", "garbage", "oversized", "wrong token", "traversal")
REFUSED = {"garbage": 400, "oversized": 413, "wrong token": 401, "traversal": 404}


@dataclass
class Seen:
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    texts: dict[int, set[str]] = field(default_factory=dict)  # by seed
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds of a request that nobody slowed down


async def client(http: httpx.AsyncClient, number: int, until: float, seen: Seen) -> None:
    rng = random.Random(number)
    while time.monotonic() < until:
        kind, seed, begun = rng.choice(KINDS), rng.randrange(8), time.monotonic()
        try:
            code = await request(http, kind, seed, rng, seen)
        except httpx.HTTPError as error:
            seen.wrong.append(f"{kind}: {type(error).__name__}")
            continue
        seen.codes[kind, code] += 1
        if code not in (REFUSED.get(kind, 200), 429):
            seen.wrong.append(f"{kind}: {code}")
        if kind != "slow":
            seen.slowest = max(seen.slowest, time.monotonic() - begun)
        if code == 429:
            await asyncio.sleep(rng.uniform(0, 3))


async def request(http: httpx.AsyncClient, kind: str, seed: int, rng: random.Random, seen: Seen) -> int:
    """One request of this kind; its status."""
    path = "/v1/chat/completions"
    if kind == "garbage":
        return (await http.post(path, content=rng.randbytes(99), headers=HEADERS)).status_code
    if kind == "oversized":
        return (await http.post(path, content=bytes(1_100_000), headers=HEADERS)).status_code
    if kind == "wrong token":
        return (await http.get("/v1/models", headers={"Authorization": "Bearer wrong"})).status_code
    if kind == "traversal":
        return (await http.get("/static/%2e%2e/app.py", headers=HEADERS)).status_code
    body = {"messages": [{"role": "user", "content": f"the quick fox {seed}?"}], "seed": seed, "max_tokens": 60}
    if kind == "whole":
        answer = await http.post(path, json=body, headers=HEADERS)
        if answer.status_code == 200:
            seen.texts.setdefault(seed, set()).add(answer.json()["choices"][0]["message"]["content"])
        return answer.status_code
    text, left = "", rng.randrange(1, 30) if kind == "leave" else 10**6
    async with http.stream("POST", path, json={**body, "stream": True}, headers=HEADERS) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            left -= 1
            if left < 0:
                return stream.status_code
            if kind == "slow":
                await asyncio.sleep(0.02)
        if stream.status_code == 200:
            seen.texts.setdefault(seed, set()).add(text)
        return stream.status_code


async def soak(url: str, clients: int, seconds: float) -> Seen:
    seen, until = Seen(), time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=clients)) as http:
        await asyncio.gather(*(client(http, number, until, seen) for number in range(clients)))
    return seen


def figures(process: psutil.Process) -> dict[str, int]:
    memory = process.memory_full_info().uss
    return {"MB": memory // 1_000_000, "threads": process.num_threads(), "files": process.num_fds()}


def run(folder: Path, clients: int, seconds: float) -> tuple[Seen, dict[str, int], dict[str, int], str]:
    """(what the clients saw, the server's figures after a tenth of the time, and at the end, and its log)."""
    log = folder / "log"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HOMERUN")}
    command = [sys.executable, "-m", "homerun", "serve", str(make_tree(folder / "tree")), "--port", "0"]
    with log.open("wb") as err:
        server = subprocess.Popen(
            [*command, "--device", "cpu"], env={**environ, "HOMERUN_SERVE_TOKEN": TOKEN}, stdout=err, stderr=err
        )
    try:
        while "http://" not in (said := log.read_text()):
            assert server.poll() is None, said
            time.sleep(0.05)
        url = said.split(" at ")[1].split("/chat")[0]
        process = psutil.Process(server.pid)
        asyncio.run(soak(url, clients, seconds / 10))
        before = figures(process)
        seen = asyncio.run(soak(url, clients, seconds))
        patience = time.monotonic() + 20  # connections that were just closed
        while process.num_fds() > before["files"] and time.monotonic() < patience:
            time.sleep(0.1)
        after = figures(process)
        assert httpx.get(f"{url}/healthz").status_code == 200
    finally:
        server.terminate()
        server.wait()
    return seen, before, after, log.read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen, before, after, log = run(Path(folder), arguments.clients, arguments.seconds)
    for (kind, code), many in sorted(seen.codes.items()):
        print(f"{kind:12} {code} {many:6}")
    print(f"wrong: {seen.wrong[:5] or 'nothing'}; the slowest request {seen.slowest:.1f} s")
    print(f"texts of {len(seen.texts)} seeds: {sorted(len(texts) for texts in seen.texts.values())} each")
    print(f"server before {before}, after {after}; its token in its log: {TOKEN in log}")


if __name__ == "__main__":
    main()
