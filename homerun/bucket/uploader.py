"""The uploader: the only process that writes to a run's folder in the bucket, lease included.

    python -m homerun.bucket.uploader RUN_DIR --attempt N --owner TOKEN

The job starts it and holds its stdin; when that closes (the job ended, in whatever way) it sends the journal's last
lines, gives the lease back and ends with 0. A lease that is lost ends it with 7 and `outbox/lost.json`. It runs at the
lowest priority for CPU and disk. While the bucket is away it tries for ever; only after a `finish` request does it give
up, and answer what has not landed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from homerun.bucket import cache, extension, lease
from homerun.bucket.follow import Follower
from homerun.bucket.landing import Landing
from homerun.bucket.outbox import NAMED, Outbox, Receipt, Request
from homerun.bucket.store import Corrupt, Denied, StoreError, Unreachable, open_store, write_atomic
from homerun.errors import Exit, HomerunError, LeaseError
from homerun.settings import Settings

POLL_SECONDS = 0.1
FLUSH_SECONDS = 5.0  # for the last lines, once the job is gone
RETRY_SECONDS = 5.0  # after the store has refused, or has not answered for as long as it is retried


class Uploader:
    """One run's uploader. `work` goes on until `closed` is set, then flushes and gives the lease back.

    Heartbeat, journal and metadata go through a store of their own, so that they never queue behind a checkpoint.
    """

    def __init__(self, settings: Settings, run_dir: Path, attempt: int, owner: str):
        self.settings, self.run_dir, self.run = settings, run_dir, run_dir.name
        self.closed = threading.Event()
        self.outbox = Outbox(run_dir / "outbox")
        self.control, self.data = open_store(settings), open_store(settings)
        self.inputs = cache.Keeper(open_store(settings), self.outbox, run_dir, self._wait_for_groups)
        self.follower = Follower(self.control, self.run, run_dir, attempt)
        self.landing = Landing(
            self.data,
            self.run,
            run_dir,
            attempt,
            settings.homerun_keep_last,
            settings.homerun_sync_seconds,
            progress=self._moved,
            guard=self._hold_lease,
        )
        self._redact = settings.redactor().text
        self._lease = lease.current(self.control, self.run, owner)
        self._beat_at, self._beat_lock = time.monotonic(), threading.Lock()
        self._waiting: dict[int, Request] = {}  # by number: not sent yet, or not for the manifest
        self._take(self.outbox.pending())
        self._unproven: dict[str, Receipt] = self._earlier_failures()
        self._sending: list[Request] = []
        self._moved_bytes, self._rate, self._error = 0, 0.0, ""
        self._opened = self._finished = False
        self._journal_at = 0.0  # every event before this moment is in the bucket
        self._quiet = threading.Lock()

    def work(self) -> None:
        """Until `closed`: heartbeat, journal, groups, status …, each in a thread of its own. Raises LeaseError."""
        failures: list[BaseException] = []

        def keep_doing(what: Callable[[], None], every: float) -> None:
            while not self.closed.is_set():
                try:
                    what()
                except LeaseError as error:
                    failures.append(error)
                    self.closed.set()
                except (HomerunError, OSError) as error:  # a full disk, too: it may be freed
                    self._failed(error)
                except BaseException as error:
                    failures.append(error)
                    self.closed.set()
                self.closed.wait(every)

        loops = [
            (self._beat, lease.BEAT_SECONDS),
            (self._follow_all, self.settings.homerun_sync_seconds),
            (self._land_some, POLL_SECONDS),
            (self._name_some, POLL_SECONDS),
            (self.inputs.keep_one, POLL_SECONDS),
            (self._bring_extension, lease.BEAT_SECONDS),
            (self._report, 1.0),
        ]
        threads = [threading.Thread(target=keep_doing, args=loop, daemon=True) for loop in loops]
        for thread in threads:
            thread.start()
        self.closed.wait()
        self.data.stop.set()
        self.inputs.store.stop.set()
        if failures:
            raise failures[0]
        end = time.monotonic() + FLUSH_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        self.flush()

    def flush(self) -> None:
        """The journal's last lines, and the lease back, in `FLUSH_SECONDS` or not at all."""

        def last() -> None:
            with contextlib.suppress(StoreError):
                self.follower.sync()
            with self._beat_lock, contextlib.suppress(HomerunError):
                lease.release(self.control, self._lease)

        thread = threading.Thread(target=last, daemon=True)
        thread.start()
        thread.join(FLUSH_SECONDS)
        self._report()

    # The lease

    def _beat(self) -> None:
        with self._beat_lock:
            self._lease = lease.heartbeat(self.control, self._lease)
            self._beat_at = time.monotonic()

    def _hold_lease(self) -> None:
        """Before anything is written: beat now if the last beat is so old that another may be about to take over."""
        if time.monotonic() - self._beat_at > lease.DEAD_SECONDS / 2:
            self._beat()

    def _bring_extension(self) -> None:
        """The one thing that comes the other way: more time for the job, if `homerun extend` asked for it."""
        extension.bring(self.control, self.run, self.outbox.dir)

    # Groups

    def _land_some(self) -> None:
        self._take(self.outbox.requests())
        for request in [one for one in self._waiting.values() if one.kind in ("open-log", "metadata", "over")]:
            self._answer(request, self._heed(request))
        groups = [request for request in self._waiting.values() if request.kind in NAMED]
        if groups or not self._opened:
            self._send(self.landing.batch(groups))
        elif self._waiting and not self.landing.sent:
            finish = next(iter(self._waiting.values()))
            self._answer(finish, self._finish(finish))

    def _take(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request.kind == "cache":
                self.inputs.units.append(request)
            else:
                self._waiting[request.seq] = request

    def _wait_for_groups(self) -> None:
        """Between two files of the input cache everything else goes first."""
        while self._waiting and not self.closed.is_set():
            self.closed.wait(POLL_SECONDS)

    def _follow_all(self) -> None:
        begun = time.time()
        self.follower.sync()
        self._journal_at = begun

    def _heed(self, request: Request) -> Receipt:
        if request.kind == "open-log":
            return self.follower.open_logs(request)
        if request.kind == "over":
            self.landing.hurry()
        else:
            self.follower.sync()
        return Receipt(request.seq, True, at=round(time.time(), 3))

    def _send(self, batch: list[Request]) -> None:
        """Upload a batch; before the first, mark the manifest as this attempt's."""
        self._sending = batch
        try:
            if not self._opened:
                self.landing.open()
                self._opened = True
            if batch:
                self.landing.send(batch)
                self._error = ""
                for request in batch:
                    self._waiting.pop(request.seq, None)  # answered already, if it was quick
        except (StoreError, Corrupt, OSError) as error:
            self._not_landed(error, batch)
        finally:
            self._sending = []

    def _name_some(self) -> None:
        """Name what has been sent, once the manifest may be written; meanwhile more is being sent."""
        if not self.landing.due(any(request.kind in NAMED for request in list(self._waiting.values()))):
            return
        try:
            self.landing.name(self._landed)
            self._error = ""
        except (StoreError, Corrupt, OSError) as error:
            left = list(self.landing.sent)
            if self._not_landed(error, [request for batch in left for request in batch.requests]):
                for batch in left:
                    self.landing.sent.remove(batch)

    def _landed(self, request: Request, receipt: Receipt) -> None:
        self._answer(request, receipt)
        if request.kind == "log" and receipt.ok:
            with contextlib.suppress(StoreError):
                self.follower.close_logs(request)

    def _not_landed(self, error: Exception, batch: list[Request]) -> bool:
        """Wait, for another try; or, when the run is over, give up group by group, and then the end itself: True."""
        self._failed(error)
        finish = next((request for request in list(self._waiting.values()) if request.kind == "finish"), None)
        if finish is None:
            self.closed.wait(RETRY_SECONDS)
            return False
        why = "refused" if isinstance(error, Denied) else "unproven"
        why = "unreachable" if isinstance(error, Unreachable) else why
        text = self._redact(str(error))
        for request in batch:
            self._answer(request, Receipt(request.seq, False, why=why, text=text))
        if not batch:
            refused = Receipt(finish.seq, False, why=why, text=text)
            self._answer(finish, self._finish(finish) if self._unproven else refused)
        return True

    def _finish(self, request: Request) -> Receipt:
        """Write `_SUCCESS`, the last object of a good run, if everything that was ever offered is proven."""
        if self._unproven:
            text = ", ".join(f"{group} ({receipt.why})" for group, receipt in sorted(self._unproven.items()))
            return Receipt(request.seq, False, why="unproven", text=f"not in the bucket: {text}")
        try:
            self.follower.sync()
            success = {
                "run": self.run,
                "attempt": self.landing.attempt,
                "at": round(time.time(), 3),
                "manifest": {"sha256": hashlib.sha256(self.landing.manifest.to_json()).hexdigest()},
                "metadata": {"sha256": hashlib.sha256(self.follower.metadata).hexdigest()}
                if self.follower.metadata
                else None,
                "journal": self.follower.position(),
            }
            self.landing.succeed((json.dumps(success, indent=1) + "\n").encode())
        except StoreError as error:
            self._failed(error)
            return Receipt(request.seq, False, why="unreachable", text=self._redact(str(error)))
        self._finished = True
        return Receipt(request.seq, True, at=round(time.time(), 3))

    def _answer(self, request: Request, receipt: Receipt) -> None:
        self.outbox.answer(receipt)
        self._waiting.pop(request.seq, None)
        if request.kind in NAMED:
            if receipt.ok:
                self._unproven.pop(request.group, None)
            else:
                self._unproven[request.group] = receipt

    def _earlier_failures(self) -> dict[str, Receipt]:
        """What an earlier uploader of this folder has answered with a failure, and what has not been offered since."""
        unproven: dict[str, Receipt] = {}
        for request in self.outbox.all():
            receipt = self.outbox.answered(request.seq)
            if request.kind in NAMED and receipt:
                unproven.pop(request.group, None)
                if not receipt.ok:
                    unproven[request.group] = receipt
        return unproven

    # What the job shows

    def _moved(self, moved: int) -> None:
        with self._quiet:
            self._moved_bytes += moved

    def _failed(self, error: Exception) -> None:
        self._error = self._redact(str(error))

    def _report(self) -> None:
        """`outbox/uploader.json`: what is waiting, what is on its way, how fast, and what is wrong."""
        moved, self._moved_bytes = self._moved_bytes, 0
        self._rate = 0.7 * self._rate + 0.3 * moved
        sent = [request for batch in list(self.landing.sent) for request in batch.requests]
        waiting = [request for request in list(self._waiting.values()) if request.kind in NAMED] + sent
        write_atomic(
            self.outbox.dir / "uploader.json",
            {
                "at": round(time.time(), 3),
                "pid": os.getpid(),
                "attempt": self.landing.attempt,
                "pending_groups": len(waiting),
                "pending_bytes": sum(request.bytes for request in waiting),
                "in_flight": [request.group for request in self._sending + sent],
                "bytes_per_second": round(self._rate),
                "journal_at": round(self._journal_at, 3),
                "seconds_since_beat": round(time.monotonic() - self._beat_at, 1),
                "error": self._error,
                "finished": self._finished,
            },
        )


def low_priority() -> None:
    """The last in line for CPU and disk: training goes first."""
    os.nice(19)
    with contextlib.suppress(AttributeError, psutil.Error, OSError):  # Linux only
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _watch_lifeline(closed: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    closed.set()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m homerun.bucket.uploader", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--owner", required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and TERM are the job's to decide about
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    low_priority()
    settings = Settings.load()
    redact = settings.redactor().text
    try:
        uploader = Uploader(settings, options.run_dir.resolve(), options.attempt, options.owner)
        threading.Thread(target=_watch_lifeline, args=(uploader.closed,), daemon=True).start()
        uploader.work()
        code = 0
    except LeaseError as error:
        write_atomic(options.run_dir / "outbox" / "lost.json", {"text": redact(str(error)), "at": time.time()})
        code = int(Exit.LEASE)
    except HomerunError as error:
        print(redact(f"error: {error}"), file=sys.stderr)
        code = int(error.code)
    sys.stderr.flush()
    os._exit(code)  # without waiting for uploads that were told to stop


if __name__ == "__main__":
    main()
