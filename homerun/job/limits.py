"""Budget and deadline while the script runs: warn once, and stop in time for the last save to land.

A phase that announced that it saves when told is told then, and ended once its save is whole on the disk: the landing
goes on without it. Upstream's own training cannot be told: it ends at the last of its own saves whose landing fits.
"""

import time
from collections.abc import Callable

from homerun.budget import Limits as Caps
from homerun.budget import Verdict, check_limits
from homerun.cost import minutes, money
from homerun.settings import Settings
from homerun.state import Phase, RunState

# Before a landing was measured: what a checkpoint is given to reach the bucket.
UNMEASURED_LANDING_SECONDS = 60.0


class Limits:
    """Asked a few times a second: `check()` → (why, sentence) when the run must end now.

    warn(text, hint) is called once for each thing that a person should know in time. tell() asks the running phase to
    save. clock() gives Unix seconds.
    """

    def __init__(
        self,
        settings: Settings,
        state: RunState,
        warn: Callable[[str, str], None],
        tell: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ):
        deadline = settings.homerun_deadline.timestamp() if settings.homerun_deadline else None
        self.caps = Caps(settings.homerun_budget_usd, deadline)
        self.state, self.warn, self.tell, self.clock = state, warn, tell, clock
        self._warned = False
        self._told: tuple[Phase, int] | None = None  # who was told to save, and the step it was seen at

    def check(self) -> tuple[str, str] | None:
        phase = self.state.current
        can_be_told = phase is not None and self.state.fact("saves_when_told", phase.phase) is True
        verdict = check_limits(self.state, self.caps, self.clock(), UNMEASURED_LANDING_SECONDS, can_be_told)
        if verdict.warn and not self._warned:
            self._warned = True
            self.warn(verdict.warn, "raise --budget-usd or --deadline, or let it stop at a save")
        if self._told and self._told[0] is not phase:
            self._told = None
        if self._told:
            arrived = verdict.at_step is not None and verdict.at_step > self._told[1]
            if verdict.can_wait and not arrived:
                return None
            self._told = None
            return self._stop(verdict) if verdict.stop_now or not arrived else None  # more time was given meanwhile
        if not verdict.stop_now:
            return None
        if can_be_told and verdict.can_wait and phase and phase.step is not None:
            self._told = phase, phase.step
            self.tell()
            return None
        return self._stop(verdict)

    def _stop(self, verdict: Verdict) -> tuple[str, str]:
        limit = "the deadline" if verdict.limit == "deadline" else f"the budget of {money(self.caps.cap_usd)}"
        kept = "nothing of this phase is saved" if verdict.at_step is None else f"step {verdict.at_step} is kept"
        unspent = "what is left of it is for the landing"
        if verdict.leaves_seconds >= 1:
            unspent = f"at least {minutes(verdict.leaves_seconds)} ({money(verdict.leaves_usd)}) stay unspent"
        return verdict.limit, f"{limit} would not hold the next save and its landing; {kept}, {unspent}"
