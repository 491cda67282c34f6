"""If it died now: how many minutes and dollars of work would be lost?

Work is secured up to a moment: the end of the last phase whose artifacts are all in the bucket, or, in a phase that can
resume, the moment whose state the newest secured checkpoint holds. What was done since is at risk.
"""

from dataclasses import dataclass, field
from typing import Any

from homerun.upstream.artifacts import Group

# Between a step and our reading of its line in the log; the gauge may show too much, never too little.
READING_LAG = 2.0


@dataclass
class Gauge:
    """Pure bookkeeping; the supervisor tells it what happens and asks `read(now)`.

    began: when this attempt's work began (Unix seconds). price_per_hour: USD for the machine, None where unknown.
    resumable: names of phases that this commit can re-enter at a step.
    """

    began: float
    price_per_hour: float | None = None
    resumable: frozenset[str] = frozenset()
    _waiting: dict[str, tuple[str, float]] = field(default_factory=dict)  # group → its phase, the moment it holds
    _ended: dict[str, float] = field(default_factory=dict)  # phase → when it ended well
    _steps: dict[tuple[str, int], float] = field(default_factory=dict)  # the few newest steps → when they were logged
    _secured_until: float = 0.0
    _secured_step: int | None = None

    def step(self, phase: str, step: int, at: float) -> None:
        self._steps[phase, step] = at
        if len(self._steps) > 100_000:
            self._steps.pop(next(iter(self._steps)))

    def phase_ended(self, phase: str, at: float) -> None:
        self._ended[phase] = at

    def offered(self, group: Group, phase: str) -> None:
        self._waiting[group.name] = (phase, self._moment(group, phase))

    def log_offered(self, log: str, phase: str) -> None:
        """A phase that leaves only figures is proven by its log: until that is in the bucket it would run again."""
        self._waiting[log] = (phase, 0.0)

    def log_secured(self, log: str) -> None:
        self._waiting.pop(log, None)

    def secured(self, group: Group) -> None:
        phase, moment = self._waiting.pop(group.name, ("", 0.0))
        if group.step is not None and phase.partition(".")[0] in self.resumable and not self._half(group.name):
            self._secured_until = max(self._secured_until, moment)
            self._secured_step = group.step

    def read(self, now: float, pending_bytes: int | None, journal_at: float) -> dict[str, Any]:
        """The `gauge` event's data: lost_minutes, lost_usd, secured_step, pending_bytes.

        journal_at: events before it are in the bucket. A phase whose end is not told there would run again.
        """
        self._settle(journal_at)
        lost = max(0.0, now - max(self._secured_until, self.began))
        dollars = None if self.price_per_hour is None else round(lost / 3600 * self.price_per_hour, 4)
        return {
            "lost_minutes": round(lost / 60, 3),
            "lost_usd": dollars,
            "secured_step": self._secured_step,
            "pending_bytes": pending_bytes,
        }

    def _moment(self, group: Group, phase: str) -> float:
        """When training had the state that a checkpoint holds: its last step's line, else this attempt's begin."""
        written = min(file.mtime_ns for file in group.files) / 1e9
        if group.step is None:
            return written
        return self._steps.get((phase, group.step - 1), self.began) - READING_LAG

    def _half(self, group: str) -> bool:
        """Whether the other half of a checkpoint (model, optimizer) is still on its way."""
        other = group.removesuffix(".optim") if group.endswith(".optim") else f"{group}.optim"
        return other in self._waiting

    def _settle(self, journal_at: float) -> None:
        """Phases that ended, in order, up to the first with a group, a log or an end that is not secured yet."""
        open_phases = {phase for phase, _ in self._waiting.values()}
        for phase, at in self._ended.items():
            if phase in open_phases or at > journal_at:
                return
            self._secured_until = max(self._secured_until, at)
