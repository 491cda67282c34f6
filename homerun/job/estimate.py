"""Before a run: how long will it take on these GPUs, and what will that cost? Rough, and said so."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from homerun.cost import dollars, minutes, money
from homerun.job.saving import BATCH_TOKENS, matmul_params, table_step_seconds
from homerun.settings import Settings
from homerun.upstream.flags import module_flags
from homerun.upstream.plan import Plan
from homerun.upstream.worktree import Source

# Besides base training: environment, data, tokenizer, evaluations, chat tuning. Of upstream's own 3.8 h speedrun of
# October 2025 base training was 3.0 h.
WHOLE_RUN = 1.27
# Faster than the table, which is of October 2025: by upstream's leaderboard, depth 24 on eight H100 made 800,000
# tokens/s in January 2026, and 980,000 with FP8 in March (ratio 8 in 99 minutes).
SINCE_2026, WITH_FP8 = 1.26, 1.23
DEFAULT_RATIO = 20.0  # training tokens per parameter, where the commit's source does not say


def estimate_seconds(
    source: Source, plan: Plan, depth: int | None, gpus: Sequence[Mapping[str, Any]], extra: str = ""
) -> float | None:
    """Seconds of the whole run; None where nothing can be told. extra: the user's own arguments of base training."""
    step = next((step for step in plan.steps if (step.module or "").endswith("base_train")), None)
    step_seconds = table_step_seconds(depth, gpus)
    if step is None or step.module is None or depth is None or step_seconds is None:
        return None
    words = f"{' '.join(step.words)} {extra}"
    batch = _number(words, "total-batch-size") or BATCH_TOKENS
    steps = _number(words, "num-iterations")
    newer = _counts_scaling_params(source, step.module)
    faster = (SINCE_2026 if newer else 1.0) * (WITH_FP8 if "--fp8" in words.split() else 1.0)
    if steps is None or steps < 0:
        flags = module_flags(source.root, step.module)
        default = flags.value([], "target-param-data-ratio") if flags else None
        known = float(default) if isinstance(default, int | float) and default > 0 else DEFAULT_RATIO
        embedding = 0 if newer else 65_536 * 64 * depth
        ratio = _number(words, "target-param-data-ratio") or known
        steps = ratio * (matmul_params(depth) + embedding) / batch
    return steps * step_seconds * batch / BATCH_TOKENS * WHOLE_RUN / faster


def check_estimate(seconds: float | None, price: float | None, settings: Settings, now: float) -> tuple[str, str, str]:
    """The estimate against budget and deadline: (verdict, seen, hint). Only warns: it is too rough to refuse by."""
    if seconds is None:
        return "pass", "no estimate for this script on this machine; steps are measured as it runs", ""
    usd = dollars(seconds, price)
    seen = f"about {minutes(seconds)}" + (f" and {money(usd)}" if usd is not None else ", price unknown")
    budget, deadline = settings.homerun_budget_usd, settings.homerun_deadline
    if budget is not None and usd is not None and usd > budget:
        return (
            "warn",
            f"{seen}; the budget is {money(budget)}",
            "It will stop at the last save that fits: raise it, or lower --depth",
        )
    if deadline is not None and now + seconds > deadline.timestamp():
        return (
            "warn",
            f"{seen}; the deadline is in {minutes(deadline.timestamp() - now)}",
            "It will stop at the last save that fits",
        )
    return "pass", seen, ""


def _counts_scaling_params(source: Source, module: str) -> bool:
    """Whether this commit is of 2026: the ratio counts the parameters that scale, and no embedding."""
    path = source.root.joinpath(*module.split(".")).with_suffix(".py")
    return path.is_file() and "num_scaling_params" in path.read_text(encoding="utf-8", errors="replace")


def _number(words: str, flag: str) -> float | None:
    found = re.findall(rf"--{flag.replace('-', '[-_]')}[= ](-?\d+(?:\.\d+)?)", words)
    return float(found[-1]) if found else None
