"""`homerun destroy`: end rented boxes."""

import sys

import typer

from homerun.clouds.cloud import open_cloud
from homerun.errors import RequestError
from homerun.settings import Settings


def command(
    ids: list[str] = typer.Argument(metavar="ID…", help="As `homerun deployments` lists them."),
    on: str = typer.Option("caas", "--on", help="caas or runpod."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
) -> None:
    """End deployments. What is in the bucket stays; what a running job has not yet sent is lost.

    Example:

        homerun destroy 7d1c…
    """
    cloud = open_cloud(on, Settings.load())
    if not yes:
        if not sys.stdin.isatty():
            raise RequestError("there is no terminal to ask at", "Give --yes")
        refund = "; prepaid time is not refunded" if cloud.prepaid else ""
        typer.confirm(f"End {', '.join(ids)}{refund}?", abort=True, err=True)
    for id in ids:
        cloud.destroy(id)
        print(f"{id}: ending", file=sys.stderr)
