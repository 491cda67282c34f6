"""`homerun pull`: bring a run's model home from the bucket, verified."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import typer

from homerun.bucket.meter import Meter
from homerun.bucket.restore import choose, find_run, read_manifest, restore
from homerun.bucket.store import Missing, open_for_a_person, write_atomic
from homerun.errors import RequestError
from homerun.settings import Settings


def command(
    run: str = typer.Argument(help="A run's id, a unique beginning of one, or `latest`."),
    dir: Path = typer.Argument(help="Where to; made if it is not there. What is there and right already is kept."),
    inference: bool = typer.Option(False, "--inference", help="Only what serving needs: tokenizer, model, meta."),
    step: str = typer.Option(None, metavar="N|best|last", help="Only this step of each kind of checkpoint."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a file."),
) -> None:
    """Bring a run home: every file verified against the manifest. A pull that was cut off goes on where it stopped.

    Examples:

        homerun pull latest ./model --inference

        homerun pull nanochat-d20-20261121T023100Z-1f3a ./run --step best
    """
    store = open_for_a_person(Settings.load())
    id = find_run(store, run)
    manifest = read_manifest(store, id)
    chosen = {entry.key for entry in choose(manifest, inference=inference, step=step)}
    if not chosen:
        raise RequestError(f"{id} has nothing in {store.url} yet", f"`homerun status {id}` shows how far it is")
    total = sum(manifest.entries[key].bytes for key in chosen)
    try:
        with Meter("pulled", total) as meter:
            entries = restore(store, id, dir, lambda entry: entry.key in chosen, meter.moved, manifest)
        with suppress(Missing):
            write_atomic(dir / "metadata.json", store.get(f"{id}/metadata.json")[0])
    except OSError as error:
        raise RequestError(f"{error.filename or dir}: {error.strerror}", "Give a folder with enough space") from None
    for entry in entries:
        if as_json:
            print(json.dumps({"path": str(dir / entry.key), "bytes": entry.bytes, "sha256": entry.sha256}))
        else:
            print(dir / entry.key)
    print(f"{id}: {len(entries)} files, {total / 1e6:,.1f} MB, every one verified, in {dir}", file=sys.stderr)
