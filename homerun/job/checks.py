"""Stage A of preflight: every room's checks for one run, put together. They cost nothing but seconds."""

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from homerun import cost
from homerun.bucket.checks import check_clock, check_landing, check_permission, check_writable
from homerun.bucket.store import Store
from homerun.job.children import page_wanted
from homerun.job.estimate import check_estimate, estimate_seconds
from homerun.job.fitting import asked, check_fit, gpu_rows
from homerun.machine import checks as machine
from homerun.machine import read_gpus, xid_errors
from homerun.preflight import Check
from homerun.settings import Settings
from homerun.upstream import checks as upstream
from homerun.upstream.plan import Plan
from homerun.upstream.worktree import Source

NETWORK_SECONDS, LANDING_SECONDS = 30.0, 55.0


def stage_a(
    *,
    settings: Settings,
    store: Store,
    run: str,
    folder: Path,
    base: Path,
    source: Source,
    plan: Plan,
    nproc: int | None,
    skip: frozenset[str] = frozenset(),
    phase_args: Mapping[str, str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[Check]:
    """run: its id, for the bucket. folder: where the run's folder lies or will lie. base: its base dir.
    nproc: GPUs wanted, None for all there are."""
    bound = "HOMERUN_PORT_FD" in environ or not page_wanted(settings, environ)
    found = read_gpus()
    gpus = gpu_rows(found)
    wanted = len(gpus) if nproc is None else nproc
    arguments = dict(phase_args or {})
    wants = asked(source, plan, arguments)
    depth = wants.depth if wants else None
    price = cost.machine_price(gpus, settings.homerun_gpu_hour_price).usd_per_hour
    seconds = estimate_seconds(source, plan, depth, gpus[:wanted], arguments.get("base_train", ""))
    needed = upstream.disk_needed(plan, depth if gpus else None, settings.homerun_keep_last)
    return [
        Check("python", machine.check_python),
        Check("bash", machine.check_bash),
        Check("disk", partial(machine.check_disk, folder, needed)),
        Check("disk-speed", partial(machine.check_write_speed, folder), late="warn"),
        Check("gpus", partial(machine.check_gpus, found, wanted)),
        Check("gpu-health", lambda: machine.check_gpu_health(found, xid_errors())),
        Check("gpu-idle", partial(machine.check_gpus_idle, found)),
        Check("nvlink", partial(machine.check_links, found)),
        Check("shm", partial(machine.check_shm, found)),
        Check("memory", partial(machine.check_memory, found)),
        Check("compiler", partial(machine.check_compiler, found)),
        Check("port", partial(machine.check_port, settings.homerun_port, bound)),
        Check("fit", lambda: check_fit(gpus[:wanted], wants, settings.homerun_fit == "auto")),
        Check("upstream", partial(upstream.check_source, source)),
        Check("plan", partial(upstream.check_plan, plan)),
        Check("dataset", partial(upstream.check_dataset, source, plan, base, skip), limit=NETWORK_SECONDS),
        Check("wandb", partial(upstream.check_wandb, settings, environ), limit=NETWORK_SECONDS, late="warn"),
        Check("bucket", partial(check_writable, store, run), limit=NETWORK_SECONDS),
        Check("bucket-landing", partial(check_landing, store, run, folder), limit=LANDING_SECONDS),
        Check("bucket-key", partial(check_permission, store, run), limit=NETWORK_SECONDS, late="warn"),
        Check("clock", partial(check_clock, store), limit=NETWORK_SECONDS, late="warn"),
        Check("time-and-money", lambda: check_estimate(seconds, price, settings, time.time())),
    ]
