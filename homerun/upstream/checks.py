"""What preflight asks about upstream: its plan, its data, its disk space, W&B. Each answers (verdict, seen, hint)."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import httpx

from homerun.settings import Settings
from homerun.upstream.plan import Plan, Step
from homerun.upstream.worktree import Source

Finding = tuple[str, str, str]

PATIENCE_SECONDS = 12.0
WANDB = "https://api.wandb.ai/graphql"
SET_KEY = "Set WANDB_API_KEY for curves there; they are in the journal and the report anyway"

# Bytes on disk. Shards are about 100 MB each; upstream's environment with CUDA wheels and its caches about 15 GB.
SHARD, ENVIRONMENT, FLOOR = 100e6, 15e9, 1e9
# A depth-20 model file is 2.1 GB, a depth-24 one of 2026 4.2 GB; its optimizer files are 1.7 times that. Both grow
# with the cube of the depth.
MODEL_AT_D24, OPTIMIZER_SHARE = 4.2e9, 1.7


def check_source(source: Source) -> Finding | None:
    """Which upstream was reached; where it was not, there is no source to check, and the caller says so."""
    if source.url is None:
        return None  # a recipe
    return "pass", f"{source.url} at {(source.commit or 'no commit')[:12]}: {source.script}", ""


def check_plan(plan: Plan) -> Finding:
    seen = f"{len(plan.steps)} phases"
    if not plan.steps:
        return "fail", "the script has no phases", "`homerun plan` shows how it is read"
    if plan.drift:
        return "warn", f"{seen}; not recognised: {'; '.join(plan.drift)}", "`homerun plan` shows it; it may still run"
    return "pass", f"{seen}, all recognised", ""


def check_dataset(source: Source, plan: Plan, base: Path, skip: frozenset[str] = frozenset()) -> Finding | None:
    """The first and last shard that `nanochat.dataset` of this commit would fetch are there; last is validation."""
    wanted = [step for step in plan.steps if (step.module or "").endswith(".dataset")]
    if not wanted or skip & {"dataset", *(step.name for step in wanted)}:
        return None
    url, last = dataset_of(source.root)
    if url is None or last is None:
        return None
    here = list(base.glob("base_data*/shard_*.parquet"))
    if here:
        return "pass", f"{len(here)} shards are on this disk already", ""
    sizes = []
    for number in (0, last):
        shard = f"{url}/shard_{number:05d}.parquet"
        try:
            answer = httpx.head(shard, timeout=PATIENCE_SECONDS, follow_redirects=True)
        except httpx.HTTPError as error:
            return "fail", f"{shard}: {_why(error)}", "Check this machine's network: the data comes from there"
        if answer.status_code != 200:
            return "fail", f"{shard}: HTTP {answer.status_code}", "The data has moved: use a newer commit (--ref)"
        sizes.append(int(answer.headers.get("content-length", 0)))
    return "pass", f"shards 0 and {last} of {url.partition('/datasets/')[2].partition('/resolve')[0]} are there", ""


def dataset_of(root: Path) -> tuple[str | None, int | None]:
    """BASE_URL and MAX_SHARD as this commit's nanochat/dataset.py has them; (None, None) where it has not."""
    try:
        tree = ast.parse((root / "nanochat" / "dataset.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None, None
    found: dict[str, object] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            found |= {target.id: statement.value.value for target in statement.targets if isinstance(target, ast.Name)}
    url, last = found.get("BASE_URL"), found.get("MAX_SHARD")
    return (url, last) if isinstance(url, str) and isinstance(last, int) else (None, None)


def check_wandb(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """A key that works; or none, and W&B is offline (environment.py) unless the user says otherwise."""
    mode, run = environ.get("WANDB_MODE"), settings.wandb_run
    named = run not in (None, "", "dummy")
    if settings.wandb_api_key is None:
        if mode == "online":
            return "fail", "W&B is to be online but there is no key: upstream would stop and ask for one", SET_KEY
        if named and mode is None:
            return "warn", f"WANDB_RUN is {run!r} but there is no key: W&B stays offline", SET_KEY
        return "pass", "not used: the curves are in the journal and the report", ""
    if mode not in (None, "online"):
        return "pass", f"W&B is {mode}", ""
    key = settings.wandb_api_key.get_secret_value()
    try:
        answer = httpx.post(WANDB, json={"query": "{viewer{username}}"}, auth=("api", key), timeout=PATIENCE_SECONDS)
        answer.raise_for_status()
        viewer = (answer.json().get("data") or {}).get("viewer")
    except httpx.HTTPStatusError as error:
        viewer = None
        if error.response.status_code not in (401, 403):
            return "warn", f"W&B answers HTTP {error.response.status_code}", "WANDB_MODE=offline keeps it on disk"
    except (httpx.HTTPError, ValueError) as error:
        return "warn", f"W&B cannot be reached: {_why(error)}", "WANDB_MODE=offline keeps the curves on disk"
    if not viewer:
        return (
            "fail",
            "W&B does not know this key",
            "Copy it again from https://wandb.ai/authorize, or unset WANDB_API_KEY",
        )
    return "pass", f"W&B knows the key: {viewer.get('username')}", ""


def _why(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__


def disk_needed(plan: Plan, depth: int | None, keep_last: int) -> int:
    """Bytes that a run of this plan writes, about: shards, environment, checkpoints times retention."""
    needed = FLOOR
    shards = [_shards(step) for step in plan.steps if (step.module or "").startswith("nanochat.dataset")]
    needed += max(shards, default=0) * SHARD
    if any(step.launcher == "uv" for step in plan.steps):
        needed += ENVIRONMENT
    if depth:
        model = MODEL_AT_D24 * (depth / 24) ** 3
        stages = sum((step.module or "").rpartition(".")[2] in ("mid_train", "chat_sft") for step in plan.steps)
        # retention keeps `keep_last` and the best, and one is being written; later stages save once
        needed += model * (1 + OPTIMIZER_SHARE) * (keep_last + 2 + stages)
    return int(needed)


def _shards(step: Step) -> int:
    match = re.search(r"(?:^|\s)-n[ =]?(\d+)", " ".join(step.words))
    return int(match[1]) if match else 0
