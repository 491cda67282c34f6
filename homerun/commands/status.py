"""`homerun status`: what a run does, costs and has secured, at this moment."""

import json

import typer
from rich.console import Console

from homerun.commands._runs import find, moment
from homerun.console.view import view
from homerun.console.words import last_words
from homerun.errors import RequestError
from homerun.report.metadata import metadata
from homerun.settings import Settings


def command(
    run: str = typer.Argument("latest", help="A run's id, a unique beginning of one, or `latest`."),
    as_json: bool = typer.Option(False, "--json", help="The run's metadata, as JSON."),
) -> None:
    """Show a run: its phases, figures, cost, and what is safe.

    Examples:

        homerun status

        homerun status nanochat-d20 --json | jq .best
    """
    found = find(Settings.load(), run)
    state = found.state()
    if state.seq < 0:
        raise RequestError(f"{found.id} has written nothing yet", "Try again in some seconds")
    if as_json:
        print(json.dumps(metadata(state, moment(state)), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(view(state, moment(state), console.width))
    if state.attempt and state.attempt.ended is not None:
        console.print(last_words(state), soft_wrap=True, markup=False)
