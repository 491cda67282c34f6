"""`homerun train`: run upstream's speedrun, or any recipe, and bring the model home."""

import sys

import typer

from homerun.commands._options import Budget, Deadline, Fit, Nproc, PhaseArgs, Price, Ref, Script, Skip, Upstream
from homerun.job.job import Job
from homerun.job.request import Request
from homerun.settings import Settings


def command(
    script: Script = None,
    upstream: Upstream = None,
    ref: Ref = None,
    nproc: Nproc = None,
    phase_args: PhaseArgs = None,
    skip: Skip = None,
    fit: Fit = None,
    check_steps: bool = typer.Option(
        None, "--check-steps", help="Before base training: 20 real steps against a table; a minute or two."
    ),
    resume: str = typer.Option(None, metavar="RUN", help="Go on with this run, or with `latest`."),
    price: Price = None,
    budget: Budget = None,
    deadline: Deadline = None,
) -> None:
    """Train: every phase of the script in order, its artifacts proven in the bucket while it runs.

    Examples:

        homerun train --script recipes/toy.sh

        homerun train --phase-args base_train='--depth=26 --device-batch-size=16' --budget-usd 120

        homerun train --resume latest
    """
    settings = Settings.load(
        homerun_gpu_hour_price=price,
        homerun_budget_usd=budget,
        homerun_deadline=deadline,
        homerun_fit=fit,
        homerun_check_steps=check_steps,
    )
    request = Request.from_arguments(
        settings,
        script=script,
        upstream=upstream,
        ref=ref,
        nproc=nproc,
        phase_args=phase_args or (),
        skip=skip or (),
        resume=resume,
    )
    with Job(request) as job:
        if job.preflight():
            job.run_script()
        job.land()
        job.keep_alive()
    sys.exit(int(job.code))
