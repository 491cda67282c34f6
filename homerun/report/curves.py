"""The curves of a run, as the page's script draws them: each reading over steps, tokens, hours and dollars."""

from typing import Any

from homerun.cost import PaidClock
from homerun.state import RunState

# What is drawn, in this order: title, unit, whether a log scale is offered.
PLOTS: dict[str, tuple[str, str, bool]] = {
    "loss": ("Training loss", "", True),
    "val_bpb": ("Validation", "bits per byte", True),
    "val_loss": ("Validation loss", "", True),
    "core": ("CORE", "", False),
    "chatcore": ("ChatCORE", "", False),
    "lrm": ("Learning rate multiplier", "", False),
    "tok_per_sec": ("Speed", "tokens/s", False),
    "mfu": ("Model FLOPs utilisation", "%", False),
    "gpu_util": ("GPU utilisation, mean", "%", False),
    "gpu_memory_bytes": ("GPU memory, fullest GPU", "bytes", False),
    "cpu": ("CPU", "%", False),
}


def plots(states: list[tuple[str, RunState]]) -> list[dict[str, Any]]:
    """[{metric, title, unit, log, series: [{name, points: [[step, tokens, hours, usd, value], …]}]}] for some runs.

    Where a reading has no step (machine curves), tokens or dollars, null stands there.
    """
    found = []
    for metric, (title, unit, log) in PLOTS.items():
        series = []
        for label, state in states:
            clock = PaidClock(state)
            for phase, name in state.curves:
                if name == metric:
                    points = _points(state, phase, metric, clock)
                    told = any(point[-1] for point in points)  # MFU is 0 throughout on a CPU
                    if told and len(points) > 1:  # one reading is no curve; the tables have it
                        shown = " ".join(filter(None, [label, "" if phase == "machine" else phase]))
                        series.append({"name": shown or title, "points": points})
        if series:
            found.append({"metric": metric, "title": title, "unit": unit, "log": log, "series": series})
    return found


def _points(state: RunState, phase: str, metric: str, clock: PaidClock) -> list[list[float | None]]:
    batch = state.fact("total_batch_tokens", phase) or state.tokens_per_step.get(phase)
    points: list[list[float | None]] = []
    for step, t, value in state.curve(phase, metric):
        usd = clock.usd(t)
        points.append(
            [
                None if phase == "machine" else step,
                None if phase == "machine" or not batch else step * batch,
                round(clock.hours(t), 5),
                None if usd is None else round(usd, 4),
                float(f"{value:.6g}"),
            ]
        )
    return points
