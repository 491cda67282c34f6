"""The job's end of the tracer: a socket that the shims connect to, and the BASH_ENV file that arms bash.

Nothing here decides anything: messages come out of `receive`, answers go in through `Shim.answer`.
"""

import contextlib
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
# What can be the name of a function in bash; a launcher that is computed ("$CMD") cannot be wrapped.
NAME = re.compile(r"[\w./+@%-]+")


@dataclass(eq=False)
class Shim:
    """One shim that is connected."""

    connection: socket.socket
    buffer: bytearray = field(default_factory=bytearray)

    def answer(self, *fields: bytes) -> None:
        body = b"\0".join(fields)
        with contextlib.suppress(OSError):  # it was killed, which is noticed when its connection is read
            self.connection.sendall(len(body).to_bytes(4, "big") + body)

    def receive(self) -> list[list[bytes]] | None:
        """The messages that are whole; None when the shim is gone."""
        try:
            data = self.connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return None
        self.buffer += data
        messages = []
        while len(self.buffer) >= 4:
            size = int.from_bytes(self.buffer[:4], "big")
            if len(self.buffer) < 4 + size:
                break
            messages.append(bytes(self.buffer[4 : 4 + size]).split(b"\0"))
            del self.buffer[: 4 + size]
        return messages


class Tracer:
    """The listening socket and the BASH_ENV file, in a folder that only this user can enter."""

    def __init__(self, script: str, launchers: Iterable[str]):
        # A socket's path may have 107 bytes, which a long TMPDIR would leave too few of.
        self.folder = Path(tempfile.mkdtemp(prefix="homerun-", dir="/tmp"))
        path = self.folder / "shims"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(path))
        self.socket.listen(128)
        self.bash_env = self.folder / "env.bash"
        shim = [sys.executable, "-I", "-S", str(HERE / "shim.py"), str(path)]
        wrapped = [name for name in launchers if NAME.fullmatch(name)]
        self.bash_env.write_text(
            f"__homerun_script={shlex.quote(script)}\n__homerun_shim=({shlex.join(shim)})\n"
            f"__homerun_launchers=({shlex.join(wrapped)})\nsource {shlex.quote(str(HERE / 'trace.bash'))}\n",
            "utf-8",
            "surrogateescape",
        )

    def accept(self) -> Shim:
        connection, _ = self.socket.accept()
        return Shim(connection)

    def close(self) -> None:
        self.socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def decode(field: bytes) -> str:
    """An argument as Python has them: bytes that are no UTF-8 become lone surrogates."""
    return os.fsdecode(field)
