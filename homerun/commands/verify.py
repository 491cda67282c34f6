"""`homerun verify`: re-read every byte of a run in the bucket against its manifest."""

import json
import sys

import typer

from homerun.bucket.meter import Meter
from homerun.bucket.restore import find_run, read_manifest, verify
from homerun.bucket.store import open_for_a_person
from homerun.errors import Exit
from homerun.settings import Settings


def command(
    run: str = typer.Argument("latest", help="A run's id, a unique beginning of one, or `latest`."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a file."),
) -> None:
    """Re-read every byte of a run in the bucket, and compare it with the manifest. Exit 5 when anything is not right.

    Examples:

        homerun verify latest

        homerun verify latest --json | jq -r 'select(.verdict != "ok")'
    """
    store = open_for_a_person(Settings.load())
    id = find_run(store, run)
    manifest = read_manifest(store, id)
    bad, files = [], 0
    with Meter("verified", sum(entry.bytes for entry in manifest.entries.values())) as meter:
        for verdict in verify(store, id, meter.moved):
            files += 1
            if verdict.verdict != "ok":
                bad.append(verdict)
            if as_json:
                print(json.dumps(vars(verdict)))
            else:
                print(f"{verdict.verdict:8} {verdict.bytes:>14,}  {verdict.key}  {verdict.text}".rstrip())
    good = store.head(f"{id}/_SUCCESS") is not None
    state = "a finished run" if good else "no _SUCCESS: the run is not finished"
    print(f"{id}: {files - len(bad)} of {files} files are right in {store.url}; {state}", file=sys.stderr)
    if bad or not files:
        sys.exit(int(Exit.UNPROVEN))
