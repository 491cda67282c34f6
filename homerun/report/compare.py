"""Several runs side by side: one table and their curves in common plots, over steps, tokens, hours and dollars."""

from itertools import takewhile
from typing import Any

from homerun.cost import minutes, money, totals
from homerun.report.blocks import Block, Plots, Report, Section, Table
from homerun.report.content import adapted, count
from homerun.report.curves import plots
from homerun.report.metadata import best, model
from homerun.state import RunState

Runs = list[tuple[str, RunState]]


def comparison(runs: Runs) -> tuple[Report, list[dict[str, Any]]]:
    """runs: [(id, state)]. The report and its plots, for `html.page`."""
    labelled = relabel(runs)
    found = plots(labelled)
    blocks: list[Block] = [side_by_side(labelled), *_adapted(labelled)]
    sections = [Section("Side by side", blocks)]
    if found:
        sections.append(Section("Curves", [Plots("")]))
    return Report("Comparison", "", _verdict(labelled), sections), found


def relabel(runs: Runs) -> Runs:
    return list(zip(labels([id for id, _ in runs]), [state for _, state in runs], strict=True))


def labels(ids: list[str]) -> list[str]:
    """What tells the runs apart: their ids without the words that all begin with."""
    same = takewhile(lambda characters: len(set(characters)) == 1, zip(*ids, strict=False))
    shared = "".join(characters[0] for characters in same).rpartition("-")[0]
    return [id[len(shared) :].lstrip("-") for id in ids]


def _rows(state: RunState) -> dict[str, str]:
    sums, size, figures = totals(state), model(state), best(state)
    attempt = state.attempt
    gpus = (attempt.machine.get("gpus") or []) if attempt else []
    seconds = {phase.phase: phase.seconds for phase in state.phases if phase.verdict == "ok"}
    rows = {
        "status": state.status,
        "commit": str((state.upstream or {}).get("commit") or state.recipe)[:12],
        "depth": str(size.get("depth", "")),
        "parameters": count(size["params"]) if "params" in size else "",
        "GPUs": f"{len(gpus)} × {gpus[0].get('name')}" if gpus else "none",
        "attempts": str(len(state.attempts)),
        "time": minutes(sums.seconds),
        "cost": money(sums.usd),
        "to first step": minutes(sums.first_step_seconds) if sums.first_step_seconds is not None else "",
        "base training": minutes(seconds["base_train"] or 0) if "base_train" in seconds else "",
    }
    return rows | {name.removeprefix("accuracy/"): f"{value:.4f}" for name, value in figures.items()}


def side_by_side(runs: Runs) -> Table:
    """A row for each figure, a column for each run."""
    columns = [_rows(state) for _, state in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return Table(["", *(label for label, _ in runs)], rows, frozenset(range(1, len(runs) + 1)))


def _adapted(runs: Runs) -> list[Block]:
    found: dict[tuple[str, str], list[str]] = {}
    for label, state in runs:
        for change, phases in adapted(state).items():
            found.setdefault((", ".join(phases), change), []).append(label)
    rows = [[", ".join(labels), phases, change] for (phases, change), labels in found.items()]
    return ["Arguments adapted from outside:", Table(["run", "phase", "change"], rows)] if rows else []


def _verdict(runs: Runs) -> str:
    scored = [(best(state)["val_bpb"], label) for label, state in runs if "val_bpb" in best(state)]
    if len(scored) < 2:
        return f"{len(runs)} runs side by side."
    value, label = min(scored)
    return f"{len(runs)} runs side by side; {label} has the lowest validation bpb, {value:.4f}."
