"""A tiny nanochat artifact tree with random weights, made in a second: what the tests of serve/ and web/ serve."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from homerun.trainer.checkpoint import FOLDERS
from homerun.trainer.model import GPT, GPTConfig
from homerun.trainer.tokenizer import Tokenizer

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "héllo wörld, 1 + 2 = 3",
    "a model of the world — 日本語 🦊",
] * 20


def make_tree(base: Path, stages: tuple[str, ...] = ("sft",), seed: int = 0, **config: int) -> Path:
    """Write tokenizer/ and one checkpoint (d2, step 10) a stage under `base`; returns it."""
    tokenizer = Tokenizer.train(TEXTS, 300)
    tokenizer.save(base / "tokenizer")
    shape = {"sequence_len": 256, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64} | config
    cfg = GPTConfig(vocab_size=tokenizer.vocab_size, **shape)
    for stage in stages:
        torch.manual_seed(seed)
        model = GPT(cfg)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.35)
        folder = base / FOLDERS[stage] / "d2"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "model_000010.pt")
        (folder / "meta_000010.json").write_text(json.dumps({"step": 10, "model_config": asdict(cfg)}))
    return base
