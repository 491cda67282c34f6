"""One answer being written: what an engine fills on its thread and a request reads on the event loop."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Protocol

from homerun.serve.sampling import Sampling
from homerun.trainer.tokenizer import Tokenizer


class Busy(Exception):
    """The queue is full: try again in a moment."""


class EngineDied(Exception):
    """The engine failed while it wrote this answer; it has been started again."""


class Generation:
    """Iterate it for its tokens, the tool's included; then `finish` says "stop" or "length".

    Made on the event loop; `_push` may be called from any thread. Ending the iteration early, or `cancel()`, frees the
    engine's row at its next step.
    """

    def __init__(self, prompt: list[int], sampling: Sampling, on_cancel: Callable[[], None] | None = None):
        self.prompt, self.sampling = prompt, sampling
        self.random = random.Random(sampling.seed)
        self.finish: str | None = None
        self.cancelled = False
        self.loop = asyncio.get_running_loop()
        self._on_cancel = on_cancel
        self._inbox: asyncio.Queue[int | str | Exception] = asyncio.Queue()

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            if self._on_cancel:
                self._on_cancel()

    async def __aiter__(self) -> AsyncIterator[int]:
        async with contextlib.aclosing(self.batches()) as batches:
            async for tokens in batches:
                for token in tokens:
                    yield token

    async def batches(self) -> AsyncGenerator[list[int], None]:
        """The tokens, as many at once as there are: a busy event loop has less to do for each."""
        try:
            while self.finish is None:
                items = [await self._inbox.get()]
                while not self._inbox.empty():
                    items.append(self._inbox.get_nowait())
                if tokens := [item for item in items if isinstance(item, int)]:
                    yield tokens
                if isinstance(items[-1], str):
                    self.finish = items[-1]
                elif isinstance(items[-1], Exception):
                    raise items[-1]
        finally:
            self.cancel()


News = tuple[Generation, int | str | Exception]  # a token, how it finished, or why it failed


def deliver(news: Iterable[News]) -> None:
    """Hand what an engine's thread has made to the event loops that wait for it, one wake-up a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[News]] = {}
    for generation, item in news:
        by_loop.setdefault(generation.loop, []).append((generation, item))
    for loop, items in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put, items)


def _put(items: list[News]) -> None:
    for generation, item in items:
        generation._inbox.put_nowait(item)


class Engine(Protocol):
    """What the API asks of an engine."""

    tokenizer: Tokenizer
    context: int  # tokens, prompt and answer together
    can_top_p: bool

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        ...

    def submit(self, prompt: list[int], sampling: Sampling) -> Generation:
        """Begin an answer. Raises Busy when the queue is full."""
        ...

    def stats(self) -> dict[str, int]:
        """running, queued, and tokens made since it was started."""
        ...

    def close(self) -> None: ...
