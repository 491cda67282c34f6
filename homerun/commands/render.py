"""`homerun render`: what a deployment would send, for curl, another tool, or reading."""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path

import typer

from homerun.clouds.cloud import Offer
from homerun.clouds.launch import values
from homerun.clouds.order import Order, check, fill, read_template
from homerun.clouds.runpod import pod_body
from homerun.clouds.sky import task
from homerun.errors import RequestError
from homerun.job.run import new_id
from homerun.redact import Redactor
from homerun.settings import Settings


class Target(StrEnum):
    caas = "caas"
    runpod = "runpod"
    sky = "sky"


def command(
    target: Target = typer.Argument(help="caas: the body of POST /deploy; runpod: of POST /pods; sky: a task's YAML."),
    file: Path = typer.Argument(Path("caas_deployment.json"), help="The deployment file."),
    gpu: str = typer.Option("H100", help="sky: the accelerator's name; runpod: the GPU type's id."),
    nodes: int = typer.Option(1, min=1, max=64, help="sky: machines side by side (homerun's own trainer)."),
    on_demand: bool = typer.Option(False, "--on-demand", help="sky: no spot machines."),
    with_secrets: bool = typer.Option(
        False, "--with-secrets", help="Write secrets out, for a pipe; never to a terminal."
    ),
) -> None:
    """Render the deployment file. HARDWARE_ID, HOURS, GPUS, IMAGE and HOMERUN_DEADLINE come from the environment here.

    Examples:

        homerun render sky --gpu H100 > nanochat.yaml

        homerun render caas --with-secrets | curl -fsS -H @key-header --json @- $CAAS_API_URL/deploy
    """
    if with_secrets and sys.stdout.isatty():
        raise RequestError("--with-secrets would show the secrets on this terminal", "Pipe it, or leave it out")
    settings = Settings.load()
    order = _order(file, target, settings)
    if target is Target.sky:
        print(task(order, gpu, nodes, spot=not on_demand), end="")
        return
    body = order.body() if target is Target.caas else pod_body(order, Offer(gpu, gpu, order.gpus_per_container))
    shown = body if with_secrets else Redactor(order.secrets).value(body)
    print(json.dumps(shown, indent=2))


def _order(file: Path, target: Target, settings: Settings) -> Order:
    """The order; what only CaaS needs has a stand-in for the others."""
    stand_ins = {} if target is Target.caas else {"HARDWARE_ID": "any", "HOURS": "24"}
    if target is Target.runpod:
        stand_ins["HOMERUN_AFTER"] = "stop"
    made = {"HOMERUN_RUN_ID": new_id(Path(settings.homerun_script or "speedrun").stem, set()), "GPUS": "8"}
    known = {**stand_ins, **made, **values(settings, os.environ)}
    if target is Target.sky:
        known.setdefault("HOMERUN_DEADLINE", "none")  # left out of the task
        known.setdefault("HOMERUN_SERVE_TOKEN", "named in the task, not written")
    return check(fill(read_template(file), known), settings.secrets())
