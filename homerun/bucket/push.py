"""Brings what a local run still has in its outbox to the bucket, after the run itself has ended."""

import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from homerun.bucket import lease
from homerun.bucket.outbox import NAMED, Outbox, Receipt, Request, describe
from homerun.bucket.store import FileChanged, open_store
from homerun.bucket.uploader import Uploader
from homerun.errors import LeaseError
from homerun.settings import Settings


@dataclass(frozen=True)
class Pushed:
    """landed: groups that are proven now; failed: {group: why not}; good: `_SUCCESS` is there now."""

    landed: list[str]
    failed: dict[str, str]
    good: bool


def push(
    settings: Settings, run_dir: Path, watching: Callable[[lease.Lease], None], said: Callable[[str], None]
) -> Pushed:
    """Land every group that was offered and is not proven, as it is here now; then finish, if the run had asked.

    Raises LeaseError when another runner holds the run.
    """
    outbox = Outbox(run_dir / "outbox")
    failed = _offer_again(outbox, run_dir)
    if not outbox.pending():
        return Pushed([], failed, not failed)
    owner = f"{socket.gethostname()}-push-{secrets.token_hex(4)}"
    held = lease.acquire(open_store(settings), run_dir.name, owner, watching=watching)
    uploader = Uploader(settings, run_dir, held.attempt, owner)
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            uploader.work()
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    landed, good = [], False
    try:
        while outbox.pending() and thread.is_alive():
            for request, receipt in outbox.receipts():
                if request.kind == "finish":
                    good = receipt.ok
                elif receipt.ok and request.kind in NAMED:
                    landed.append(request.group)
                elif not receipt.ok:
                    failed[request.group] = receipt.text or receipt.why or ""
            said(str(outbox.status().get("error", "")))
            time.sleep(0.1)
    finally:
        uploader.closed.set()
        thread.join()
    for error in trouble:
        if isinstance(error, LeaseError):
            raise error
    return Pushed(landed, failed, good)


def _offer_again(outbox: Outbox, run_dir: Path) -> dict[str, str]:
    """Offer anew what was answered with a failure, as it is now; {group: why} of what is no longer here."""
    unproven: dict[str, Request] = {}
    finish: Receipt | None = None
    asked = False
    for request in outbox.all():
        receipt = outbox.answered(request.seq)
        if request.kind == "finish":
            asked, finish = True, receipt
        elif request.kind in NAMED:
            unproven.pop(request.group, None)
            if receipt and not receipt.ok:
                unproven[request.group] = request
    gone = {}
    for group, request in unproven.items():
        try:
            files = [describe(run_dir, file.path, file.key) for file in request.files]
        except FileChanged as error:
            gone[group] = error.what
            continue
        about = {"phase": request.phase, "keep": request.keep, "step": request.step, "score": request.score}
        outbox.offer(request.kind, group, files, **about)  # type: ignore[arg-type]
    if asked and finish and not finish.ok:
        outbox.offer("finish", "_SUCCESS")
    return gone
