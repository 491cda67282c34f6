"""The lease: one runner a run. `lease.json` changes by compare-and-swap only.

The holder writes a new beat every 20 s. A lease that has not changed for 120 s of the observer's own clock is dead (two
machines' clocks are never compared), and so is one whose holder was a process of this machine that is gone.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from homerun.bucket.store import Changed, Missing, Store
from homerun.errors import LeaseError

BEAT_SECONDS = 20.0
DEAD_SECONDS = 120.0
POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Lease:
    """The lease as it is in the bucket; etag is that of its object."""

    run: str
    attempt: int
    owner: str
    host: str
    process: str  # which process of which boot and namespace; empty where the system does not say
    beat: int = 0
    state: str = "held"  # or released
    at: float = 0.0  # Unix seconds by the holder's clock, for people
    etag: str = ""


def key(run: str) -> str:
    return f"{run}/lease.json"


def read(store: Store, run: str) -> Lease | None:
    try:
        data, etag = store.get(key(run))
        return Lease(**json.loads(data), etag=etag)
    except Missing:
        return None
    except (ValueError, TypeError):
        raise LeaseError(f"{key(run)} cannot be read", "Delete it if no runner is alive") from None


def _write(store: Store, lease: Lease, **condition: str | bool) -> Lease:
    lease = replace(lease, at=round(time.time(), 3))
    data = {name: value for name, value in asdict(lease).items() if name != "etag"}
    etag = store.put(key(lease.run), (json.dumps(data) + "\n").encode(), **condition)  # type: ignore[arg-type]
    return replace(lease, etag=etag)


def acquire(
    store: Store,
    run: str,
    owner: str,
    *,
    watch: float = DEAD_SECONDS,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    watching: Callable[[Lease], None] = lambda lease: None,
) -> Lease:
    """Take the run's lease; its `attempt` is one more than the last holder's.

    When another holder may be alive it is watched for up to `watch` seconds, which `watching` is told about; LeaseError
    as soon as it beats. The same `owner` gets its own lease back.
    """
    wanted = Lease(run, 1, owner, socket.gethostname(), this_process())
    while True:
        held = read(store, run)
        try:
            if held is None:
                return _write(store, wanted, if_none_match=True)
            if held.owner == owner and held.state == "held":
                return held
            if held.state == "held" and not _gone(held):
                watching(held)
                held = _watch(store, held, watch, wait, clock)
            return _write(store, replace(wanted, attempt=held.attempt + 1), if_match=held.etag)
        except Changed:
            other = read(store, run)
            # the uploader of a job that was killed gives the lease back, or beats once more, while we reach for it
            if other is None or other.state != "held" or _gone(other):
                continue
            raise _busy(run, other) from None


def _watch(store: Store, held: Lease, watch: float, wait: Callable[[float], None], clock: Callable[[], float]) -> Lease:
    """The lease once it is dead or released; LeaseError when it beats."""
    end = clock() + watch
    while clock() < end:
        wait(min(POLL_SECONDS, max(0.0, end - clock())))
        now = read(store, held.run)
        if now and now.state == "released":
            return now
        if now is None or now.etag != held.etag:
            raise _busy(held.run, now)
    return held


def _busy(run: str, held: Lease | None) -> LeaseError:
    who = f"{held.host} (attempt {held.attempt})" if held else "another runner"
    return LeaseError(f"{run} is being run by {who}", f"`homerun status {run}` shows it; stop that runner first")


def current(store: Store, run: str, owner: str) -> Lease:
    """The lease that `owner` holds; LeaseError when it does not."""
    held = read(store, run)
    if held is None or held.owner != owner or held.state != "held":
        raise lost(run, held)
    return held


def heartbeat(store: Store, lease: Lease) -> Lease:
    """One more beat; LeaseError when the lease is another's now."""
    try:
        return _write(store, replace(lease, beat=lease.beat + 1), if_match=lease.etag)
    except (Changed, Missing):
        held = read(store, lease.run)
        if held and (held.owner, held.state, held.beat) == (lease.owner, "held", lease.beat + 1):
            return held  # our own write, whose answer was lost
        raise lost(lease.run, held) from None


def release(store: Store, lease: Lease) -> None:
    """Give the lease back, so that the next attempt need not watch it die; quietly when it is another's by now."""
    with suppress(Changed, Missing):
        _write(store, replace(lease, state="released"), if_match=lease.etag)


def lost(run: str, held: Lease | None) -> LeaseError:
    who = f"{held.host} (attempt {held.attempt})" if held else "somebody who deleted it"
    return LeaseError(f"the lease of {run} is now {who}'s", f"`homerun status {run}` shows who runs it")


def this_process(pid: int | None = None) -> str:
    """What names a process on this machine: boot, PID namespace, pid, start time; empty where there is no /proc."""
    pid = pid or os.getpid()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        return f"{boot} {namespace} {pid} {_started(pid)}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _gone(lease: Lease) -> bool:
    """Whether the holder was a process that this machine can see to be gone."""
    mine, theirs = this_process().split(), lease.process.split()
    if len(mine) != 4 or len(theirs) != 4 or mine[:2] != theirs[:2]:
        return False
    try:
        return _started(int(theirs[2])) != theirs[3]
    except OSError:
        return True
