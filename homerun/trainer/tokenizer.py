"""The tokenizer: byte-level BPE, trained by rustbpe and run by tiktoken, saved as nanochat saves it.

`tokenizer/tokenizer.pkl` is a pickled tiktoken.Encoding (a pickle can run code: load only your own), and
`tokenizer/token_bytes.pt` the length in bytes of every token, 0 for special ones.
"""

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tiktoken

from homerun.errors import RequestError

BOS = "<|bos|>"  # before every document and conversation
SPECIAL = [BOS] + [
    f"<|{who}_{end}|>" for who in ("user", "assistant", "python", "output") for end in ("start", "end")
]  # nanochat's nine, in its order: their ids follow the merges
# GPT-4's pattern (tiktoken's cl100k_base), but numbers in pairs of digits: a small vocabulary has no room for triples
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

Conversation = dict[str, Any]  # {"messages": [{"role": "user" | "assistant" | "system", "content": …}]}


class Tokenizer:
    def __init__(self, encoding: tiktoken.Encoding):
        self.encoding = encoding
        self.vocab_size: int = encoding.n_vocab
        self.bos = self.special(BOS)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn vocab_size tokens, the nine special ones included."""
        import rustbpe

        merges = vocab_size - len(SPECIAL)
        if merges < 256:
            raise RequestError(f"--vocab-size={vocab_size} is too small", f"use at least {256 + len(SPECIAL)}")
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(iter(texts), merges, pattern=PATTERN)
        ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
        special = {name: len(ranks) + i for i, name in enumerate(SPECIAL)}
        return cls(tiktoken.Encoding("rustbpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        path = folder / "tokenizer.pkl"
        if not path.exists():
            raise RequestError(f"no tokenizer at {path}", "python -m homerun.trainer.tok_train")
        return cls(pickle.loads(path.read_bytes()))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".tokenizer.pkl.{os.getpid()}"
        temporary.write_bytes(pickle.dumps(self.encoding))
        temporary.rename(folder / "tokenizer.pkl")

    def special(self, name: str) -> int:
        return self.encoding.encode_single_token(name)

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def encode_documents(self, texts: list[str], threads: int = 4) -> list[int]:
        """All documents in a row, each after a <|bos|>."""
        encoded = self.encoding.encode_ordinary_batch(texts, num_threads=threads)
        return [token for ids in encoded for token in (self.bos, *ids)]

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids)

    def token_lengths(self) -> list[int]:
        """Bytes of every token by id; 0 for special tokens, which bits per byte leave out."""
        lengths = [0] * self.vocab_size
        for token, rank in self.encoding._mergeable_ranks.items():
            lengths[rank] = len(token)
        return lengths

    def render_conversation(self, conversation: Conversation, max_tokens: int = 2048) -> tuple[list[int], list[int]]:
        """Token ids and mask, at most max_tokens: 1 where the assistant speaks (its end token too), to be learnt.

        A system message joins the user's first. An assistant's content is text, or parts
        {"type": "text" | "python" | "python_output", "text": …}; what a tool put out is not learnt.
        """
        ids, mask = [self.bos], [0]

        def add(tokens: list[int], learnt: int) -> None:
            ids.extend(tokens)
            mask.extend([learnt] * len(tokens))

        def framed(frame: str, text: str, learnt: int) -> None:
            add([self.special(f"<|{frame}_start|>"), *self.encode(text), self.special(f"<|{frame}_end|>")], learnt)

        for message in with_system_merged(conversation["messages"]):
            content = message["content"]
            if message["role"] == "user":
                framed("user", content, 0)
                continue
            add([self.special("<|assistant_start|>")], 0)
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                match part["type"]:
                    case "text":
                        add(self.encode(part["text"]), 1)
                    case "python":
                        framed("python", part["text"], 1)
                    case "python_output":
                        framed("output", part["text"], 0)
                    case other:
                        raise ValueError(f"unknown part of a message: {other!r}")
            add([self.special("<|assistant_end|>")], 1)
        return ids[:max_tokens], mask[:max_tokens]

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """The prompt: the conversation up to the user's last word (a last assistant message is dropped), then
        <|assistant_start|>."""
        messages = conversation["messages"]
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        ids, _ = self.render_conversation({"messages": messages}, max_tokens=1 << 30)
        return [*ids, self.special("<|assistant_start|>")]


def with_system_merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """User and assistant in turn, the user first; a system message put before the user's first."""
    if messages and messages[0]["role"] == "system":
        system, user, *rest = messages
        messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    for i, message in enumerate(messages):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise ValueError(f"message {i} is by {message['role']!r}, and should be by the {expected}")
    return messages
