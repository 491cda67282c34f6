"""Figures that others published, to hold a run against. Source of nanochat's: README and dev/LEADERBOARD.md at 92d63d4,
and for the speedrun of October 2025 the README at 7031985."""

from dataclasses import dataclass

GPT2_CORE = 0.256525  # OpenAI's GPT-2 (1.6B), as nanochat's README gives it
FINEWEB, CLIMBMIX = "FineWeb-Edu", "ClimbMix"


@dataclass(frozen=True)
class Published:
    """A reference run of nanochat on 8×H100. data: bits per byte compare only between runs on the same. hours: of
    pretraining; None where its table has no figure."""

    depth: int
    what: str
    commit: str
    data: str
    core: float
    val_bpb: float | None = None
    hours: float | None = None
    tasks: tuple[tuple[str, float], ...] = ()


SPEEDRUN_TASKS = (
    ("ARC-Challenge", 0.2807),
    ("ARC-Easy", 0.3876),
    ("GSM8K", 0.0455),
    ("HumanEval", 0.0854),
    ("MMLU", 0.3151),
    ("ChatCORE", 0.0884),
)
# In the order of their dates.
PUBLISHED = (
    Published(20, "the $100 speedrun, October 2025", "7031985", FINEWEB, 0.2219, tasks=SPEEDRUN_TASKS),
    Published(24, "slightly overtrained, January 2026", "348fbb3", FINEWEB, 0.2585, 0.74833, 3.04),
    Published(26, "slightly undertrained, fp8, February 2026", "a67eba3", FINEWEB, 0.2578, 0.74504, 2.91),
    Published(26, "1M tokens a step, February 2026", "2c062aa", FINEWEB, 0.2602, 0.74645, 2.76),
    Published(24, "fp8, March 2026", "324e69c", CLIMBMIX, 0.2571, 0.71854, 2.02),
    Published(24, "autoresearch round 1, March 2026", "6ed7d1d", CLIMBMIX, 0.2690, 0.71808, 1.80),
    Published(24, "autoresearch round 2, March 2026", "a825e63", CLIMBMIX, 0.2626, 0.71800, 1.65),
)


def references(depth: int | None) -> list[Published]:
    """What upstream published for this depth, the newest last."""
    return [one for one in PUBLISHED if one.depth == depth]
