"""The uploader's process, seen from the job: started, watched, restarted, and told to end."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from homerun.errors import Exit

# A dead uploader comes back after 1, 2, 4 … seconds; it must never take the training down with it.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


class Uploads:
    """`homerun.bucket.uploader` as a child. It ends by itself when this process does: its stdin is our lifeline."""

    def __init__(self, run_dir: Path, attempt: int, owner: str, environ: Mapping[str, str]):
        self.run_dir, self.environ = run_dir, dict(environ)
        self._options = ("--attempt", str(attempt), "--owner", owner)
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts, self.lost = 0, False
        self._wait, self._again = FIRST_WAIT, 0.0
        self._log = run_dir / "logs" / f"a{attempt:02d}" / "raw" / "uploader.log"

    def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "homerun.bucket.uploader", str(self.run_dir), *self._options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environ,
                start_new_session=True,  # Ctrl-C in the terminal is the job's business
            )

    def check(self) -> str | None:
        """Restart it if it died; what happened in one sentence, or None. `lost` tells that the lease is gone."""
        if self.process is None or self.process.poll() is None:
            if self.process is None and not self.lost and time.monotonic() >= self._again:
                self.start()
            return None
        code = self.process.returncode
        self.close()
        if code == Exit.LEASE:
            self.lost = True
            return "the uploader has lost the run's lease to another runner"
        self.restarts += 1
        self._again, self._wait = time.monotonic() + self._wait, min(self._wait * 2, LONGEST_WAIT)
        return f"the uploader ended with {code}; it starts again ({self.last_words()})"

    def last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "it said nothing"

    def close(self, wait: float = 5.0) -> None:
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
