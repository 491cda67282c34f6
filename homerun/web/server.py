"""Run an application on a port or on a socket that was handed down, until TERM, Ctrl-C or a long silence."""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Mapping

import uvicorn

from homerun.errors import RequestError
from homerun.web.app import Site
from homerun.web.guard import Guard

# All that the web process sees of the environment: no bucket's, cloud's or W&B's key.
PASSED = ("HOME", "PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES")
PASSED_OURS = (
    *("HOMERUN_DIR", "HOMERUN_PORT", "HOMERUN_PORT_FD", "HOMERUN_SERVE_TOKEN", "HOMERUN_SERVE_TOKEN_FILE"),
    *("HOMERUN_PUBLIC_STATUS", "HOMERUN_IDLE_MINUTES"),
)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of `environ` the web process is started with."""
    return {name: environ[name] for name in (*PASSED, *PASSED_OURS) if name in environ}


def listen(host: str, port: int, fd: int | None = None) -> socket.socket:
    """A listening socket: the one inherited as `fd`, else a new one. RequestError where the port is taken."""
    if fd is not None:
        return socket.socket(fileno=os.dup(fd))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise RequestError(
            f"port {port} on {host} cannot be used ({error.strerror})", f"Take another: --port {port + 1}"
        ) from None
    listener.listen(128)
    return listener


def serve(app: Guard, site: Site, listener: socket.socket, idle_minutes: float | None = None) -> None:
    """Serve until told to stop; with idle_minutes, until no model that was ready was asked anything for so long."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(app, access_log=False, log_level="warning", timeout_graceful_shutdown=3, lifespan="on")
    server = uvicorn.Server(config)
    idle_seconds = idle_minutes * 60 if idle_minutes else math.inf
    threading.Thread(target=_watch, args=(server, app, site, idle_seconds), daemon=True).start()
    server.run(sockets=[listener])


def _watch(server: uvicorn.Server, app: Guard, site: Site, idle_seconds: float) -> None:
    app.used_at = time.time()
    while not server.should_exit:
        if site.why_not() or site.answering():
            app.used_at = time.time()
        if time.time() - app.used_at > idle_seconds:
            server.should_exit = True
        time.sleep(0.25)
    site.stopping = True
