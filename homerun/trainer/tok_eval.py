"""How well the tokenizer compresses the training and the held-out shards:

python -m homerun.trainer.tok_eval
"""

import argparse

from homerun.trainer.dataset import shards, texts
from homerun.trainer.phase import base_dir, run
from homerun.trainer.tokenizer import Tokenizer


def main(args: argparse.Namespace) -> None:
    tokenizer = Tokenizer.load(base_dir() / "tokenizer")
    print(f"Vocab size: {tokenizer.vocab_size}")
    for split in ("train", "val"):
        n_bytes = n_tokens = 0
        for text in texts(shards(base_dir(), split)[:1]):
            ids = tokenizer.encode(text)
            if tokenizer.decode(ids) != text:
                raise AssertionError(f"a document of {split} does not come back from its tokens: {text[:60]!r} …")
            n_bytes += len(text.encode())
            n_tokens += len(ids)
        print(f"{split}: {n_bytes:,} bytes, {n_tokens:,} tokens, {n_bytes / n_tokens:.3f} bytes per token")


if __name__ == "__main__":
    run(main, argparse.ArgumentParser(description="Evaluate the tokenizer"))
