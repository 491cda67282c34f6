"""Which models an artifact tree holds: every whole checkpoint of every stage, by an id such as `sft-d20-000650`.

The tree is nanochat's base dir, a run's folder (which has it under home/.cache/nanochat), or a run in a bucket.
"""

import io
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken

from homerun.errors import RequestError
from homerun.trainer.tokenizer import Tokenizer

# As homerun.trainer.checkpoint has them, which needs torch; the web process of a box may have none.
FOLDERS = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
PREFERENCE = ("sft", "rl", "mid", "base")  # the first stage there is, is what people mean by "the model"


@dataclass(frozen=True)
class Checkpoint:
    """One stage (base, mid, sft, rl) at one step, in `tree`/`<stage>_checkpoints`/`tag`."""

    tree: Path
    stage: str
    tag: str
    step: int

    @property
    def id(self) -> str:
        return f"{self.stage}-{self.tag}-{self.step:06d}"

    @property
    def folder(self) -> Path:
        return self.tree / FOLDERS[self.stage] / self.tag

    @property
    def model_path(self) -> Path:
        return self.folder / f"model_{self.step:06d}.pt"

    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / f"meta_{self.step:06d}.json").read_text())


def find_tree(folder: Path) -> Path:
    """The artifact tree in `folder`. RequestError where there is none."""
    for tree in (folder, folder / "home/.cache/nanochat", folder / ".cache/nanochat"):
        if (tree / "tokenizer" / "tokenizer.pkl").is_file():
            return tree
    raise RequestError(f"{folder} holds no tokenizer/tokenizer.pkl", "Name a run, its folder, or nanochat's base dir")


def find_checkpoints(tree: Path) -> list[Checkpoint]:
    """What can be served, best first: by stage, then the deepest model, then the newest step."""
    found = []
    for stage in PREFERENCE:
        group = []
        for path in (tree / FOLDERS[stage]).glob("*/model_*.pt"):
            match = re.fullmatch(r"model_(\d{6,})\.pt", path.name)
            if match and path.with_name(f"meta_{match[1]}.json").is_file():
                group.append(Checkpoint(tree, stage, path.parent.name, int(match[1])))
        found += sorted(group, key=lambda c: (_depth(c.tag), c.tag, c.step), reverse=True)
    return found


def _depth(tag: str) -> int:
    match = re.fullmatch(r"d(\d+)", tag)
    return int(match[1]) if match else -1


def choose(checkpoints: list[Checkpoint], name: str) -> Checkpoint | None:
    """The best checkpoint that `name` fits: its id, the id's beginning (`base`, `sft-d20`), or ""."""
    return next((c for c in checkpoints if c.id == name or not name or c.id.startswith(f"{name}-")), None)


_ENCODING = {("tiktoken.core", "Encoding"), ("copyreg", "_reconstructor"), ("builtins", "object")}


class _Encodings(pickle.Unpickler):
    """Reads a pickled tiktoken.Encoding and nothing else: a tokenizer from a bucket must not run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ENCODING:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def load_tokenizer(tree: Path) -> Tokenizer:
    """The tree's tokenizer. RequestError where it is not a plain tiktoken encoding with nanochat's special tokens."""
    path = tree / "tokenizer" / "tokenizer.pkl"
    try:
        encoding = _Encodings(io.BytesIO(path.read_bytes())).load()
        if not isinstance(encoding, tiktoken.Encoding):
            raise pickle.UnpicklingError(f"it holds a {type(encoding).__name__}")
        return Tokenizer(encoding)
    except (OSError, pickle.UnpicklingError, KeyError, EOFError) as error:
        raise RequestError(f"{path} is not nanochat's tokenizer: {error}", "Train or restore it again") from None
