"""Train the tokenizer on the training shards:

python -m homerun.trainer.tok_train --vocab-size=2048 --max-chars=900000
"""

import argparse
import time
from collections.abc import Iterable, Iterator

import torch

from homerun.trainer.checkpoint import write_whole
from homerun.trainer.dataset import shards, texts
from homerun.trainer.phase import base_dir, run
from homerun.trainer.tokenizer import Tokenizer


def until(texts: Iterable[str], max_chars: int) -> Iterator[str]:
    """Texts up to max_chars characters in all."""
    for text in texts:
        if max_chars <= 0:
            return
        yield text[:max_chars]
        max_chars -= len(text)


def main(args: argparse.Namespace) -> None:
    folder = base_dir() / "tokenizer"
    start = time.perf_counter()
    tokenizer = Tokenizer.train(until(texts(shards(base_dir(), "train")), args.max_chars), args.vocab_size)
    print(f"Training time: {time.perf_counter() - start:.2f}s")
    tokenizer.save(folder)
    lengths = torch.tensor(tokenizer.token_lengths(), dtype=torch.int32)
    write_whole(folder / "token_bytes.pt", lambda f: torch.save(lengths, f))
    print(f"Saved token_bytes to {folder / 'token_bytes.pt'}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Train the tokenizer")
    p.add_argument("--vocab-size", type=int, default=2048, help="tokens, the nine special ones included")
    p.add_argument(
        "--max-chars", type=int, default=2_000_000_000, help="characters of the training shards to learn from"
    )
    return p


if __name__ == "__main__":
    run(main, parser())
