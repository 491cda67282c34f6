"""Journal → metadata.json: what ran, on what, how long, at what cost, how good (docs/metadata.schema.json)."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from homerun import __version__
from homerun.cost import phase_cost, phase_seconds, totals
from homerun.projection import project
from homerun.state import Attempt, Phase, RunState, is_better

SCHEMA_VERSION = 1
SIZES = {  # facts that describe the model, under the names of upstream's own lines
    "num_params": "params",
    "depth": "depth",
    "vocab_size": "vocab_size",
    "sequence_len": "sequence_len",
    "model_dim": "model_dim",
    "num_heads": "num_heads",
    "num_iterations": "iterations",
    "total_batch_tokens": "batch_tokens",
    "training_tokens": "tokens",
    "peak_memory_mib": "peak_memory_mib",
}

HEADLINES = ("val_bpb", "val_loss", "core", "chatcore")


def metadata(state: RunState, now: float | None = None) -> dict[str, Any]:
    """The run as one JSON object; times are ISO 8601 in UTC, money USD. `now` (Unix seconds) counts a live run up."""
    now = state.updated if now is None else now
    sums, projected = totals(state, now), project(state, now)
    return {
        "schema": SCHEMA_VERSION,
        "run": state.run,
        "status": state.status,
        "verdict": state.verdict,
        "code": state.code,
        "reason": state.attempt.reason if state.attempt else None,
        "began": iso(state.began),
        "updated": iso(now),
        "ended": iso(state.attempt.ended) if state.attempt else None,
        "recipe": state.recipe,
        "script": state.script,
        "upstream": state.upstream,
        "fingerprint": state.fingerprint,
        "bucket": state.bucket,
        "version": state.version or __version__,
        "wrapper": state.attempt.wrapper if state.attempt else None,
        "adapted": state.adapted,
        "drift": state.drift,
        "attempts": [_attempt(attempt) for attempt in state.attempts],
        "phases": [_phase(state, phase, now) for phase in state.phases],
        "model": model(state),
        "best": best(state),
        "evals": [
            {
                "phase": phase,
                "metric": metric,
                "value": e.value,
                "step": e.step,
                "best": e.best,
                "best_step": e.best_step,
            }
            for (phase, metric), e in state.evals.items()
        ],
        "facts": {f"{phase}/{name}": value for (phase, name), value in state.facts.items()},
        "checkpoints": checkpoints(state),
        "cost": {
            "usd": _money(sums.usd),
            "seconds": round(sums.seconds, 1),
            "first_step_seconds": _round(sums.first_step_seconds),
            "first_step_usd": _money(sums.first_step_usd),
            "between_phases_seconds": round(sums.between_seconds, 1),
            "between_phases_usd": _money(sums.between_usd),
            "projected_usd": _money(projected.usd),
            "projected_is_floor": projected.floor,
        },
        "loss_if_it_died": {name: state.gauge.get(name) for name in ("lost_minutes", "lost_usd", "secured_step")},
        "warnings": [{"text": one.text, "hint": one.hint, "count": one.count} for one in state.warnings],
        "position": {"seq": state.seq},
    }


def write_metadata(path: Path, state: RunState) -> None:
    """Atomically: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(metadata(state), indent=2, ensure_ascii=False, default=str) + "\n"
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        "began": iso(attempt.began),
        "ended": iso(attempt.ended),
        "seconds": round(attempt.end - attempt.began, 1),
        "machine": attempt.machine,
        "nproc": attempt.nproc,
        "price_usd_per_hour": attempt.price,
        "price_source": attempt.price_source,
        "usd": None if attempt.price is None else _money((attempt.end - attempt.began) / 3600 * attempt.price),
        "resumed_from": attempt.resumed_from,
        "wrapper": attempt.wrapper,
        "code": attempt.code,
        "reason": attempt.reason,
        "safe": attempt.safe,
        "next": attempt.next,
    }


def _phase(state: RunState, phase: Phase, now: float) -> dict[str, Any]:
    return {
        "phase": phase.phase,
        "name": phase.name,
        "attempt": phase.attempt,
        "line": phase.line,
        "began": iso(phase.began),
        "seconds": round(phase_seconds(phase, now), 3),
        "usd": _money(phase_cost(state, phase, now)),
        "background": phase.background,
        "verdict": phase.verdict or "running",
        "status": phase.status,
        "reason": phase.reason,
        "step": phase.step,
        "steps": phase.total,
        "argv": phase.argv,
        "log": phase.log,
    }


def model(state: RunState) -> dict[str, Any]:
    """The model's size, from what the phases printed and were told; only what is known."""
    found = {ours: state.fact(name) for name, ours in SIZES.items() if state.fact(name) is not None}
    depths = [phase.option("depth") for phase in state.phases if phase.name.startswith("base_train")]
    if "depth" not in found and depths and (depth := depths[-1]) and depth.isdigit():
        found["depth"] = int(depth)
    return found


def best(state: RunState) -> dict[str, float]:
    """The figures a person asks for first: lowest val_bpb, highest core, chatcore and accuracies over all phases.

    Bits per byte count on text, so those of base phases; chat tuning's are of its own easy data.
    """
    found: dict[str, float] = {}
    based = any(phase.startswith("base") for phase, _ in state.metric("val_bpb"))
    for (phase, metric), e in state.evals.items():
        wanted = metric in HEADLINES or metric.startswith("accuracy/") or metric.endswith("_acc")
        if metric == "val_bpb" and based and not phase.startswith("base"):
            continue
        if wanted and (metric not in found or is_better(metric, e.best, found[metric])):
            found[metric] = e.best
    return found


def checkpoints(state: RunState) -> list[dict[str, Any]]:
    """Every checkpoint that was saved, in order, and whether it is in the bucket."""
    return [
        {
            "group": group.group,
            "phase": group.phase,
            "step": group.step,
            "score": group.score,
            "bytes": group.bytes,
            "secured": iso(group.secured_at),
        }
        for group in state.groups.values()
        if group.kind == "checkpoint"
    ]


def iso(t: float | None) -> str | None:
    return (
        None if t is None else datetime.fromtimestamp(t, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _money(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
