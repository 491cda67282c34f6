"""What preflight asks of a bucket, with the same client that will carry the checkpoints.

Each check takes a store and answers (verdict, seen, hint); verdict is `pass`, `warn` or `fail`.
"""

import contextlib
import os
import secrets
import tempfile
import time
from pathlib import Path

from homerun.bucket.s3 import PART
from homerun.bucket.store import Changed, Denied, Store, StoreError
from homerun.errors import HomerunError

Finding = tuple[str, str, str]
PROOF_BYTES = PART + (1 << 20)  # two parts: a real multipart upload
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


def check_landing(store: Store, run: str) -> Finding:
    """Land a real file of two parts in this run's folder, read it back against its hash, and delete it."""
    key = f"{run}/_check-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder, "there"), Path(folder, "back")
        there.write_bytes(os.urandom(PROOF_BYTES))
        try:
            begun = time.monotonic()
            landed = store.upload(there, key)
            up = PROOF_BYTES / (time.monotonic() - begun) / 1e6
            begun = time.monotonic()
            store.download(key, back, etag=landed.etag, bytes=landed.bytes, sha256=landed.sha256)
            down = PROOF_BYTES / (time.monotonic() - begun) / 1e6
        except HomerunError as error:
            return "fail", error.what, error.next
        except OSError as error:
            return "fail", f"{folder}: {error.strerror}", "Free some disk space, or set TMPDIR"
        try:
            store.delete([key])
        except StoreError:
            return "warn", "objects cannot be deleted", "Old checkpoints will stay: the token may not delete"
    return "pass", f"landed and read back {PROOF_BYTES >> 20} MiB ({up:.0f} MB/s up, {down:.0f} MB/s down)", ""


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
