"""Tokens to text, piece by piece: whole characters only, special tokens left out, stop strings honoured."""

import codecs
from dataclasses import dataclass

from homerun.trainer.tokenizer import SPECIAL, Tokenizer


@dataclass(frozen=True)
class Call:
    """A use of the calculator: what the model asked, and what it was told."""

    expression: str
    result: str


class TextStream:
    """Feed it an answer's tokens; each returns the text that is certain by now.

    Held back: bytes of an unfinished character, and text that may turn out to begin a stop string. What a model says
    to its calculator is not text; it is in `calls`. `stopped` is set when a stop string came up.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str]):
        self._encoding, self._stops = tokenizer.encoding, stops
        self._special = {tokenizer.special(name): name.strip("<|>") for name in SPECIAL}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._aside: dict[str, bytes] = {}  # python, output: what was said to the calculator and back
        self._talking_to: str | None = None
        self.calls: list[Call] = []
        self.stopped = False

    def feed(self, token: int) -> str:
        if token in self._special:
            self._switch(self._special[token])
            return ""
        data = self._encoding.decode_single_token_bytes(token)
        if self._talking_to:
            self._aside[self._talking_to] = self._aside.get(self._talking_to, b"") + data
            return ""
        return self._release(self._decoder.decode(data))

    def end(self) -> str:
        """The rest, once the last token is in."""
        text = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _switch(self, name: str) -> None:
        who, _, edge = name.partition("_")
        self._talking_to = who if who in ("python", "output") and edge == "start" else None
        if name == "output_end":
            asked, told = (self._aside.pop(key, b"").decode("utf-8", "replace") for key in ("python", "output"))
            self.calls.append(Call(asked, told))

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
