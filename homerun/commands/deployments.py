"""`homerun deployments`: what is rented now, and one box's log stream."""

import dataclasses
import json
import sys

import typer
from rich.console import Console
from rich.table import Table

from homerun.clouds.cloud import check_known, open_cloud
from homerun.settings import Settings


def command(
    on: str = typer.Option("caas", "--on", help="caas or runpod."),
    logs: str = typer.Option(None, "--logs", metavar="ID", help="Follow the log of this deployment instead."),
    stderr: bool = typer.Option(False, "--stderr", help="With --logs: its standard error."),
    all: bool = typer.Option(False, "--all", help="Also those that are over."),
    as_json: bool = typer.Option(False, "--json"),
) -> None:
    """List the account's deployments, newest first.

    Examples:

        homerun deployments

        homerun deployments --logs 7d1c… --stderr
    """
    settings = Settings.load()
    cloud, redactor = open_cloud(on, settings), settings.redactor()
    if logs:
        check_known(cloud, logs)
        for line in cloud.logs(logs, "stderr" if stderr else "stdout"):
            print(redactor.text(line), flush=True)
        return
    found = [each for each in cloud.deployments() if all or not each.over]
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in found]))
        return
    if not found:
        print("nothing is rented", file=sys.stderr)
        return
    table = Table(box=None)
    for title in ("id", "name", "status", "hardware", "left", "paid"):
        table.add_column(title, overflow="fold")
    for each in found:
        left = f"{each.minutes_left // 60} h {each.minutes_left % 60} min" if each.minutes_left is not None else ""
        paid = f"${each.usd:,.2f}" if each.usd is not None else ""
        table.add_row(each.id, each.name, each.status, f"{each.gpus or '?'}x {each.hardware}", left, paid)
    Console().print(table)
