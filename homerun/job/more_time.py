"""Budget and deadline as they are now: what the environment says, and what `homerun extend` has put on top since."""

from pathlib import Path

from homerun.bucket import extension
from homerun.budget import Limits, seconds_left
from homerun.cost import dollars, spent
from homerun.settings import Settings
from homerun.state import RunState


def limits_now(settings: Settings, outbox: Path) -> Limits:
    """Cheap enough for every tick. More time that was asked for another box's deadline does not count for this one."""
    budget = settings.homerun_budget_usd
    deadline = settings.homerun_deadline.timestamp() if settings.homerun_deadline else None
    asked = extension.heard(outbox)
    if asked is None or asked.was != deadline:
        return Limits(budget, deadline)
    return Limits(None if budget is None else budget + asked.usd, asked.deadline)


def over_limit(state: RunState, limits: Limits, now: float) -> bool:
    """Whether serving, after the run's end, has used up the budget or the time."""
    attempt, usd = state.attempt, spent(state)
    if usd is not None and attempt and attempt.ended:
        usd += dollars(now - attempt.ended, attempt.price) or 0.0
    left, _ = seconds_left(limits, usd, attempt.price if attempt else None, now)
    return left is not None and left <= 0
