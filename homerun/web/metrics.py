"""/metrics: the run in Prometheus's text format. Pure: a state and the engines' figures in, text out."""

import re
from collections.abc import Mapping

from homerun.cost import totals
from homerun.state import RunState

Labels = Mapping[str, str]


def render(state: RunState, engines: Mapping[str, Mapping[str, int]], now: float) -> str:
    """engines: {model id: {running, queued, tokens}}."""
    lines: list[str] = []

    def metric(name: str, help: str, rows: list[tuple[Labels, float | None]], kind: str = "gauge") -> None:
        rows = [(labels, value) for labels, value in rows if value is not None]
        if rows:
            lines.extend((f"# HELP homerun_{name} {help}", f"# TYPE homerun_{name} {kind}"))
            lines.extend(f"homerun_{name}{_labels(labels)} {float(value or 0):.12g}" for labels, value in rows)

    sums = totals(state, now if state.status == "running" else None)
    last = state.last
    metric("up", "1 while this page answers.", [({"run": state.run, "status": state.status}, 1)])
    metric("paid_seconds_total", "Seconds that machines were held for the run.", [({}, sums.seconds)], "counter")
    metric("cost_usd_total", "What those cost.", [({}, sums.usd)], "counter")
    metric(
        "lost_seconds", "Training lost if the machine died now.", [({}, _times(state.gauge.get("lost_minutes"), 60))]
    )
    metric("pending_bytes", "Bytes not yet in the bucket.", [({}, state.gauge.get("pending_bytes"))])
    metric("secured_bytes", "Bytes proven in the bucket.", [({}, sum(g.bytes for g in state.secured))])
    phase: Labels = {"phase": str(last.get("phase", ""))}
    for name, help in (
        ("step", "The newest training step."),
        ("loss", "Its loss."),
        ("tok_per_sec", "Tokens a second."),
        ("mfu", "Model FLOPs utilisation, percent."),
    ):
        metric(name, help, [(phase, last.get(name))])
    metric(
        "eval",
        "The newest value of each evaluation.",
        [({"phase": p, "metric": m}, found.value) for (p, m), found in state.evals.items()],
    )
    gpus = state.machine.get("gpus") or []
    for name, help in (
        ("util", "GPU utilisation, percent."),
        ("memory_bytes", "GPU memory in use."),
        ("power_w", "GPU power, watts."),
        ("temperature_c", "GPU temperature, degrees Celsius."),
    ):
        metric(f"gpu_{name}", help, [({"gpu": str(i)}, gpu.get(name)) for i, gpu in enumerate(gpus)])
    metric("warnings_total", "Warnings so far.", [({}, state.warned)], "counter")
    for name, help, kind in (
        ("running", "Answers being written.", "gauge"),
        ("queued", "Answers waiting for a slot.", "gauge"),
        ("tokens", "Tokens written.", "counter"),
    ):
        metric(
            f"serve_{name}" + ("_total" if kind == "counter" else ""),
            help,
            [({"model": model}, figures.get(name)) for model, figures in engines.items()],
            kind,
        )
    return "\n".join(lines) + "\n"


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _labels(labels: Labels) -> str:
    inside = ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escape(value: str) -> str:
    return re.sub(r'[\\"\n]', lambda found: {"\n": r"\n"}.get(found[0], "\\" + found[0]), value)
