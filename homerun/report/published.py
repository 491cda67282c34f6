"""Figures that others published, to hold a run against. Source of nanochat's: its README at the commit named."""

from dataclasses import dataclass

GPT2_CORE = 0.256525  # OpenAI's GPT-2 (1.6B), as nanochat's README gives it


@dataclass(frozen=True)
class Published:
    """A reference run of nanochat on 8×H100. hours: of pretraining; None where its table has no figure."""

    depth: int
    what: str
    commit: str
    core: float
    val_bpb: float | None = None
    hours: float | None = None
    tasks: tuple[tuple[str, float], ...] = ()


SPEEDRUN_D20 = Published(
    20,
    "the $100 speedrun of October 2025",
    "7031985",
    core=0.2219,
    tasks=(
        ("ARC-Challenge", 0.2807),
        ("ARC-Easy", 0.3876),
        ("GSM8K", 0.0455),
        ("HumanEval", 0.0854),
        ("MMLU", 0.3151),
        ("ChatCORE", 0.0884),
    ),
)
# The commits date the training code: bits per byte before and after 324e69c are of different data and not comparable.
PUBLISHED = (
    SPEEDRUN_D20,
    Published(24, "d24 baseline, slightly overtrained (January 2026)", "348fbb3", 0.2585, 0.74833, 3.04),
    Published(26, "d26 slightly undertrained, fp8 (February 2026)", "a67eba3", 0.2578, 0.74504, 2.91),
)


def reference(depth: int | None) -> Published | None:
    """What upstream published for this depth, if anything."""
    return next((one for one in PUBLISHED if one.depth == depth), None)
