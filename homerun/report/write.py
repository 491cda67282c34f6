"""report/: report.md and index.html, from the state of a run."""

import os
from pathlib import Path

from homerun.report.content import OWN_REPORT, content
from homerun.report.curves import plots
from homerun.report.html import page
from homerun.report.markdown import markdown
from homerun.state import RunState


def write_report(folder: Path, state: RunState, now: float | None = None, own_report: str = OWN_REPORT) -> list[Path]:
    """Write both files, each atomically; their paths. now, own_report: as `content` takes them."""
    report = content(state, now, own_report)
    return [
        write_text(folder / "report.md", markdown(report)),
        write_text(folder / "index.html", page(report, plots([("", state)]))),
    ]


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)
    return path
