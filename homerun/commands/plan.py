"""`homerun plan`: what a script would run, read and never run."""

import json
import tempfile
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from homerun.commands._options import Fit, Nproc, PhaseArgs, Ref, Script, Skip, Upstream
from homerun.job.fitting import wanted_fit
from homerun.job.request import Request
from homerun.settings import Settings
from homerun.upstream.adapt import Wishes, adapt, check_wishes, skip_reason
from homerun.upstream.flags import Flags, module_flags
from homerun.upstream.plan import Step, read_plan
from homerun.upstream.worktree import checkout, recipe


def command(
    upstream: Upstream = None,
    ref: Ref = None,
    script: Script = None,
    nproc: Nproc = None,
    phase_args: PhaseArgs = None,
    skip: Skip = None,
    fit: Fit = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show the phases of a script, for any commit, without running it, and what of it is not recognised."""
    request = Request.from_arguments(
        Settings.load(homerun_fit=fit),
        script=script,
        upstream=upstream,
        ref=ref,
        nproc=nproc,
        phase_args=phase_args or (),
        skip=skip or (),
    )
    with tempfile.TemporaryDirectory(prefix="homerun-plan-") as folder:
        report = _report(request, Path(folder) / "src")
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show(report)


def _report(request: Request, dest: Path) -> dict[str, Any]:
    """The plan as data: source, sha256, phases, drift."""
    if request.recipe:
        source = recipe(request.recipe, dest)
    else:
        source = checkout(request.upstream, request.ref, dest, request.script)
    plan = read_plan((source.root / source.script).read_bytes())
    fitted = wanted_fit(request.settings, source, plan, request.nproc, request.phase_args)
    nproc = fitted.nproc if fitted and request.nproc is None else request.nproc
    wishes = Wishes(nproc=nproc, fit=fitted, phase_args=request.phase_args, skip=request.skip)

    @cache
    def flags_of(step: Step) -> Flags | None:
        return module_flags(source.root, step.module) if step.module else None

    check_wishes(plan, wishes, flags_of)
    return {
        "source": {"url": source.url, "ref": source.ref, "commit": source.commit, "script": source.script},
        "sha256": plan.sha256,
        "phases": [_phase(step, wishes, flags_of(step)) for step in plan.steps],
        "drift": list(plan.drift),
    }


def _phase(step: Step, wishes: Wishes, flags: Flags | None) -> dict[str, Any]:
    argv, changes = adapt(step, list(step.words), wishes, flags)
    return {
        "name": step.name,
        "line": step.line,
        "index": step.index,
        "module": step.module,
        "section": step.section,
        "command": step.command,
        "background": step.background,
        "piped": step.piped,
        "tested": step.tested,
        "counted": step.counted,
        "outputs": list(step.outputs),
        "skip": skip_reason(step, wishes),
        "adapted": [{"why": c.what, "added": list(c.added), "removed": list(c.removed)} for c in changes],
        "argv": argv,
    }


def _show(report: dict[str, Any]) -> None:
    source, console = report["source"], Console(highlight=False)
    origin = " at ".join(part for part in (source["url"], source["commit"]) if part) or "recipe"
    console.print(f"{origin}: {source['script']}, sha256 {report['sha256'][:12]}", markup=False)
    table = Table("line", "phase", "command", "must leave", show_edge=False, pad_edge=False)
    table.columns[0].justify = "right"
    for column in table.columns[2:]:
        column.overflow = "fold"  # never cut off: a piped table is 80 columns wide
    section = None
    for phase in report["phases"]:
        if phase["section"] != section:
            section = phase["section"]
            table.add_section()
            table.add_row("", "", f"[bold]{escape(textwrap.shorten(section, 70, placeholder=' …'))}[/]", "")
        marks = {"in the background": phase["background"], "how often: unknown": not phase["counted"]}
        name = "\n".join([phase["name"], *(f"({mark})" for mark, on in marks.items() if on)])
        cells = (str(phase["line"]), name, phase["command"], "\n".join(phase["outputs"]))
        table.add_row(*map(escape, cells))
    console.print(table)
    for phase in report["phases"]:
        if phase["skip"]:
            console.print(f"{phase['name']}: skipped, {phase['skip']}", markup=False)
        for change in phase["adapted"]:
            words = [*(f"-[{word}]" for word in change["removed"]), *(f"+[{word}]" for word in change["added"])]
            console.print(f"{phase['name']}: {change['why']}: {' '.join(words)}", markup=False)
    for sentence in report["drift"]:
        console.print(f"warning: {sentence}", style="yellow", markup=False)
    if not report["drift"]:
        console.print("Everything in it is recognised.")
