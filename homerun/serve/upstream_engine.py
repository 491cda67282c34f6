"""Serve a checkpoint with the run's own upstream code at the run's own commit, in a process of its own.

A checkpoint means what the code that trained it says: one commit's does not load in another's, or loads and means
something else. The child (upstream_child.py) is started again when it dies; its answers then fail, none hangs. When it
cannot be started again the engine is no longer alive, and whoever holds it makes a new one.
"""

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from homerun.errors import RequestError
from homerun.serve.checkpoints import Checkpoint, load_tokenizer
from homerun.serve.generation import Busy, EngineDied, Generation, deliver
from homerun.serve.sampling import Sampling

log = logging.getLogger(__name__)

QUEUE = 32  # answers, those being written included
START_SECONDS = 600.0  # torch's import and several GB from a cold disk
STUCK_SECONDS = 120.0  # without a token while answers are being written
CHILD = (Path(__file__).parent / "upstream_child.py").read_text()
PASSED = ("PATH", "HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "HF_HOME")


class UpstreamEngine:
    """checkout: upstream's working tree at the commit that trained the checkpoint."""

    can_top_p = False

    def __init__(self, checkpoint: Checkpoint, checkout: Path):
        self._checkpoint, self._checkout = checkpoint, checkout
        self.tokenizer = load_tokenizer(checkpoint.tree)
        self.context: int = checkpoint.meta()["model_config"]["sequence_len"]
        self.made = 0
        self._lock = threading.Lock()
        self._open: dict[int, Generation] = {}
        self._number = 0
        self._closed = False
        self._logits: list[float] | None = None
        self._heard = threading.Condition(self._lock)
        self._child = self._start()
        threading.Thread(target=self._run, name="upstream", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._closed

    @property
    def pid(self) -> int:
        """The child's."""
        return self._child.pid

    def submit(self, prompt: list[int], sampling: Sampling) -> Generation:
        with self._lock:
            if self._closed:
                raise EngineDied("this model is being unloaded")
            if len(self._open) >= QUEUE:
                raise Busy
            self._number += 1
            number = self._number
            generation = Generation(prompt, sampling, on_cancel=lambda: self._cancel(number))
            self._open[number] = generation
            self._ask(number, generation)
        return generation

    def logits(self, tokens: list[int]) -> list[float]:
        """The model's logits after `tokens`. EngineDied when none come."""
        with self._lock:
            self._logits = None
            self._say(logits=tokens)
            if not self._heard.wait_for(lambda: self._logits is not None, STUCK_SECONDS) or self._logits is None:
                raise EngineDied("upstream's model gave no logits")
            return self._logits

    def stats(self) -> dict[str, int]:
        return {"running": len(self._open), "queued": 0, "tokens": self.made}

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._child.kill()
        self._child.wait()

    # -- the child -------------------------------------------------------------------------------------------------

    def _start(self) -> subprocess.Popen[bytes]:
        """A child that is ready. RequestError, with its last words, where it cannot be."""
        c = self._checkpoint
        own = self._checkout / ".venv/bin/python"
        environ = {name: os.environ[name] for name in PASSED if name in os.environ}
        environ |= {"NANOCHAT_BASE_DIR": str(c.tree.resolve()), "PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(
            [str(own if own.exists() else sys.executable), "-c", CHILD, c.stage, c.tag, str(c.step)],
            cwd=self._checkout,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        words: list[str] = []
        threading.Thread(target=self._hear, args=(child, words), daemon=True).start()
        assert child.stdout
        if select.select([child.stdout], [], [], START_SECONDS)[0] and child.stdout.readline():
            return child
        child.kill()
        child.wait()
        time.sleep(0.1)  # its last words are on their way
        said = next((line for line in reversed(words) if line.strip()), "it said nothing")
        raise RequestError(
            f"upstream's code in {self._checkout} cannot serve {c.id}: {said.strip()}",
            "Name the checkout of the commit that trained it",
        )

    @staticmethod
    def _hear(child: subprocess.Popen[bytes], words: list[str]) -> None:
        assert child.stderr
        for line in child.stderr:
            words[:] = [*words[-20:], line.decode("utf-8", "replace")]

    def _run(self) -> None:
        """Read what the child says; start it again when it dies or gets stuck."""
        while not self._closed:
            self._listen()
            self._child.kill()
            code = self._child.wait()
            self._fail("the model's process died; it starts again")
            if self._closed:
                return
            log.warning("upstream's process ended with %d; starting it again", code)
            try:
                child = self._start()
            except RequestError as error:
                log.error("%s", error)
                self._closed = True
                self._fail("the model's process died and did not start again")
                return
            with self._lock:
                self._child = child
                for number, generation in self._open.items():  # came while it started
                    self._ask(number, generation)

    def _fail(self, why: str) -> None:
        with self._lock:
            lost, self._open = list(self._open.values()), {}
        deliver((generation, EngineDied(why)) for generation in lost)

    def _listen(self) -> None:
        stream = self._child.stdout
        assert stream
        heard = time.monotonic()
        buffer = b""
        while True:
            if not select.select([stream], [], [], 1.0)[0]:
                if not self._open:
                    heard = time.monotonic()
                elif time.monotonic() - heard > STUCK_SECONDS:
                    return
                continue
            data = os.read(stream.fileno(), 1 << 16)
            if not data:
                return
            heard = time.monotonic()
            *lines, buffer = (buffer + data).split(b"\n")
            self._take([json.loads(line) for line in lines])

    def _take(self, messages: list[dict[str, Any]]) -> None:
        news: list[tuple[Generation, int | str | Exception]] = []
        with self._lock:
            for message in messages:
                if "logits" in message:
                    self._logits = message["logits"]
                    self._heard.notify_all()
                elif (generation := self._open.get(message["id"])) is not None:
                    if "token" in message:
                        self.made += 1
                        news.append((generation, message["token"]))
                    else:
                        del self._open[message["id"]]
                        news.append((generation, message["end"]))
        deliver(news)

    def _cancel(self, number: int) -> None:
        with self._lock:
            if self._open.pop(number, None) is not None:
                self._say(cancel=number)

    def _ask(self, number: int, generation: Generation) -> None:
        s = generation.sampling
        request = {"id": number, "prompt": generation.prompt, "max_tokens": s.max_tokens, "seed": s.seed}
        self._say(**request, temperature=s.temperature, top_k=s.top_k)

    def _say(self, **message: Any) -> None:
        assert self._child.stdin
        with contextlib.suppress(BrokenPipeError):  # it has just died; _run sees it
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()
