"""Which files of the artifact tree belong together, and when they are whole.

Upstream saves straight to the final names, so a file that is there may still be growing. A group is whole when every
member that this commit's saver writes for this number of processes is there, every `.pt` opens as the zip archive that
it is, every `.json` parses, and its files have not changed between two scans, or the phase that wrote them has ended
well.
"""

import ast
import json
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

STAGES = {
    "base_checkpoints": "base",
    "mid_checkpoints": "mid",
    "chatsft_checkpoints": "sft",
    "chatrl_checkpoints": "rl",
}
# Which script saves a stage, and which phases a stage's groups wait for when they are not stable yet.
SAVERS = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}
TOKENIZER = ("tokenizer/tokenizer.pkl", "tokenizer/token_bytes.pt")
# Inputs, which can be had again: shards, evaluation bundles, downloaded data sets and lists.
INPUTS = re.compile(
    r"^(base_data|eval_bundle|task_data|words_alpha|identity_conversations|\.|.*\.(zip|lock|tmp|part)$)"
)
_MEMBER = re.compile(r"^(model|meta|optim)_(\d{6})(?:_rank(\d+))?\.(pt|json)$")


@dataclass(frozen=True)
class File:
    """path: relative to the base dir, with slashes; the rest as stat has it."""

    path: str
    bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Group:
    """Files that go to the bucket as one. kind: checkpoint, tokenizer, eval, report, other. keep: always, checkpoint or
    optimizer. score: validation bits per byte, lower is better."""

    name: str
    kind: str
    keep: str
    files: tuple[File, ...]
    step: int | None = None
    score: float | None = None
    stage: str | None = None


@dataclass(frozen=True)
class Saver:
    """What this commit's saver writes: `optim_S_rank<r>.pt` for every process, or one `optim_S.pt`; and for which
    stages it writes an optimizer at all."""

    ranked: bool = True
    with_optimizer: frozenset[str] = frozenset(SAVERS)

    def optimizer_files(self, stage: str, step: int, world_size: int) -> list[str]:
        if stage not in self.with_optimizer:
            return []
        if not self.ranked:
            return [f"optim_{step:06d}.pt"]
        return [f"optim_{step:06d}_rank{rank}.pt" for rank in range(world_size)]


def read_saver(root: Path) -> Saver:
    """The saver of the commit in `root`, read from its source; our own trainer's where there is none."""
    manager = root / "nanochat" / "checkpoint_manager.py"
    if not manager.is_file():
        return Saver()
    ranked = "_rank{" in manager.read_text(encoding="utf-8", errors="replace")
    with_optimizer = {stage for stage, script in SAVERS.items() if _saves_optimizer(root / "scripts" / f"{script}.py")}
    return Saver(ranked, frozenset(with_optimizer))


def _saves_optimizer(script: Path) -> bool:
    """Whether the script's `save_checkpoint(folder, step, model, OPTIMIZER, …)` is given anything but None."""
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return True
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "save_checkpoint"
    ]
    given = [call.args[3] for call in calls if len(call.args) > 3]
    return not given or any(not (isinstance(value, ast.Constant) and value.value is None) for value in given)


def scan(base: Path) -> dict[str, File]:
    """The files of the artifact tree by path, inputs left out; {} when there is no tree yet."""
    found = {}
    for entry in _walk(base, ""):
        found[entry.path] = entry
    return found


def _walk(folder: Path, prefix: str) -> Iterator[File]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        path = prefix + entry.name
        if INPUTS.match(path) or INPUTS.match(entry.name):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, path + "/")
            elif entry.is_file():
                stat = entry.stat()
                yield File(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        except OSError:
            continue  # gone meanwhile


@dataclass
class Watch:
    """Scans a tree again and again; `poll` gives the groups that are whole and were not offered as they are now."""

    base: Path
    world_size: int
    saver: Saver
    _before: dict[str, File] = field(default_factory=dict)
    _offered: dict[str, tuple[File, ...]] = field(default_factory=dict)

    def poll(self, ended: Collection[str], settled: bool = False) -> list[Group]:
        """ended: names of the phases that ended well, whose files need no second look; settled: nothing writes now."""
        now = scan(self.base)
        stable = {path for path, file in now.items() if settled or self._before.get(path) == file}
        self._before = now
        whole = []
        for group in groups(now, self.saver, self.world_size):
            if self._offered.get(group.name) == group.files:
                continue
            at_rest = all(file.path in stable for file in group.files) or _writer(group) in ended
            if at_rest and (checked := check(self.base, group)):
                self._offered[group.name] = group.files
                whole.append(checked)
        return whole

    def forget(self, name: str) -> None:
        """Offer a group again when it is next found whole: it changed while it was on its way."""
        self._offered.pop(name, None)


def _writer(group: Group) -> str:
    if group.stage:
        return SAVERS[group.stage]
    return "tok_train" if group.kind == "tokenizer" else ""


def groups(files: dict[str, File], saver: Saver, world_size: int) -> list[Group]:
    """The groups all of whose members are there, by name only; `check` opens them. A checkpoint's model and meta are
    one group, its optimizer files another (`….optim`), offered only together with the first."""
    found = _checkpoints(files, saver, world_size)
    if all(path in files for path in TOKENIZER):
        paths = sorted(path for path in files if path.startswith("tokenizer/"))
        found.append(Group("tokenizer", "tokenizer", "always", tuple(files[path] for path in paths)))
    for path, file in sorted(files.items()):
        top = path.partition("/")[0]
        if top in STAGES or top == "tokenizer":
            continue
        kind = {"base_eval": "eval", "report": "report"}.get(top, "other")
        found.append(Group(path, kind, "always", (file,)))
    return found


def _checkpoints(files: dict[str, File], saver: Saver, world_size: int) -> list[Group]:
    steps: dict[tuple[str, int], dict[str, File]] = {}
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        match = _MEMBER.match(name)
        if match and folder.partition("/")[0] in STAGES:
            steps.setdefault((folder, int(match[2])), {})[name] = file
    found = []
    for (folder, step), members in sorted(steps.items()):
        stage = STAGES[folder.partition("/")[0]]
        optimizer = saver.optimizer_files(stage, step, world_size)
        model = [f"model_{step:06d}.pt", f"meta_{step:06d}.json"]
        if any(name not in members for name in [*model, *optimizer]):
            continue
        name = f"{folder}/{step:06d}"
        found.append(Group(name, "checkpoint", "checkpoint", tuple(members[m] for m in model), step, None, stage))
        if optimizer:
            files_of = tuple(members[member] for member in optimizer)
            found.append(Group(f"{name}.optim", "checkpoint", "optimizer", files_of, step, None, stage))
    return found


def check(base: Path, group: Group) -> Group | None:
    """The group with its score, or None when one of its files cannot be read as what it is."""
    score = None
    for file in group.files:
        path = base / file.path
        if file.bytes == 0 and group.kind in ("checkpoint", "tokenizer"):
            return None
        if path.suffix == ".pt" and group.kind == "checkpoint" and not is_archive(path):
            return None
        if path.suffix == ".json":
            try:
                meta = json.loads(path.read_bytes())
            except (OSError, ValueError):
                return None
            value = meta.get("val_bpb", meta.get("val_loss")) if isinstance(meta, dict) else None
            score = value if isinstance(value, float | int) and not isinstance(value, bool) else None
    return Group(group.name, group.kind, group.keep, group.files, group.step, score, group.stage)


def is_archive(path: Path, deep: bool = False) -> bool:
    """Whether a file that torch.save wrote opens as a zip with its directory; deep: every member's CRC too."""
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.infolist()) and not (deep and archive.testzip())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def torn(base: Path, saver: Saver, world_size: int, known: Iterable[str] = ()) -> list[Path]:
    """Files under the folders of checkpoints that are part of no whole checkpoint, every byte of which is read.

    known: paths (relative to the base dir) that were verified already.
    """
    files = {path: file for path, file in scan(base).items() if path.partition("/")[0] in STAGES}
    proven = set(known)
    good: set[str] = set(proven)
    members: dict[str, list[Group]] = {}
    for group in groups(files, saver, world_size):
        members.setdefault(group.name.removesuffix(".optim"), []).append(group)
    for parts in members.values():
        paths = [file.path for part in parts for file in part.files]
        whole = all(path in proven or not path.endswith(".pt") or is_archive(base / path, deep=True) for path in paths)
        if whole and all(check(base, part) for part in parts):
            good.update(paths)
    return [base / path for path in files if path not in good]
