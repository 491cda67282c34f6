"""`homerun serve`: the live page of a run, the chat with its model, and the OpenAI-compatible API."""

import secrets
import sys
from pathlib import Path

import typer

from homerun.commands._models import Source, find_checkout, find_source
from homerun.settings import Settings


def command(
    run: str = typer.Argument(metavar="RUN|DIR", help="A run's id, `latest`, or a folder: a run's, or nanochat's."),
    port: int = typer.Option(None, help="Default: HOMERUN_PORT, else 8000; 0 takes any that is free."),
    host: str = typer.Option("127.0.0.1", help="0.0.0.0 lets other machines in."),
    device: str = typer.Option("", help="cuda or cpu; unset: the GPU if there is one."),
    upstream: Path = typer.Option(None, help="Upstream's checkout at the run's commit, where it is not in the run."),
    step: str = typer.Option(None, help="For a run in the bucket: `last`, `best` or a step; unset: the last."),
    every: bool = typer.Option(
        False, "--all", help="For a run in the bucket: every stage, and every step or `--step`."
    ),
) -> None:
    """Serve a run's models: a chat page, and an API for OpenAI's clients.

    The token is HOMERUN_SERVE_TOKEN; without it one is made and shown, if this is a terminal.

    Examples:

        homerun serve latest

        homerun serve ~/.cache/nanochat --port 8080
    """
    from homerun.serve.checkpoints import find_tree
    from homerun.serve.loading import open_models  # torch takes seconds; --help should not
    from homerun.web.app import Site, create_app
    from homerun.web.board import Board
    from homerun.web.logs import Logs
    from homerun.web.server import listen, serve

    settings = Settings.load()
    source: Source = find_source(settings, run, step, every)
    find_tree(source.folder)  # or an error that says where there is one
    models = open_models(source.folder, device, find_checkout(settings, source, upstream))
    run_dir = source.run_dir
    site = Site(
        Board(run_dir / "journal.jsonl") if run_dir else None, Logs(run_dir) if run_dir else None, models, lambda: None
    )
    token, made = _token(settings)
    listener = listen(host, settings.homerun_port if port is None else port)
    address = f"http://{host if host != '0.0.0.0' else 'localhost'}:{listener.getsockname()[1]}"
    print(f"serving {Path(run).name} at {address}/chat" + (f"#token={token}" if made else ""), file=sys.stderr)
    print(f"OpenAI's clients: base_url={address}/v1, api_key=the token", file=sys.stderr)
    if token is None:
        print("only /healthz answers: there is no HOMERUN_SERVE_TOKEN and no terminal to show one at", file=sys.stderr)
    serve(create_app(site, token, settings.homerun_public_status), site, listener, settings.homerun_idle_minutes)


def _token(settings: Settings) -> tuple[str | None, bool]:
    """(token, whether it was made just now)."""
    if settings.homerun_serve_token:
        return settings.homerun_serve_token.get_secret_value(), False
    return (secrets.token_urlsafe(24), True) if sys.stderr.isatty() else (None, False)
