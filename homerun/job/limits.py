"""Budget and deadline while the script runs: warn once, and stop in time for the last save to land."""

import time
from collections.abc import Callable

from homerun.cost import Limits as Caps
from homerun.cost import Verdict, check_limits, minutes, money
from homerun.settings import Settings
from homerun.state import RunState

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

    def check(self) -> tuple[str, str] | None:
        verdict = check_limits(self.state, self.caps, time.time(), UNMEASURED_LANDING_SECONDS)
        if verdict.warn and not self._warned:
            self._warned = True
            self.warn(verdict.warn, "raise --budget-usd or --deadline, or let it stop at a save")
        return self._stop(verdict) if verdict.stop_now else None

    def _stop(self, verdict: Verdict) -> tuple[str, str]:
        limit = "the deadline" if verdict.limit == "deadline" else f"the budget of {money(self.caps.cap_usd)}"
        kept = "nothing of this phase is saved" if verdict.at_step is None else f"step {verdict.at_step} is kept"
        unspent = f"{minutes(verdict.leaves_seconds)} ({money(verdict.leaves_usd)}) stay unspent"
        return verdict.limit, f"{limit} would not hold the next save and its landing; {kept}, {unspent}"
