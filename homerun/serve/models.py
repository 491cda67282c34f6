"""The models of a tree, loaded when first asked for; the least recently used idle one makes room for another."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from homerun.errors import RequestError
from homerun.serve.checkpoints import Checkpoint, choose, find_checkpoints, find_tree
from homerun.serve.generation import Busy, Engine

Load = Callable[[Checkpoint], Engine]  # slow; called on a worker thread


class Models:
    """folder: where an artifact tree is, or will be. load: makes an engine. limit: engines at once."""

    def __init__(self, folder: Path, load: Load, limit: int = 2):
        self._folder, self._load, self._limit = folder, load, limit
        self._engines: dict[Checkpoint, Engine] = {}  # least recently used first
        self._lock = asyncio.Lock()

    def list(self) -> list[Checkpoint]:
        """What there is right now, best first (read from the disk each time); nothing while there is no tree."""
        try:
            return find_checkpoints(find_tree(self._folder))
        except RequestError:
            return []

    def loaded(self) -> dict[Checkpoint, Engine]:
        return dict(self._engines)

    async def get(self, name: str) -> tuple[Checkpoint, Engine] | None:
        """The engine of the checkpoint that `name` fits, or None. Busy: every loaded model is at work."""
        checkpoint = choose(await asyncio.to_thread(self.list), name)
        if checkpoint is None:
            return None
        if (engine := self._loaded(checkpoint)) is not None:  # without waiting for another that loads
            return checkpoint, engine
        async with self._lock:
            engine = self._loaded(checkpoint)
            if engine is None:
                await self._make_room()
                engine = self._engines[checkpoint] = await asyncio.to_thread(self._load, checkpoint)
        return checkpoint, engine

    def _loaded(self, checkpoint: Checkpoint) -> Engine | None:
        """The checkpoint's engine, now the most recently used. One that died for good makes way for a new one."""
        engine = self._engines.pop(checkpoint, None)
        if engine is not None and engine.alive:
            self._engines[checkpoint] = engine
            return engine
        return None

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
