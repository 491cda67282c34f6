"""What time costs, and has cost. Pure: numbers and a `RunState` in, numbers out.

Money is USD, time seconds, prices USD per hour of the whole machine. None stands for "unknown", never for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from homerun.state import Attempt, Phase, RunState

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
