"""`homerun train`: run upstream's speedrun, or any recipe, and bring the model home."""

import sys

import typer

from homerun.job.job import Job
from homerun.job.request import Request
from homerun.settings import Settings


def command(
    script: str = typer.Option(None, help="A recipe (recipes/toy.sh), or a script of upstream's by name (runcpu)."),
    upstream: str = typer.Option(None, help="Upstream's repository: a URL, or a folder, which is never written to."),
    ref: str = typer.Option(None, help="Branch, tag or commit of upstream; unset: its default branch."),
    nproc: str = typer.Option(None, help="GPUs for torchrun; 0: plain python on the CPU; unset: as the machine has."),
    phase_args: list[str] = typer.Option([], metavar="PHASE=ARGS", help="Arguments added to a phase; repeatable."),
    skip: list[str] = typer.Option([], metavar="PHASE", help="A phase to leave out; repeatable."),
    fit: str = typer.Option(None, metavar="auto", help="Cut device batch and FP8 down to this machine's GPUs."),
    check_steps: bool = typer.Option(
        None, "--check-steps", help="Before base training: 20 real steps against a table; a minute or two."
    ),
    resume: str = typer.Option(None, metavar="RUN", help="Go on with this run, or with `latest`."),
    price: float = typer.Option(None, "--gpu-hour-price", help="US dollars for a GPU and hour."),
    budget: float = typer.Option(None, "--budget-usd", help="End the run, landed, before it costs more."),
    deadline: str = typer.Option(None, help="End the run, landed, by this time (2026-11-21T18:00:00Z)."),
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
        phase_args=phase_args,
        skip=skip,
        resume=resume,
    )
    with Job(request) as job:
        if job.preflight():
            job.run_script()
        job.land()
        job.keep_alive()
    sys.exit(int(job.code))
