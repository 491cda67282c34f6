"""AWS Signature Version 4 for S3, with the payload left out of the signature (`UNSIGNED-PAYLOAD`).

The bodies' integrity is TLS's and the explicit checksums' business (`s3.py`); hashing them once more for the signature
would cost 0.5 CPU seconds a GiB. Tested against botocore's own signer.
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

PAYLOAD = "UNSIGNED-PAYLOAD"


def quote_path(path: str) -> str:
    return quote(path, safe="/-_.~")


def query_string(query: Mapping[str, str]) -> str:
    """Percent-encoded, then sorted, as the signature wants it; also fit to be sent."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


@lru_cache(maxsize=4)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def sign(
    method: str,
    host: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    *,
    access_key: str,
    secret_key: str,
    session_token: str | None,
    region: str,
    now: float,
) -> dict[str, str]:
    """The headers to send: `headers` (lower-case names) plus host, date, token and the signature.

    path and query are already percent-encoded; host and all x-amz- headers are signed. now: Unix seconds.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    day = stamp[:8]
    sent = {"host": host, "x-amz-date": stamp, "x-amz-content-sha256": PAYLOAD, **headers}
    if session_token:
        sent["x-amz-security-token"] = session_token
    names = sorted(name for name in sent if name == "host" or name.startswith("x-amz-"))
    signed = ";".join(names)
    canonical = "\n".join(
        [method, path, query, *(f"{name}:{' '.join(sent[name].split())}" for name in names), "", signed, PAYLOAD]
    )
    scope = f"{day}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.digest(_signing_key(secret_key, day, region), text.encode(), "sha256").hex()
    sent["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope},SignedHeaders={signed},Signature={signature}"
    )
    return sent
