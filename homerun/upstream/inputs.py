"""What a run is fed from the network: shards, tokenizer, evaluation bundle, hub datasets and kernels, as whole units.

A unit is a file or folder that comes back whole or not at all, as upstream takes a folder that is there (`eval_bundle`)
for a complete one. Its name is its path, `base/…` in the base dir or `huggingface/…` in HF_HOME. Shards and tokenizer
have a fingerprint after it: upstream trains on whatever shards lie there and takes the last for validation, so a run
may be given only those that its own script, at its own commit, would have fetched.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from homerun.upstream.adapt import Wishes, skip_reason
from homerun.upstream.artifacts import File, walk
from homerun.upstream.plan import Plan

_SHARDS = re.compile(r"base/base_data\w*")
_ALONE = re.compile(r"base/(eval_bundle|task_data|words_alpha\.txt|identity_conversations\.jsonl)")
_HUB = re.compile(r"huggingface/(?:hub/(?:models|datasets|kernels)--(\w[\w.-]*?)--|datasets/(\w[\w.-]*?)___)([\w.-]+)")
TOKENIZER = "base/tokenizer"


@dataclass(frozen=True)
class Inputs:
    """The units of one run. base, hf_home: where they lie. text: the sources of its upstream, which name what it uses.
    data, tokenizer: fingerprints of what makes the shards and the tokenizer; "" where that is not upstream's code."""

    base: Path
    hf_home: Path
    text: str
    data: str
    tokenizer: str

    def name(self, path: str) -> str | None:
        """The unit at `path`; None for what is no input of this run."""
        if path == TOKENIZER:
            return f"{path}-{self.tokenizer}" if self.tokenizer else None
        if _SHARDS.fullmatch(path):
            return f"{path}-{self.data}" if self.data else None
        if match := _HUB.fullmatch(path):
            return path if f"{match[1] or match[2]}/{match[3]}" in self.text else None
        match = _ALONE.fullmatch(path)
        return path if match and match[1] in self.text else None

    def path(self, name: str) -> str | None:
        """The inverse of `name`: where a unit of the cache belongs; None for another run's."""
        candidates = (name, name.removesuffix(f"-{self.data}"), name.removesuffix(f"-{self.tokenizer}"))
        return next((path for path in candidates if self.name(path) == name), None)

    def place(self, path: str) -> Path:
        top, _, rest = path.partition("/")
        return (self.base if top == "base" else self.hf_home) / rest

    def partial(self, name: str) -> bool:
        """Whether a part of a unit is of use: upstream's downloader fetches the shards that are missing."""
        return name.startswith("base/base_data")

    def present(self) -> Iterator[tuple[str, Path, tuple[File, ...]]]:
        """(name, place, files) of the units that are here; files: whole ones, paths relative to the place's parent."""
        folders = (("base", self.base), ("huggingface/hub", self.hf_home / "hub"))
        for top, folder in (*folders, ("huggingface/datasets", self.hf_home / "datasets")):
            for place in sorted(folder.iterdir()) if folder.is_dir() else ():
                if (name := self.name(f"{top}/{place.name}")) and (files := tuple(walk(place))):
                    yield name, place, files


def find_inputs(root: Path, plan: Plan, wishes: Wishes, base: Path, hf_home: Path) -> Inputs:
    """The inputs of the script whose worktree is `root`."""
    sources = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".sh") and ".venv" not in path.parts)
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sources)
    data = _fingerprint(root, plan, wishes, "dataset", "nanochat/dataset.py")
    code = ("scripts/tok_train.py", "nanochat/tokenizer.py")
    return Inputs(base, hf_home, text, data, data and _fingerprint(root, plan, wishes, "tok_train", *code, data=data))


def _fingerprint(root: Path, plan: Plan, wishes: Wishes, module: str, *code: str, data: str = "") -> str:
    """Of a module's code and of the arguments that script and user give it; "" where there is no such code."""
    if not (root / code[0]).is_file():
        return ""
    steps = [s for s in plan.steps if s.module and s.module.endswith(f".{module}") and not skip_reason(s, wishes)]
    words = [
        [*step.words, *(wishes.phase_args.get(name, "") for name in sorted({step.name, module}))] for step in steps
    ]
    sources = [hashlib.sha256((root / path).read_bytes()).hexdigest() for path in code if (root / path).is_file()]
    return hashlib.sha256(json.dumps([data, words, sources]).encode()).hexdigest()[:12]
