"""The life of the box around the job: bind the port, fetch the wrapper, run it, end the box. Standard library only.

    python3 box.py [ARGUMENTS OF THE WRAPPER]

1. Port HOMERUN_PORT (8000) is bound before anything else and /healthz answers; the listening socket is then inherited
   by the wrapper, whose job finds its number in HOMERUN_PORT_FD. Connections made in between wait in the backlog.
2. The wrapper is fetched and proven (fetch.py); HOMERUN_WRAPPER_RECORD names the JSON file that says what it was.
3. It runs as a child in its own session, by uv if it declares dependencies (PEP 723), else by this Python. TERM, INT
   and HUP are passed on once each (tini -g signals this process only), and its exit code is this process's.
4. HOMERUN_AFTER says what becomes of the box when the job is over:
   exit   end with its code (the default: what a `docker run` expects)
   hold   answer on the port until TERM (time that is prepaid; a platform that restarts whatever exits would loop)
   stop   end the RunPod pod that this is: delete it after success, else stop it, so that it stops costing
   Under hold and stop nobody else restarts the job, so box.py does, RESTARTS times at most, when it was killed (out of
   memory), crashed (1) or had a phase fail (4); the job goes on from the bucket. And a wrapper that could not be had
   (rented boxes share an address, and its rate limit) is asked for again, for a quarter of an hour.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import fetch

RESTARTS = 2
RESTART_AFTER_S = 10.0
FETCH_AFTER_S = (30.0, 60.0, 120.0, 240.0, 480.0)
RUNPOD_API = "https://rest.runpod.io/v1"
BACKLOG = 128


def say(text: str) -> None:
    print(f"homerun: {text}", file=sys.stderr, flush=True)


def secret(name: str) -> str | None:
    """The variable NAME, or the content of the file that NAME_FILE names."""
    if file := os.environ.get(f"{name}_FILE"):
        with contextlib.suppress(OSError):
            return Path(file).read_text(encoding="utf-8").strip()
    return os.environ.get(name)


def listen(port: int) -> socket.socket | None:
    """A listening socket on all addresses, or None for port 0. Raises OSError."""
    if port == 0:
        return None
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    listener.listen(BACKLOG)
    return listener


@contextlib.contextmanager
def answering(listener: socket.socket | None, state: dict[str, object]) -> Iterator[None]:
    """While inside: GET /healthz is 200 with `state` as JSON, anything else 503. The socket goes on listening."""
    if listener is None:
        yield
        return
    over = threading.Event()
    listener.settimeout(0.2)

    def serve() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                continue
            with contextlib.suppress(OSError), connection:
                connection.settimeout(2)
                request = connection.recv(4096)
                healthy = request.split(b" ")[1:2] == [b"/healthz"]
                body = json.dumps(state).encode() + b"\n"
                status = b"200 OK" if healthy else b"503 Service Unavailable\r\nRetry-After: 5"
                head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close"
                connection.sendall(head % (status, len(body)) + b"\r\n\r\n" + body)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        listener.settimeout(None)


def declares_dependencies(script: Path) -> bool:
    """Whether a script carries PEP 723 metadata, and so wants to be run by uv in an environment of its own."""
    return bool(re.search(r"(?m)^# /// script\s*$", script.read_text(encoding="utf-8")))


class Job:
    """The wrapper as a child process. A signal that comes here goes to it, or ends this process when there is none."""

    def __init__(self, command: list[str], environ: dict[str, str], listener: socket.socket | None):
        self.command, self.environ, self.listener = command, environ, listener
        self._child: subprocess.Popen[bytes] | None = None
        self._starting, self._early = False, list[int]()

    def on_signal(self, number: int, _: object) -> None:
        if self._starting:
            self._early.append(number)
        elif self._child is not None:
            self._child.send_signal(number)
        else:
            raise SystemExit(128 + number)

    def run(self) -> int:
        """Its exit code; 128+N if signal N ended it."""
        inherited = () if self.listener is None else (self.listener.fileno(),)
        self._starting = True
        self._child = subprocess.Popen(self.command, env=self.environ, pass_fds=inherited, start_new_session=True)
        self._starting = False
        for number in self._early:
            self._child.send_signal(number)
        status = self._child.wait()
        self._child = None
        return 128 - status if status < 0 else status

    def run_until_final(self) -> int:
        """`run`, again after a crash, a kill or a failed phase, RESTARTS times at most."""
        for restart in range(1, RESTARTS + 1):
            code = self.run()
            if code not in (1, 4, 134, 135, 137, 139):
                return code
            say(f"the job ended with {code}; starting it again in {RESTART_AFTER_S:.0f} s ({restart} of {RESTARTS})")
            with answering(self.listener, {"status": "restarting", "code": code}):
                time.sleep(RESTART_AFTER_S)
        return self.run()


def hold(listener: socket.socket | None, code: int) -> None:
    """Answer on the port until a signal ends it."""
    say(f"the job ended with {code}; holding the box until it is ended (HOMERUN_AFTER=hold)")
    with contextlib.suppress(SystemExit), answering(listener, {"status": "held", "code": code}):
        while True:
            signal.pause()


def stop_pod(code: int) -> None:
    """Delete this RunPod pod after success; stop it otherwise, which keeps its volume and ends the GPU's bill."""
    pod, key = os.environ.get("RUNPOD_POD_ID"), secret("RUNPOD_API_KEY")
    if not (pod and key):
        say("HOMERUN_AFTER=stop without RUNPOD_POD_ID and RUNPOD_API_KEY: END THIS BOX YOURSELF, it still costs money")
        return
    api = os.environ.get("RUNPOD_API_URL", RUNPOD_API)
    method, path = ("DELETE", f"/pods/{pod}") if code == 0 else ("POST", f"/pods/{pod}/stop")
    request = urllib.request.Request(api + path, method=method, headers={"Authorization": f"Bearer {key}"})
    for wait in (1, 5, 25, 125, 0):
        try:
            with urllib.request.urlopen(request, timeout=20):
                say(f"pod {pod}: {method} {path} done")
                return
        except OSError as error:
            say(f"pod {pod}: {method} {path}: {error}")
            time.sleep(wait)
    say(f"pod {pod} could not be ended: END IT YOURSELF, it still costs money")


def main(arguments: list[str]) -> int:
    after = os.environ.get("HOMERUN_AFTER") or "exit"
    if after not in ("exit", "hold", "stop"):
        print(f"error: HOMERUN_AFTER is {after!r}. Set it to exit, hold or stop", file=sys.stderr)
        return 2
    port = os.environ.get("HOMERUN_PORT") or "8000"
    try:
        listener = listen(int(port))
    except (ValueError, OverflowError, OSError) as error:
        print(f"error: HOMERUN_PORT is {port!r}: {error}. Set a free port, or 0 for none", file=sys.stderr)
        return 2
    job = Job([sys.executable], dict(os.environ), listener)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, job.on_signal)
    patience = () if after == "exit" else FETCH_AFTER_S
    code = prepare(job, arguments, patience) or (job.run() if after == "exit" else job.run_until_final())
    if code in (130, 143):  # someone ended the box: nothing is left to decide
        return code
    if after == "hold":
        hold(listener, code)
    elif after == "stop":
        stop_pod(code)
    return code


def prepare(job: Job, arguments: list[str], patience: Sequence[float]) -> int:
    """Fetch the wrapper and make it the job's command; the exit code of a fetch that failed, else 0.

    patience: seconds after which a wrapper that could not be had is asked for again; one that was refused never is.
    """
    folder = Path(os.environ.get("HOMERUN_DIR", "~/.homerun")).expanduser() / "wrapper"
    with answering(job.listener, {"status": "fetching"}):
        for wait in (*patience, None):
            try:
                wrapper, facts = fetch.obtain(os.environ, folder)
                break
            except fetch.FetchError as error:
                if wait is None or type(error) is not fetch.FetchError:
                    print(f"error: {error}", file=sys.stderr)
                    return error.code
                say(f"{error}; trying again in {wait:.0f} s")
                time.sleep(wait)
    say(f"wrapper {facts['url']} sha256 {facts['sha256']}")
    job.environ["HOMERUN_WRAPPER_RECORD"] = str(folder / "wrapper.json")
    if job.listener is not None:
        job.environ["HOMERUN_PORT_FD"] = str(job.listener.fileno())
    runner = ["uv", "run", "--no-project", "--script"] if declares_dependencies(wrapper) else [sys.executable]
    job.command = [*runner, str(wrapper), *arguments]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
