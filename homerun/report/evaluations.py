"""How good the model is: its figures, its tasks, and what upstream and GPT-2 reached."""

from homerun.report.blocks import Block, Section, Table
from homerun.report.metadata import model
from homerun.report.published import GPT2_CORE, Published, references
from homerun.state import RunState

TASK = "accuracy/"


def evaluations(state: RunState) -> Section:
    known = references(model(state).get("depth"))
    blocks: list[Block] = [*_headlines(state), *_tasks(state, known)]
    core = max((found.best for _, found in state.metric("core")), default=None)
    if core is not None:
        side = "above" if core > GPT2_CORE else "below"
        blocks.append(f"CORE {core:.4f} is {side} GPT-2's {GPT2_CORE:.4f} ({core / GPT2_CORE:.0%} of it).")
    if blocks and known:
        blocks += ["Published by upstream for this depth, on 8 × H100; hours of pretraining:", _published(known)]
    return Section("Evaluations", blocks)


def _headlines(state: RunState) -> list[Block]:
    rows = []
    for (phase, metric), found in state.evals.items():
        if "/" not in metric:
            best = f"{found.best:.4f}" + (f" at {found.best_step}" if found.best_step is not None else "")
            step = "" if found.step is None else str(found.step)
            rows.append([phase, metric, f"{found.value:.4f}", step, best])
    return [Table(["phase", "metric", "value", "step", "best"], rows, frozenset({2, 3, 4}))] if rows else []


def _tasks(state: RunState, known: list[Published]) -> list[Block]:
    """A row for each task, a column for each phase that tried it."""
    found = {(metric, phase): e.value for (phase, metric), e in state.evals.items() if metric.startswith(TASK)}
    phases = list(dict.fromkeys(phase for _, phase in found))
    theirs = dict(known[-1].tasks) if known else {}
    rows = []
    for metric in dict.fromkeys(metric for metric, _ in found):
        values = [found.get((metric, phase)) for phase in phases] + [theirs.get(metric.removeprefix(TASK))] * bool(
            theirs
        )
        rows.append([metric.removeprefix(TASK), *("" if value is None else f"{value:.4f}" for value in values)])
    header = ["accuracy", *phases, *(["published"] if theirs else [])]
    return [Table(header, rows, frozenset(range(1, len(header))))] if rows else []


def _published(known: list[Published]) -> Table:
    rows = [
        [
            f"{one.what}, {one.commit}",
            one.data,
            f"{one.core:.4f}",
            *(
                "" if value is None else f"{value:g}"
                for value in (one.val_bpb, one.hours, dict(one.tasks).get("ChatCORE"))
            ),
        ]
        for one in known
    ]
    return Table(["run", "data", "CORE", "val bpb", "hours", "ChatCORE"], rows, frozenset({2, 3, 4, 5}))
