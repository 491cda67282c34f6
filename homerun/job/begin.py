"""From a request to a run that may start: which run it is, its script and plan, its lease, its journal."""

import os
import platform
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homerun import __version__
from homerun.bucket import lease, restore
from homerun.bucket.store import Store, open_store
from homerun.errors import Exit, HomerunError, RequestError
from homerun.job.request import Request
from homerun.job.run import Run, fingerprint, new_id
from homerun.journal import Event, replay
from homerun.settings import UPSTREAM_URL
from homerun.upstream.adapt import Change, Wishes, check_wishes
from homerun.upstream.flags import module_flags
from homerun.upstream.plan import Plan, read_plan
from homerun.upstream.worktree import Source, checkout, recipe


@dataclass
class Start:
    """Everything that is settled before the first event of an attempt is written."""

    request: Request
    run: Run
    store: Store
    source: Source
    plan: Plan
    owner: str
    attempt: int = 0
    history: list[Event] = field(default_factory=list)  # run.begin, phases and groups of earlier attempts; [] when new
    finished: bool = False  # `_SUCCESS` is there already

    @property
    def recipe(self) -> str:
        return recipe_name(self.request)

    @property
    def fingerprint(self) -> str:
        return request_fingerprint(self.request, self.source)


# Events that a resume needs; steps and machine samples would only cost memory.
REMEMBERED = ("run.begin", "attempt.begin", "attempt.end", "phase.begin", "phase.end", "group", "secured")


def begin(request: Request) -> Start:
    """Find or make the run. Touches nothing of an existing run but its lease. Raises HomerunError."""
    store = open_store(request.settings)
    run = _existing(request, store)
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    if run is None:
        run, source = _new(request)
        adopted = _adoptable(request, store, source)
        if adopted is None:
            return _start(request, run, store, source, owner, lease.acquire(store, run.id, owner), [])
        shutil.rmtree(run.dir)
        run = Run(adopted, run.dir.with_name(adopted))
        print(f"going on with {run.id}, which is unfinished and asks for the same", file=sys.stderr)
    done = _finished(store, run)
    held = None if done else lease.acquire(store, run.id, owner, watching=_say_watching)
    try:  # whoever had the lease may have finished meanwhile: nothing is read before it is ours
        restore_journal(store, run)
        history = [event for event in replay(run.journal) if event["type"] in REMEMBERED]
        first = next((event for event in history if event["type"] == "run.begin"), None)
        if first:
            request = request.remembering(first, run.src)
        if held:
            _check_attempts(request, run, sum(event["type"] == "attempt.begin" for event in history))
        start = _start(request, run, store, _same_source(request, run, first), owner, held, history)
        start.finished = done or _finished(store, run)
    except BaseException:
        if held:
            lease.release(store, held)
        raise
    if start.finished and held:
        lease.release(store, held)
    return start


def _adoptable(request: Request, store: Store, source: Source) -> str | None:
    """The one unfinished run of the same request whose runner is gone, where HOMERUN_ADOPT asks for it. RequestError
    where there are several. (Clocks are compared here only to leave living runs out; taking the lease watches it.)"""
    if not request.settings.homerun_adopt or request.settings.homerun_run_id:
        return None
    wanted, now = request_fingerprint(request, source), time.time()
    found = [
        info.id
        for info in restore.runs(store)
        if not info.good
        and info.metadata.get("fingerprint") == wanted
        and (info.lease is None or info.lease.state == "released" or now - info.at > lease.DEAD_SECONDS)
    ]
    if len(found) > 1:
        raise RequestError(f"{len(found)} unfinished runs ask for the same: {', '.join(found)}", "Set HOMERUN_RUN_ID")
    return found[0] if found else None


def _start(
    request: Request, run: Run, store: Store, source: Source, owner: str, held: lease.Lease | None, history: list[Event]
) -> Start:
    plan = read_plan((source.root / source.script).read_bytes())
    return Start(request, run, store, source, plan, owner, held.attempt if held else 0, history)


def _finished(store: Store, run: Run) -> bool:
    return store.head(f"{run.id}/_SUCCESS") is not None


def _check_attempts(request: Request, run: Run, attempts: int) -> None:
    if attempts >= request.settings.homerun_max_attempts:
        raise HomerunError(
            f"{run.id} was started {attempts} times and is not finished",
            f"Look into `homerun logs {run.id}`; HOMERUN_MAX_ATTEMPTS={attempts + 5} lets it go on",
            Exit.ATTEMPTS,
        )


def _say_watching(held: lease.Lease) -> None:
    print(
        f"{held.run} is held by {held.host} (attempt {held.attempt}); watching it for {lease.DEAD_SECONDS:.0f} s",
        file=sys.stderr,
    )


def recipe_name(request: Request) -> str:
    return Path(request.recipe or request.script or "speedrun").stem


def request_fingerprint(request: Request, source: Source) -> str:
    return fingerprint(
        recipe=recipe_name(request),
        script=source.sha256,
        phase_args=dict(request.phase_args),
        skip=sorted(request.skip),
    )


def _existing(request: Request, store: Store) -> Run | None:
    """The run that this start continues, or None for a new one."""
    runs = request.settings.homerun_dir / "runs"
    named = request.settings.homerun_run_id
    if request.resume:
        id = restore.find_run(store, request.resume)
        return Run(id, runs / id)
    if named and (store.head(lease.key(named)) or (runs / named / "journal.jsonl").exists()):
        return Run(named, runs / named)
    return None


def _new(request: Request) -> tuple[Run, Source]:
    """A new run's folder with its source in it. The id needs the plan, and so the source: it is made aside first."""
    runs = request.settings.homerun_dir / "runs"
    staging = runs / f".new-{secrets.token_hex(4)}"
    try:
        staging.mkdir(parents=True)
        source = get_source(request, staging / "src")
        id = request.settings.homerun_run_id or new_id(recipe_name(request), depths(source, request.phase_args))
        (staging / "home").mkdir()
        staging.rename(runs / id)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise RequestError(
            f"{runs} cannot be written ({error.strerror})", "Set HOMERUN_DIR to a folder of yours with free space"
        ) from None
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    run = Run(id, runs / id)
    return run, Source(**{**vars(source), "root": run.src})


def get_source(request: Request, dest: Path, commit: str | None = None) -> Source:
    """The worktree of the request's upstream (at `commit`, where a resume says so), or the recipe's copy.

    Raises RequestError where the request names phases or flags that this script has not.
    """
    if request.recipe:
        source = recipe(request.recipe, dest)
    else:
        source = checkout(request.upstream or UPSTREAM_URL, commit or request.ref, dest, request.script)
    check_wishes(
        read_plan((source.root / source.script).read_bytes()),
        Wishes(phase_args=request.phase_args, skip=request.skip),
        lambda step: module_flags(source.root, step.module) if step.module else None,
    )
    return source


def depths(source: Source, phase_args: Mapping[str, str]) -> set[int]:
    """The depths that the script's base training is asked for, the user's own last."""
    found = set()
    for step in read_plan((source.root / source.script).read_bytes()).steps:
        if step.module and step.module.split(".")[-1] == "base_train":
            words = [*step.words, *phase_args.get(step.name, phase_args.get("base_train", "")).split()]
            values = [word.partition("=")[2] for word in words if word.startswith("--depth=")]
            found |= {int(values[-1])} if values and values[-1].isdigit() else set()
    return found


def _same_source(request: Request, run: Run, first: Event | None) -> Source:
    """The source of an earlier attempt again: the same commit, the same bytes. Raises RequestError.

    first: the run's `run.begin`.
    """
    if first is None:  # it ended before its first event: start it anew under its name
        shutil.rmtree(run.src, ignore_errors=True)
        return get_source(request, run.src)
    if first["recipe"] != recipe_name(request):
        raise RequestError(
            f"{run.id} ran {first['recipe']}, this asks for {recipe_name(request)}",
            "Give the --script that it began with",
        )
    commit = (first.get("upstream") or {}).get("commit")
    source = get_source(request, run.src, commit)
    if source.sha256 != first["script"]["sha256"]:
        began, now = first["script"]["sha256"][:12], source.sha256[:12]
        raise RequestError(
            f"the script is not the one that {run.id} began with ({now}, then {began})",
            "Start a new run, or give the --script or --upstream that it began with",
        )
    return source


def restore_journal(store: Store, run: Run) -> None:
    """On an emptied disk the journal comes back from its segments; a journal that is here is never older."""
    if not run.journal.exists():
        run.dir.mkdir(parents=True, exist_ok=True)
        restore.restore_journal(store, run.id, run.journal)


def run_event(start: Start) -> dict[str, Any]:
    """The data of `run.begin`."""
    source = start.source
    return {
        "run": start.run.id,
        "recipe": start.recipe,
        "script": {
            "path": source.script,
            "sha256": source.sha256,
            "bytes": (source.root / source.script).stat().st_size,
        },
        "upstream": None if source.url is None else {"url": source.url, "ref": source.ref, "commit": source.commit},
        "request": start.request.event(),
        "fingerprint": start.fingerprint,
        "bucket": start.store.url,
        "version": __version__,
    }


def attempt_event(
    start: Start, machine: dict[str, Any], nproc: int, price: float | None, resumed_from: dict[str, Any] | None
) -> dict[str, Any]:
    """The data of `attempt.begin`."""
    return {
        "machine": {**machine, "python": platform.python_version(), "platform": platform.platform()},
        "nproc": nproc,
        "price_usd_per_hour": price,
        "wrapper": start.request.wrapper,
        "resumed_from": resumed_from,
        "argv": sys.argv,
    }


def plan_event(plan: Plan, foreseen: Iterable[Change]) -> dict[str, Any]:
    """The data of `plan`: its phases, and what will be adapted as far as that is known before."""
    return {
        "phases": [
            {
                "phase": step.name,
                "line": step.line,
                "command": step.command,
                "section": step.section,
                "background": step.background,
                "counted": step.counted,
                "outputs": step.outputs,
            }
            for step in plan.steps
        ],
        "drift": plan.drift,
        "adapted": [
            {"phase": change.phase, "what": change.what, "added": change.added, "removed": change.removed}
            for change in foreseen
        ],
    }
