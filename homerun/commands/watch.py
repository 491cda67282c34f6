"""`homerun watch`: the live console for a run that is somewhere else, from its journal here or in the bucket."""

import sys
import time

import typer

from homerun.commands._runs import find
from homerun.console import open_console
from homerun.settings import Settings
from homerun.state import RunState

HERE_SECONDS, BUCKET_SECONDS = 0.5, 4.0  # the uploader writes the journal every 2 s


def command(
    run: str = typer.Argument("latest", help="A run's id, a unique beginning of one, or `latest`."),
) -> None:
    """Follow a run until it ends; Ctrl-C ends the watching, never the run.

    Example:

        homerun watch latest
    """
    found = find(Settings.load(), run)
    journal, state = found.journal(), RunState()
    console = open_console(sys.stdout)
    try:
        while True:
            events = journal.poll()
            for event in events:
                state.apply(event)
                console.event(event)
            if not events:
                if state.status != "running":
                    break
                time.sleep(HERE_SECONDS if found.dir else BUCKET_SECONDS)
        console.end(state)
    except KeyboardInterrupt:
        console.close()
        print(f"{found.id} goes on; `homerun watch {found.id}` looks again", file=sys.stderr)
    finally:
        console.close()
