"""A run's identity and its folder: ids, paths, fingerprint."""

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from homerun.errors import RequestError


@dataclass(frozen=True)
class Run:
    """One run on this machine. `dir` is `HOMERUN_DIR/runs/<id>`; every path of the run follows from it."""

    id: str
    dir: Path

    @property
    def journal(self) -> Path:
        return self.dir / "journal.jsonl"

    @property
    def src(self) -> Path:
        return self.dir / "src"

    @property
    def home(self) -> Path:
        return self.dir / "home"

    @property
    def base(self) -> Path:
        """The base dir that every version of upstream's script sets: `$HOME/.cache/nanochat`."""
        return self.home / ".cache" / "nanochat"

    @property
    def outbox(self) -> Path:
        return self.dir / "outbox"

    @property
    def metadata(self) -> Path:
        return self.dir / "metadata.json"

    @property
    def report(self) -> Path:
        return self.dir / "report"

    def logs(self, attempt: int) -> Path:
        return self.dir / "logs" / f"a{attempt:02d}"


def new_id(recipe: str, depths: set[int], now: datetime | None = None) -> str:
    """`nanochat-d20-20261121T023100Z-1f3a`; without a single depth the recipe's name stands in for model and depth."""
    now = (now or datetime.now(UTC)).astimezone(UTC)
    stem = f"nanochat-d{next(iter(depths))}" if len(depths) == 1 and recipe == "speedrun" else recipe
    if recipe != "speedrun" and len(depths) == 1:
        stem = f"{recipe}-d{next(iter(depths))}"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run"
    return f"{stem}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def fingerprint(**what: object) -> str:
    """Twelve hexadecimal digits that two starts of the same request share: script, upstream, arguments."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


def find_local(runs: Path, wanted: str) -> Run:
    """The run called `wanted` (an id, a unique beginning of one, or `latest`) under `runs`. Raises RequestError."""
    ids = sorted(
        (path.name for path in runs.glob("*") if (path / "journal.jsonl").exists()), key=lambda id: _time(runs / id)
    )
    if wanted == "latest" and ids:
        return Run(ids[-1], runs / ids[-1])
    matches = [id for id in ids if id == wanted] or [id for id in ids if id.startswith(wanted)]
    if len(matches) == 1:
        return Run(matches[0], runs / matches[0])
    problem = f"{len(matches)} runs begin with {wanted!r}" if matches else f"no run {wanted!r} on this machine"
    raise RequestError(problem, "`homerun runs` lists them")


def _time(folder: Path) -> float:
    return (folder / "journal.jsonl").stat().st_mtime
