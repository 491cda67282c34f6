"""The web process that a job starts: `python -m homerun.web RUN_DIR [--fd N]`.

It tails the run's files and holds no key but the page's token. Ends with 0 on TERM, and when HOMERUN_IDLE_MINUTES
passed after the run's end with nobody talking to the model.
"""

import argparse
import os
import sys
import threading
from pathlib import Path

from homerun.errors import HomerunError
from homerun.serve.loading import open_models
from homerun.settings import Settings
from homerun.web.app import Site, create_app
from homerun.web.board import Board
from homerun.web.logs import Logs
from homerun.web.server import environment, listen, serve


def _wait_for_the_jobs_end() -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock, held by a thread, aborts the interpreter when we end first
        pass
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m homerun.web", description="The live page of a run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--fd", type=int, default=None, help="a listening socket to inherit")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--lifeline", action="store_true", help="end when stdin closes: the job is gone")
    arguments = parser.parse_args()
    if arguments.lifeline:
        threading.Thread(target=_wait_for_the_jobs_end, daemon=True).start()
    kept = environment(os.environ)
    for name in set(os.environ) - set(kept):
        del os.environ[name]
    settings = Settings.load(kept)
    inherited = os.environ.pop("HOMERUN_PORT_FD", None)
    fd = arguments.fd if arguments.fd is not None else int(inherited) if inherited else None
    token = settings.homerun_serve_token.get_secret_value() if settings.homerun_serve_token else None
    os.environ.pop("HOMERUN_SERVE_TOKEN", None)  # upstream's code, should it serve, need not know it
    run_dir: Path = arguments.run_dir
    site = Site(Board(run_dir / "journal.jsonl"), Logs(run_dir), open_models(run_dir))
    app = create_app(site, token, settings.homerun_public_status)
    listener = listen(arguments.host, settings.homerun_port, fd)
    serve(app, site, listener, settings.homerun_idle_minutes)


if __name__ == "__main__":
    try:
        main()
    except HomerunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(int(error.code))
