"""`homerun extend`: book more hours of a prepaid box."""

import sys

import typer

from homerun.clouds.cloud import open_cloud
from homerun.errors import RequestError
from homerun.settings import Settings


def command(
    id: str = typer.Argument(metavar="ID", help="As `homerun deployments` lists it."),
    hours: int = typer.Argument(min=1, max=8760, help="Hours to add."),
    max_cost: float = typer.Option(None, metavar="USD", help="Refuse a higher price; unset: ask."),
    on: str = typer.Option("caas", "--on", help="caas."),
) -> None:
    """Add hours to a deployment, paid at once. For a chat page that should stay: the job itself lands by the
    HOMERUN_DEADLINE that it was started with, and goes on in a new deployment (`homerun deploy --run-id RUN`).

    Example:

        homerun extend 7d1c… 2 --max-cost 60
    """
    cloud = open_cloud(on, Settings.load())
    box = cloud.status(id)
    if box.over:
        raise RequestError(f"{id} is {box.status}", "Go on in a new one: `homerun deploy --run-id RUN`")
    minutes = (box.minutes_left or 0) + (box.minutes_served or 0)
    price = box.usd / minutes * 60 * hours if cloud.prepaid and box.usd and minutes else None
    text = "an unknown price" if price is None else f"about ${price:,.2f}"
    if cloud.prepaid and max_cost is not None and (price is None or price > max_cost):
        raise RequestError(f"{hours} h more cost {text}, over the cap of ${max_cost:,.2f}", "Raise --max-cost")
    if cloud.prepaid and max_cost is None:
        if not sys.stdin.isatty():
            raise RequestError(f"{hours} h more cost {text}, and there is no terminal to ask at", "Give --max-cost USD")
        typer.confirm(f"Book {hours} h more for {text}?", abort=True, err=True)
    cloud.extend(id, hours)
    print(f"{id}: {hours} h more", file=sys.stderr)
