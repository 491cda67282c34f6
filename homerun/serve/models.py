"""The models of a tree, loaded when first asked for; the least recently used idle one makes room for another."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import torch

from homerun.serve.checkpoints import Checkpoint, choose, find_checkpoints, find_tree, load_tokenizer
from homerun.serve.engine import BatchEngine
from homerun.serve.generation import Busy, Engine
from homerun.trainer.model import GPT, GPTConfig

Load = Callable[[Checkpoint], Engine]  # slow; called on a worker thread


class Models:
    """folder: where an artifact tree is, or will be. load: makes an engine. limit: engines at once."""

    def __init__(self, folder: Path, load: Load, limit: int = 2):
        self._folder, self._load, self._limit = folder, load, limit
        self._engines: dict[Checkpoint, Engine] = {}  # least recently used first
        self._lock = asyncio.Lock()
        self.used_at = time.time()  # when an engine was last asked for

    def list(self) -> list[Checkpoint]:
        """What there is right now, best first (read from the disk each time)."""
        return find_checkpoints(find_tree(self._folder))

    def loaded(self) -> dict[Checkpoint, Engine]:
        return dict(self._engines)

    async def get(self, name: str) -> tuple[Checkpoint, Engine] | None:
        """The engine of the checkpoint that `name` fits, or None. Busy: every loaded model is at work."""
        self.used_at = time.time()
        checkpoint = choose(await asyncio.to_thread(self.list), name)
        if checkpoint is None:
            return None
        async with self._lock:
            engine = self._engines.pop(checkpoint, None)
            if engine is None:
                await self._make_room()
                engine = await asyncio.to_thread(self._load, checkpoint)
            self._engines[checkpoint] = engine
        return checkpoint, engine

    async def _make_room(self) -> None:
        while len(self._engines) >= self._limit:
            idle = next((c for c, engine in self._engines.items() if not _working(engine)), None)
            if idle is None:
                raise Busy
            await asyncio.to_thread(self._engines.pop(idle).close)

    def close(self) -> None:
        while self._engines:
            self._engines.popitem()[1].close()


def _working(engine: Engine) -> bool:
    stats = engine.stats()
    return bool(stats["running"] or stats["queued"])


def load_ours(checkpoint: Checkpoint, device: torch.device) -> BatchEngine:
    """Our own engine for a checkpoint of the October 2025 architecture: float32 on a CPU, bfloat16 on a GPU.

    TypeError or RuntimeError where the checkpoint is of another architecture.
    """
    config = GPTConfig(**checkpoint.meta()["model_config"])
    state = torch.load(checkpoint.model_path, map_location="cpu", weights_only=True, mmap=True)
    with torch.device("meta"):
        model = GPT(config)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model.to_empty(device=device).to(dtype)
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in state.items()})
    return BatchEngine(model.eval(), load_tokenizer(checkpoint.tree))
