"""How did a phase end? By its exit status, by what it printed, and by what it left.

Upstream's exit codes prove little: its downloader exits 0 without a single file, and a script goes on after a failure.
"""

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from homerun.upstream.plan import Step, download_target
from homerun.upstream.table import Known, lookup

# File systems stamp with a coarser clock than the one that we read the begin from: 4 ms on ext4, up to a second on NFS.
CLOCK_SLACK = 1.0
# Inside $( ) these are arithmetic: miniseries.sh divides numbers that it greps from a log, found or not.
INLINE = {("python", "-c"), ("python3", "-c")}


class Verdict(NamedTuple):
    """ok · failed: the run must stop · harmless: failed, on our list · tolerated: failed, and the script copes."""

    word: Literal["ok", "failed", "harmless", "tolerated"]
    reason: str = ""


def judge(
    step: Step | None, argv: Sequence[str], status: int, began: float, base_dir: Path, cwd: Path, said: bytes
) -> Verdict:
    """The verdict on a phase that ended by itself.

    status: the exit status, negative for a signal. began: Unix seconds. said: the end of what it printed.
    """
    known = (lookup(step.module, step.launcher) if step else None) or Known()
    if status:
        return _failed(step, known, argv, status, began, cwd, said)
    if known.proof and (problem := _disproof(known.proof, said)):
        return _unless_tolerated(step, known, problem)
    for pattern in step.outputs if step else ():
        if problem := _missing(pattern, base_dir, began):
            return _unless_tolerated(step, known, problem)
    return Verdict("ok")


def _failed(
    step: Step | None, known: Known, argv: Sequence[str], status: int, began: float, cwd: Path, said: bytes
) -> Verdict:
    reason = describe(status)
    if word := _last_words(said):
        reason = f"{reason}: {word}"
    if step and step.piped and status in (-signal.SIGPIPE, 128 + signal.SIGPIPE):
        return Verdict("tolerated", "its reader had read enough")
    if known.keeps_file and (kept := _kept(argv, cwd, began)):
        return Verdict("harmless", f"{reason}; {kept} was there before and is as it was")
    return _unless_tolerated(step, known, reason)


def _unless_tolerated(step: Step | None, known: Known, reason: str) -> Verdict:
    if step and step.tested:
        return Verdict("tolerated", f"{reason}; the script itself tests for it")
    if step and step.captured and step.words[:2] in INLINE:
        return Verdict("tolerated", f"{reason}; the script wanted its output, and goes on without")
    if known.harmless:
        return Verdict("harmless", reason)
    return Verdict("failed", reason)


def describe(status: int) -> str:
    """`exit status 3`, `ended by SIGKILL (out of memory?)`."""
    if status >= 0:
        return f"exit status {status}" + {126: " (cannot be run)", 127: " (command not found)"}.get(status, "")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"ended by {name}" + (" (out of memory?)" if status == -signal.SIGKILL else "")


def _disproof(pattern: str, said: bytes) -> str:
    """Why the proof does not hold: "2 of 240 shards are missing". A proof that is not there disproves nothing."""
    found = list(re.finditer(pattern.encode(), said))
    if not found:
        return ""
    got, wanted = int(found[-1]["k"]), int(found[-1]["n"])
    return f"{wanted - got} of {wanted} shards are missing" if got < wanted else ""


def proof_is_missing(step: Step | None, said: bytes) -> bool:
    """Whether a phase should have printed a proof and did not: it changed, or its output went elsewhere."""
    known = lookup(step.module, step.launcher) if step else None
    return bool(known and known.proof and not re.search(known.proof.encode(), said))


def _missing(pattern: str, base_dir: Path, began: float) -> str:
    """Why no file of this pattern is good: it should have been written, and whole, since the phase began."""
    matches = [path for path in base_dir.glob(pattern) if path.is_file()]
    if any(path.stat().st_size > 0 and path.stat().st_mtime >= began - CLOCK_SLACK for path in matches):
        return ""
    if not matches:
        return f"it should have written {pattern}"
    empty = all(path.stat().st_size == 0 for path in matches)
    return f"it should have written {pattern}: what is there is {'empty' if empty else 'older than this phase'}"


def _kept(argv: Sequence[str], cwd: Path, began: float) -> str | None:
    """The file that a download was to write, if it was there before and the failure left it alone."""
    target = download_target(argv)
    if target is None:
        return None
    try:
        stat = (cwd / target).stat()
    except OSError:
        return None
    return target if stat.st_size > 0 and stat.st_mtime < began - CLOCK_SLACK else None


_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_RANK = re.compile(r"^\[(?:rank|default)\d+\]:\s*")
_ERROR = re.compile(r"(?:\w+\.)*(?:\w*(?:Error|Exception|Exit|Interrupt)|error|Error|ERROR|fatal)\b.*:")


def _last_words(said: bytes) -> str:
    """The line that tells why: the last that looks like an error, torchrun's wrapping of it aside; else the last."""
    text = _ESCAPES.sub(b"", said[-65536:]).decode("utf-8", "replace")
    lines = [_RANK.sub("", line.rstrip()) for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if line.strip(" =-*^~")]
    telling = [line for line in lines if _ERROR.match(line) and "ChildFailedError" not in line]
    return (telling or lines or [""])[-1].strip()[:300]
