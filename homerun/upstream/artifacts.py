"""Which files of the artifact tree belong together, and when they are whole.

Upstream saves straight to the final names, so a file that is there may still be growing. A group is whole when every
member that this commit's saver writes for this number of processes is there, every `.pt` opens as the zip archive that
it is, every `.json` parses, and its files have not changed between two scans, or the phase that wrote them has ended
well. One that a save was killed in stays torn: it is never offered.
"""

import ast
import json
import math
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

STAGES = {
    "base_checkpoints": "base",
    "mid_checkpoints": "mid",
    "chatsft_checkpoints": "sft",
    "chatrl_checkpoints": "rl",
}
# Which script saves a stage, and which phases a stage's groups wait for when they are not stable yet.
SAVERS = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}
TOKENIZER = ("tokenizer/tokenizer.pkl", "tokenizer/token_bytes.pt")
# Inputs at the top of the tree, which can be had again: shards, evaluation bundles, downloaded data sets and lists.
_INPUTS = re.compile(r"base_data|eval_bundle|task_data|words_alpha|identity_conversations|.*\.zip$")
# Files of the moment, at any depth.
_PASSING = re.compile(r"\.|.*\.(?:lock|tmp|part|incomplete)$")
_MEMBER = re.compile(r"(model|meta|optim)_(\d{6,})(?:_rank(\d+))?\.(pt|json)$")


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
    """What this commit's saver writes beside model and meta: `optim_S_rank<r>.pt` (ranked) or one `optim_S.pt`, for
    the stages `with_optimizer`. Between November 2025 and February 2026 some stages' scripts (`rank0_only`) called the
    ranked saver in process 0 alone."""

    ranked: bool = True
    with_optimizer: frozenset[str] = frozenset(SAVERS)
    rank0_only: frozenset[str] = frozenset()

    def optimizer_files(self, stage: str, step: int, world_size: int) -> list[str]:
        if stage not in self.with_optimizer:
            return []
        if not self.ranked:
            return [f"optim_{step:06d}.pt"]
        ranks = 1 if stage in self.rank0_only else world_size
        return [f"optim_{step:06d}_rank{rank}.pt" for rank in range(ranks)]


def read_saver(root: Path) -> Saver:
    """The saver of the commit in `root`, read from its source; our own trainer's where there is none."""
    manager = root / "nanochat" / "checkpoint_manager.py"
    if not manager.is_file():
        return Saver()
    ranked = "_rank{" in manager.read_text(encoding="utf-8", errors="replace")
    calls = {stage: _save_call(root / "scripts" / f"{script}.py") for stage, script in SAVERS.items()}
    without = {stage for stage, call in calls.items() if call and _is_none(call.args[3])}
    rank0 = {stage for stage, call in calls.items() if call and not any(word.arg == "rank" for word in call.keywords)}
    return Saver(ranked, frozenset(SAVERS) - without, frozenset(rank0) if ranked else frozenset())


def _save_call(script: Path) -> ast.Call | None:
    """The script's `save_checkpoint(folder, step, model, optimizer, meta, …)`."""
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "save_checkpoint" and len(node.args) > 3:
            return node
    return None


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def scan(base: Path) -> dict[str, File]:
    """The files of the artifact tree by path, inputs left out; {} when there is no tree yet."""
    return {file.path: file for file in _walk(str(base), "")}


def walk(place: Path) -> Iterator[File]:
    """The whole files of one input, a folder or a file; paths relative to its parent."""
    if place.is_dir():
        yield from _walk(str(place), f"{place.name}/")
    elif place.is_file() and not _PASSING.match(place.name):
        yield _file(place.name, place.stat())


def _walk(folder: str, prefix: str) -> Iterator[File]:
    try:
        entries = list(os.scandir(folder))
    except OSError:  # gone meanwhile, as below
        return
    for entry in entries:
        if _PASSING.match(entry.name) or (not prefix and _INPUTS.match(entry.name)):
            continue
        path = prefix + entry.name
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, path + "/")
            elif entry.is_file():
                yield _file(path, entry.stat())
        except OSError:
            continue


def _file(path: str, stat: os.stat_result) -> File:
    return File(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@dataclass
class Watch:
    """Scans a tree again and again; `poll` gives the groups that are whole and were not offered as they are now."""

    base: Path
    world_size: int
    saver: Saver
    known: Collection[str] = ()  # paths that are in the bucket as they are now, brought back by a resume
    _before: dict[str, File] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _offered: dict[str, tuple[File, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What was brought back is not offered again: it would pass for the work of the phase that runs now."""
        for group in groups(scan(self.base), self.saver, self.world_size):
            if all(file.path in self.known for file in group.files):
                self._offered[group.name] = group.files

    def poll(self, ended: Collection[str], settled: bool = False) -> list[Group]:
        """ended: the phases that ended well so far; what those new in it wrote needs no second look. settled: nothing
        writes any more. A checkpoint's two groups are offered only when both are whole."""
        now = scan(self.base)
        done = {_module(phase) for phase in set(ended) - self._ended}
        self._ended |= set(ended)
        whole: list[Group] = []
        for parts in _together(groups(now, self.saver, self.world_size, done)):
            news = [part for part in parts if self._offered.get(part.name) != part.files]
            at_rest = settled or _writer(parts[0]) in done or self._is_at_rest(parts, now)
            if news and at_rest and all(checked := [check(self.base, part) for part in parts]):
                self._offered |= {part.name: part.files for part in news}
                whole += [part for part in checked if part and part.name in {new.name for new in news}]
        self._before = now
        return whole

    def _is_at_rest(self, parts: list[Group], now: dict[str, File]) -> bool:
        """No file changed between two scans. A tokenizer is written in two goes: while the newer file is the first
        (`tokenizer.pkl`), the second is still that of an older tokenizer."""
        if parts[0].kind == "tokenizer" and now[TOKENIZER[1]].mtime_ns < now[TOKENIZER[0]].mtime_ns:
            return False
        return all(self._before.get(file.path) == file for part in parts for file in part.files)

    def unoffered(self) -> list[str]:
        """Paths in the tree that no group offered so far holds as they are now, nor `known`: torn, or of no group."""
        held = {file for files in self._offered.values() for file in files}
        return sorted(path for path, file in scan(self.base).items() if file not in held and path not in self.known)

    def forget(self, name: str) -> None:
        """Offer a group again when it is next found whole: it changed while it was on its way."""
        self._offered.pop(name, None)


def _module(phase: str) -> str:
    """The module of a phase by its name: `base_train.2` and `chat_eval-sft` are base_train and chat_eval."""
    return re.split("[.-]", phase)[0]


def _writer(group: Group) -> str:
    """The module that writes a group; "" where there may be several."""
    return SAVERS[group.stage] if group.stage else {"tokenizer": "tok_train", "eval": "base_eval"}.get(group.kind, "")


def _together(found: list[Group]) -> list[list[Group]]:
    """What is whole only together: a checkpoint's model and its optimizer."""
    members: dict[str, list[Group]] = {}
    for group in found:
        members.setdefault(group.name.removesuffix(".optim"), []).append(group)
    return list(members.values())


def groups(files: dict[str, File], saver: Saver, world_size: int, done: Collection[str] = ()) -> list[Group]:
    """The groups all of whose members are there, by name only; `check` opens them. A checkpoint's model and meta are
    one group, its optimizer files another (`….optim`), there only together with the first.

    done: modules whose phase has just ended well; what optimizer files they left are all that they write, be it that
    `saver` and `world_size` (a recipe of one's own, one process on eight GPUs) say otherwise.
    """
    found = _checkpoints(files, saver, world_size, done)
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


def _checkpoints(files: dict[str, File], saver: Saver, world_size: int, done: Collection[str]) -> list[Group]:
    steps: dict[tuple[str, int], dict[str, File]] = {}
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        match = _MEMBER.match(name)
        if match and folder.partition("/")[0] in STAGES:
            steps.setdefault((folder, int(match[2])), {})[name] = file
    found = []
    for (folder, step), members in sorted(steps.items()):
        stage = STAGES[folder.partition("/")[0]]
        model = [f"model_{step:06d}.pt", f"meta_{step:06d}.json"]
        optimizer = sorted(name for name in members if name.startswith("optim_"))
        if SAVERS[stage] not in done:  # files of further ranks belong to it too, and those of all must be there
            optimizer = sorted({*optimizer, *saver.optimizer_files(stage, step, world_size)})
        if any(name not in members for name in [*model, *optimizer]):
            continue
        name = f"{folder}/{step:06d}"
        found.append(Group(name, "checkpoint", "checkpoint", tuple(members[m] for m in model), step, None, stage))
        if optimizer:
            files_of = tuple(members[member] for member in optimizer)
            found.append(Group(f"{name}.optim", "checkpoint", "optimizer", files_of, step, None, stage))
    return found


def check(base: Path, group: Group) -> Group | None:
    """The group with its score, or None when one of its files cannot be read as what it is, or is not as it was."""
    score = None
    for file in group.files:
        path = base / file.path
        try:
            if group.kind in ("checkpoint", "tokenizer"):
                if path.suffix == ".pt" and not is_archive(path):
                    return None
                if path.suffix == ".pkl" and not _is_pickle(path):
                    return None
            if group.kind == "checkpoint" and path.suffix == ".json":
                meta = json.loads(path.read_bytes())
                score = _score(meta)
            if _file(file.path, path.stat()) != file:
                return None
        except (OSError, ValueError, AttributeError):
            return None
    return replace(group, score=score)


def _score(meta: dict[str, Any]) -> float | None:
    value = meta.get("val_bpb", meta.get("val_loss"))
    known = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _is_pickle(path: Path) -> bool:
    """Whether a pickle begins and ends as one; it is never loaded."""
    with open(path, "rb") as file:
        if file.read(1) != b"\x80":
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"."


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
    for parts in _together(groups(files, saver, world_size)):
        paths = [file.path for part in parts for file in part.files]
        whole = all(path in proven or not path.endswith(".pt") or is_archive(base / path, deep=True) for path in paths)
        if whole and all(check(base, part) for part in parts):
            good.update(paths)
    return [base / path for path in files if path not in good]
