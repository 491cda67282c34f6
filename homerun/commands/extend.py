"""`homerun extend`: more hours for a box, and for the job on it."""

import sys
from datetime import UTC, datetime

import typer

from homerun.bucket import extension
from homerun.bucket.store import open_for_a_person
from homerun.clouds.cloud import Deployment, check_known, open_cloud
from homerun.errors import RequestError
from homerun.settings import Settings


def command(
    id: str = typer.Argument(metavar="ID", help="As `homerun deployments` lists it."),
    hours: int = typer.Argument(min=1, max=8760, help="Hours to add."),
    max_cost: float = typer.Option(None, min=0.0, metavar="USD", help="Refuse a higher price; unset: ask."),
    on: str = typer.Option("caas", "--on", help="caas or runpod."),
) -> None:
    """Add hours to a deployment (on CaaS they are paid at once). Its job is told through the bucket, within a minute:
    its deadline and its budget grow.

    Example:

        homerun extend 7d1c… 2 --max-cost 60
    """
    settings = Settings.load()
    cloud = open_cloud(on, settings)
    check_known(cloud, id)
    box = cloud.status(id)
    if box.over:
        raise RequestError(f"{id} is {box.status}", "Go on in a new one: `homerun deploy --run-id RUN`")
    if not settings.has_bucket:
        raise RequestError("no R2 variables are set, and the job is told through the bucket", "Set those of the run")
    store, deadline = open_for_a_person(settings), _deadline(box)
    if deadline is not None:
        extension.read(store, box.name)  # a bucket that cannot be reached is told before anything is paid
    price = box.usd_per_hour * hours if box.usd_per_hour else None  # no cloud quotes more of the same
    _agree(f"{hours} h more", price, max_cost)
    cloud.extend(id, hours)
    if deadline is None:
        print(f"{id}: {hours} h more; it names no HOMERUN_DEADLINE, so its job was not told", file=sys.stderr)
        return
    now = extension.add(store, box.name, deadline, hours * 3600, price or 0.0)
    until = datetime.fromtimestamp(now.deadline, UTC)
    print(f"{id}: {hours} h more; {box.name} lands before {until:%Y-%m-%d %H:%M}Z", file=sys.stderr)


def _deadline(box: Deployment) -> float | None:
    """Unix seconds of the deadline that the box was started with."""
    try:
        return datetime.fromisoformat(box.deadline).timestamp() if box.deadline else None
    except ValueError:
        return None


def _agree(what: str, price: float | None, max_cost: float | None) -> None:
    """RequestError unless the price is under the cap, or a person says yes."""
    text = "an unknown price" if price is None else f"about ${price:,.2f}"
    if max_cost is not None:
        if price is None or price > max_cost:
            raise RequestError(f"{what} cost {text}, over the cap of ${max_cost:,.2f}", "Raise --max-cost")
    elif not sys.stdin.isatty():
        raise RequestError(f"{what} cost {text}, and there is no terminal to ask at", "Give --max-cost USD")
    else:
        typer.confirm(f"Book {what} for {text}?", abort=True, err=True)
