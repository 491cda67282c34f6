"""Finding what `serve`, `chat` and `export` work on: a folder, a run on this machine, or one in the bucket."""

import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homerun.bucket.meter import Meter
from homerun.bucket.restore import choose, read_manifest, restore, restore_journal
from homerun.bucket.store import Missing, Store, write_atomic
from homerun.commands import _runs
from homerun.errors import HomerunError, RequestError
from homerun.settings import Settings
from homerun.upstream.worktree import checkout


@dataclass(frozen=True)
class Source:
    """folder: what holds the artifact tree. run_dir: a folder with the run's journal and logs, where there is one."""

    folder: Path
    run_dir: Path | None

    def metadata(self) -> dict[str, Any]:
        """The run's metadata.json; {} where there is none."""
        try:
            return json.loads((self.folder / "metadata.json").read_text())
        except (OSError, ValueError):
            return {}


def find_checkout(settings: Settings, source: Source, given: Path | None) -> Path | None:
    """Upstream's code at the commit that trained the run: as given, else fetched by what metadata.json says.

    None where the run has its own worktree or upstream had no part in it; and where the code cannot be had, which is
    said: a model of October 2025's architecture is then served without that check, and another one refused.
    """
    if given is not None or (source.folder / "src").is_dir():
        return given
    upstream = source.metadata().get("upstream") or {}
    if not (upstream.get("url") and upstream.get("commit")):
        return None
    dest = settings.homerun_dir / "models" / "src" / upstream["commit"]
    try:
        return checkout(upstream["url"], upstream["commit"], dest).root
    except HomerunError as error:
        print(f"warning: upstream's code at {upstream['commit'][:10]} cannot be had: {error}", file=sys.stderr)
        return None


def find_source(settings: Settings, wanted: str, step: str | None = None, every: bool = False) -> Source:
    """`wanted`: a folder, else a run. A run in the bucket is brought to HOMERUN_DIR/models/<id> first, verified:
    the tokenizer and one step (`last` by default) of its newest stage, or of every stage (all steps by default)."""
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return Source(folder, folder if (folder / "journal.jsonl").is_file() else None)
    found = _runs.find(settings, wanted)
    if found.dir is not None:
        return Source(found.dir, found.dir)
    assert found.store is not None
    dest = settings.homerun_dir / "models" / found.id
    _bring(found.store, found.id, dest, step, every)
    return Source(dest, dest)


def _bring(store: Store, run: str, dest: Path, step: str | None, every: bool) -> None:
    manifest = read_manifest(store, run)
    chosen = {
        entry.key
        for entry in choose(manifest, inference=not every, step=step)
        if entry.keep == "checkpoint" or entry.key.startswith("tokenizer/")
    }
    if not chosen:
        raise RequestError(f"{run} has no model in {store.url} yet", f"`homerun status {run}` shows how far it is")
    with Meter("pulled", sum(manifest.entries[key].bytes for key in chosen)) as meter:
        restore(store, run, dest, lambda entry: entry.key in chosen, meter.moved, manifest)
    restore_journal(store, run, dest / "journal.jsonl")
    with suppress(Missing):
        write_atomic(dest / "metadata.json", store.get(f"{run}/metadata.json")[0])
