"""Stands in for one phase: asks the job what to run, runs it, reports how it ended, and waits to be let go.

    python -I -S shim.py SOCKET begin LINE LAUNCHER ARGUMENT…      (started by trace.bash)
    python -I -S shim.py SOCKET error LINE STATUS KIND COMMAND

Where the job does not answer, the shim never returns, and so no other command ever starts; the guard ends it.
It is started for every phase: only built-in modules (about 20 ms to start, 9 MB).

Messages both ways: a length (4 bytes, big-endian), then fields joined by NUL, which no argument can hold.
  shim: begin LINE PID CWD ARGV…              job: run LOG DEV:INODE COUNT NAME=VALUE… ARGV… | skip
  shim: end STATUS SECONDS SIGNAL             job: go STATUS
  shim: error LINE STATUS KIND COMMAND        job: go 0
STATUS is as in subprocess: negative for a signal. SIGNAL: what the shim itself was sent meanwhile, else 0.
"""

from __future__ import annotations

import _signal
import _socket
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing for real would double the time to start
    from typing import NoReturn

FORWARDED = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2)


def send(connection: _socket.socket, *fields: bytes) -> None:
    body = b"\0".join(fields)
    try:
        connection.sendall(len(body).to_bytes(4, "big") + body)
    except OSError:
        wait_for_the_end()


def receive(connection: _socket.socket) -> list[bytes]:
    size = int.from_bytes(_exactly(connection, 4), "big")
    return _exactly(connection, size).split(b"\0")


def _exactly(connection: _socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            chunk = connection.recv(size - len(data))
        except OSError:
            chunk = b""
        if not chunk:
            wait_for_the_end()
        data += chunk
    return data


def wait_for_the_end() -> NoReturn:
    """The job is gone, or wants nothing more to start: the guard ends us."""
    while True:
        time.sleep(3600)


class Child:
    """The phase's process; signals that reach the shim go on to it."""

    def __init__(self, argv: list[bytes], environ: dict[bytes, bytes], log: bytes, script_output: bytes):
        self.signal = 0
        # What the script's caller set to be ignored stays so, for the phase too.
        handled = [number for number in FORWARDED if _signal.getsignal(number) != _signal.SIG_IGN]
        old_mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, handled)
        self.pid = os.fork()
        if self.pid == 0:
            for number in (*handled, _signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores the last two
                _signal.signal(number, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, old_mask)
            _become(argv, environ, log, script_output)
        for number in handled:
            _signal.signal(number, self._forward)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, old_mask)

    def _forward(self, number: int, frame: object) -> None:
        self.signal = number
        if self.pid:
            os.kill(self.pid, number)

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


def _become(argv: list[bytes], environ: dict[bytes, bytes], log: bytes, script_output: bytes) -> NoReturn:
    """In the child: output that would mix into the script's own goes to the phase's log; a pipe or a file stays."""
    status = 126
    try:
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for stream in (1, 2):
            if identity(stream) == script_output:
                os.dup2(file, stream)
        os.close(file)
        os.execvpe(argv[0], argv, environ)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        status = 127 if missing else 126
        reason = b"command not found" if missing else os.fsencode(error.strerror or "cannot be run")
        os.write(2, argv[0] + b": " + reason + b"\n")
    finally:
        os._exit(status)


def identity(stream: int) -> bytes:
    try:
        stat = os.fstat(stream)
    except OSError:  # closed, as in `python … >&-`
        return b""
    return b"%d:%d" % (stat.st_dev, stat.st_ino)


def environment() -> dict[bytes, bytes]:
    """The environment as the script gave it; Python adds LC_CTYPE to its own copy where the locale is plain C."""
    with open("/proc/self/environ", "rb", buffering=0) as file:
        entries = file.readall().split(b"\0")
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


def begin(connection: _socket.socket, line: bytes, words: list[bytes]) -> int:
    """The exit status that the script shall see."""
    try:
        cwd = os.getcwdb()  # noqa: PTH109 (pathlib takes as long to import as all the rest)
    except OSError:
        cwd = b""
    send(connection, b"begin", line, b"%d" % os.getpid(), cwd, *words)
    reply = receive(connection)
    if reply[0] == b"skip":
        return 0
    log, script_output, count = reply[1], reply[2], int(reply[3])
    argv = reply[4 + count :]
    added = dict(pair.split(b"=", 1) for pair in reply[4 : 4 + count])
    started = time.monotonic()
    child = Child(argv, environment() | {b"_": argv[0]} | added, log, script_output)
    status = child.wait()
    send(connection, b"end", b"%d" % status, b"%.3f" % (time.monotonic() - started), b"%d" % child.signal)
    return int(receive(connection)[1])


def main() -> int:
    words = [os.fsencode(word) for word in sys.argv[1:]]
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(words[0])
    except OSError:
        wait_for_the_end()
    if words[1] == b"begin":
        status = begin(connection, words[2], words[3:])
        return 128 - status if status < 0 else status
    send(connection, *words[1:])
    receive(connection)
    return 0


if __name__ == "__main__":
    os._exit(main())  # nothing to flush, nothing to tidy: 3 ms less
