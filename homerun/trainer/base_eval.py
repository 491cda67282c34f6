"""How well the base model predicts text it has not seen, beside a unigram model, and what it writes:

python -m homerun.trainer.base_eval
"""

import argparse
import itertools

import torch

from homerun.trainer.checkpoint import load_model
from homerun.trainer.data import batches
from homerun.trainer.dataset import shards
from homerun.trainer.evaluate import bits_per_byte, unigram_bits_per_byte
from homerun.trainer.generate import generate
from homerun.trainer.phase import base_dir, run
from homerun.trainer.runtime import runtime

PROMPTS = ("Return the", "This module", "The name of", "If the", "A class")


def main(args: argparse.Namespace) -> None:
    base = base_dir()
    with runtime(args.seed, args.device_type) as rt:
        model, tokenizer, meta, folder = load_model(base, "base", rt.device, args.model_tag, args.step)
        rt.print(f"Evaluating {folder.name} at step {meta['step']}")
        token_bytes = torch.tensor(tokenizer.token_lengths(), device=rt.device)
        rows, length = args.device_batch_size, model.config.sequence_len
        passes = max(1, args.split_tokens // (rows * length * rt.world))
        for split in ("train", "val"):
            data = batches(rt, shards(base, split), tokenizer, rows, length, epochs=1)
            bpb = bits_per_byte(rt, model, ((x, y) for x, y, _ in itertools.islice(data, passes)), token_bytes)
            rt.print(f"{split} bpb: {bpb:.6f}")
        unigram = unigram_bits_per_byte(tokenizer, shards(base, "train"), shards(base, "val")) if rt.master else 0.0
        rt.print(f"unigram bpb: {unigram:.6f}")
        for i, text in enumerate(PROMPTS if rt.master else ()):
            ids = [tokenizer.bos, *tokenizer.encode(text)]
            for temperature in (0.0, 0.8):
                more = generate(model, [ids], 32, stop=[tokenizer.bos], temperature=temperature, seed=args.seed + i)[0]
                rt.print(f"--- sample, temperature {temperature}\n{text}{tokenizer.decode(more)}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Evaluate the base model")
    add = p.add_argument
    add("--device-batch-size", type=int, default=16, help="rows a device and pass")
    add("--split-tokens", type=int, default=20 * 2**19, help="tokens of each split, at most all of it")
    add("--model-tag", default=None, help="checkpoint folder (default: the deepest)")
    add("--step", type=int, default=None, help="its step (default: the last)")
    add("--seed", type=int, default=42)
    add("--device-type", default="", help="cuda or cpu (default: what there is)")
    return p


if __name__ == "__main__":
    run(main, parser())
