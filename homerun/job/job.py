"""One attempt of a run: check, run the script, land. `train_and_upload.py` is the same on one page.

    with Job(request) as job:
        job.preflight()
        job.run_script()
        job.land()
    sys.exit(job.code)
"""

import os
import time
from types import TracebackType
from typing import Any

from homerun.bucket import restore
from homerun.bucket.outbox import Outbox
from homerun.console import open_console
from homerun.errors import Exit, HomerunError, LeaseError, PreflightError
from homerun.job import begin, resume
from homerun.job.checks import run_checks
from homerun.job.gauge import Gauge
from homerun.job.landing import Landing, write_json
from homerun.job.limits import Limits
from homerun.job.request import Request
from homerun.job.signals import Signals
from homerun.job.supervise import Supervisor
from homerun.job.uploads import Uploads
from homerun.job.wishes import Wishing
from homerun.journal import Event, Journal, replay
from homerun.report.metadata import metadata
from homerun.report.write import write_report
from homerun.state import RunState
from homerun.upstream.artifacts import Watch, read_saver
from homerun.upstream.environment import build_environment
from homerun.upstream.runner import Outcome, Runner
from homerun.upstream.worktree import script_sha256

# How the runner's or the supervisor's reason to stop ends the run.
CODES = {
    "ok": Exit.GOOD,
    "phase": Exit.PHASE,
    "script": Exit.PHASE,
    "disk": Exit.PHASE,
    "budget": Exit.BUDGET,
    "lease": Exit.LEASE,
    "watchdog": Exit.STUCK,
    "deadline": Exit.STUCK,
}
FLUSH_SECONDS = 8.0  # after TERM: containers get 10 s before KILL by default


class Job:
    """The composition of the rooms for one attempt. As a context manager it ends what it started, whatever happens."""

    def __init__(self, request: Request):
        """Finds or makes the run and takes its lease. Raises HomerunError; nothing is started then."""
        self.request, self.settings = request, request.settings
        self.signals = Signals()
        self.start = begin.begin(request)
        self.run, self.store = self.start.run, self.start.store
        self.code: Exit = Exit.GOOD
        self.reason = ""
        self.outcome: Outcome | None = None

    # -- the attempt ---------------------------------------------------------------------------------------------

    def __enter__(self) -> "Job":
        self.redactor = self.settings.redactor()
        self.console = open_console(self.redactor)
        self.state = RunState()
        for event in replay(self.run.journal):
            self.state.apply(event)
        self.journal = Journal(self.run.journal, self.start.attempt, self.redactor.value)
        self.logs = self.run.logs(self.start.attempt)
        (self.logs / "raw").mkdir(parents=True, exist_ok=True)
        self.outbox = Outbox(self.run.outbox)
        self.wishing = Wishing(self.start, self.state)
        self.gauge = Gauge(time.time(), self.wishing.price, self.wishing.resumable)
        environ = {**os.environ, "HOMERUN_DIR": str(self.settings.homerun_dir)}
        self.uploads = Uploads(self.run.dir, self.start.attempt, self.start.owner, environ)
        self.signals.__enter__()
        self.uploads.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uploads.close()
        self.journal.close()
        self.console.close()
        self.signals.__exit__()

    def emit(self, type: str, /, **data: Any) -> Event:
        event = self.journal.emit(type, **data)
        self.state.apply(event)
        self.console.event(event)
        if type == "step":
            self.gauge.step(event["phase"], event["step"], event["t"])
        if type == "phase.end":
            if event["verdict"] == "ok":
                self.gauge.phase_ended(event["phase"], event["t"])
            self.journal.sync()
        return event
