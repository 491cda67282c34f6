"""A conversation with an engine, without HTTP: what `homerun chat` holds."""

from collections.abc import AsyncGenerator

from homerun.errors import RequestError
from homerun.serve.generation import Engine
from homerun.serve.sampling import Sampling
from homerun.serve.text import TextStream


class Talk:
    """messages: so far, as [{"role", "content"}]. When they outgrow the context, the oldest turns are forgotten."""

    def __init__(self, engine: Engine, temperature: float, top_k: int | None, max_tokens: int, seed: int | None = None):
        self.engine, self.temperature, self.top_k = engine, temperature, top_k
        self.max_tokens, self.seed = max_tokens, seed
        self.messages: list[dict[str, str]] = []

    async def say(self, words: str) -> AsyncGenerator[str, None]:
        """The answer to `words`, piece by piece. RequestError when they alone are too long."""
        engine = self.engine
        self.messages.append({"role": "user", "content": words})
        prompt = engine.tokenizer.render_for_completion({"messages": self.messages})
        while len(prompt) + min(self.max_tokens, engine.context // 4) > engine.context and len(self.messages) > 2:
            del self.messages[:2]
            prompt = engine.tokenizer.render_for_completion({"messages": self.messages})
        room = engine.context - len(prompt)
        if room < 1:
            self.messages.clear()
            raise RequestError(f"that takes {len(prompt)} tokens, the model reads {engine.context}", "Ask for less")
        stop = frozenset((engine.tokenizer.special("<|assistant_end|>"), engine.tokenizer.bos))
        seed = {} if self.seed is None else {"seed": self.seed}
        sampling = Sampling(min(self.max_tokens, room), self.temperature, self.top_k, stop_tokens=stop, **seed)
        text, said = TextStream(engine.tokenizer, []), ""
        generation = engine.submit(prompt, sampling)
        try:
            async for token in generation:
                if piece := text.feed(token):
                    said += piece
                    yield piece
            if rest := text.end():
                said += rest
                yield rest
        finally:  # interrupted, what was said stays said
            generation.cancel()
            self.messages.append({"role": "assistant", "content": said})
