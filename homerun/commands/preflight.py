"""`homerun preflight`: check all that a run needs, in under a minute, before anything is paid for."""

import json
import secrets
import sys
import tempfile
from pathlib import Path

import typer
from rich.console import Console

from homerun.bucket.store import open_store
from homerun.commands._options import Budget, Deadline, Fit, Nproc, PhaseArgs, Price, Ref, Script, Skip, Upstream
from homerun.errors import Exit, HomerunError
from homerun.job.begin import get_source
from homerun.job.checks import stage_a
from homerun.job.request import Request
from homerun.preflight import Check, Result, failed, run_checks, table
from homerun.settings import Settings
from homerun.upstream.plan import read_plan


def command(
    script: Script = None,
    upstream: Upstream = None,
    ref: Ref = None,
    nproc: Nproc = None,
    phase_args: PhaseArgs = None,
    skip: Skip = None,
    fit: Fit = None,
    price: Price = None,
    budget: Budget = None,
    deadline: Deadline = None,
    as_json: bool = typer.Option(False, "--json", help="One JSON array of check, verdict, seen, hint, seconds."),
) -> None:
    """Check this machine, the bucket, upstream and the keys. Exit 3 when a run must not begin. Nothing is trained.

    Examples:

        homerun preflight

        homerun preflight --script recipes/toy.sh --json
    """
    settings = Settings.load(
        homerun_gpu_hour_price=price, homerun_budget_usd=budget, homerun_deadline=deadline, homerun_fit=fit
    )
    request = Request.from_arguments(
        settings, script=script, upstream=upstream, ref=ref, nproc=nproc, phase_args=phase_args or (), skip=skip or ()
    )
    results = check(request)
    if as_json:
        print(json.dumps([result.data() for result in results], indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(table(results))
    bad = failed(results)
    if bad:
        print(
            f"error: {len(bad)} check{'s' * (len(bad) != 1)} failed: {', '.join(result.name for result in bad)}",
            file=sys.stderr,
        )
        sys.exit(int(Exit.PREFLIGHT))


def check(request: Request) -> list[Result]:
    """All results of stage A for this request; upstream is read in a folder of its own, removed afterwards."""
    folder = request.settings.homerun_dir
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preflight-", dir=folder) as staging:
        try:
            source = get_source(request, Path(staging, "src"))
            plan = read_plan((source.root / source.script).read_bytes())
            checks = stage_a(
                settings=request.settings,
                store=open_store(request.settings),
                run=request.settings.homerun_run_id or f"_preflight-{secrets.token_hex(4)}",
                folder=folder,
                base=Path(staging),
                source=source,
                plan=plan,
                nproc=request.nproc,
                skip=request.skip,
                phase_args=request.phase_args,
            )
        except HomerunError as error:
            finding = ("fail", error.what, error.next)
            checks = [Check("upstream", lambda: finding)]
        unwanted = request.settings.homerun_skip_checks
        return list(run_checks(check for check in checks if check.name not in unwanted))
