"""How often base training saves: by time, turned into steps as well as can be told before it begins."""

from collections.abc import Mapping, Sequence
from typing import Any

from homerun.settings import Settings
from homerun.state import RunState

# Tokens per second and GPU in base training at depth 20 with bfloat16. H100: upstream's own d20 speedrun, 11.2 B tokens
# in about 3 hours on eight; the others by the ratio of their dense bfloat16 peaks. An estimate, for the first attempt's
# save interval only: measured steps replace it at the next.
TOKENS_PER_SECOND = {
    "B200": 290_000.0,
    "H200": 130_000.0,
    "H100": 130_000.0,
    "A100": 41_000.0,
    "L40S": 47_000.0,
    "4090": 21_000.0,
}
TABLE_DEPTH = 20
BATCH_TOKENS = 524_288  # upstream's total batch where neither its script nor the user says another


# On a GPU that is not in the table, in base training that would save at its end alone: as often as upstream evaluates.
UNKNOWN_STEPS = 250
LEAST_SAVES = 6  # as many save intervals as a budget or deadline leaves time for


def save_every(
    settings: Settings,
    state: RunState,
    depth: int | None,
    gpus: Sequence[Mapping[str, Any]],
    left: float | None = None,
) -> int | None:
    """Steps between two saves of base training, about `HOMERUN_SAVE_MINUTES` apart; None where nothing can be told.

    From an earlier attempt's measured steps, else from the table. left: seconds until budget or deadline, if any; a
    short one saves more often, so that its end loses little.
    """
    seconds = measured_step_seconds(state) or table_step_seconds(depth, gpus)
    apart = settings.homerun_save_minutes * 60
    if left is not None:
        apart = min(apart, left / LEAST_SAVES)
    return max(1, round(apart / seconds)) if seconds else None


def unknown_save_every(words: Sequence[str]) -> int | None:
    """The same where nothing can be told; None where the script says itself how often it saves."""
    says = any(word.replace("_", "-").startswith("--save-every") for word in words)
    return None if says else UNKNOWN_STEPS


def measured_step_seconds(state: RunState) -> float | None:
    curves = (curve for (phase, metric), curve in state.curves.items() if metric == "dt_ms" and "base_train" in phase)
    values = sorted(point.value for curve in curves for point in curve.points())
    return values[len(values) // 2] / 1000 if values else None


def table_step_seconds(depth: int | None, gpus: Sequence[Mapping[str, Any]]) -> float | None:
    rate = table_tokens_per_second(depth, gpus)
    return BATCH_TOKENS / rate if rate else None


def table_tokens_per_second(depth: int | None, gpus: Sequence[Mapping[str, Any]]) -> float | None:
    """Of all these GPUs at this depth, by the table; None where they are not in it.

    Depth 24 on eight H100, by upstream's leaderboard: 800,000 with bfloat16 in January 2026; by this: 636,000.
    """
    if not gpus or not depth:
        return None
    for name, rate in TOKENS_PER_SECOND.items():
        if all(name in str(gpu.get("name")) for gpu in gpus):
            return rate * matmul_params(TABLE_DEPTH) / matmul_params(depth) * len(gpus)
    return None


def matmul_params(depth: int) -> float:
    """Parameters that each token is multiplied with: 12 matrices of width 64·depth a layer, and a head of 65,536."""
    return 12 * depth * (64 * depth) ** 2 + 65_536 * 64 * depth
