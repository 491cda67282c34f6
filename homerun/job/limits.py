"""Budget and deadline while the script runs: warn once, and stop in time for the last save to land."""

import time
from collections.abc import Callable

from homerun.cost import Limits as Caps
from homerun.cost import Saving, dollars, minutes, money, pace, plan_stop, seconds_left, spent
from homerun.settings import Settings
from homerun.state import Phase, RunState

# Before a landing was measured: what a checkpoint and the report are given to reach the bucket.
UNMEASURED_LANDING_SECONDS = 60.0


class Limits:
    """Asked a few times a second: `check()` → (why, sentence) when the run must end now.

    warn(text, hint) is called once for each thing that a person should know in time.
    """

    def __init__(self, settings: Settings, state: RunState, warn: Callable[[str, str], None]):
        deadline = settings.homerun_deadline.timestamp() if settings.homerun_deadline else None
        self.caps = Caps(settings.homerun_budget_usd, deadline)
        self.state, self.warn = state, warn
        self._warned = False

    @property
    def any(self) -> bool:
        return self.caps.cap_usd is not None or self.caps.deadline is not None

    def check(self) -> tuple[str, str] | None:
        if not self.any or self.state.attempt is None:
            return None
        now, price = time.time(), self.state.attempt.price
        left = seconds_left(self.caps, spent(self.state, now), price, now)
        if left is None:
            return None
        saving = self._saving(self.state.current)
        if saving is None:
            return self._stop(left, "") if left <= self._landing_seconds() else None
        verdict = plan_stop(saving, left, price)
        if verdict.warn and not self._warned:
            self._warned = True
            self.warn(verdict.warn, "raise --budget-usd or --deadline, or let it stop at a save")
        if not verdict.stop_now:
            return None
        kept = "nothing of this phase is saved" if verdict.at_step is None else f"step {verdict.at_step} is kept"
        unspent = f"{minutes(verdict.leaves_seconds)} ({money(dollars(verdict.leaves_seconds, price))}) stay unspent"
        return self._stop(left, f"; {kept}, {unspent}")

    def _stop(self, left: float, what: str) -> tuple[str, str]:
        by_deadline = self.caps.deadline is not None and self.caps.deadline - time.time() <= left + 1
        limit = "the deadline" if by_deadline else f"the budget of {money(self.caps.cap_usd)}"
        return "deadline" if by_deadline else "budget", f"{limit} would not hold the next save and its landing{what}"

    def _saving(self, phase: Phase | None) -> Saving | None:
        """How the running phase saves; None while nothing can be told of its steps."""
        speed = pace(phase) if phase else None
        if phase is None or speed is None or phase.step is None or not phase.total:
            return None
        every = phase.option("save-every")
        saves = [group for group in self.state.groups.values() if group.phase == phase.phase and group.step is not None]
        newest = max(saves, key=lambda group: group.step or 0, default=None)
        return Saving(
            step=phase.step,
            total=phase.total,
            every=int(every) if every and every.isdigit() and int(every) > 0 else None,
            saved_step=newest.step if newest else None,
            secured=newest is not None and newest.secured_at is not None,
            landing_seconds=self._landing_seconds(),
            pace=speed,
        )

    def _landing_seconds(self) -> float:
        """From a save to its last byte in the bucket: the slowest so far, doubled; else a careful guess."""
        measured = [
            group.secured_at - group.offered_at
            for group in self.state.groups.values()
            if group.secured_at is not None and group.kind == "checkpoint"
        ]
        return 2 * max(measured) + 5 if measured else UNMEASURED_LANDING_SECONDS
