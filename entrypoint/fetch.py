"""Fetch the wrapper named by SCRIPT_URL, prove what it is, record it, and only then let it run. Standard library only.

    python3 fetch.py            the path of the proven wrapper, on stdout (its record lies beside it)
    python3 fetch.py --check    the same checks, the record on stdout, nothing kept

A gist URL without a revision means the newest one: its exact revision is resolved first, and that revision is what is
fetched, because an unpinned raw URL is cached by GitHub for minutes. Environment:

    SCRIPT_URL      https://gist.githubusercontent.com/USER/ID/raw[/REVISION]/FILE, or https://gist.github.com/USER/ID;
                    unset: the copy baked into the image. Any other https URL needs a pin or a key
    SCRIPT_SHA256   the only content that may run
    SCRIPT_PUBKEY   "ssh-ed25519 AAAA…" (signed with `ssh-keygen -Y sign -n homerun`) or a minisign key ("RW…"); the
                    signature is FILE.sig or FILE.minisig in the same revision
    HOMERUN_ALLOW_BAKED=true   when the fetch (not a check) fails, run the baked copy instead
    GIST_API_URL GIST_RAW_URL GIST_GIT_URL   another gist service

Exit status: 2 the request is wrong, 3 not fetched or not proven (nothing was run).
"""

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

BAKED = Path(__file__).resolve().parent.parent / "train_and_upload.py"
MAX_BYTES = 1 << 20  # a wrapper is a page of Python; the gist API inlines up to 1 MB too
TIMEOUT_S = 20.0
TRIES = 3  # of each request, 1 and 2 seconds apart: a rate limit lasts minutes, a hiccup does not
RAW_PATH = r"/([^/]+)/([0-9a-f]{5,40})/raw(?:/([0-9a-f]{40}))?(?:/([^/]+))?/?"
PAGE_PATH = r"/([^/]+)/([0-9a-f]{5,40})(?:/([0-9a-f]{40}))?/?"
RAW_BUTTON = "Copy it with the gist's Raw button"
NEEDS_PIN = "Set SCRIPT_SHA256 or SCRIPT_PUBKEY for it, or put it in a gist: `homerun publish`"


class FetchError(Exception):
    """The wrapper could not be had (network, rate limit, service). The baked copy may stand in if allowed."""

    code = 3


class RefusedError(FetchError):
    """What came is not what may run: nothing stands in for it."""


class BadRequestError(FetchError):
    """SCRIPT_URL or SCRIPT_PUBKEY makes no sense."""

    code = 2


class Target(NamedTuple):
    """What SCRIPT_URL asks for. gist is None for a plain https URL; file and revision may still be unknown."""

    url: str
    gist: str | None
    user: str | None
    revision: str | None
    file: str | None


class Service(NamedTuple):
    api: str
    raw: str
    git: str

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Service":
        return cls(
            environ.get("GIST_API_URL", "https://api.github.com").rstrip("/"),
            environ.get("GIST_RAW_URL", "https://gist.githubusercontent.com").rstrip("/"),
            environ.get("GIST_GIT_URL", "https://gist.github.com").rstrip("/"),
        )


def parse(url: str, service: Service) -> Target:
    """What a SCRIPT_URL asks for. Raises BadRequestError."""
    parts = urlsplit(url.strip())
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        raise BadRequestError(f"SCRIPT_URL is {url!r}, which is not an https URL. {RAW_BUTTON}")
    host = f"{parts.scheme}://{parts.netloc}"
    if host == service.raw and (match := re.fullmatch(RAW_PATH, parts.path)):
        user, gist, revision, file = match.groups()
        return Target(url, gist, user, revision, file)
    if host == service.git and (match := re.fullmatch(PAGE_PATH, parts.path)):
        user, gist, revision = match.groups()
        return Target(url, gist, user, revision, None)
    if host in (service.raw, service.git):
        raise BadRequestError(f"SCRIPT_URL is {url!r}, which names no gist. {RAW_BUTTON}")
    return Target(url, None, None, None, parts.path.rpartition("/")[2])


class _SameHost(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            raise RefusedError(
                f"{req.full_url} redirects to {urlsplit(newurl).netloc}, another host. Set the final URL"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def get(url: str, accept: str = "*/*") -> tuple[bytes, str]:
    """(body, content type) of an https resource of at most MAX_BYTES. Raises FetchError, RefusedError."""
    request = urllib.request.Request(url, headers={"User-Agent": "homerun", "Accept": accept})
    opener = urllib.request.build_opener(_SameHost)
    for attempt in range(1, TRIES + 1):
        try:
            with opener.open(request, timeout=TIMEOUT_S) as response:
                body = response.read(MAX_BYTES + 1)
                if len(body) > MAX_BYTES:
                    raise RefusedError(f"{url} has more than {MAX_BYTES} bytes, which no wrapper needs")
                declared = response.headers.get("Content-Length")
                if declared and declared.isdigit() and int(declared) != len(body):
                    raise http.client.IncompleteRead(body, int(declared) - len(body))
                return body, response.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            limited = error.code == 429 or (error.code == 403 and error.headers.get("X-RateLimit-Remaining") == "0")
            if limited:
                raise FetchError(f"{url}: this address's rate limit is used up (HTTP {error.code})") from None
            if error.code < 500:
                raise FetchError(f"{url}: HTTP {error.code}. Open it in a browser; was the gist deleted?") from None
            problem = f"HTTP {error.code}"
        except http.client.IncompleteRead as error:
            problem = f"cut off after {len(error.partial)} bytes"
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", None) or error or type(error).__name__)
        if attempt < TRIES:
            time.sleep(attempt)
    raise FetchError(f"{url}: {problem}, {TRIES} times")


def newest(target: Target, service: Service) -> tuple[str, str | None, str | None]:
    """(revision, file, blob sha1) of a gist's newest revision: by the API, or by git where the API's limit is used up.

    Over git the file's name must be known, and its blob stays unknown.
    """
    url = f"{service.api}/gists/{target.gist}"
    try:
        body, _ = get(url, "application/vnd.github+json")
    except RefusedError:
        raise
    except FetchError as error:
        command = ["git", "ls-remote", f"{service.git}/{target.gist}.git", "HEAD"]
        quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=quiet)
        except (OSError, subprocess.TimeoutExpired):
            raise error from None
        if not re.match(r"[0-9a-f]{40}\s", done.stdout) or target.file is None:
            raise error from None
        return done.stdout[:40], target.file, None
    try:
        answer = json.loads(body)
        revision = str(answer["history"][0]["version"])
        files = answer["files"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise FetchError(f"{url} did not answer with a gist") from None
    file = target.file or (next(iter(files)) if len(files) == 1 else None)
    if file is None or file not in files:
        raise BadRequestError(f"gist {target.gist} holds {', '.join(files)}. Name one at the end of SCRIPT_URL")
    blob = re.search(r"/raw/([0-9a-f]{40})/", files[file].get("raw_url", ""))
    return revision, file, blob.group(1) if blob else None


def git_blob(data: bytes) -> str:
    """The name that git gives to this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def prove(data: bytes, name: str, kind: str = "", pin: str | None = None, blob: str | None = None) -> None:
    """Refuse what cannot be the wrapper: empty, HTML, not Python, or not what the pin or the gist says."""
    if pin and hashlib.sha256(data).hexdigest() != pin.lower():
        raise RefusedError(f"{name} has sha256 {hashlib.sha256(data).hexdigest()}, but SCRIPT_SHA256 is {pin}")
    if blob and git_blob(data) != blob:
        raise RefusedError(f"{name} is git blob {git_blob(data)}, but the gist says {blob}: it changed on the way")
    if not data.strip():
        raise RefusedError(f"{name} is empty")
    if "html" in kind or re.match(rb"\s*<(!doctype|html)", data[:200], re.IGNORECASE):
        raise RefusedError(f"{name} is a web page, not a script. Copy SCRIPT_URL with the gist's Raw button")
    try:
        compile(data, name, "exec")
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise RefusedError(f"{name} is not valid Python{line}: {getattr(error, 'msg', error)}") from None


def verify_signature(data: bytes, signature: bytes, key: str) -> None:
    """Check a detached signature with ssh-keygen or minisign. Raises RefusedError."""
    with tempfile.TemporaryDirectory() as folder:
        script, signed = Path(folder, "script"), Path(folder, "script.sig")
        script.write_bytes(data)
        signed.write_bytes(signature)
        if key.startswith("RW"):
            command = ["minisign", "-Vm", str(script), "-x", str(signed), "-P", key]
        else:
            signers = Path(folder, "signers")
            signers.write_text(f"homerun {key}\n")
            command = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "homerun", "-n", "homerun"]
            command += ["-s", str(signed)]
        try:
            done = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_S)
        except FileNotFoundError:
            raise RefusedError(f"SCRIPT_PUBKEY is set, but {command[0]} is not installed") from None
    if done.returncode:
        raise RefusedError("the signature does not match SCRIPT_PUBKEY; sign this very file again")


def signature_suffix(key: str) -> str:
    if key.startswith("RW"):
        return ".minisig"
    if re.match(r"(ssh|ecdsa|sk)-\S+ \S+", key):
        return ".sig"
    raise BadRequestError('SCRIPT_PUBKEY is neither "ssh-ed25519 AAAA…" nor a minisign key "RW…"')


def fetch(environ: Mapping[str, str]) -> tuple[bytes, dict[str, Any]]:
    """(content, record) of the wrapper that `environ` asks for, proven. Raises FetchError and its kinds."""
    pin, key = environ.get("SCRIPT_SHA256") or None, (environ.get("SCRIPT_PUBKEY") or "").strip()
    suffix = signature_suffix(key) if key else ""
    url = environ.get("SCRIPT_URL")
    if not url:
        return baked(pin, key)
    service = Service.of(environ)
    target = parse(url, service)
    if target.gist is None and not (pin or key):
        raise BadRequestError(f"SCRIPT_URL is {url!r}, not a gist, so nothing tells its revision. {NEEDS_PIN}")
    revision, file, blob, source = target.revision, target.file, None, target.url
    if target.gist is not None:
        if revision is None:
            revision, file, blob = newest(target, service)
        source = f"{service.raw}/{target.user}/{target.gist}/raw/{revision}" + (f"/{file}" if file else "")
    data, kind = get(source)
    prove(data, source, kind, pin, blob)
    if key:
        verify_signature(data, get(source + suffix)[0], key)
    return data, record(data, source, target.gist, revision, signed=bool(key))


def baked(pin: str | None, key: str) -> tuple[bytes, dict[str, Any]]:
    """The copy that came with the image; a pin counts for it too, and a demanded signature rules it out."""
    if key:
        raise RefusedError("SCRIPT_PUBKEY is set, and the copy in the image carries no signature. Set SCRIPT_URL")
    try:
        data = BAKED.read_bytes()
    except OSError:
        raise FetchError(f"SCRIPT_URL is not set, and there is no {BAKED}") from None
    prove(data, str(BAKED), pin=pin)
    return data, record(data, f"file://{BAKED}", None, None, signed=False)


def record(data: bytes, url: str, gist: str | None, revision: str | None, signed: bool) -> dict[str, Any]:
    return {
        "url": url,
        "gist": gist,
        "revision": revision,
        "blob_sha1": git_blob(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "signed": signed,
        "fetched_at": round(time.time(), 3),
    }


def obtain(environ: Mapping[str, str], folder: Path) -> tuple[Path, dict[str, Any]]:
    """(path of the proven wrapper, its record) in `folder`, record in `wrapper.json`; the baked copy if allowed."""
    try:
        data, facts = fetch(environ)
    except FetchError as error:
        if type(error) is not FetchError or environ.get("HOMERUN_ALLOW_BAKED", "").lower() not in ("1", "true", "yes"):
            raise
        data, facts = baked(environ.get("SCRIPT_SHA256") or None, (environ.get("SCRIPT_PUBKEY") or "").strip())
        facts["fallback"] = str(error)
        print(f"homerun: {error}", file=sys.stderr)
        print("homerun: HOMERUN_ALLOW_BAKED is set: going on with the copy in the image", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    wrapper = folder / "train_and_upload.py"
    for path, content in ((wrapper, data), (folder / "wrapper.json", json.dumps(facts, indent=1).encode())):
        temporary = path.with_suffix(".new")
        temporary.write_bytes(content)
        temporary.replace(path)
    return wrapper, facts


def main() -> int:
    try:
        if sys.argv[1:] == ["--check"]:
            print(json.dumps(fetch(os.environ)[1]))
        else:
            print(obtain(os.environ, Path(os.environ.get("HOMERUN_DIR", "~/.homerun")).expanduser() / "wrapper")[0])
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
