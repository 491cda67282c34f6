"""Runs a script in upstream's form, unmodified, and follows it phase by phase.

    runner = Runner(script=…, cwd=…, env=…, plan=…, logs=…, attempt=1, base_dir=…, emit=…, decide=…, grace_seconds=10)
    outcome = runner.run(tick)

The processes are drawn in docs/design.md. bash runs under the guard (guard.py); each phase under a shim (shim.py) that
trace.bash starts in its place; both talk to this one loop. A phase that fails ends the run here: its shim gets no
answer, so bash cannot go on, and the guard ends everything. bash's own exit status can only make matters worse.
"""

import contextlib
import errno
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homerun.journal import Emit
from homerun.upstream.activity import Activity
from homerun.upstream.judge import Verdict, describe, judge, proof_is_missing
from homerun.upstream.plan import Plan, Step, module_of
from homerun.upstream.tracer import Shim, Tracer, decode

GUARD = Path(__file__).with_name("guard.py")
SAID_BYTES = 1 << 20  # of a phase's output is read to judge it, from its end
# A command whose failure is an answer, not an accident.
_ANSWERS = re.compile(r"(?:\[|\[\[|\(\(|test|let|false|expr|e?grep|fgrep|diff|cmp|pgrep)(?:\s|$)|\(\(")
_ASSIGNMENT = re.compile(
    r"""[A-Za-z_]\w*(?:\[[^]]*\])?\+?=(?:"(?:[^"\\]|\\.)*"|'[^']*'|\$\(.*\)|`[^`]*`|\S)*\s*$""", re.DOTALL
)


@dataclass(frozen=True)
class Decision:
    """What to do with a phase. argv None: skip it. changes: what was adapted, for whoever asks."""

    argv: list[str] | None
    reason: str = ""
    changes: tuple = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Phase:
    """One execution of a step. status and verdict are None while it runs.

    name: shown (base_train, base_train.2). line, index, occurrence (from 1), original: its identity for a resume; index
    is -1 where the plan does not know it. argv: as run. pid: its shim's. began: Unix seconds. status: the exit status,
    negative for a signal.
    """

    name: str
    step: Step | None
    line: int
    index: int
    occurrence: int
    original: list[str]
    argv: list[str]
    cwd: Path
    pid: int
    background: bool
    log: Path
    began: float
    status: int | None = None
    seconds: float | None = None
    verdict: str | None = None
    reason: str = ""
    script_log_from: int = 0  # size of the script's own log when it began


@dataclass(frozen=True)
class Outcome:
    """How the script ended. why: "ok", "phase" (one failed, or the script itself did), or what `stop` was given."""

    ok: bool
    why: str
    text: str
    failed: Phase | None
    status: int | None  # bash's exit status, negative for a signal; None where the guard could not tell


class Runner:
    """One run of one script. All of it happens inside `run`, in the caller's thread."""

    def __init__(
        self,
        *,
        script: Path,
        cwd: Path,
        env: dict[str, str],
        plan: Plan,
        logs: Path,
        attempt: int,
        base_dir: Path,
        emit: Emit,
        decide: Callable[[Phase], Decision],
        grace_seconds: float,
    ):
        """logs: this attempt's folder, `runs/<id>/logs/aNN`. decide(phase) is asked before each phase starts."""
        self.script, self.cwd, self.env, self.plan = script, cwd, env, plan
        self.attempt, self.base_dir, self.decide, self.grace = attempt, base_dir, decide, grace_seconds
        self.phases: list[Phase] = []
        self.raw = logs / "raw"
        self.script_log = self.raw / "0000-script.log"
        self._emit_event = emit
        self._shims: dict[Shim, Phase | None] = {}
        self._counts: Counter[tuple[int, str]] = Counter()
        self._stop: tuple[str, str] | None = None
        self._failed: Phase | None = None
        self._status: int | None = None
        self._over = False  # bash has ended
        self._ended = False  # nothing is left
        self._job: socket.socket | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._selector = selectors.DefaultSelector()
        self._guard_words = b""
        self._activity = Activity()
        self._deciding = False  # the script waits for us: its silence is no sign

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self, tick: Callable[[], object], every: float = 0.25) -> Outcome:
        """Run the script to its end. tick() is called at least every `every` seconds and at phase borders.

        Whatever happens, exceptions included, nothing that the script started is running when this returns.
        """
        self.raw.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            script = str(self.script.relative_to(self.cwd))
        except ValueError:
            script = str(self.script)
        tracer = Tracer(script, self.plan.launchers())
        try:
            self._start(script, tracer)
            next_tick = 0.0
            while not self._ended:
                events = self._selector.select(max(0.0, next_tick - time.monotonic()))
                if self._handle([key.data for key, _ in events], tracer) or time.monotonic() >= next_tick:
                    tick()
                    next_tick = time.monotonic() + every
            for shim in list(self._shims):
                self._lose(shim)
            tick()
        finally:
            self._end_guard()
            tracer.close()
            self._selector.close()
        return self._outcome()

    def stop(self, why: str, text: str) -> None:
        """Begin to end everything; `run` returns when nothing is left. The first reason given stands."""
        if self._stop is None:
            self._stop = (why, text)
            if self._job:
                with contextlib.suppress(OSError):
                    self._job.send(b"T")

    @property
    def stopping(self) -> bool:
        return self._stop is not None

    def idle_seconds(self, gpu_busy: bool = False) -> float:
        """Seconds since the script last wrote to its logs or used a CPU, a disk or (says the caller) a GPU."""
        logs = [self.script_log, *(phase.log for phase in self.phases if phase.status is None)]
        return self._activity.idle_seconds(self._guard.pid if self._guard else 0, logs, gpu_busy or self._deciding)

    def _start(self, script: str, tracer: Tracer) -> None:
        self._job, theirs = socket.socketpair()
        descriptor = os.open(self.script_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        command = [sys.executable, "-I", "-S", str(GUARD), str(theirs.fileno()), str(self.grace), "bash", script]
        try:
            self._guard = subprocess.Popen(
                command,
                cwd=self.cwd,
                env=self.env | {"BASH_ENV": str(tracer.bash_env)},
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
            theirs.close()
        self._selector.register(self._job, selectors.EVENT_READ, "guard")
        self._selector.register(tracer.socket, selectors.EVENT_READ, "shims")

    def _handle(self, ready: list[Any], tracer: Tracer) -> bool:
        """Deal with what has come in; whether a phase began or ended.

        In this order: what the guard says, phases that ended, phases that would begin. Of two that arrive at once, a
        failure must come before the begin that it forbids.
        """
        if "guard" in ready:
            self._hear_guard()
        if "shims" in ready:
            shim = tracer.accept()
            self._shims[shim] = None
            self._selector.register(shim.connection, selectors.EVENT_READ, shim)
        messages: list[tuple[Shim, list[bytes]]] = []
        for shim in (one for one in ready if isinstance(one, Shim)):
            received = shim.receive()
            if received is None:
                self._lose(shim)
            else:
                messages += [(shim, message) for message in received]
        messages.sort(key=lambda item: item[1][0] == b"begin")
        for shim, (kind, *fields) in messages:
            if kind == b"end":
                self._end(shim, int(fields[0]), float(fields[1]), int(fields[2]))
            elif kind == b"error":
                self._error(shim, fields)
            elif self._stop is None:
                self._begin(shim, int(fields[0]), int(fields[1]), fields[2], [decode(word) for word in fields[3:]])
        return bool(messages)

    # -- phases ----------------------------------------------------------------------------------------------------

    def _begin(self, shim: Shim, line: int, pid: int, cwd: bytes, argv: list[str]) -> None:
        step = self.plan.find(line, argv[0], argv)
        stem = step.name if step else _unplanned_name(argv)
        index = step.index if step else -1
        line = step.line if step else line
        self._counts[line, stem] += 1
        occurrence = self._counts[line, stem]
        phase = Phase(
            name=stem if occurrence == 1 else f"{stem}.{occurrence}",
            step=step,
            line=line,
            index=index,
            occurrence=occurrence,
            original=argv,
            argv=argv,
            cwd=Path(decode(cwd)),
            pid=pid,
            background=bool(step and step.background),
            log=Path(),
            began=time.time(),
        )
        self._deciding = True
        decision = self.decide(phase)
        self._deciding = False
        if self._stop:  # it was decided that nothing more may begin
            return
        if decision.argv is None:
            self._emit("phase.skip", phase=phase.name, name=stem, line=line, reason=decision.reason)
            shim.answer(b"skip")
            return
        phase.argv = decision.argv
        phase.log = self.raw / f"{len(self.phases) + 1:04d}-{phase.name}.log"
        try:
            os.close(os.open(phase.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        except OSError as error:
            self._full_disk_or_raise(error)
            return
        stat = self.script_log.stat()
        phase.script_log_from = stat.st_size
        self.phases.append(phase)
        self._shims[shim] = phase
        self._emit(
            "phase.begin",
            phase=phase.name,
            name=stem,
            line=line,
            index=index,
            occurrence=occurrence,
            argv=phase.argv,
            original=phase.original,
            background=phase.background,
            pid=pid,
            log=f"logs/a{self.attempt:02d}/raw/{phase.log.name}",
        )
        if self._stop:  # the disk is full
            return
        environ = [os.fsencode(f"{name}={value}") for name, value in decision.env.items()]
        identity = b"%d:%d" % (stat.st_dev, stat.st_ino)
        shim.answer(
            b"run", os.fsencode(phase.log), identity, b"%d" % len(environ), *environ, *map(os.fsencode, phase.argv)
        )

    def _end(self, shim: Shim, status: int, seconds: float, sent: int) -> None:
        """A phase ended by itself, or was ended. sent: the signal that the script sent it, else 0."""
        phase = self._shims[shim]
        if phase is None:
            return
        verdict = self._verdict(phase, status, sent)
        self._close(phase, status, seconds, verdict)
        if verdict.word == "failed":
            self._fail(phase)
        elif self._stop is None:
            # The script need not know of a failure that is harmless: under `set -e` it would end there.
            seen = 0 if verdict.word == "harmless" else status
            shim.answer(b"go", b"%d" % (128 - seen if seen < 0 else seen))

    def _verdict(self, phase: Phase, status: int, sent: int) -> Verdict:
        if self._stop:
            return Verdict("failed", f"{describe(status)}: {self._stop[1]}")
        if self._over and status < 0:
            return Verdict("tolerated", f"{describe(status)}: the script was over and had not waited for it")
        if status and sent and phase.background:
            return Verdict("tolerated", f"{describe(status)}: the script itself ended it")
        said = self._said(phase)
        verdict = judge(phase.step, phase.argv, status, phase.began, self.base_dir, phase.cwd, said)
        if verdict.word == "ok" and proof_is_missing(phase.step, said):
            self._emit(
                "warning",
                text=f"{phase.name} did not say how much of its work it did, as it always has",
                hint="its exit status alone was judged; read its log",
            )
        return verdict

    def _said(self, phase: Phase) -> bytes:
        """The end of what a phase printed: its own log, and for a piped one what came out in the script's."""
        own = _tail(phase.log, 0)
        piped = phase.step is None or phase.step.piped or not own
        return own + _tail(self.script_log, phase.script_log_from) if piped else own

    def _close(self, phase: Phase, status: int, seconds: float, verdict: Verdict) -> None:
        phase.status, phase.seconds = status, seconds
        phase.verdict, phase.reason = verdict
        self._emit(
            "phase.end",
            phase=phase.name,
            status=status,
            seconds=round(seconds, 3),
            verdict=verdict.word,
            reason=verdict.reason,
        )

    def _fail(self, phase: Phase) -> None:
        if self._stop is None:
            self._failed = phase
            self.stop("phase", f"{phase.name} failed: {phase.reason}")

    def _lose(self, shim: Shim) -> None:
        """A shim is gone. Without a word about its phase, it was killed."""
        phase = self._shims.pop(shim)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(shim.connection)
        shim.connection.close()
        if phase is None or phase.status is not None:
            return
        if self._stop or self._over:
            verdict = self._verdict(phase, -signal.SIGKILL, 0)
        else:
            verdict = Verdict("failed", "it was killed together with the process that watched it (out of memory?)")
        self._close(phase, -signal.SIGKILL, time.time() - phase.began, verdict)
        if verdict.word == "failed":
            self._fail(phase)

    # -- everything else that fails --------------------------------------------------------------------------------

    def _error(self, shim: Shim, fields: list[bytes]) -> None:
        """A command that is no phase failed, and the script does not test for it: end the run, or let it pass."""
        line, status, kind, command = int(fields[0]), int(fields[1]), fields[2], decode(b"\0".join(fields[3:]))
        if self._stop:
            return
        if self._known_failure(line, status, command):
            shim.answer(b"go", b"0")
            return
        first = command.strip().partition("\n")[0][:200]
        text = f"line {line}: `{first}` ended with status {status}"
        if kind != b"command" or _ANSWERS.match(command) or _ASSIGNMENT.match(command):
            self._emit("warning", text=text, hint="the script goes on, as it would under bash")
            shim.answer(b"go", b"0")
        else:
            self.stop("phase", text)

    def _known_failure(self, line: int, status: int, command: str) -> bool:
        """Whether a status is only that of a phase whose failure was judged to be no matter (`wait`, `pipefail`)."""
        forgiven = [phase for phase in self.phases if phase.verdict == "tolerated" and phase.status]
        statuses = {128 - phase.status if phase.status < 0 else phase.status: phase.line for phase in forgiven}  # type: ignore[operator]
        return status in statuses and (command.startswith("wait") or statuses[status] == line)

    def _hear_guard(self) -> None:
        assert self._job
        try:
            data = self._job.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._ended = True
            return
        *lines, self._guard_words = (self._guard_words + data).split(b"\n")
        for word in map(json.loads, lines):
            if "status" in word:
                self._over, self._status = True, word["status"]
                self._report_left(word["left"])
            if word.get("stuck"):
                self._emit(
                    "warning",
                    text=f"processes that cannot be ended, hanging in the kernel: {word['stuck']}",
                    hint="a restart of the machine ends them",
                )

    def _report_left(self, left: Iterable[str]) -> None:
        running = [phase.name for phase in self.phases if phase.status is None]
        if running and self._stop is None:
            self._emit(
                "warning",
                text=f"the script is over and did not wait for {', '.join(running)}",
                hint="what still runs is ended; a `wait` at the end of the script would let it finish",
            )

    def _end_guard(self) -> None:
        """Close the lifeline and wait until the guard has ended all that is left."""
        if self._job:
            self._job.close()
        if self._guard:
            self._guard.wait()

    def _outcome(self) -> Outcome:
        if self._stop:
            why, text = self._stop
            return Outcome(False, why, text, self._failed, self._status)
        if self._status is None:
            return Outcome(False, "phase", "the script's guard was killed", None, None)
        if self._status:
            return Outcome(False, "phase", f"the script ended with {describe(self._status)}", None, self._status)
        return Outcome(True, "ok", "", None, 0)

    # -- small things ----------------------------------------------------------------------------------------------

    def _emit(self, type: str, **data: Any) -> None:
        try:
            self._emit_event(type, **data)
        except OSError as error:
            self._full_disk_or_raise(error)

    def _full_disk_or_raise(self, error: OSError) -> None:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        self.stop("disk", f"the disk of {self.raw} is full")


def _unplanned_name(argv: list[str]) -> str:
    module = module_of(argv)
    name = module.rpartition(".")[2] if module else argv[0].rpartition("/")[2]
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.-")[:60] or "command"


def _tail(path: Path, start: int) -> bytes:
    """The last bytes of a file, not before `start`; nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - SAID_BYTES))
            return file.read(SAID_BYTES)
    except OSError:
        return b""
