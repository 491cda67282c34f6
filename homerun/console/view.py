"""A run at a glance, as a rich renderable: phases with bars, figures, money. Pure: a `RunState` and the time in."""

from collections import deque

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from homerun.console.words import gauge_words, hardware, size
from homerun.cost import minutes, money, phase_cost, phase_seconds, totals
from homerun.projection import later_phases, project
from homerun.state import Phase, RunState

MARKS = {  # verdict: sign that needs no colour, style
    None: (">", "bold cyan"),
    "ok": ("+", "green"),
    "failed": ("x", "bold red"),
    "skipped": ("-", "dim"),
}
OTHER_MARK = ("~", "yellow")  # harmless, tolerated
NARROW = 72  # columns under which bars and prices make room
MOST_PHASES = 16


def view(state: RunState, now: float, width: int, tail: deque[str] | None = None, height: int = 50) -> RenderableType:
    """The whole screen's worth; tail: the newest lines of the running phase's output."""
    parts: list[RenderableType] = [Rule(style="dim"), _title(state, now), _phases(state, now, width, height), Text()]
    parts += [Text(line, overflow="fold") for line in figures(state, now)]
    for warning in list(state.warnings)[-2:]:
        parts.append(Text(f"warning: {warning.text}" + (f" ({warning.count}×)" if warning.count > 1 else ""), "yellow"))
    if tail:
        parts.append(Text())
        for line in tail:
            text = Text(line, "dim", no_wrap=True)
            text.truncate(width - 3, overflow="ellipsis")  # room for ^C, whose echo must not begin a line
            parts.append(text)
    return Stack(*parts)


def _title(state: RunState, now: float) -> Text:
    attempt = state.attempt
    text = Text(state.run or "a run", "bold")
    text.append(f"  {state.status}", "green" if state.status in ("good", "running") else "bold red")
    if attempt:
        number = f", attempt {attempt.number}" if attempt.number > 1 else ""
        text.append(f"  {hardware(attempt.machine)}{number}", "dim")
    return text


def _phases(state: RunState, now: float, width: int, height: int) -> Table:
    wide = width >= NARROW
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(ratio=2, no_wrap=True, overflow="ellipsis", min_width=12)
    if wide:
        table.add_column(width=18)
        table.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    if wide:
        table.add_column(justify="right", no_wrap=True)
    table.expand = True
    attempt = state.attempt.number if state.attempt else 1
    phases = [phase for phase in state.phases if phase.attempt == attempt]
    most = max(4, min(MOST_PHASES, height - 13))
    if len(phases) > most:
        table.add_row("", Text(f"{len(phases) - most} phases before these", "dim"), *[""] * (4 if wide else 1))
    for phase in phases[-most:]:
        sign, style = MARKS.get(phase.verdict, OTHER_MARK)
        name = phase.phase if wide or phase.verdict else f"{phase.phase} {note(phase)}"
        cells: list[RenderableType] = [Text(sign, style), Text(name, style if phase.verdict is None else "")]
        if wide:
            cells += [_bar(phase), Text(note(phase), "dim" if phase.verdict != "failed" else "red")]
        cells.append(Text("" if phase.verdict == "skipped" else minutes(phase_seconds(phase, now))))
        if wide:
            cost = phase_cost(state, phase, now)
            free = cost is None or phase.background or phase.verdict == "skipped"
            cells.append(Text("" if free else money(cost), "dim"))
        table.add_row(*cells)
    for name in later_phases(state)[: max(0, most - len(phases))]:
        table.add_row(".", Text(name, "dim"), *[""] * (4 if wide else 1))
    return table


def _bar(phase: Phase) -> RenderableType:
    if phase.total and phase.step is not None:
        done = phase.total if phase.verdict == "ok" else phase.step
        return ProgressBar(total=phase.total, completed=done, width=18, complete_style="cyan", finished_style="green")
    return Text()


def note(phase: Phase) -> str:
    """What stands beside a phase: its step, its section's word, or why it ended as it did."""
    if phase.reason:
        return phase.reason
    if phase.step is not None:
        return f"step {phase.step}" + (f"/{phase.total}" if phase.total else "")
    return "background" if phase.background else ""


def figures(state: RunState, now: float) -> list[str]:
    """Lines of figures: training, machine, time and money, what is safe. Only what is known."""
    return [
        " · ".join(parts) for parts in (_training(state), _machine(state), _time(state, now), _safety(state)) if parts
    ]


def _training(state: RunState) -> list[str]:
    last, parts = state.last, []
    if last.get("loss") is not None:
        parts.append(f"loss {last['loss']:.4f}")
    bpb = [found for _, found in state.metric("val_bpb")]
    if bpb:
        parts.append(
            f"bpb {bpb[-1].value:.4f}" + (f" (best {bpb[-1].best:.4f})" if bpb[-1].best != bpb[-1].value else "")
        )
    for metric in ("core", "chatcore"):
        parts += [f"{metric.upper()} {found.value:.4f}" for _, found in state.metric(metric)][-1:]
    if last.get("tok_per_sec") is not None:
        parts.append(f"{last['tok_per_sec']:,.0f} tok/s")
    if last.get("mfu"):
        parts.append(f"MFU {last['mfu']:.1f} %")
    return parts


def _machine(state: RunState) -> list[str]:
    event, parts = state.machine, []
    gpus = event.get("gpus") or []
    if gpus:
        memory = [gpu["memory_bytes"] for gpu in gpus if gpu.get("memory_bytes") is not None]
        use = [gpu["util"] for gpu in gpus if gpu.get("util") is not None]
        parts += [f"GPU {sum(use) / len(use):.0f} %"] if use else []
        parts += [f"GPU memory {size(max(memory))}"] if memory else []
    if event.get("cpu") is not None:
        parts.append(f"CPU {event['cpu']:.0f} %")
    if event.get("memory_bytes") is not None:
        parts.append(f"memory {size(event['memory_bytes'])}")
    if event.get("disk_free_bytes") is not None:
        parts.append(f"disk free {size(event['disk_free_bytes'])}")
    return parts


def _time(state: RunState, now: float) -> list[str]:
    sums = totals(state, now)
    parts = [f"{minutes(sums.seconds)} so far"]
    if sums.usd is not None:
        parts.append(f"{money(sums.usd)} so far")
    if state.status == "running":
        ahead = project(state, now)
        floor = "at least " if ahead.floor else ""
        if ahead.phase_seconds is not None:
            parts.append(f"phase ends in {minutes(ahead.phase_seconds)}")
        if ahead.run_seconds is not None:
            parts.append(f"run in {floor}{minutes(ahead.run_seconds - sums.seconds)}")
        if ahead.usd is not None:
            parts.append(f"projected {floor}{money(ahead.usd)}")
    return parts


def _safety(state: RunState) -> list[str]:
    secured = state.secured
    parts = [f"secured {len(secured)} groups, {size(sum(group.bytes for group in secured))}"] if secured else []
    gauge = gauge_words(state.gauge) if state.status == "running" else None
    return parts + ([gauge] if gauge else [])
