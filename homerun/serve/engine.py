"""Our engine: continuous batching over one model, on a thread of its own.

Every turn of the loop takes in requests that fit, reads at most one chunk of prompts (least recently served first, so
a long prompt delays nobody by more than one chunk), and writes one token of every running answer in one pass.
"""

import logging
import threading
from collections import deque

import torch
from torch import Tensor

from homerun.serve.cache import Pass, SlotCache
from homerun.serve.calculator import Caller
from homerun.serve.draw import draw
from homerun.serve.generation import Busy, EngineDied, Generation, News, deliver
from homerun.serve.sampling import Sampling
from homerun.trainer.model import GPT, SOFTCAP, rotary
from homerun.trainer.tokenizer import Tokenizer

log = logging.getLogger(__name__)

SLOTS = 32  # answers at once
QUEUE = 64  # answers waiting for a slot
CHUNK = {"cpu": 128, "cuda": 2048}  # prompt tokens a turn: a stall of well under a second at d20 on either


class _Row:
    """One running answer: `filled` of its `tokens` are in the cache."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer):
        self.generation = generation
        self.tokens = list(generation.prompt)
        self.filled = 0
        self.served = 0  # turn in which a chunk of its prompt was last read
        self.made = 0
        self.forced: deque[int] = deque()
        self.caller = Caller(tokenizer)

    @property
    def reading(self) -> int:
        """Prompt tokens still to be read."""
        return len(self.generation.prompt) - self.filled


class BatchEngine:
    """Serves `model` (eval mode, on its device). Thread-safe: `submit` on an event loop, the rest on its own thread."""

    can_top_p = True

    def __init__(self, model: GPT, tokenizer: Tokenizer, slots: int = SLOTS, queue: int = QUEUE):
        self.model, self.tokenizer = model, tokenizer
        self.context = model.config.sequence_len
        self.slots, self.queue = slots, queue
        self.chunk = CHUNK.get(model.device.type, CHUNK["cpu"])
        self.cache = SlotCache(model, slots, self.context)
        self.made = self.turns = 0
        self._rows: list[_Row] = []
        self._waiting: deque[Generation] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return not self._closed

    def submit(self, prompt: list[int], sampling: Sampling) -> Generation:
        """Begin an answer to `prompt` (at least one token; prompt + max_tokens <= context). Busy: the queue is full."""
        if not prompt or len(prompt) + sampling.max_tokens > self.context:
            raise ValueError(f"{len(prompt)} + {sampling.max_tokens} tokens do not fit into {self.context}")
        generation = Generation(prompt, sampling)
        with self._wake:
            if self._closed:
                raise EngineDied("this model is being unloaded")
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled)
            if len(self._waiting) >= self.queue:
                raise Busy
            self._waiting.append(generation)
            self._wake.notify()
        return generation

    def stats(self) -> dict[str, int]:
        return {"running": len(self._rows), "queued": len(self._waiting), "tokens": self.made}

    def close(self) -> None:
        """End the thread; answers that are being written fail with EngineDied."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closed or self._waiting or self._rows):
                    self._wake.wait()
                if self._closed:
                    self._fail(EngineDied("this model was unloaded"))
                    return
                while self._waiting and len(self._rows) < self.slots:
                    generation = self._waiting.popleft()
                    if not generation.cancelled:
                        self._rows.append(_Row(generation, self.tokenizer))
            try:
                self._turn()
            except Exception as error:  # out of memory, most likely: fail these answers, serve the next
                log.exception("the engine failed and goes on without %d answers", len(self._rows))
                with self._wake:
                    self._fail(EngineDied(f"the model failed ({type(error).__name__}); try again"))

    def _fail(self, error: EngineDied) -> None:
        deliver((generation, error) for generation in [row.generation for row in self._rows] + list(self._waiting))
        self._rows.clear()
        self._waiting.clear()

    @torch.inference_mode()
    def _turn(self) -> None:
        self.turns += 1
        for i in reversed(range(len(self._rows))):
            if self._rows[i].generation.cancelled:
                self._leave(i)
        if news := self._read() + self._write():
            deliver(news)

    def _read(self) -> list[News]:
        """One chunk of prompts: the row that has waited longest, and others as long as the chunk holds them. Those
        that are read to their end get their first token."""
        order = sorted((row.served, i) for i, row in enumerate(self._rows) if row.reading > 0)
        chosen: list[int] = []
        T = 0
        for _, i in order:
            wider = max(T, min(self._rows[i].reading, self.chunk))
            if chosen and (len(chosen) + 1) * wider > self.chunk:
                break
            chosen.append(i)
            T = wider
        if not chosen:
            return []
        rows = [self._rows[i] for i in chosen]
        takes = [min(row.reading, T) for row in rows]
        idx = [row.tokens[row.filled : row.filled + n] + [0] * (T - n) for row, n in zip(rows, takes, strict=True)]
        start = torch.tensor([row.filled for row in rows])[:, None]
        positions = start + torch.arange(T)
        real = torch.arange(T) < torch.tensor(takes)[:, None]
        longest = max(row.filled + n for row, n in zip(rows, takes, strict=True))
        hidden = self._forward(torch.tensor(idx), positions, real, longest, chosen)
        for row, n in zip(rows, takes, strict=True):
            row.filled += n
            row.served = self.turns
        done = [k for k, row in enumerate(rows) if not row.reading]
        return self._append([chosen[k] for k in done], hidden[done, [takes[k] - 1 for k in done]]) if done else []

    def _write(self) -> list[News]:
        """One token of every answer whose prompt is read; rows that still read ride along, their pass thrown away."""
        live = [row.reading <= 0 for row in self._rows]
        if not any(live):
            return []
        idx = torch.tensor([[row.tokens[row.filled] if on else 0] for row, on in zip(self._rows, live, strict=True)])
        positions = torch.tensor([[row.filled if on else 0] for row, on in zip(self._rows, live, strict=True)])
        hidden = self._forward(idx, positions, torch.tensor(live)[:, None], int(positions.max()) + 1, None)[:, -1]
        indices = [i for i, on in enumerate(live) if on]
        for i in indices:
            self._rows[i].filled += 1
        return self._append(indices, hidden if all(live) else hidden[indices])

    def _append(self, indices: list[int], hidden: Tensor) -> list[News]:
        """The next token of these rows, forced or drawn from the last layer's output (B, C); who is done, leaves."""
        drawn = [k for k, i in enumerate(indices) if not self._rows[i].forced]
        tokens: dict[int, int] = {}
        if drawn:
            logits = self.model.lm_head(hidden if len(drawn) == len(indices) else hidden[drawn]).float()
            logits = SOFTCAP * torch.tanh(logits / SOFTCAP)
            generations = [self._rows[indices[k]].generation for k in drawn]
            picks = draw(logits, [g.sampling for g in generations], [g.random for g in generations])
            tokens = dict(zip([indices[k] for k in drawn], picks, strict=True))
        news: list[News] = []
        for i in sorted(indices, reverse=True):  # from the last: leaving moves the last row
            row = self._rows[i]
            token = row.forced.popleft() if row.forced else tokens[i]
            if token in row.generation.sampling.stop_tokens:
                news.append((row.generation, "stop"))
                self._leave(i)
                continue
            row.tokens.append(token)
            row.forced.extend(() if row.forced else row.caller.see(token))
            row.made += 1
            self.made += 1
            news.append((row.generation, token))
            if row.made >= row.generation.sampling.max_tokens:
                news.append((row.generation, "length"))
                self._leave(i)
        return news

    def _forward(self, idx: Tensor, positions: Tensor, real: Tensor, longest: int, rows: list[int] | None) -> Tensor:
        """The last layer's output (B, T, C), not yet logits: a prompt needs none."""
        device = self.model.device
        positions = positions.to(device)
        cos, sin = rotary(positions, self.model.config.n_embd // self.model.config.n_head)
        view = Pass(self.cache, rows, positions, real.to(device), longest)
        return self.model.transformer(idx.to(device), cos, sin, view)

    def _leave(self, i: int) -> None:
        last = self._rows.pop()
        if i < len(self._rows):
            self.cache.move(len(self._rows), i, last.filled)
            self._rows[i] = last
