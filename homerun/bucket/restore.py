"""What readers do with a bucket: list its runs, follow a manifest, bring files home verified, re-read every byte."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from homerun.bucket import lease
from homerun.bucket.manifest import Entry, Manifest, stage
from homerun.bucket.store import FILES_AT_ONCE, Changed, Missing, Progress, Store, sha256_of
from homerun.errors import LeaseError, RequestError, UnprovenError
from homerun.journal import read_events

NOTHING = "`homerun runs` lists what is there"


@dataclass(frozen=True)
class RunInfo:
    """A run as the bucket shows it. metadata: metadata.json, {} when there is none (yet); good: `_SUCCESS` is there."""

    id: str
    metadata: dict[str, Any]
    lease: lease.Lease | None
    good: bool

    @property
    def at(self) -> float:
        """When a runner was last heard of, Unix seconds."""
        return self.lease.at if self.lease else 0.0


def run_info(store: Store, run: str) -> RunInfo:
    try:
        metadata = json.loads(store.get(f"{run}/metadata.json")[0])
    except (Missing, ValueError):
        metadata = {}
    try:
        held = lease.read(store, run)
    except LeaseError:  # one run's broken lease must not hide the others
        held = None
    return RunInfo(run, metadata, held, store.head(f"{run}/_SUCCESS") is not None)


def runs(store: Store) -> list[RunInfo]:
    """All runs in the bucket, oldest first."""
    names = [name for name in store.folders() if not name.startswith(("_", "."))]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        found = pool.map(lambda name: run_info(store, name), names)
        return sorted((run for run in found if run.lease or run.metadata), key=lambda run: (run.at, run.id))


def find_run(store: Store, wanted: str) -> str:
    """The id of the run called `wanted`: an id, a unique beginning of one, or `latest`. RequestError."""
    if wanted != "latest" and store.head(lease.key(wanted)):
        return wanted
    ids = [run.id for run in runs(store)]
    if wanted == "latest" and ids:
        return ids[-1]
    matches = [id for id in ids if id.startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    raise RequestError(
        f"{len(matches)} runs begin with {wanted!r}" if matches else f"no run {wanted!r} in {store.url}", NOTHING
    )


def read_manifest(store: Store, run: str) -> Manifest:
    """The run's manifest; an empty one when nothing has landed yet."""
    try:
        return Manifest.from_json(store.get(f"{run}/manifest.json")[0])
    except Missing:
        return Manifest(run)


def restore(
    store: Store,
    run: str,
    dest: Path,
    select: Callable[[Entry], bool],
    progress: Progress | None = None,
    manifest: Manifest | None = None,
) -> list[Entry]:
    """Bring the selected entries of the manifest to `dest/<key>`, verified and atomically; the entries.

    Files that are there and right already are left alone, so a call that was cut off goes on. An object that changed
    meanwhile is looked up in the manifest again. Corrupt when bytes are wrong, Missing when an object is gone.
    """
    manifest = manifest or read_manifest(store, run)
    chosen = [entry for entry in manifest.entries.values() if select(entry)]

    def bring(entry: Entry) -> Entry | None:
        path = safe_path(dest, entry.key)
        for _ in range(3):
            if path.is_file() and path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256:
                if progress:
                    progress(entry.bytes)
                return entry
            try:
                key = f"{run}/{entry.key}"
                store.download(key, path, etag=entry.etag, bytes=entry.bytes, sha256=entry.sha256, progress=progress)
                return entry
            except (Changed, Missing) as error:
                now = read_manifest(store, run).entries.get(entry.key)
                if now is None:
                    return None  # no longer named: it does not exist any more
                if now == entry:
                    raise UnprovenError(
                        f"{entry.key} is not in the bucket as the manifest says ({error.what})",
                        f"`homerun verify {run}` tells which files are whole",
                    ) from None
                entry = now
        raise UnprovenError(f"{entry.key} keeps changing", "Wait for the run to end, then try again")

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return [entry for entry in pool.map(bring, chosen) if entry]


def safe_path(dest: Path, key: str) -> Path:
    """`dest/key`; UnprovenError for a key that would leave `dest`."""
    if key.startswith("/") or ".." in key.split("/") or "\0" in key:
        raise UnprovenError(f"the manifest names a file outside the run: {key!r}", "Do not trust this bucket")
    return dest / key


def restore_journal(store: Store, run: str, path: Path) -> int:
    """Put the run's journal together from its segments at `path`; the number of events.

    Where attempts overlap the later one is right: it went on from what it had found in the bucket.
    """
    events: list[dict[str, Any]] = []
    names = [head.key for head in store.list(f"{run}/journal/") if re.search(r"/a\d+-\d+\.jsonl$", head.key)]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        segments = zip(names, pool.map(store.get, names), strict=True)
        for _, attempt in groupby(segments, key=lambda segment: segment[0].rpartition("-")[0]):
            for event in read_events(b"".join(data for _, (data, _) in attempt)):
                while events and events[-1]["seq"] >= event["seq"]:
                    events.pop()
                events.append(event)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n" for event in events)
    return len(events)


def choose(manifest: Manifest, *, inference: bool = False, step: str | None = None) -> list[Entry]:
    """What `homerun pull` takes. inference: the tokenizer, and model and meta of one step of the newest stage.
    step: a number, `last` or `best` (lowest score), in every stage that has it; None: all (inference: `last`).

    RequestError when there is no such checkpoint.
    """
    stages: dict[str, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    rest = []
    for entry in manifest.entries.values():
        if entry.keep == "always" or entry.step is None:
            rest.append(entry)
        elif not (inference and entry.keep == "optimizer"):
            stages[stage(entry.group)][entry.step].append(entry)
    if inference:
        newest = max(stages, key=lambda name: max(e.at for es in stages[name].values() for e in es), default=None)
        stages = defaultdict(lambda: defaultdict(list), {newest: stages[newest]} if newest else {})
        rest = [entry for entry in rest if entry.key.startswith("tokenizer/")]
    wanted = step or ("last" if inference else None)
    chosen = []
    for steps in stages.values():
        if wanted is None:
            chosen += [entry for entries in steps.values() for entry in entries]
        elif (number := _pick(steps, wanted)) is not None:
            chosen += steps[number]
    if not chosen and (inference or step):
        there = ", ".join(f"{name} {sorted(steps)}" for name, steps in sorted(stages.items())) or "none"
        raise RequestError(f"no checkpoint of step {wanted} in {manifest.run}; there are: {there}", NOTHING)
    return rest + chosen


def _pick(steps: dict[int, list[Entry]], wanted: str) -> int | None:
    models = [step for step, entries in steps.items() if any(entry.keep == "checkpoint" for entry in entries)]
    if wanted == "last":
        return max(models, default=None)
    if wanted == "best":
        scores = {step: entry.score for step in models for entry in steps[step] if entry.score is not None}
        return min(scores, key=lambda step: (scores[step], -step), default=None)
    return int(wanted) if wanted.isdigit() and int(wanted) in models else None


@dataclass(frozen=True)
class Verdict:
    """One file's. verdict: `ok`, `missing`, `changed` (another version than the manifest names), `corrupt`."""

    key: str
    verdict: str
    bytes: int
    text: str = ""


def verify(store: Store, run: str, progress: Progress | None = None) -> Iterator[Verdict]:
    """Re-read every byte that the manifest names, and what `_SUCCESS` vouches for. StoreError when it cannot."""
    manifest = read_manifest(store, run)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        entries = [manifest.entries[key] for key in sorted(manifest.entries)]
        yield from pool.map(lambda entry: _check(store, run, entry, progress), entries)
    yield from _check_success(store, run)


def _check(store: Store, run: str, entry: Entry, progress: Progress | None) -> Verdict:
    verdict = _read_back(store, run, entry, progress)
    if verdict.verdict == "ok":
        return verdict
    now = read_manifest(store, run).entries.get(entry.key)  # a live run may have replaced it meanwhile
    if now is None:
        return Verdict(entry.key, "ok", entry.bytes, "no longer part of the run")
    return verdict if now == entry else _read_back(store, run, now, progress)


def _read_back(store: Store, run: str, entry: Entry, progress: Progress | None) -> Verdict:
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in store.chunks(f"{run}/{entry.key}", etag=entry.etag):
            digest.update(chunk)
            size += len(chunk)
            if progress:
                progress(len(chunk))
    except Missing:
        return Verdict(entry.key, "missing", entry.bytes, "it is not in the bucket")
    except Changed:
        return Verdict(entry.key, "changed", entry.bytes, "the bucket has another version")
    if size != entry.bytes:
        return Verdict(entry.key, "corrupt", entry.bytes, f"{size} bytes instead of {entry.bytes}")
    if digest.hexdigest() != entry.sha256:
        return Verdict(
            entry.key, "corrupt", entry.bytes, f"sha256 {digest.hexdigest()[:12]}…, not {entry.sha256[:12]}…"
        )
    return Verdict(entry.key, "ok", entry.bytes)


def _check_success(store: Store, run: str) -> Iterable[Verdict]:
    try:
        data, _ = store.get(f"{run}/_SUCCESS")
        vouched = json.loads(data)
    except Missing:
        return
    except ValueError:
        yield Verdict("_SUCCESS", "corrupt", 0, "it is not JSON")
        return
    for name in ("manifest", "metadata"):
        if vouched.get(name):
            key = f"{name}.json"
            try:
                found, _ = store.get(f"{run}/{key}")
            except Missing:
                yield Verdict(key, "missing", 0, "_SUCCESS vouches for it")
                continue
            same = hashlib.sha256(found).hexdigest() == vouched[name]["sha256"]
            yield Verdict(key, "ok" if same else "changed", len(found), "" if same else "not what _SUCCESS vouches for")
