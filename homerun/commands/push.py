"""`homerun push`: bring what a run on this machine has not landed to the bucket."""

import sys

import typer

from homerun.bucket.lease import DEAD_SECONDS, Lease
from homerun.bucket.store import open_store
from homerun.errors import UnprovenError
from homerun.job.ending import push_run
from homerun.job.run import find_local
from homerun.settings import Settings


def command(
    run: str = typer.Argument("latest", help="A run on this machine: an id, a beginning of one, `latest`."),
) -> None:
    """Land what a run on this machine has not got into the bucket, and finish it if that was all that it lacked.

    Example:

        homerun push latest
    """
    settings = Settings.load()
    local = find_local(settings.homerun_dir / "runs", run)
    shown = ""

    def said(error: str) -> None:
        nonlocal shown
        if error and error != shown:
            print(error, file=sys.stderr)
        shown = error

    done = push_run(settings, local, _say_watching, said)
    for group in done.landed:
        print(group)
    if done.failed:
        missing = "; ".join(f"{group}: {why}" for group, why in done.failed.items())
        raise UnprovenError(f"not in the bucket: {missing}", f"`homerun push {local.id}` tries again")
    state = "finished: _SUCCESS is there" if done.good else f"`homerun train --resume {local.id}` goes on with it"
    print(f"{local.id}: everything that it made is in {open_store(settings).url}; {state}", file=sys.stderr)


def _say_watching(held: Lease) -> None:
    print(f"{held.run} is held by {held.host}; watching for {DEAD_SECONDS:.0f} s whether it is alive", file=sys.stderr)
