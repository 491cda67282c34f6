"""Our server against upstream's own chat_web, on one machine, with one checkpoint, in turns.

    python -m benchmarks.bench_serve --upstream PATH_OR_URL [--layers 12 --width 768 --users 16 --rounds 3]

The checkpoint is random and of October 2025's architecture, which our own engine and chat_web at 7031985 can serve.
With --commit (b4e6763 has the last chat_web) it is that commit's, made by its code, and we serve it with that code in a
child process. Both are asked over HTTP for streamed answers of the same length (the weights never end one), at
temperature 0.8 and top k 50. Rounds alternate, so that whatever else the machine does hits both. Told are tokens a
second in all, the median time to the first token, and memory: when loaded, and added for each user.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import httpx
import psutil
import torch

from homerun.serve.checkpoints import load_tokenizer
from homerun.trainer.corpus import topics
from homerun.trainer.model import GPT, GPTConfig
from homerun.trainer.tokenizer import Tokenizer

COMMIT = "70319851fc960bc472ac7cfe9518c9478ada402e"
TOKEN = "bench-token"
SILENT = ("<|assistant_end|>", "<|bos|>", "<|python_start|>")  # never among the likeliest 50
WORDS = "Tell me about the module that parses arguments, what it is for and how it is used, please, number "


def make_tree(base: Path, layers: int, width: int) -> Path:
    tokenizer = Tokenizer.train((document.text for document in topics()), 4096)
    tokenizer.save(base / "tokenizer")
    torch.save(torch.tensor(tokenizer.token_lengths(), dtype=torch.int32), base / "tokenizer/token_bytes.pt")
    heads = max(1, width // 64)
    config = GPTConfig(1024, tokenizer.vocab_size, layers, heads, heads, width)
    torch.manual_seed(0)
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    for name in SILENT:
        model.lm_head.weight.data[tokenizer.special(name)] = 0
    folder = base / f"chatsft_checkpoints/d{layers}"
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "model_000001.pt")
    (folder / "meta_000001.json").write_text(json.dumps({"step": 1, "model_config": asdict(config)}))
    print(f"model: {model.num_params() / 1e6:.0f}M parameters, {layers} layers of {width}, float32", file=sys.stderr)
    return base


# What `make_tree` does, by upstream's code at a later commit: FOLDER STEP LAYERS WIDTH VOCABULARY SILENT,TOKEN,IDS
THEIRS = """
import json, sys, torch
from dataclasses import asdict
from pathlib import Path
from nanochat.gpt import GPT, GPTConfig
folder, step, layers, width, vocabulary = Path(sys.argv[1]), *map(int, sys.argv[2:6])
heads = max(1, width // 64)
config = GPTConfig(1024, vocabulary, layers, heads, heads, width, window_pattern="L")
torch.manual_seed(0)
model = GPT(config)
model.init_weights()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.05)
for token in sys.argv[6].split(","):
    model.lm_head.weight.data[int(token)] = 0
torch.save(model.state_dict(), folder / f"model_{step:06d}.pt")
(folder / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "model_config": asdict(config)}))
"""


def remake(folder: Path, step: int, layers: int, width: int, src: Path) -> None:
    """A checkpoint in `folder`, of a tree with a tokenizer, in the architecture of the checkout `src`."""
    tokenizer = load_tokenizer(folder.parent.parent)
    silent = ",".join(str(tokenizer.special(name)) for name in SILENT)
    shape = [str(number) for number in (step, layers, width, tokenizer.vocab_size)]
    subprocess.run([sys.executable, "-c", THEIRS, folder, *shape, silent], cwd=src, check=True)


@dataclass
class Server:
    name: str
    process: subprocess.Popen[bytes]
    url: str
    path: str

    def memory(self) -> int:
        """Bytes that this process and its children have for themselves."""
        process = psutil.Process(self.process.pid)
        return sum(one.memory_full_info().uss for one in (process, *process.children(recursive=True)))


def start(name: str, command: list[str], path: str, port: int, cwd: Path | None, environ: dict[str, str]) -> Server:
    log = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **environ}, stdout=log, stderr=log)
    server = Server(name, process, f"http://127.0.0.1:{port}", path)
    for _ in range(600):
        try:
            httpx.get(f"{server.url}/healthz")
            return server
        except httpx.TransportError:
            if process.poll() is not None:
                log.seek(0)
                raise SystemExit(f"{name} did not start: {log.read().decode()[-800:]}") from None
            time.sleep(0.2)
    raise SystemExit(f"{name} did not start")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def one(client: httpx.AsyncClient, server: Server, user: int, tokens: int) -> tuple[float, float]:
    """(seconds to the first text, seconds in all)."""
    body = {"messages": [{"role": "user", "content": WORDS + str(user)}], "stream": True}
    body |= {"max_tokens": tokens, "temperature": 0.8, "top_k": 50}
    begun = time.perf_counter()
    first = 0.0
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with client.stream("POST", server.url + server.path, json=body, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not first and re.search(r'"(token|content)": "[^"]', line):
                first = time.perf_counter() - begun
    return first, time.perf_counter() - begun


async def ask(server: Server, users: int, tokens: int) -> tuple[float, float]:
    """(tokens a second of all users together, median seconds to the first text)."""
    limits = httpx.Limits(max_connections=users)
    async with httpx.AsyncClient(timeout=1200, limits=limits) as client:
        begun = time.perf_counter()
        answers = await asyncio.gather(*(one(client, server, user, tokens) for user in range(users)))
        return users * tokens / (time.perf_counter() - begun), median(first for first, _ in answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="a clone of karpathy/nanochat, or its URL")
    parser.add_argument("--commit", default=COMMIT)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        tree = make_tree(base / "tree", arguments.layers, arguments.width)
        src = base / "src"
        subprocess.run(["git", "clone", "-q", "--no-checkout", arguments.upstream, src], check=True)
        subprocess.run(["git", "checkout", "-q", arguments.commit], cwd=src, check=True)
        ours_more, web_more = [], ["-d", "float32"]
        if arguments.commit != COMMIT:
            folder = tree / f"chatsft_checkpoints/d{arguments.layers}"
            remake(folder, 1, arguments.layers, arguments.width, src)
            ours_more, web_more = ["--upstream", str(src)], []
        ports = free_port(), free_port()
        web = [sys.executable, "-m", "scripts.chat_web", "-i", "sft", "-p", str(ports[1]), *web_more]
        ours = [sys.executable, "-m", "homerun", "serve", str(tree), "--port", str(ports[0]), *ours_more]
        servers = [
            start("homerun", ours, "/v1/chat/completions", ports[0], None, {"HOMERUN_SERVE_TOKEN": TOKEN}),
            start("chat_web", web, "/chat/completions", ports[1], src, {"NANOCHAT_BASE_DIR": str(tree)}),
        ]
        try:
            measure(servers, arguments.users, arguments.tokens, arguments.rounds)
        finally:
            for server in servers:
                server.process.terminate()
                server.process.wait()


def measure(servers: list[Server], users: int, tokens: int, rounds: int) -> None:
    for server in servers:
        asyncio.run(ask(server, 1, 8))  # the model is loaded now
    loaded = {server.name: server.memory() for server in servers}
    figures: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for round in range(rounds):
        for many in (1, users):
            for server in servers if round % 2 == 0 else servers[::-1]:
                speed, first = asyncio.run(ask(server, many, tokens))
                figures.setdefault((server.name, many), []).append((speed, first))
                print(f"round {round + 1}: {server.name:9} {many:3} users {speed:8.1f} tok/s", file=sys.stderr)
    print(f"{'':10}{'users':>6}{'tok/s':>9}{'first text':>12}")
    for (name, many), rows in figures.items():
        print(f"{name:10}{many:6}{median(r[0] for r in rows):9.1f}{median(r[1] for r in rows):10.3f} s")
    for many in (1, users):
        a, b = (median(r[0] for r in figures[server.name, many]) for server in servers)
        c, d = (median(r[1] for r in figures[server.name, many]) for server in servers)
        print(f"{many} users: {a / b:.2f}× the tokens a second, first text after {c / d:.2f}× the time")
    for server in servers:
        added = (server.memory() - loaded[server.name]) / users
        print(f"{server.name}: {loaded[server.name] / 1e6:.0f} MB loaded, {added / 1e6:+.1f} MB a user")


if __name__ == "__main__":
    main()
