"""The job's helpers, the uploader and the web server: started, watched, restarted, and told to end.

Neither can take the training down with it, and neither outlives the job: its stdin is a pipe that closes when we die.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from homerun.errors import Exit, HomerunError
from homerun.settings import Settings

# One that died comes back after 1, 2, 4 … seconds.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


class Child:
    """`python -m MODULE ARGUMENTS` as a helper. ended: the exit code after which it is not started again."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: list[str],
        log: Path,
        environ: Mapping[str, str],
        ended: int | None = None,
        pass_fds: tuple[int, ...] = (),
    ):
        self.name, self.environ, self.pass_fds = name, dict(environ), pass_fds
        self._command = [sys.executable, "-m", module, *arguments]
        self._log, self._ended = log, ended
        self.process: subprocess.Popen[bytes] | None = None
        self.over = False  # it ended with `ended`
        self._wait, self._again = FIRST_WAIT, 0.0

    def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environ,
                pass_fds=self.pass_fds,
                start_new_session=True,  # Ctrl-C in the terminal is the job's business
            )

    def check(self) -> str | None:
        """Restart it if it died; what happened in one sentence, or None."""
        if self.process is None:
            if not self.over and time.monotonic() >= self._again:
                self.start()
            return None
        if self.process.poll() is None:
            return None
        code = self.process.returncode
        self.close()
        if code == self._ended:
            self.over = True
            return None
        self._again, self._wait = time.monotonic() + self._wait, min(self._wait * 2, LONGEST_WAIT)
        return f"the {self.name} ended with {code}; it starts again ({self._last_words()})"

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "it said nothing"

    def close(self, wait: float = 8.0) -> None:
        """End it: close the lifeline, and after `wait` seconds end it for good."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def uploader(run_dir: Path, attempt: int, owner: str, environ: Mapping[str, str]) -> Child:
    """The only writer to the run's folder in the bucket. `over`: another runner has the lease."""
    arguments = [str(run_dir), "--attempt", str(attempt), "--owner", owner]
    log = run_dir / "logs" / f"a{attempt:02d}" / "raw" / "uploader.log"
    return Child("uploader", "homerun.bucket.uploader", arguments, log, environ, ended=int(Exit.LEASE))


def page_wanted(settings: Settings, environ: Mapping[str, str]) -> bool:
    return settings.keep_alive or "HOMERUN_PORT" in environ or "HOMERUN_PORT_FD" in environ


def page_socket(settings: Settings, environ: Mapping[str, str]) -> socket.socket | None:
    """The page's listening socket, where a page is wanted and the container has not bound it already.

    The job holds it through every restart of the web server. HomerunError (exit 3) where the port is taken.
    """
    if not page_wanted(settings, environ) or "HOMERUN_PORT_FD" in environ:
        return None
    try:
        return socket.create_server(("0.0.0.0", settings.homerun_port), backlog=128)
    except OSError as error:
        what = f"port {settings.homerun_port} cannot be had ({error.strerror})"
        raise HomerunError(what, "Set HOMERUN_PORT to a free one", Exit.PREFLIGHT) from None


def web(run_dir: Path, attempt: int, environ: Mapping[str, str]) -> Child:
    """The page and the chat on the traffic port. `over`: it was idle for as long as was asked."""
    fd = environ.get("HOMERUN_PORT_FD", "")
    log = run_dir / "logs" / f"a{attempt:02d}" / "raw" / "web.log"
    fds = (int(fd),) if fd.isdigit() else ()
    return Child("web server", "homerun.web", [str(run_dir), "--lifeline"], log, environ, ended=0, pass_fds=fds)
