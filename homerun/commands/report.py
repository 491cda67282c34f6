"""`homerun report`: report.md and a page that opens offline, for any run here or in the bucket."""

import os
import sys
import webbrowser
from pathlib import Path

import typer

from homerun.commands._runs import find, moment
from homerun.errors import RequestError
from homerun.report.content import OWN_REPORT
from homerun.report.metadata import metadata
from homerun.report.sinks import write_tensorboard, write_wandb
from homerun.report.write import write_report
from homerun.settings import Settings


def command(
    run: str = typer.Argument("latest", help="A run's id, a unique beginning of one, or `latest`."),
    out: Path = typer.Option(None, "--out", "-o", help="The folder to write to; unset: HOMERUN_DIR/reports/RUN."),
    show: bool = typer.Option(False, "--open", help="Open the page in the browser."),
    tensorboard: Path = typer.Option(None, metavar="DIR", help="Write the metrics as TensorBoard event files, too."),
    wandb: bool = typer.Option(
        False, "--wandb", help="Log the metrics to W&B, too (recipes that do not by themselves)."
    ),
) -> None:
    """Write a run's report; the paths of report.md and index.html are printed.

    Examples:

        homerun report --open

        homerun report nanochat-d20-2026 --out /tmp/report
    """
    settings = Settings.load()
    found = find(settings, run)
    state = found.state()
    if state.seq < 0:
        raise RequestError(f"{found.id} has written nothing yet", "Try again in some seconds")
    # The run's own report/ is the job's to write: what is proven in the bucket must not change afterwards.
    folder = out or settings.homerun_dir / "reports" / found.id
    own = found.dir / "home/.cache/nanochat/report/report.md" if found.dir else None
    link = os.path.relpath(own, folder) if own and own.exists() else OWN_REPORT
    paths = write_report(folder, state, moment(state), link)
    for path in paths:
        print(path)
    if tensorboard:
        count = write_tensorboard(found.events(), tensorboard)
        print(f"{count} readings; `tensorboard --logdir {tensorboard}`", file=sys.stderr)
    if wandb:
        write_wandb(found.events(), found.id, metadata(state, moment(state)))
    if show:
        webbrowser.open(paths[-1].resolve().as_uri())
