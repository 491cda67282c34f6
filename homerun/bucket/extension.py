"""More time for a run that is going on: `homerun extend` leaves it beside the lease, the uploader brings it to the job.

Whoever may write to the bucket may ask. It counts only for the box whose HOMERUN_DEADLINE it names: more time for one
box never moves the end of the next one that goes on with the run.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from homerun.bucket.store import Missing, Store, write_atomic


@dataclass(frozen=True)
class Extension:
    """was: the HOMERUN_DEADLINE that the box was started with; deadline: the one that holds now (both Unix seconds).
    usd: what all the time on top costs."""

    was: float
    deadline: float
    usd: float = 0.0


def key(run: str) -> str:
    return f"{run}/extension.json"


def read(store: Store, run: str) -> Extension | None:
    """What was asked for last; None for nothing, or nothing that can be read."""
    try:
        return _parse(store.get(key(run))[0])
    except Missing:
        return None


def add(store: Store, run: str, was: float, seconds: float, usd: float) -> Extension:
    """Ask for so much on top of what there was, or was asked for before; what holds now.

    Changed when someone else asks for the same run at the same moment."""
    try:
        data, etag = store.get(key(run))
    except Missing:
        data, etag = b"", None
    before = _parse(data)
    if before is None or before.was != was:
        before = Extension(was, was)
    asked = Extension(was, before.deadline + seconds, round(before.usd + usd, 2))
    store.put(key(run), (json.dumps(asdict(asked)) + "\n").encode(), if_match=etag, if_none_match=etag is None)
    return asked


def bring(store: Store, run: str, outbox: Path) -> None:
    """From the bucket to where the job looks."""
    asked = read(store, run)
    if asked is not None and asked != heard(outbox):
        write_atomic(outbox / "extension.json", asdict(asked))


def heard(outbox: Path) -> Extension | None:
    """What the job knows of it; cheap enough for every tick."""
    try:
        return _parse((outbox / "extension.json").read_bytes())
    except FileNotFoundError:
        return None


def _parse(data: bytes) -> Extension | None:
    try:
        return Extension(**{name: float(value) for name, value in json.loads(data).items()})
    except (ValueError, TypeError, AttributeError):
        return None
