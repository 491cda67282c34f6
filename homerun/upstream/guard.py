"""Holds everything that a script starts, and ends all of it when the job says so, or dies.

    python -I -S guard.py SOCKET_FD GRACE_SECONDS COMMAND…      (started by runner.py in a session of its own)

The guard is two processes, each the other's heir: the inner one starts the script; both are subreapers, so every orphan
below falls to the inner one, and to the outer one if the inner one is killed. Each ends all that is below it (TERM,
grace, KILL) when the other is gone, and the inner one when the socket to the job, its lifeline, closes.

Over the socket, JSON lines. The guard sends {"pid": …} of the script, {"status": …, "left": [command lines]} when the
script is over (negative for a signal), {"ended": true, "stuck": [pids]} when nothing is left. Any byte from the job
means: end it all now.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SHIM = os.fsencode(Path(__file__).with_name("shim.py"))
SETTLE_SECONDS = 2.0  # what is left when the script ends may be a `> >(tee log)` with its last lines still to write
STUCK_SECONDS = 60.0  # a process that KILL does not end hangs in the kernel (a driver, a network disk): give up
POLL_SECONDS = 0.02


class Process(NamedTuple):
    """One line of /proc/PID/stat: CPU in clock ticks, that of children it has reaped included."""

    pid: int
    parent: int
    state: str
    ticks: int


def processes() -> dict[int, Process]:
    """Every process there is."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (a Path for each of them takes three times as long)
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    data = file.readall()
            except OSError:  # it has ended meanwhile
                continue
            fields = data[data.rindex(b")") + 2 :].split()
            found[int(name)] = Process(int(name), int(fields[1]), chr(fields[0][0]), sum(map(int, fields[11:15])))
    return found


def descendants(root: int) -> dict[int, Process]:
    """All processes below `root`, zombies included, `root` not."""
    everything = processes()
    below: dict[int, list[Process]] = {}
    for process in everything.values():
        below.setdefault(process.parent, []).append(process)
    found, queue = {}, [root]
    while queue:
        for process in below.get(queue.pop(), ()):
            found[process.pid] = process
            queue.append(process.pid)
    return found


def command_line(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return file.readall().rstrip(b"\0").split(b"\0")
    except OSError:
        return []


def is_shim(pid: int) -> bool:
    return SHIM in command_line(pid)[:5]


def reap(awaited: int = 0) -> int | None:
    """Collect every child that has ended; the exit status of `awaited` if it was among them."""
    status = None
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == awaited:
            status = os.waitstatus_to_exitcode(code)


def end_all(grace: float, on_reaped: Callable[[], None] = lambda: None) -> list[int]:
    """End every process below this one; the pids that could not be ended.

    Shims are spared until the last: while its shim lives, a bash that has a trap on TERM cannot go on to its next
    command. And until each has told the job how its phase ended; all they then do is wait.
    """
    asked: set[int] = set()
    idle = False
    kill_at = time.monotonic() + grace
    give_up_at = kill_at + STUCK_SECONDS
    while True:
        on_reaped()
        below = descendants(os.getpid())
        alive = {pid: one for pid, one in below.items() if one.state != "Z"}
        if not alive:
            on_reaped()
            return []
        now = time.monotonic()
        if now > give_up_at:
            return sorted(alive)
        shims = {pid for pid in alive if is_shim(pid)}
        waiting = shims | {alive[pid].parent for pid in shims}
        # Twice in a row: a phase may end between a look at its shim and the one at itself.
        was_idle, idle = idle, waiting.issuperset(alive) and not _reporting(below, shims)
        if now >= kill_at or (was_idle and idle):
            _signal_all(alive, signal.SIGKILL)
        else:
            fresh = alive.keys() - shims - asked
            asked |= fresh
            _signal_all(fresh, signal.SIGTERM)
            _signal_all(fresh, signal.SIGCONT)  # a stopped one could not hear it
        time.sleep(POLL_SECONDS)


def _reporting(below: dict[int, Process], shims: set[int]) -> bool:
    """Whether a shim has a phase to collect, or is at work: it may not have told the job yet."""
    return any(one.state == "Z" and one.parent in shims for one in below.values()) or any(
        below[pid].state in "RD" for pid in shims
    )


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.kill(pid, number)


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def environment() -> dict[bytes, bytes]:
    """The environment as the job gave it; Python adds LC_CTYPE to its own copy where the locale is plain C."""
    with open("/proc/self/environ", "rb", buffering=0) as file:
        entries = file.readall().split(b"\0")
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


class Inner:
    """Starts the script, watches it, the job and the outer guard."""

    def __init__(self, job: int, outer: int, grace: float):
        self.job, self.outer, self.grace = job, outer, grace
        self.script = 0
        self.status: int | None = None
        self.wakeup, wakeup_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(wakeup_in, False)
        signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
        self.asked = False
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def run(self, command: list[str]) -> None:
        self.script = self._start(command)
        self._tell(pid=self.script)
        while self.status is None and not self._must_end(None):
            self._collect()
        if not self.asked:
            self._settle()
        stuck = end_all(self.grace, self._collect)
        self._tell(ended=True, stuck=stuck)

    def _start(self, command: list[str]) -> int:
        us, environ = os.getpid(), environment()
        pid = os.fork()
        if pid:
            return pid
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # if we are killed, no further command starts
            if os.getppid() != us:
                os._exit(137)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; bash's children must not
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(command[0], command, environ)
        finally:
            os._exit(127)

    def _must_end(self, seconds: float | None) -> bool:
        """Wait for something to happen; whether it means that all must end."""
        if not self.asked:
            ready, _, _ = select.select([self.job, self.outer, self.wakeup], [], [], seconds)
            if self.wakeup in ready:
                os.read(self.wakeup, 65536)
            self.asked = self.asked or self.job in ready or self.outer in ready
        return self.asked

    def _collect(self) -> None:
        status = reap(self.script)
        if status is not None:
            self.status = status
            left = [one for one in descendants(os.getpid()).values() if one.state != "Z"]
            lines = [b" ".join(command_line(one.pid)).decode("utf-8", "replace")[:300] for one in left]
            self._tell(status=status, left=lines)

    def _settle(self) -> None:
        until = time.monotonic() + min(SETTLE_SECONDS, self.grace)
        while time.monotonic() < until and not self._must_end(POLL_SECONDS):
            self._collect()
            if not descendants(os.getpid()):
                return

    def _tell(self, **what: object) -> None:
        try:
            os.write(self.job, (json.dumps(what) + "\n").encode())
        except OSError:  # the job is gone
            self.asked = True


def main() -> NoReturn:
    job, grace, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(job, False)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    lifeline, ours = os.pipe()  # the inner guard reads; it closes when we die
    inner = os.fork()
    if inner == 0:
        os.close(ours)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        Inner(job, lifeline, grace).run(command)
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(inner, number))
    _, status = os.waitpid(inner, 0)
    stuck = end_all(grace, reap_all) if status else []
    if status:
        with contextlib.suppress(OSError):
            os.write(job, (json.dumps({"ended": True, "stuck": stuck}) + "\n").encode())
    os._exit(0)


def reap_all() -> None:
    reap()


if __name__ == "__main__":
    main()
