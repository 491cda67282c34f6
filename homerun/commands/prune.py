"""`homerun prune`: delete what a run in the bucket need not keep."""

import json
import secrets
import socket
import sys

import typer

from homerun.bucket import lease
from homerun.bucket.landing import Landing
from homerun.bucket.prune import waste
from homerun.bucket.restore import find_run, read_manifest
from homerun.bucket.store import open_for_a_person
from homerun.settings import Settings


def command(
    run: str = typer.Argument(help="A run's id, a unique beginning of one, or `latest`."),
    keep: int = typer.Option(None, min=1, help="Checkpoints to keep of each kind, beside the best one."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="Print what there is to delete as JSON, and delete nothing."),
) -> None:
    """Delete a run's superseded checkpoints, and objects that its manifest does not name, from the bucket.

    Example:

        homerun prune latest --keep 1
    """
    settings = Settings.load()
    store = open_for_a_person(settings)
    id = find_run(store, run)
    keep = keep or settings.homerun_keep_last
    found = waste(read_manifest(store, id), list(store.list(f"{id}/")), keep)
    if as_json:
        print(json.dumps(vars(found)))
        return
    for key in found.keys:
        print(key)
    print(f"{id}: {len(found.keys)} objects, {found.bytes / 1e6:,.1f} MB", file=sys.stderr)
    if not found.keys or not (yes or typer.confirm("Delete them?", err=True)):
        return
    held = lease.acquire(store, id, f"{socket.gethostname()}-prune-{secrets.token_hex(4)}")
    try:
        Landing(store, id, settings.homerun_dir / "runs" / id, held.attempt, keep, spacing=0).prune()
    finally:
        lease.release(store, held)
