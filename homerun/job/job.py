"""One attempt of a run: check, run the script, land. `train_and_upload.py` tells it on one page.

with Job(request) as job:
    if job.preflight():
        job.run_script()
    job.land()
sys.exit(job.code)
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from homerun import budget, cost
from homerun.bucket import extension
from homerun.bucket.outbox import Outbox
from homerun.console import open_console
from homerun.errors import Exit, HomerunError
from homerun.job.begin import Start, attempt_event, begin, depths, plan_event, run_event
from homerun.job.bring_back import Restored, bring_back
from homerun.job.checks import stage_a
from homerun.job.children import page_socket, page_wanted, uploader, web
from homerun.job.deciding import Deciding
from homerun.job.ending import hand_over_metadata, hand_over_papers, leave_to_push, what_is_safe
from homerun.job.fitting import wanted_fit
from homerun.job.gates import Gates, environment
from homerun.job.gauge import Gauge
from homerun.job.inputs import CACHE_MINUTES, InputCache, open_cache
from homerun.job.limits import Limits
from homerun.job.more_time import limits_now, over_limit
from homerun.job.request import Request
from homerun.job.resume import Resume
from homerun.job.saving import save_every
from homerun.job.signals import Signals
from homerun.job.supervise import Supervisor
from homerun.journal import Event, Journal, replay
from homerun.machine import describe as describe_machine
from homerun.preflight import failed, run_checks
from homerun.report.metadata import write_metadata
from homerun.state import RunState
from homerun.trainer.phase import SAVE_NOW
from homerun.upstream.adapt import Wishes
from homerun.upstream.artifacts import Watch, read_saver
from homerun.upstream.environment import build_environment, prepare_home
from homerun.upstream.runner import Decision, Outcome, Phase, Runner
from homerun.upstream.versions import torch_version
from homerun.upstream.worktree import script_sha256

# How the runner's or the supervisor's reason to stop ends the run.
CODES = {
    "ok": Exit.GOOD,
    "phase": Exit.PHASE,
    "script": Exit.PHASE,
    "disk": Exit.PHASE,
    "gates": Exit.PREFLIGHT,
    "budget": Exit.BUDGET,
    "lease": Exit.LEASE,
    "watchdog": Exit.STUCK,
    "deadline": Exit.STUCK,
}
RESERVE_BYTES = 4 << 20  # given back when the disk is full, for the last words
METADATA_SECONDS = 60.0
EXTENSION_SECONDS = 60.0  # between two looks for more time while page and chat stay up
FLUSH_SECONDS = 8.0  # after TERM: containers get 10 s before KILL by default


class Job:
    """The composition of the rooms for one attempt. As a context manager it ends what it started, whatever happens.

    code: the exit code so far, `Exit.GOOD` until something else is known.
    """

    def __init__(self, request: Request):
        """Finds or makes the run and takes its lease. Raises HomerunError; nothing is started then."""
        self.started = time.time()  # what is paid for begins here: waiting for the lease, bringing checkpoints back
        self.settings = request.settings
        self.code, self.reason = Exit.GOOD, ""
        self.page = page_socket(self.settings, os.environ)
        self.environ = {**os.environ, "HOMERUN_DIR": str(self.settings.homerun_dir)}
        if self.page:
            self.environ["HOMERUN_PORT_FD"] = str(self.page.fileno())
        self.start: Start = begin(request)
        self.request = self.start.request  # with what an earlier attempt was asked for
        self.run, self.store = self.start.run, self.start.store
        self.signals = Signals()

    def __enter__(self) -> "Job":
        attempt = self.start.attempt
        self.redactor = self.settings.redactor()
        self.console = open_console(sys.stdout)
        self.state = RunState()
        for event in replay(self.run.journal):
            self.state.apply(event)
        self.journal = Journal(self.run.journal, attempt, self.redactor.value)
        self.logs = self.run.logs(attempt)
        (self.logs / "raw").mkdir(parents=True, exist_ok=True)
        self.outbox = Outbox(self.run.outbox)
        self.reserve = self.run.dir / ".reserve"
        self.reserve.write_bytes(bytes(RESERVE_BYTES))
        self.uploads = uploader(self.run.dir, attempt, self.start.owner, self.environ)
        wanted = page_wanted(self.settings, self.environ)
        self.web = web(self.run.dir, attempt, self.environ) if wanted else None
        self.supervisor = Supervisor(
            run=self.run,
            settings=self.settings,
            outbox=self.outbox,
            uploads=self.uploads,
            web=self.web,
            emit=self.emit,
            text=self.console.text,
            redactor=self.redactor,
            attempt=attempt,
        )
        self.inputs: InputCache | None = None
        self.signals.__enter__()
        for child in filter(None, (None if self.start.finished else self.uploads, self.web)):
            child.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reserve.unlink(missing_ok=True)
        if error is not None:
            code = int(error.code) if isinstance(error, HomerunError) else int(Exit.BUG)
            with contextlib.suppress(OSError):
                self.emit("attempt.end", code=code, reason=str(error), safe=self._safe(), next=self._next())
        self.uploads.close()
        if self.web:
            self.web.close()
        if self.page:
            self.page.close()
        self.journal.close()
        self.console.close()
        self.signals.__exit__()

    def emit(self, type: str, /, **data: Any) -> Event:
        """One event: into the journal, the state and the console."""
        if type == "phase.end":  # its last words and what it made come before its end: a resume relies on it
            self.supervisor.read_logs()
            self.supervisor.hand_over(force=False)
        event = self.journal.emit(type, **data)
        self.state.apply(event)
        self.console.event(event)
        if type == "step":
            self.gauge.step(event["phase"], event["step"], event["t"])
        elif type == "phase.end":
            self.journal.sync()
            if event["verdict"] == "ok":
                self.gauge.phase_ended(event["phase"], event["t"])
            if self.inputs and event["verdict"] != "failed" and not self.supervisor.busy():
                self.inputs.offer()
        return event

    def warn(self, text: str, hint: str = "") -> None:
        self.emit("warning", text=text, hint=hint)

    # -- before --------------------------------------------------------------------------------------------------

    def preflight(self) -> bool:
        """Say what will be done, and check all that can be checked; false when the run must not begin."""
        if self.start.finished:
            self.console.say(f"{self.run.id} is finished and proven in {self.store.url}: nothing is trained again")
            return False
        start, machine = self.start, describe_machine()
        gpus = machine.get("gpus") or []
        fitted = wanted_fit(self.settings, start.source, start.plan, self.request.nproc, self.request.phase_args)
        nproc = self.request.nproc if self.request.nproc is not None else fitted.nproc if fitted else len(gpus)
        priced = cost.machine_price(gpus, self.settings.homerun_gpu_hour_price)
        price = priced.usd_per_hour
        depth = max(depths(start.source, self.request.phase_args), default=None)
        self.nproc, self.gpus, self.price, self._knows_torch = nproc, gpus[:nproc], price, False
        saver, world = read_saver(start.source.root), max(1, nproc)
        saved_by = self._saved_by(world)
        restored = bring_back(self.store, self.run, saver, saved_by, self.warn) if start.history else Restored()
        past = Resume(start.history, restored.proven, restored.made)
        self.watch = Watch(self.run.base, world, saver, restored.known)
        caps = limits_now(self.settings, self.outbox.dir)
        left, _ = budget.seconds_left(caps, cost.spent(self.state) or 0.0, price, time.time())
        wishes = Wishes(
            nproc=nproc,
            save_every=save_every(self.settings, self.state, depth, gpus[:nproc], left),
            resume_step=None,  # each phase's own, as it begins
            fit=fitted,
            phase_args=self.request.phase_args,
            skip=self.request.skip,
        )
        self.deciding = Deciding(start.source, wishes, past, self.run.id)
        self.gauge = Gauge(time.time(), price, self.deciding.can_resume(start.plan))
        if not any(event["type"] == "run.begin" for event in start.history):
            self.emit("run.begin", **run_event(start))
        going_on = past.newest()
        resumed_from = {"phase": going_on[0], "step": going_on[1]} if going_on else None
        paid = {"started": self.started, "price_source": priced.source}
        self.emit("attempt.begin", **paid, **attempt_event(start, machine, nproc, price, resumed_from))
        if going_on and saved_by != world:
            self._fail(
                Exit.PREFLIGHT,
                f"its checkpoints were saved by {saved_by} processes, and this is {world}: go on with "
                f"--nproc {saved_by} on a machine with as many GPUs, or start a new run here",
            )
            return False
        self.emit("plan", **plan_event(start.plan, self.deciding.foreseen(start.plan)))
        self._hand_over_metadata()  # so that the run can be found from elsewhere
        return self._check(nproc)

    def _check(self, nproc: int) -> bool:
        """Stage A of preflight, all in well under a minute."""
        start = self.start
        checks = stage_a(
            settings=self.settings,
            store=self.store,
            run=self.run.id,
            folder=self.run.dir,
            base=self.run.base,
            source=start.source,
            plan=start.plan,
            nproc=nproc,
            skip=self.request.skip,
            phase_args=self.request.phase_args,
            environ=self.environ,
        )
        wanted = [check for check in checks if check.name not in self.settings.homerun_skip_checks]
        results = []
        for result in run_checks(wanted):
            results.append(result)
            self.emit("check", **result.data())
        self.console.say(f"{sum(result.verdict == 'pass' for result in results)} of {len(results)} checks passed")
        if bad := failed(results):
            self._fail(Exit.PREFLIGHT, "; ".join(f"{result.name}: {result.seen}" for result in bad))
        return not bad

    def _saved_by(self, world: int) -> int:
        """How many processes saved the checkpoints so far: optimizer shards are one a process."""
        before = [event["nproc"] for event in self.start.history if event["type"] == "attempt.begin"]
        return max(1, before[-1]) if before else world

    # -- the script ----------------------------------------------------------------------------------------------

    def run_script(self) -> None:
        """Run the script to its end, or until something ends it; `code` and `reason` say how it ended."""
        start = self.start
        source = start.source
        prepare_home(self.run.home, os.environ)
        env = build_environment(self.settings, self.run.home, os.environ)
        if self.settings.wandb_api_key and source.url:  # upstream logs to W&B unless it is told no name for the run
            env.setdefault("WANDB_RUN", self.run.id)
        if self.settings.homerun_sync_data:
            wishes, hf_home = self.deciding.wishes, Path(env["HF_HOME"])
            self.inputs = open_cache(self.settings, self.run, start.plan, wishes, hf_home, self.outbox, self.emit)
            self.inputs.bring()
            self.deciding.has_tokenizer = self.inputs.has_tokenizer
        runner = Runner(
            script=source.root / source.script,
            cwd=source.root,
            env=env,
            plan=start.plan,
            logs=self.logs,
            attempt=start.attempt,
            base_dir=self.run.base,
            emit=self.emit,
            decide=lambda phase: self._decide(runner, gates, phase),
            grace_seconds=self.settings.homerun_grace_seconds,
        )
        self.limits = Limits(self.settings, self.state, self.warn, (self.run.base / SAVE_NOW).touch)
        with contextlib.suppress(HomerunError):  # the uploader brings what is asked for later
            extension.bring(self.store, self.run.id, self.outbox.dir)
        self.supervisor.watch_over(runner, self.watch, self.gauge, self.limits.check)
        gates = Gates(
            settings=self.settings,
            root=source.root,
            base=self.run.base,
            raw=runner.raw,
            env=env,
            nproc=self.nproc,
            gpus=self.gpus,
            price=self.price,
            flags=self.deciding.flags,
            emit=self.emit,
            say=self.console.say,
            tick=lambda: self._tick(runner),
        )
        outcome = runner.run(lambda: self._tick(runner))
        self._end(outcome)
        if script_sha256(source) != source.sha256:
            self._fail(Exit.PHASE, f"{source.script} was changed while it ran: it is not upstream's any more")

    def _decide(self, runner: Runner, gates: Gates, phase: Phase) -> Decision:
        """What a phase is run with; before that, stage B of preflight where it is due."""
        decision = self.deciding(phase)
        module = phase.step.module if phase.step else None
        if module and decision.argv is not None and not self._knows_torch:
            self._knows_torch = True  # one attempt, one environment
            if version := torch_version(environment(phase.pid)):
                self.emit("fact", phase=phase.name, name="torch_version", value=version)
        if decision.argv is not None and (why := gates.before(phase, decision.argv)):
            runner.stop("gates", why)
        return decision

    def _tick(self, runner: Runner) -> bool:
        """The job's own duties, a few times a second; whether the script goes on."""
        self._listen()
        if self.signals.code is not None:
            word = "TERM" if self.signals.code == Exit.TERM else "Ctrl-C"
            runner.stop("signal", f"ended by {word}")
        self._take_more_time()
        self.supervisor.tick()
        if time.monotonic() - self._metadata_at > METADATA_SECONDS:
            self._hand_over_metadata()
        return not runner.stopping

    def _take_more_time(self) -> None:
        caps = limits_now(self.settings, self.outbox.dir)
        if caps != self.limits.caps:
            self.limits.caps = caps
            self.emit("extended", deadline=caps.deadline, budget_usd=caps.cap_usd)

    def _listen(self) -> None:
        while self.signals.words:
            self.console.say(self.signals.words.pop(0))

    def _end(self, outcome: Outcome) -> None:
        if outcome.why == "disk":
            self.reserve.unlink(missing_ok=True)
        self.outbox.offer("over", "the script")
        self.supervisor.close_logs()
        self.supervisor.hand_over(force=True)
        if not outcome.ok:
            self.emit("stop", why=outcome.why, text=outcome.text)
            code = (
                self.signals.code
                if outcome.why == "signal" and self.signals.code
                else CODES.get(outcome.why, Exit.PHASE)
            )
            self._fail(code, outcome.text)

    def _fail(self, code: Exit, reason: str) -> None:
        if self.code == Exit.GOOD:
            self.code, self.reason = code, reason

    # -- after ---------------------------------------------------------------------------------------------------

    def land(self) -> None:
        """Everything handed over and proven; report and metadata; `_SUCCESS` for a good run; the last line."""
        if self.start.finished:
            return
        patience = FLUSH_SECONDS if self.signals.code == Exit.TERM else self.settings.homerun_upload_minutes * 60
        if not self._drain(patience):
            self._fail(Exit.UNPROVEN, self._missing())
            patience = FLUSH_SECONDS  # the papers may be as unwelcome
        self._close_attempt()
        hand_over_papers(self.run, self.outbox, self.state, good=self.code == Exit.GOOD)
        if not self._drain(patience) and self.code == Exit.GOOD:
            self._fail(Exit.UNPROVEN, self._missing())
            self._close_attempt()
            self.emit("run.end", code=int(self.code), verdict="failed")
            write_metadata(self.run.metadata, self.state)
        if self.code == Exit.UNPROVEN:
            self.uploads.close()
            leave_to_push(self.outbox)
        if self.inputs and self.code == Exit.GOOD:
            self._fill_cache()
        if self._stays_up():
            price = "" if self.price is None else f"; the machine goes on costing {cost.money(self.price)} an hour"
            self.console.say(f"page and chat stay up on port {self.settings.homerun_port}, until TERM or Ctrl-C{price}")
        self.console.end(self.state)

    def keep_alive(self) -> None:
        """Go on serving page and chat after a good run, until TERM, Ctrl-C, as long a silence as was asked for, or the
        end of money or time. After any other end the box goes back, and may start the job again."""
        if not self._stays_up():
            return
        assert self.web is not None
        self.uploads.close()  # the lease goes back: nothing of the run changes any more
        threading.Thread(target=self._ask_for_more_time, daemon=True).start()
        while self.signals.code is None and not self.web.over and not self._over_limit():
            for word in (self.web.check(), *self.signals.words):
                if word:
                    print(word, file=sys.stderr)
            self.signals.words.clear()
            time.sleep(0.5)

    def _stays_up(self) -> bool:
        return bool(self.settings.keep_alive and self.web and self.code == Exit.GOOD)

    def _over_limit(self) -> bool:
        return over_limit(self.state, limits_now(self.settings, self.outbox.dir), time.time())

    def _ask_for_more_time(self) -> None:
        while True:
            with contextlib.suppress(HomerunError, OSError):
                extension.bring(self.store, self.run.id, self.outbox.dir)
            time.sleep(EXTENSION_SECONDS)

    def _drain(self, patience: float) -> bool:
        """Wait at most `patience` seconds for the answers to all that was offered; whether all of it is proven."""
        until = time.monotonic() + patience
        ends_at_once = self.signals.code
        while True:
            self.supervisor.receive()
            if all(request.kind == "cache" for request in self.outbox.pending()):
                return not self.supervisor.refused
            self.supervisor.check_children()
            self._listen()
            if self.uploads.over or time.monotonic() > until or self.signals.code != ends_at_once:
                return False
            time.sleep(0.05)

    def _fill_cache(self) -> None:
        """Let what is on its way into the input cache arrive, for a minute at most."""
        until = time.monotonic() + CACHE_MINUTES * 60
        while self.outbox.pending() and time.monotonic() < until and self.signals.code is None:
            self.supervisor.check_children()
            self._listen()
            time.sleep(0.05)
            self.supervisor.receive()

    def _close_attempt(self) -> None:
        self.emit("attempt.end", code=int(self.code), reason=self.reason, safe=self._safe(), next=self._next())
        if self.code == Exit.GOOD:
            self.emit("run.end", code=0, verdict="good")

    def _hand_over_metadata(self) -> None:
        hand_over_metadata(self.run, self.outbox, self.state)
        self._metadata_at = time.monotonic()

    def _missing(self) -> str:
        waiting = [request.group for request in self.outbox.pending() if request.kind in ("artifact", "log", "report")]
        names = [*self.supervisor.refused, *waiting]
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        error = self.outbox.status().get("error")
        return f"not in the bucket: {shown or 'the end of the run'}" + (f" ({error})" if error else "")

    def _safe(self) -> str:
        return what_is_safe(self.state, self.store.url)

    def _next(self) -> str:
        """The one command to go on with."""
        match self.code:
            case Exit.GOOD:
                return f"homerun pull {self.run.id} DIR"
            case Exit.UNPROVEN:
                return f"homerun push {self.run.id}"
            case _:
                return f"homerun train --resume {self.run.id}"
