"""What a run's folder in the bucket holds and need not: superseded checkpoints, objects that nothing names."""

import re
from dataclasses import dataclass

from homerun.bucket.manifest import Manifest, superseded
from homerun.bucket.store import Head

CONTROL = re.compile(r"(metadata|manifest|lease|extension)\.json|_SUCCESS|journal/.*|logs/.*")


@dataclass(frozen=True)
class Waste:
    """groups: superseded, still named; keys: all objects that may go, relative to the run's folder; bytes: theirs."""

    groups: list[str]
    keys: list[str]
    bytes: int


def waste(manifest: Manifest, heads: list[Head], keep_last: int) -> Waste:
    """heads: every object of the run. Control files, the journal and logs are never waste. Pure."""
    groups = superseded(manifest, keep_last)
    kept = {entry.key for entry in manifest.entries.values() if entry.group not in groups}
    keys = {head.key.removeprefix(f"{manifest.run}/"): head.bytes for head in heads}
    gone = sorted(key for key in keys if key not in kept and not CONTROL.fullmatch(key))
    return Waste(groups, gone, sum(keys[key] for key in gone))
