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
    if steps is None or steps < 0:
        flags = module_flags(source.root, step.module)
        default = flags.value([], "target-param-data-ratio") if flags else None
        known = float(default) if isinstance(default, int | float) and default > 0 else DEFAULT_RATIO
        steps = (_number(words, "target-param-data-ratio") or known) * _params(depth, source, step.module) / batch
    return steps * step_seconds * batch / BATCH_TOKENS * WHOLE_RUN


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


def _params(depth: int, source: Source, module: str) -> float:
    """Parameters that the ratio counts: all of them; since 2026, where the source says so, all but the embedding."""
    embedding = 65_536 * 64 * depth
    path = source.root.joinpath(*module.split(".")).with_suffix(".py")
    counted = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return matmul_params(depth) + (0 if "num_scaling_params" in counted else embedding)


def _number(words: str, flag: str) -> float | None:
    found = re.findall(rf"--{flag.replace('-', '[-_]')}[= ](-?\d+(?:\.\d+)?)", words)
    return float(found[-1]) if found else None
