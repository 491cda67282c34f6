"""What the live page shows: the journal folded, as one JSON object, and its curves point by point.

`Board.refresh` reads what is new in the journal; `snapshot` is a pure function of the state.
"""

import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from homerun.cost import PaidClock, phase_cost, phase_seconds, totals
from homerun.journal import Event, Follower
from homerun.projection import project
from homerun.state import STEP_METRICS, Attempt, Phase, RunState

SILENT_SECONDS = 120.0  # a job that lives writes at least every 15 s
NEWEST = 20_000  # curve points kept to bring a reader up to date; who lags further gets whole curves

Points = dict[str, list[list[float]]]  # "phase/metric": [[step, t, value], …]


class Board:
    """One run as it is now. path: its journal, which may not exist yet."""

    def __init__(self, path: Path):
        self.state = RunState()
        self._follower = Follower(path)
        self._news: deque[tuple[int, str, list[float]]] = deque(maxlen=NEWEST)

    @property
    def seq(self) -> int:
        """The newest event's number; -1 before the first."""
        return self.state.seq

    def refresh(self) -> bool:
        """Take in some of what is new, about 20 ms' worth; whether there was anything."""
        events = self._follower.poll(1 << 18)
        for event in events:
            self.state.apply(event)
            self._news.extend((event["seq"], key, point) for key, point in _points(event))
        return bool(events)

    def curves(self) -> Points:
        """All curves, each of at most about 2000 points."""
        return {
            f"{phase}/{metric}": [[p.step, p.t, p.value] for p in curve.points()]
            for (phase, metric), curve in self.state.curves.items()
        }

    def points_after(self, seq: int) -> Points | None:
        """The points of events after `seq`; None where they are no longer all there."""
        if self._news.maxlen == len(self._news) and self._news[0][0] > seq + 1:
            return None
        found: Points = {}
        for number, key, point in self._news:
            if number > seq:
                found.setdefault(key, []).append(point)
        return found


def _points(event: Event) -> list[tuple[str, list[float]]]:
    """The curve points that an event adds, as RunState adds them."""
    t = event["t"]
    match event["type"]:
        case "step" if event.get("step") is not None:
            phase, step = event["phase"], event["step"]
            return [(f"{phase}/{m}", [step, t, event[m]]) for m in STEP_METRICS if event.get(m) is not None]
        case "eval" if event.get("step") is not None and event.get("value") is not None:
            return [(f"{event['phase']}/{event['metric']}", [event["step"], t, event["value"]])]
        case "machine":
            gpus = event.get("gpus") or []
            readings: dict[str, Any] = {"cpu": event.get("cpu"), "memory_bytes": event.get("memory_bytes")}
            if gpus:
                readings["gpu_util"] = sum(gpu.get("util") or 0 for gpu in gpus) / len(gpus)
                readings["gpu_memory_bytes"] = max(gpu.get("memory_bytes") or 0 for gpu in gpus)
                readings["gpu_power_w"] = sum(gpu.get("power_w") or 0 for gpu in gpus)
            return [(f"machine/{name}", [int(t), t, value]) for name, value in readings.items() if value is not None]
    return []


def snapshot(state: RunState, now: float | None = None) -> dict[str, Any]:
    """Everything about the run but its curves: plain data, a few kilobytes. Times in Unix seconds, money in USD."""
    now = time.time() if now is None else now
    running = state.status == "running" and bool(state.attempts)
    silent = running and now - state.updated > SILENT_SECONDS
    if not running or silent:
        now = state.updated
    sums, ahead = totals(state, now), project(state, now) if running else None
    return {
        "run": state.run,
        "recipe": state.recipe,
        "status": "silent" if silent else state.status if state.attempts else "starting",
        "code": state.code,
        "stop": state.stop,
        "script": state.script,
        "upstream": state.upstream,
        "bucket": state.bucket,
        "version": state.version,
        "began": state.began,
        "updated": state.updated,
        "seq": state.seq,
        "attempts": [_attempt(attempt) for attempt in state.attempts],
        "time": {
            "paid_seconds": sums.seconds,
            "between_seconds": sums.between_seconds,
            "phase_left_seconds": ahead.phase_seconds if ahead else None,
            "run_seconds": ahead.run_seconds if ahead else None,
        },
        "money": {
            "usd": sums.usd,
            "usd_per_hour": state.attempt.price if state.attempt else None,
            "projected_usd": ahead.usd if ahead else None,
            "floor": ahead.floor if ahead else False,
            "between_usd": sums.between_usd,
        },
        "gauge": _plain(state.gauge, "lost_minutes", "lost_usd", "secured_step", "pending_bytes") if running else None,
        "phases": _phases(state, now),
        "last": _plain(state.last, "phase", "step", "total", *STEP_METRICS),
        "evals": [
            {"phase": phase, "metric": metric, **asdict(found)} for (phase, metric), found in state.evals.items()
        ],
        "facts": [{"phase": phase, "name": name, "value": value} for (phase, name), value in state.facts.items()],
        "machine": _plain(state.machine, "cpu", "memory_bytes", "disk_free_bytes", "gpus"),
        "groups": [asdict(group) for group in list(state.groups.values())[-200:]],
        "samples": list(state.samples)[-12:],
        "checks": list(state.checks),
        "plan": {"drift": state.drift, "adapted": state.adapted},
        "warnings": [asdict(warning) for warning in list(state.warnings)[-50:]],
        "warned": state.warned,
    }


def clock(state: RunState) -> list[list[float | None]]:
    """[[t, paid hours, USD], …] at every attempt's begin and end: what turns a point's time into money."""
    paid = PaidClock(state)
    moments = sorted({t for attempt in state.attempts for t in (attempt.began, attempt.end)})
    return [[t, paid.hours(t), paid.usd(t)] for t in moments]


def _plain(data: dict[str, Any], *names: str) -> dict[str, Any] | None:
    return {name: data[name] for name in names if data.get(name) is not None} if data else None


def _attempt(attempt: Attempt) -> dict[str, Any]:
    names = ("number", "began", "ended", "machine", "nproc", "price", "wrapper", "resumed_from")
    return {name: getattr(attempt, name) for name in (*names, "code", "reason", "safe", "next")}


def _phases(state: RunState, now: float) -> list[dict[str, Any]]:
    """What ran, in order, then what the plan still holds."""
    rows = [_phase(state, phase, now) for phase in state.phases]
    done = {phase.name for phase in state.phases if state.attempt and phase.attempt == state.attempt.number}
    if state.status == "running":
        waiting = [step for step in state.plan if (step.get("phase") or step.get("name")) not in done]
        rows += [{"phase": step.get("phase") or step.get("name"), "state": "planned"} for step in waiting]
    return rows


def _phase(state: RunState, phase: Phase, now: float) -> dict[str, Any]:
    return {
        "phase": phase.phase,
        "state": phase.verdict or "running",
        "attempt": phase.attempt,
        "line": phase.line,
        "background": phase.background,
        "seconds": phase_seconds(phase, now),
        "usd": phase_cost(state, phase, now),
        "step": phase.step,
        "total": phase.total,
        "reason": phase.reason,
        "log": phase.log,
        "argv": phase.argv,
    }
