"""Before a resume: what earlier attempts proved, back on this disk, and nothing torn beside it.

Checkpoints come from the bucket by sha256. One on this disk that has not reached the bucket yet (the machine crashed,
the disk did not) is kept when it is whole, every byte of it read; anything else under the checkpoints' folders is put
aside, so that no later phase can pick it up.
"""

import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from homerun.bucket import restore
from homerun.bucket.manifest import Entry, Manifest
from homerun.bucket.store import Store
from homerun.errors import UnprovenError
from homerun.job.run import Run
from homerun.job.supervise import tree_path
from homerun.upstream.artifacts import STAGES, Saver, groups, scan, torn

# Of each folder of checkpoints this many of the newest are tried before it is given up.
ATTEMPTS = 3


@dataclass(frozen=True)
class Restored:
    """proven: the groups that are whole on this disk, and the logs that are in the bucket. made: {phase: {group: step}}
    as the manifest has it, which may know of a checkpoint that the journal's last lines were lost about. known: paths
    in the tree that the manifest names as they are."""

    proven: frozenset[str] = frozenset()
    made: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    known: frozenset[str] = frozenset()


def bring_back(store: Store, run: Run, saver: Saver, world_size: int, say: Callable[[str, str], None]) -> Restored:
    """Make the artifact tree of `run` what a resume may build on. say(warning, hint). Raises StoreError.

    world_size: of the attempts that saved. A new run has nothing to bring back.
    """
    manifest = restore.read_manifest(store, run.id)
    for group in _chosen(manifest):
        _fetch(store, run, manifest, group, say)
    entries = {tree_path(entry.key): entry for entry in manifest.entries.values()}
    known = [path for path in scan(run.base) if path in entries and _same(run.base / path, entries[path])]
    _put_aside(run, torn(run.base, saver, world_size, known))
    whole = groups(scan(run.base), saver, world_size)
    logs = {entry.group for entry in entries.values() if entry.group.startswith("logs/")}
    made: dict[str, dict[str, int]] = {}
    for entry in entries.values():
        if entry.phase and entry.step is not None:
            made.setdefault(entry.phase, {})[entry.group] = entry.step
    proven = frozenset(logs | {group.name for group in whole if group.kind in ("checkpoint", "tokenizer")})
    return Restored(proven, made, frozenset(known))


def _chosen(manifest: Manifest) -> list[str]:
    """The groups to bring back: all but logs, our report, and old checkpoints; of each folder the newest that has its
    optimizer, and the newest of all."""
    chosen: list[str] = []
    folders: dict[str, set[str]] = {}
    for group, entries in manifest.groups().items():
        top = group.partition("/")[0]
        if top in STAGES and entries[0].step is not None:
            folders.setdefault(group.rpartition("/")[0], set()).add(group)
        elif top not in ("logs", "report"):
            chosen.append(group)
    for found in folders.values():
        models = sorted(group for group in found if not group.endswith(".optim"))
        with_optimizer = [group for group in models if f"{group}.optim" in found]
        for group in {*models[-1:], *with_optimizer[-1:]}:
            chosen += [group, f"{group}.optim"] if f"{group}.optim" in found else [group]
    return chosen


def _fetch(store: Store, run: Run, manifest: Manifest, group: str, say: Callable[[str, str], None]) -> None:
    """One group home; one whose bytes are wrong is left out, and the next older checkpoint takes its place."""
    candidates = [group]
    if group.partition("/")[0] in STAGES:
        suffix = ".optim" if group.endswith(".optim") else ""
        folder = group.rpartition("/")[0]
        older = sorted(
            (name for name in manifest.groups() if name.rpartition("/")[0] == folder and name < group), reverse=True
        )
        candidates += [name for name in older if name.endswith(".optim") == bool(suffix)][: ATTEMPTS - 1]
    for name in candidates:
        try:
            for entry in manifest.groups()[name]:
                path = run.base / tree_path(entry.key)
                if not _same(path, entry):
                    store.download(
                        f"{run.id}/{entry.key}", path, etag=entry.etag, bytes=entry.bytes, sha256=entry.sha256
                    )
            return
        except UnprovenError as error:
            say(f"{name} in the bucket is not whole ({error.what})", "falling back to the one before it")


def _same(path: Path, entry: Entry) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == entry.bytes and restore.sha256_of(path) == entry.sha256
    return False


def _put_aside(run: Run, paths: list[Path]) -> None:
    aside = run.dir / "aside" / secrets.token_hex(4)
    for path in paths:
        target = aside / path.relative_to(run.base)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
