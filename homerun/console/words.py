"""An event in one line of words, or none: what is worth telling, the same for every console."""

import shlex
import time
from collections import Counter
from typing import Any

from homerun.cost import minutes, money, totals
from homerun.journal import Event
from homerun.state import RunState

MARKS = {"pass": "ok", "warn": "WARN", "fail": "FAIL"}


def clock(t: float) -> str:
    """Hours, minutes and seconds, UTC: boxes are rented in any time zone."""
    return time.strftime("%H:%M:%S", time.gmtime(t))


def words(event: Event) -> str | None:
    """One line about `event`; None where upstream's own output says it (steps, evaluations) or nobody needs it."""
    teller = _TELLERS.get(event["type"])
    return teller(event) if teller else None


def _run(event: Event) -> str:
    upstream, script = event.get("upstream") or {}, event.get("script") or {}
    commit = f", upstream {upstream['commit'][:7]}" if upstream.get("commit") else ""
    return (
        f"run {event.get('run')} ({time.strftime('%Y-%m-%d', time.gmtime(event['t']))} UTC): "
        f"{script.get('path') or event.get('recipe')}{commit}, to {event.get('bucket')}"
    )


def _attempt(event: Event) -> str:
    price, source = event.get("price_usd_per_hour"), event.get("price_source")
    parts = [f"attempt {event['attempt']} on {hardware(event.get('machine') or {})}"]
    parts.append(f"{money(price)} an hour{f' ({source})' if source else ''}" if price is not None else "price unknown")
    if resumed := event.get("resumed_from"):
        parts.append(f"goes on from step {resumed.get('step')} ({resumed.get('group')})")
    return ", ".join(parts)


def hardware(machine: dict[str, Any]) -> str:
    """`8 × NVIDIA H100 80GB HBM3 (driver 570.86, CUDA 12.8)`, `host, 2 CPUs, no GPU`."""
    counts = Counter(gpu.get("name") for gpu in machine.get("gpus") or [])
    if not counts:
        return f"{machine.get('host', 'this machine')}, {machine.get('cpus', '?')} CPUs, no GPU"
    names = ", ".join(f"{count} × {name}" for name, count in counts.items())
    versions = [f"driver {machine['driver']}"] if machine.get("driver") else []
    versions += [f"CUDA {machine['cuda']}"] if machine.get("cuda") else []
    return names + (f" ({', '.join(versions)})" if versions else "")


def _plan(event: Event) -> str:
    lines = [f"{len(event.get('phases') or [])} phases planned"]
    changes: dict[str, list[str]] = {}
    for change in event.get("adapted") or []:
        changes.setdefault(change.get("what") or _change(change), []).append(str(change.get("phase")))
    lines += [f"adapted: {', '.join(phases)}: {what}" for what, phases in changes.items()]
    lines += [f"drift: {text}" for text in event.get("drift") or []]
    return "\n".join(lines)


def _change(change: dict[str, Any]) -> str:
    added, removed = change.get("added") or [], change.get("removed") or []
    parts = [f"+{shlex.join(added)}"] if added else []
    parts += [f"-{shlex.join(removed)}"] if removed else []
    return " ".join(parts)


def _check(event: Event) -> str | None:
    if event.get("verdict") == "pass":
        return None
    hint = f". {event['hint']}" if event.get("hint") else ""
    return f"check {event['name']}: {MARKS.get(event['verdict'], event['verdict'])}, {event.get('seen')}{hint}"


def _begin(event: Event) -> str:
    where = " (background)" if event.get("background") else ""
    return f"> {event['phase']}{where}: {shlex.join(map(str, event.get('argv') or []))}"


def _end(event: Event) -> str:
    took, reason = minutes(event.get("seconds") or 0.0), event.get("reason")
    match event.get("verdict"):
        case "ok":
            return f"< {event['phase']}: done in {took}"
        case "failed":
            return f"< {event['phase']}: FAILED after {took}" + (f": {reason}" if reason else "")
        case verdict:
            return f"< {event['phase']}: ended with {event.get('status')} after {took}, {verdict}" + (
                f" ({reason})" if reason else ""
            )


def _skip(event: Event) -> str:
    return f"- {event['phase']}: skipped, {event.get('reason')}"


def _secured(event: Event) -> str:
    return f"secured {event['group']}, {size(event.get('bytes') or 0)} in {minutes(event.get('seconds') or 0)}"


def _cache(event: Event) -> str:
    way = "from" if event.get("way") == "brought" else "in"
    return (
        f"{way} the input cache: {event['unit']}, {event.get('files')} files, {size(event.get('bytes') or 0)} moved in "
        f"{minutes(event.get('seconds') or 0)}"
    )


def _warning(event: Event) -> str:
    return f"warning: {event['text']}" + (f". {event['hint']}" if event.get("hint") else "")


def _stop(event: Event) -> str:
    return f"stopping ({event.get('why')}): {event.get('text')}"


def _extended(event: Event) -> str:
    budget = f", the budget {money(event['budget_usd'])}" if event.get("budget_usd") is not None else ""
    return f"more time: the deadline is now {time.strftime('%Y-%m-%d %H:%M', time.gmtime(event['deadline']))}Z{budget}"


_TELLERS = {
    "run.begin": _run,
    "attempt.begin": _attempt,
    "plan": _plan,
    "check": _check,
    "phase.begin": _begin,
    "phase.end": _end,
    "phase.skip": _skip,
    "secured": _secured,
    "cache": _cache,
    "warning": _warning,
    "stop": _stop,
    "extended": _extended,
}


def size(count: float) -> str:
    """Bytes for people: `812 B`, `3.4 MB`, `2.1 GB` (powers of ten, as clouds bill them)."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def gauge_words(gauge: dict[str, Any]) -> str | None:
    """`if it died now you would lose 12 min, $4.80 (step 500 is secured)`."""
    if "lost_minutes" not in gauge:
        return None
    cost = f", {money(gauge['lost_usd'])}" if gauge.get("lost_usd") is not None else ""
    step = gauge.get("secured_step")
    held = f" (step {step} is secured)" if step is not None else ""
    return f"if it died now you would lose {minutes(gauge['lost_minutes'] * 60)}{cost}{held}"


def last_words(state: RunState) -> str:
    """The attempt's last line: what happened, what is safe, the one command to go on with."""
    attempt, sums = state.attempt, totals(state)
    if attempt is None:
        return "nothing was started"
    cost = f", {money(sums.usd)}" if sums.usd is not None else ""
    match attempt.code:
        case 0:
            what = "done"
        case None:
            what = "not ended yet"
        case code:
            what = f"ended with {code}: {attempt.reason or 'no reason given'}"
    safe = f" Safe: {attempt.safe}." if attempt.safe else ""
    go_on = f" Next: {attempt.next}" if attempt.next else ""
    return f"{state.run}: {what} ({minutes(sums.seconds)}{cost}).{safe}{go_on}"
