"""Whether budget and deadline will be kept, and when to stop so that they are. Pure: numbers and a `RunState` in."""

from dataclasses import dataclass, replace
from typing import Literal

from homerun.cost import dollars, minutes, spent
from homerun.projection import Pace, pace
from homerun.state import RunState

# A checkpoint is taken to be whole after two equal scans of the disk, 2 s apart (homerun/job/supervise.py).
SCAN_SECONDS = 4.0
# To end the script and to land logs, report and metadata: 2 to 5 s for the toy on two busy cores.
ENDING_SECONDS = 10.0


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
    # no steps to count: only what is there must land
    reserve = landing_seconds(state, reserve_seconds) * MARGIN + ENDING_SECONDS
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
