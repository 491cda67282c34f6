"""What preflight asks of a bucket, with the same client that will carry the checkpoints.

Each check takes a store and answers (verdict, seen, hint); verdict is `pass`, `warn` or `fail`.
"""

import contextlib
import os
import re
import secrets
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from homerun.bucket.multipart import PART
from homerun.bucket.s3 import S3Store
from homerun.bucket.store import Changed, Denied, Store, StoreError
from homerun.errors import HomerunError

Finding = tuple[str, str, str]
PROOF_BYTES = PART + (1 << 20)  # two parts: a real multipart upload
REFUSED = (400, 401, 403, 404, 405, 501)
LESS = "Give the box a token with Object Read & Write on this bucket alone, never an Admin one (docs/r2.md)"
SKEW_WARN, SKEW_FAIL = 60.0, 600.0  # seconds; S3 refuses signatures that are 15 minutes off


def check_writable(store: Store, run: str) -> Finding:
    """Whether this run's folder takes a write, gives it back, refuses a stale compare-and-swap, and lets go of it."""
    key, data = f"{run}/_check-{secrets.token_hex(4)}", secrets.token_bytes(64)
    try:
        etag = store.put(key, data, if_none_match=True)
        try:
            back, _ = store.get(key)
            if back != data:
                return "fail", f"{store.url} gave back other bytes than it was given", "Use another bucket"
            if conditional := _ignores_conditions(store, key, etag):
                return (
                    "fail",
                    f"{store.url} ignores {conditional}",
                    "Two runners could overwrite each other; use R2 or S3",
                )
        finally:
            with contextlib.suppress(Denied):  # check_landing says so
                store.delete([key])
    except StoreError as error:
        return "fail", error.what, error.next
    return "pass", f"{store.url} takes and returns objects", ""


def _ignores_conditions(store: Store, key: str, etag: str) -> str | None:
    for name, condition in (("If-None-Match", {"if_none_match": True}), ("If-Match", {"if_match": "0" * len(etag)})):
        with contextlib.suppress(Changed):
            store.put(key, b"no", **condition)
            return name
    return None


def check_landing(store: Store, run: str, folder: Path) -> Finding:
    """Land a real file of two parts in this run's folder, read it back against its hash, and delete it.

    folder: the local one that the run's own files will lie in.
    """
    key = f"{run}/_check-{secrets.token_hex(4)}"
    try:
        with tempfile.TemporaryDirectory(prefix=".landing-", dir=folder) as place:
            there, back = Path(place, "there"), Path(place, "back")
            there.write_bytes(os.urandom(PROOF_BYTES))
            begun = time.monotonic()
            landed = store.upload(there, key)
            store.confirm({key: landed})
            up = PROOF_BYTES / (time.monotonic() - begun) / 1e6
            begun = time.monotonic()
            store.download(key, back, etag=landed.etag, bytes=landed.bytes, sha256=landed.sha256)
            down = PROOF_BYTES / (time.monotonic() - begun) / 1e6
    except HomerunError as error:
        return "fail", error.what, error.next
    except OSError as error:
        return "fail", f"{folder}: {error.strerror}", "Free some disk space, or set HOMERUN_DIR to a bigger disk"
    try:
        store.delete([key])
    except StoreError:
        return "warn", "objects cannot be deleted", "Old checkpoints will stay: the token may not delete"
    return "pass", f"landed and read back {PROOF_BYTES >> 20} MiB ({up:.0f} MB/s up, {down:.0f} MB/s down)", ""


def check_permission(store: Store, run: str) -> Finding | None:
    """Whether the key may list this run's folder, and whether it may more than a box needs. Only reads.

    R2's tokens for objects can neither list buckets nor read a bucket's rules; its Admin tokens can both. Services that
    answer ListBuckets with the buckets of the key alone are believed.
    """
    if not isinstance(store, S3Store):
        return None
    try:
        next(store.list(f"{run}/"), None)
        service = replace(store.wire, endpoint=replace(store.wire.endpoint, bucket=""))
        answer = service.request("GET", fine=REFUSED)
        names = re.findall(rb"<Bucket>\s*<Name>([^<]+)<", answer.body) if answer.status == 200 else []
        others = set(names) - {store.wire.endpoint.bucket.encode()}
        rules = store.wire.request("GET", query={"lifecycle": ""}, fine=REFUSED)
    except Denied as error:
        return "fail", f"the key may not list what it writes: {error.what}", error.next
    except StoreError as error:
        return "warn", error.what, error.next
    if others:
        return "warn", f"the key reaches {len(others)} more buckets than this run needs", LESS
    if rules.status == 200 or rules.code == "NoSuchLifecycleConfiguration":
        return "warn", "the key reaches the bucket's own rules, not only its objects", LESS
    return "pass", "the key reaches the objects of this bucket, and nothing more was found", ""


def check_clock(store: Store) -> Finding:
    """Whether this machine's clock agrees with the bucket's."""
    try:
        skew = store.clock_skew()
    except StoreError as error:
        return "fail", error.what, error.next
    seen = f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the bucket's"
    if abs(skew) > SKEW_FAIL:
        return "fail", seen, "Set the clock: `timedatectl set-ntp true`"
    if abs(skew) > SKEW_WARN:
        return "warn", seen, "Set the clock: `timedatectl set-ntp true`"
    return "pass", seen, ""
