"""`homerun publish`: put the wrapper into a gist and print how to pin it."""

import dataclasses
import json
import sys
from pathlib import Path

import typer

from homerun.clouds import gist
from homerun.errors import RequestError
from homerun.settings import Settings


def command(
    file: Path = typer.Argument(Path("train_and_upload.py"), help="The wrapper."),
    id: str = typer.Option(None, "--gist", metavar="ID", help="A new revision of this gist; unset: a new gist."),
    sign: Path = typer.Option(None, metavar="KEY", help="Sign with this ssh key; boxes check it with SCRIPT_PUBKEY."),
    public: bool = typer.Option(False, "--public", help="List the new gist. A secret gist is unlisted, not private."),
    as_json: bool = typer.Option(False, "--json"),
) -> None:
    """Publish the wrapper; boxes fetch it when they start. Needs GITHUB_TOKEN with the right to write gists.

    Examples:

        homerun publish

        homerun publish --gist 5f2a… --sign ~/.ssh/id_ed25519
    """
    token = Settings.load().github_token
    if token is None:
        raise RequestError("GITHUB_TOKEN is not set", "Make one at https://github.com/settings/tokens, scope gist")
    done = gist.publish(token.get_secret_value(), file, id, sign, public)
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
        return
    print("# every start runs the newest revision", file=sys.stderr)
    print(f"export SCRIPT_URL={done.latest}")
    print("# or this very revision, for ever", file=sys.stderr)
    print(f"# export SCRIPT_URL={done.pinned} SCRIPT_SHA256={done.sha256}")
