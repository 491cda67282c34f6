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
    settings: Settings,
    run_dir: Path,
    watching: Callable[[lease.Lease], None],
    said: Callable[[str], None],
    proven: Callable[[Request, Receipt], None] = lambda request, receipt: None,
    finish: Callable[[Outbox], None] = lambda outbox: None,
) -> Pushed:
    """Land every group that was offered and is not proven, as it is here now.

    proven: told of each that landed. finish: called when nothing is missing and the run had asked for `_SUCCESS` in
    vain; offers what has to come before, and asks again. Raises LeaseError when another runner holds the run.
    """
    outbox = Outbox(run_dir / "outbox")
    failed, asked, good = _offer_again(outbox, run_dir)
    if not outbox.pending() and not (asked and not failed):
        return Pushed([], failed, good)
    owner = f"{socket.gethostname()}-push-{secrets.token_hex(4)}"
    held = lease.acquire(open_store(settings), run_dir.name, owner, watching=watching)
    uploader = Uploader(settings, run_dir, held.attempt, owner)
    uploader.landing.hurry()
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            uploader.work()
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    landed = []

    def settle() -> None:
        """Until everything is answered but the input cache, which is nobody's proof."""
        nonlocal good
        while any(request.kind != "cache" for request in outbox.pending()) and thread.is_alive():
            for request, receipt in outbox.receipts():
                if request.kind == "finish":
                    good = receipt.ok
                elif receipt.ok and request.kind in NAMED:
                    landed.append(request.group)
                    proven(request, receipt)
                elif not receipt.ok and request.kind != "cache":
                    failed[request.group] = receipt.text or receipt.why or ""
            said(str(outbox.status().get("error", "")))
            time.sleep(0.1)

    try:
        settle()
        if asked and not failed and thread.is_alive():
            finish(outbox)
            settle()
    finally:
        uploader.closed.set()
        thread.join()
    for error in trouble:
        if isinstance(error, LeaseError):
            raise error
    return Pushed(landed, failed, good)


def _offer_again(outbox: Outbox, run_dir: Path) -> tuple[dict[str, str], bool, bool]:
    """Offer anew what was answered with a failure, as it is now; {group: why} of what is no longer here, and whether
    `_SUCCESS` was last asked for in vain, or written."""
    unproven: dict[str, Request] = {}
    finish: Receipt | None = None
    for request in outbox.all():
        receipt = outbox.answered(request.seq)
        if request.kind == "finish":
            finish = receipt
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
    return gone, bool(finish and not finish.ok), bool(finish and finish.ok)
