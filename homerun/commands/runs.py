"""`homerun runs`: every run on this machine and in the bucket."""

import json
import sys
from pathlib import Path
from typing import Any

import typer

from homerun.bucket import restore
from homerun.bucket.store import open_for_a_person
from homerun.commands._runs import Found, local_runs, moment
from homerun.cost import minutes, money
from homerun.errors import HomerunError
from homerun.report.metadata import metadata
from homerun.settings import Settings


def command(as_json: bool = typer.Option(False, "--json", help="One JSON array.")) -> None:
    """List runs: status, model, cost, best figures, and where they are. The newest comes last.

    Examples:

        homerun runs

        homerun runs --json | jq -r '.[] | select(.status == "good") | .run'
    """
    settings = Settings.load()
    rows = collect(settings)
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not rows:
        print("no runs yet; `homerun train` starts one", file=sys.stderr)
        return
    names = ("run", "status", "model", "time", "cost_text", "best_text", "where")
    lines = [
        ("RUN", "STATUS", "MODEL", "TIME", "COST", "BEST", "WHERE"),
        *([row[name] for name in names] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def collect(settings: Settings) -> list[dict[str, Any]]:
    """One object a run, oldest first. A bucket that cannot be read is said on stderr; what is here is listed still."""
    here = local_runs(settings)
    found = {id: _local(id, folder) for id, folder in here.items()}
    where = dict.fromkeys(here, "here")
    try:
        store = open_for_a_person(settings)
        for run in restore.runs(store):
            found.setdefault(run.id, run.metadata)
            proven = "proven in the bucket" if run.good else "in the bucket"
            where[run.id] = f"{where[run.id]}, {proven}" if run.id in where else proven
    except HomerunError as error:
        if not found:
            raise
        print(f"the bucket cannot be read: {error}", file=sys.stderr)
    rows = [_row(id, data, where[id]) for id, data in found.items()]
    return sorted(rows, key=lambda row: row["updated"] or "")


def _local(id: str, folder: Path) -> dict[str, Any]:
    """Its metadata.json if that is newer than the journal, else the journal folded."""
    path, journal = folder / "metadata.json", folder / "journal.jsonl"
    try:
        if path.stat().st_mtime >= journal.stat().st_mtime:
            return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    state = Found(id, folder, None).state()
    return metadata(state, moment(state))


def _row(id: str, data: dict[str, Any], where: str) -> dict[str, Any]:
    model, cost, best = data.get("model") or {}, data.get("cost") or {}, data.get("best") or {}
    depth, params = model.get("depth"), model.get("params")
    parts = [f"d{depth}"] if depth else []
    parts += [f"{params / 1e6:,.0f}M" if params >= 1e6 else f"{params / 1e3:,.0f}k"] if params else []
    figures = [f"{name} {best[name]:.4g}" for name in ("val_bpb", "core", "chatcore") if best.get(name) is not None]
    tasks = [name for name in best if name.startswith("accuracy/")]
    if tasks and "chatcore" not in best:
        figures.append(f"{tasks[-1].removeprefix('accuracy/')} {best[tasks[-1]]:.0%}")
    return {
        "run": id,
        "status": data.get("status") or "unknown",
        "code": data.get("code"),
        "model": " ".join(parts) or "-",
        "time": minutes(cost["seconds"]) if cost.get("seconds") is not None else "-",
        "seconds": cost.get("seconds"),
        "cost_text": money(cost.get("usd")),
        "usd": cost.get("usd"),
        "best_text": ", ".join(figures) or "-",
        "best": best,
        "updated": data.get("updated"),
        "where": where,
    }
