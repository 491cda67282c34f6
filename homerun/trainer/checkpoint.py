"""Checkpoints in nanochat's layout, whole or not there.

`<base>/<source>_checkpoints/d<depth>/` holds, for each saved step, `model_<step>.pt`, `meta_<step>.json` and one
`optim_<step>_rank<r>.pt` for each rank. Every file is written under a temporary name, flushed to disk, then renamed;
the model comes last, once all ranks have written theirs: a model file means a whole checkpoint, whenever power fails.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from homerun.errors import RequestError
from homerun.trainer.model import GPT, GPTConfig
from homerun.trainer.runtime import Runtime
from homerun.trainer.tokenizer import Tokenizer

FOLDERS = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
TRAINED_BY = {"base": "python -m homerun.trainer.base_train", "sft": "python -m homerun.trainer.chat_sft"}

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)
logging.basicConfig(format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")  # to stderr


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Have `write` fill the file; it appears under its name all at once, and survives a power failure from then on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(
    rt: Runtime, folder: Path, step: int, model: GPT, optimizers: list[torch.optim.Optimizer], meta: dict[str, Any]
) -> None:
    """Save a checkpoint; every rank calls this, rank r writes its own optimizer state."""
    folder.mkdir(parents=True, exist_ok=True)
    model_path, meta_path = folder / f"model_{step:06d}.pt", folder / f"meta_{step:06d}.json"
    if rt.master:
        model_path.unlink(missing_ok=True)  # saved again after a resume: never an old model with a new optimizer
        for torn in folder.glob(".*.tmp"):
            torn.unlink(missing_ok=True)  # left by a process that died while saving
    rt.barrier()
    optim = folder / f"optim_{step:06d}_rank{rt.rank}.pt"
    write_whole(optim, lambda f: torch.save([o.state_dict() for o in optimizers], f))
    log.info("Saved optimizer state to: %s", optim)
    rt.barrier()
    if rt.master:
        write_whole(meta_path, lambda f: f.write(json.dumps(meta, indent=2).encode()))
        log.info("Saved metadata to: %s", meta_path)
        write_whole(model_path, lambda f: torch.save(model.state_dict(), f))
        log.info("Saved model parameters to: %s", model_path)
    rt.barrier()


def steps(folder: Path) -> list[int]:
    """The steps saved whole, in order."""
    found = (re.fullmatch(r"model_(\d{6,})\.pt", p.name) for p in folder.glob("model_*.pt"))
    return sorted(int(m[1]) for m in found if m)


def find(base: Path, source: str, tag: str | None = None, step: int | None = None) -> tuple[Path, int]:
    """The folder and step of a checkpoint: the deepest dN and its last step, unless tag and step say which."""
    root = base / FOLDERS[source]
    tags = sorted((int(p.name[1:]), p.name) for p in root.glob("d*") if p.name[1:].isdigit())
    if tag is None and tags:
        tag = tags[-1][1]
    saved = steps(root / tag) if tag else []
    if not tag or not saved:
        raise RequestError(
            f"no {source} checkpoint in {root}", f"train one: {TRAINED_BY.get(source, 'see docs/trainer.md')}"
        )
    if step is not None and step not in saved:
        raise RequestError(
            f"no checkpoint of step {step} in {root / tag}", f"saved steps: {', '.join(map(str, saved))}"
        )
    return root / tag, saved[-1] if step is None else step


def read_meta(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / f"meta_{step:06d}.json").read_text())


def load_weights(model: GPT, folder: Path, step: int) -> None:
    state = torch.load(folder / f"model_{step:06d}.pt", map_location="cpu", weights_only=True, mmap=True)
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in state.items()})


def load_optimizers(rt: Runtime, optimizers: list[torch.optim.Optimizer], folder: Path, step: int) -> None:
    """This rank's own state; Muon's is divided over the ranks, so the number of ranks must be the one that saved."""
    ranks = len(list(folder.glob(f"optim_{step:06d}_rank*.pt")))
    if ranks != rt.world:
        raise RequestError(
            f"step {step} in {folder} was saved by {ranks} ranks, this is {rt.world}", f"use --nproc_per_node={ranks}"
        )
    path = folder / f"optim_{step:06d}_rank{rt.rank}.pt"
    for optimizer, state in zip(optimizers, torch.load(path, map_location=rt.device, weights_only=True), strict=True):
        optimizer.load_state_dict(state)


def load_model(
    base: Path, source: str, device: torch.device, tag: str | None = None, step: int | None = None
) -> tuple[GPT, Tokenizer, dict[str, Any], Path]:
    """(model in float32 and eval mode, tokenizer, meta, the checkpoint's folder). source: base, mid, sft or rl."""
    folder, step = find(base, source, tag, step)
    meta = read_meta(folder, step)
    tokenizer = Tokenizer.load(base / "tokenizer")
    try:
        config = GPTConfig(**meta["model_config"])
    except TypeError as e:
        raise RequestError(f"{folder} holds a newer nanochat's model ({e})", "serve it with upstream's own code") from e
    if config.vocab_size != tokenizer.vocab_size:
        raise RequestError(
            f"the tokenizer in {base} has {tokenizer.vocab_size} tokens, the model {config.vocab_size}",
            "use the tokenizer that the model was trained with",
        )
    with torch.device(device):
        model = GPT(config)
    load_weights(model, folder, step)
    return model.eval(), tokenizer, meta, folder
