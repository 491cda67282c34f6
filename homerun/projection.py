"""How long the running phase and its run will take, and what they will cost, from the steps that were measured."""

from dataclasses import dataclass
from statistics import median

from homerun.cost import dollars, paid_seconds, spent
from homerun.state import Phase, RunState

FIRST_STEPS = 8  # fewer tell nothing: one straggler among them would end a run that fits


@dataclass(frozen=True)
class Pace:
    """How fast a phase goes. seconds: expected for one step, evaluations and saves included; drift: how much slower it
    has become; spread: how far a step is typically off."""

    seconds: float
    drift: float = 0.0
    spread: float = 0.0

    def careful(self, steps: int) -> float:
        """Seconds that `steps` will hardly exceed: they go on growing slower, and what they are off by adds up by the
        root of their number."""
        return steps * (self.seconds + self.drift) + 3 * self.spread * steps**0.5


def pace(phase: Phase, now: float | None = None) -> Pace | None:
    """From the measured steps of one phase; None before it has made `FIRST_STEPS`.

    The median of the newest step times stands against stragglers, their trend over the window is carried on where
    they grow slower, and the share of evaluations and saves comes from the wall clock.
    """
    if phase.first_step is None or phase.last_step is None:
        return None
    steps, wall = phase.last_step[0] - phase.first_step[0], phase.last_step[1] - phase.first_step[1]
    if steps < FIRST_STEPS:
        return None
    times = list(phase.pace)
    if len(times) < 2:
        return Pace(wall / steps, spread=wall / steps) if wall > 0 else None
    half = len(times) // 2
    typical, newest = median(times), median(times[half:])
    drift = max(0.0, newest - median(times[:half]))
    overhead = max(0.0, wall - phase.busy) / steps
    spread = median([abs(time - typical) for time in times])
    return Pace(max(typical, newest) + overhead, drift, spread)


@dataclass(frozen=True)
class Projection:
    """phase_seconds: until the running phase ends; run_seconds and usd: its whole run, later phases only where an
    earlier attempt measured them; `floor` says that some later phase is not in it."""

    phase_seconds: float | None
    run_seconds: float | None
    usd: float | None
    floor: bool


def project(state: RunState, now: float) -> Projection:
    phase = state.current
    speed = pace(phase) if phase else None
    left = None
    if phase and speed and phase.total is not None and phase.step is not None and phase.last_step is not None:
        left = max(0.0, (phase.total - phase.step) * speed.seconds - (now - phase.last_step[1]))
    if left is None:
        return Projection(None, None, None, True)
    known = {other.name: other.seconds for other in state.phases if other.verdict == "ok" and other.seconds is not None}
    later = later_phases(state)
    seconds = left + sum(known.get(name) or 0.0 for name in later)
    attempt = state.attempt
    so_far, more = spent(state, now), dollars(seconds, attempt.price if attempt else None)
    usd = None if so_far is None or more is None else so_far + more
    return Projection(left, paid_seconds(state, now) + seconds, usd, any(name not in known for name in later))


def later_phases(state: RunState) -> list[str]:
    """Names of the plan's foreground phases after the one that runs now."""
    names = [str(step.get("phase") or step.get("name")) for step in state.plan if not step.get("background")]
    current = state.current
    return names[names.index(current.name) + 1 :] if current and current.name in names else []
