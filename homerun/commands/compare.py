"""`homerun compare`: several runs side by side, as a table here and as a page with their curves."""

import json
import webbrowser
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from homerun.commands._runs import find
from homerun.errors import RequestError
from homerun.report.compare import comparison, relabel, side_by_side
from homerun.report.html import page
from homerun.report.metadata import metadata
from homerun.report.write import write_text
from homerun.settings import Settings


def command(
    runs: list[str] = typer.Argument(help="Two or more runs: ids, or unique beginnings of them."),
    out: Path = typer.Option(None, "--out", "-o", help="Write the page with the curves to this file."),
    show: bool = typer.Option(False, "--open", help="Open the page in the browser."),
    as_json: bool = typer.Option(False, "--json", help="The runs' metadata, as one JSON array."),
) -> None:
    """Compare runs: figures in a table, curves over steps, tokens, hours and dollars in a page.

    Examples:

        homerun compare nanochat-d20 nanochat-d24

        homerun compare toy-2026 toy-2025 --open
    """
    settings = Settings.load()
    found = [find(settings, run) for run in dict.fromkeys(runs)]
    if len({one.id for one in found}) < 2:
        raise RequestError("compare needs two different runs", "`homerun runs` lists them")
    states = [(one.id, one.state()) for one in found]
    if as_json:
        print(json.dumps([metadata(state) for _, state in states], indent=2, ensure_ascii=False))
        return
    figures = side_by_side(relabel(states))
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(figures.header):
        grid.add_column(name, overflow="fold", justify="left" if number == 0 else "right")
    for row in figures.rows:
        grid.add_row(*row)
    Console(highlight=False).print(grid)
    if out or show:
        path = write_text(out or Path("compare.html"), page(*comparison(states)))
        print(path)
        if show:
            webbrowser.open(path.resolve().as_uri())
