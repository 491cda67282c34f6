"""What time costs, and whether budget and deadline will be kept. Pure: numbers and a `RunState` in, numbers out.

Money is USD, time seconds, prices USD per hour of the whole machine. None stands for "unknown", never for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from homerun.state import Attempt, Phase, RunState

# A checkpoint is taken to be whole after two equal scans of the disk, 2 s apart (homerun/job/supervise.py).
SCAN_SECONDS = 4.0
# To end the script and to land logs, report and metadata: 2 to 5 s for the toy on two busy cores.
ENDING_SECONDS = 10.0

# USD per GPU and hour, on demand, as one provider's page showed them on the day given. Prices move: a setting or a
# provider's quote always goes first, and whoever shows a figure from here says so.
PRICES_READ_ON = "2026-10-07"
PRICES: dict[str, float] = {"B300": 7.89, "B200": 6.79, "H200": 4.59, "H100": 3.49, "A100": 1.79}


@dataclass(frozen=True)
class Price:
    """USD per hour of the whole machine (None where unknown), and where that was learnt."""

    usd_per_hour: float | None
    source: str


def machine_price(gpus: Sequence[dict[str, Any]], per_gpu_hour: float | None) -> Price:
    """The price of a machine with these GPUs ([{name, …}]); a machine without a GPU counts as one."""
    count = max(1, len(gpus))
    if per_gpu_hour is not None:
        return Price(per_gpu_hour * count, f"{count} × ${per_gpu_hour:g} an hour, by setting")
    for name, price in PRICES.items():
        if gpus and all(name in str(gpu.get("name")) for gpu in gpus):
            return Price(price * count, f"{count} × {name} at ${price:g}, a list price of {PRICES_READ_ON}")
    return Price(None, "unknown: set HOMERUN_GPU_HOUR_PRICE (USD per GPU and hour)")


def dollars(seconds: float, usd_per_hour: float | None) -> float | None:
    return None if usd_per_hour is None else seconds / 3600 * usd_per_hour


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum, or None where a part is unknown: a total that leaves something out would mislead."""
    return None if not values or any(value is None for value in values) else sum(value for value in values if value)


# -- what was spent -----------------------------------------------------------------------------------------------


def paid_seconds(state: RunState, now: float | None = None) -> float:
    """Seconds that machines were held for this run: every attempt's, up to `now` for one that goes on."""
    return sum(_span(attempt, now if attempt is state.attempt else None) for attempt in state.attempts)


def spent(state: RunState, now: float | None = None) -> float | None:
    """USD of all attempts so far."""
    return _sum(
        [
            dollars(_span(attempt, now if attempt is state.attempt else None), attempt.price)
            for attempt in state.attempts
        ]
    )


def _span(attempt: Attempt, now: float | None) -> float:
    end = attempt.end if attempt.ended is not None or now is None else max(now, attempt.updated)
    return max(0.0, end - attempt.began)


def phase_seconds(phase: Phase, now: float) -> float:
    return phase.seconds if phase.seconds is not None else max(0.0, now - phase.began)


def phase_cost(state: RunState, phase: Phase, now: float) -> float | None:
    """USD of the time that a phase ran; phases in the background ran on time that others paid for: 0."""
    if phase.background:
        return 0.0
    price = next((attempt.price for attempt in state.attempts if attempt.number == phase.attempt), None)
    return dollars(phase_seconds(phase, now), price)


@dataclass(frozen=True)
class Totals:
    """A run's money and time. between: seconds paid for in which no foreground phase ran (start, checks, landing)."""

    seconds: float
    usd: float | None
    between_seconds: float
    between_usd: float | None
    first_step_seconds: float | None  # paid until the first training step of the first attempt that reached one
    first_step_usd: float | None


def totals(state: RunState, now: float | None = None) -> Totals:
    now = state.updated if now is None else now
    seconds, usd = paid_seconds(state, now), spent(state, now)
    foreground = [phase for phase in state.phases if not phase.background]
    in_phases = sum(phase_seconds(phase, now) for phase in foreground)
    phases_usd = _sum([phase_cost(state, phase, now) for phase in foreground] or [0.0])
    first_seconds = first_usd = None
    for position, attempt in enumerate(state.attempts):
        if attempt.first_step is not None:
            before = state.attempts[:position]
            first_seconds = sum(_span(one, None) for one in before) + attempt.first_step - attempt.began
            parts = [dollars(_span(one, None), one.price) for one in before]
            first_usd = _sum([*parts, dollars(attempt.first_step - attempt.began, attempt.price)])
            break
    between = max(0.0, seconds - in_phases)
    between_usd = None if usd is None or phases_usd is None else max(0.0, usd - phases_usd)
    return Totals(seconds, usd, between, between_usd, first_seconds, first_usd)


class PaidClock:
    """Turns a moment (Unix seconds) into hours and dollars paid until then; gaps between attempts are free."""

    def __init__(self, state: RunState):
        self._attempts = state.attempts

    def hours(self, t: float) -> float:
        return sum(self._until(attempt, t) for attempt in self._attempts) / 3600

    def usd(self, t: float) -> float | None:
        return _sum(
            [dollars(self._until(attempt, t), attempt.price) for attempt in self._attempts if attempt.began <= t]
        )

    @staticmethod
    def _until(attempt: Attempt, t: float) -> float:
        return max(0.0, min(t, attempt.end) - attempt.began)


# -- what it will cost --------------------------------------------------------------------------------------------


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


# -- budget and deadline ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What a run may use. cap_usd: of the whole run, all attempts; deadline: Unix seconds. None: no such limit."""

    cap_usd: float | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class Saving:
    """How the running phase saves.

    step, total: where it is, and where it ends (it saves there too). every: steps between saves, None where it saves
    only at the end, 0 where it saves when told. saved_step: the newest save, None before the first.
    secured: whether that save is in the bucket. landing_seconds: from a save to its last byte proven in the bucket.
    pause_seconds: that the steps rest for a save and its evaluation.
    """

    step: int
    total: int
    every: int | None
    saved_step: int | None
    secured: bool
    landing_seconds: float
    pace: Pace
    pause_seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What `plan_stop` says. fits: the phase ends, saved and landed, inside the limits. warn: a sentence, or "".
    stop_now: end the phase now (it has told what it keeps). at_step: the newest save, which will be kept.
    leaves_seconds, leaves_usd: what stopping leaves unspent of the limit that binds, which is `limit`.
    can_wait: a phase that was told to save may still take a while over it."""

    fits: bool
    warn: str = ""
    stop_now: bool = False
    at_step: int | None = None
    leaves_seconds: float = 0.0
    leaves_usd: float | None = None
    limit: Literal["budget", "deadline"] = "budget"
    can_wait: bool = False


# A step may start just before we look and end after: margins beside the careful pace.
MARGIN_STEPS = 2
MARGIN = 1.05


def check_limits(
    state: RunState, limits: Limits, now: float, reserve_seconds: float, saves_when_told: bool = False
) -> Verdict:
    """Go on, warn or stop, for the phase that runs now. Cheap enough for every tick.

    reserve_seconds: what a landing is taken to need until this run has measured one. saves_when_told: the running
    phase saves on request (our trainer does).
    """
    price = state.attempt.price if state.attempt else None
    left, limit = seconds_left(limits, spent(state, now), price, now)
    if left is None:
        return Verdict(fits=True)
    saving = read_saving(state, now, reserve_seconds, saves_when_told)
    if saving is not None:
        return replace(plan_stop(saving, left, price), limit=limit)
    reserve = (
        landing_seconds(state, reserve_seconds) * MARGIN + ENDING_SECONDS
    )  # no steps to count: only what is there must land
    if left > reserve:
        return Verdict(fits=True)
    newest = max((group.step for group in state.groups.values() if group.step is not None), default=None)
    warn = f"{minutes(left)} are left, as long as the landing needs"
    unspent = max(0.0, left - reserve)
    return Verdict(False, warn, True, newest, unspent, dollars(unspent, price), limit)


def seconds_left(
    limits: Limits, spent_usd: float | None, price: float | None, now: float
) -> tuple[float | None, Literal["budget", "deadline"]]:
    """Seconds until the first of the limits, and which; None without one, or where a cap meets an unknown price."""
    budget = deadline = None
    if limits.cap_usd is not None and spent_usd is not None and price:
        budget = (limits.cap_usd - spent_usd) / price * 3600
    if limits.deadline is not None:
        deadline = limits.deadline - now
    if deadline is not None and (budget is None or deadline <= budget):
        return deadline, "deadline"
    return budget, "budget"


def read_saving(state: RunState, now: float, reserve_seconds: float, saves_when_told: bool) -> Saving | None:
    """How the running phase saves and where it is; None while it has no measured pace or no known end."""
    phase = state.current
    speed = pace(phase) if phase else None
    if phase is None or speed is None or phase.step is None or phase.total is None:
        return None
    option = phase.option("save-every")
    every = int(option) if option and option.isdigit() and int(option) > 0 else None
    saves = [group for group in state.groups.values() if group.phase == phase.phase and group.step is not None]
    newest = max((group.step for group in saves if group.step is not None), default=None)
    return Saving(
        step=phase.step,
        total=phase.total,
        every=0 if saves_when_told else every,
        saved_step=newest,
        secured=all(group.secured_at is not None for group in saves if group.step == newest),
        landing_seconds=landing_seconds(state, reserve_seconds),
        pace=speed,
        pause_seconds=phase.pause,
    )


def landing_seconds(state: RunState, reserve_seconds: float) -> float:
    """From a save to its proof in the bucket: half as long again as this run's slowest, else `reserve_seconds`."""
    measured = [
        (group.secured_at - group.offered_at) * 1.5 + SCAN_SECONDS
        for group in state.groups.values()
        if group.step is not None and group.secured_at is not None
    ]
    return max(measured, default=reserve_seconds)


def plan_stop(saving: Saving, left: float, price: float | None) -> Verdict:
    """Go on, or stop here? `left`: seconds until the limit. To be asked at every step and after every save.

    Goes on while the next save and its landing still fit at the slow pace: so a stop leaves the newest save the time
    to land, and less than one save interval (and the margins) unspent. With nothing saved yet, the typical pace
    decides: to stop then would lose everything.
    """
    to_end = _until_landed(saving, saving.total, careful=True)
    fits = to_end <= left
    needed = _until_landed(saving, next_save(saving), careful=saving.saved_step is not None or saving.every == 0)
    landing = 0.0 if saving.secured and saving.every != 0 else saving.landing_seconds
    unspent = max(0.0, left - landing - ENDING_SECONDS)
    can_wait = saving.every == 0 and left > landing / 1.5 + ENDING_SECONDS
    due = saving.step // saving.every * saving.every if saving.every else 0
    is_seen = due <= (saving.saved_step or 0)  # a save takes some seconds to be whole for us
    if not is_seen and left > saving.landing_seconds + ENDING_SECONDS:
        needed = 0.0
    warn = "" if fits else _sentence(saving, left, to_end)
    return Verdict(fits, warn, needed > left, saving.saved_step, unspent, dollars(unspent, price), can_wait=can_wait)


def next_save(saving: Saving) -> int:
    """The step of the next save."""
    if saving.every is None:
        return saving.total
    if saving.every == 0:
        return min(saving.step + 1, saving.total)
    return min((saving.step // saving.every + 1) * saving.every, saving.total)


def _until_landed(saving: Saving, step: int, careful: bool) -> float:
    steps = max(0, step - saving.step)
    after = saving.pause_seconds + saving.landing_seconds
    if not careful:
        return steps * saving.pace.seconds + after * MARGIN + ENDING_SECONDS
    return saving.pace.careful(steps + MARGIN_STEPS) + after * MARGIN + ENDING_SECONDS


def _sentence(saving: Saving, left: float, to_end: float) -> str:
    if saving.every == 0:
        then = "it will save and end in time"
    elif saving.saved_step is None:
        then = "nothing is saved yet"
    else:
        then = f"step {saving.saved_step} is the newest save"
    return f"step {saving.total} needs about {minutes(to_end)} with its landing, {minutes(left)} are left; {then}"


# -- words --------------------------------------------------------------------------------------------------------


def minutes(seconds: float) -> str:
    """`8 s`, `3 min`, `2 h 05 min`."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    whole = round(seconds / 60)
    return f"{whole // 60} h {whole % 60:02d} min"


def money(usd: float | None) -> str:
    """`$0.0042`, `$3.17`, `?` where unknown."""
    if usd is None:
        return "?"
    return f"${usd:.2f}" if usd >= 0.01 or usd == 0 else f"${usd:.4f}"
