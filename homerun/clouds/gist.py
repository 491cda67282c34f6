"""The wrapper's gist: publish a file, and say how to pin what was published."""

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from homerun.clouds.api import Api
from homerun.errors import RequestError

API, RAW = "https://api.github.com", "https://gist.githubusercontent.com"
HINTS = {
    401: "Make GITHUB_TOKEN at https://github.com/settings/tokens with the right to write gists",
    403: "Give GITHUB_TOKEN the right to write gists",
    404: "Check --gist: it must be a gist of the token's owner",
    422: "GitHub refuses that content",
}


@dataclass(frozen=True)
class Published:
    """A revision of a gist. latest follows the gist, pinned is this revision for ever."""

    gist: str
    revision: str
    latest: str
    pinned: str
    sha256: str


def publish(
    token: str, file: Path, gist: str | None = None, sign: Path | None = None, public: bool = False
) -> Published:
    """Put `file` (and its ssh signature) into a new gist, or a new revision of `gist`. Raises HomerunError."""
    data = read_script(file)
    contents = {file.name: {"content": data.decode()}}
    if sign:
        contents[f"{file.name}.sig"] = {"content": signature(file, sign)}
    api_url = os.environ.get("GIST_API_URL", API)
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
    api = Api("GitHub", api_url, headers, HINTS)
    body: dict[str, Any] = {"files": contents}
    if gist:
        answer = api.send("PATCH", f"/gists/{gist}", body)
    else:
        answer = api.send("POST", "/gists", body | {"public": public, "description": "nanochat training job (homerun)"})
    base = f"{os.environ.get('GIST_RAW_URL', RAW)}/{answer['owner']['login']}/{answer['id']}/raw"
    revision = answer["history"][0]["version"]
    return Published(
        answer["id"],
        revision,
        f"{base}/{file.name}",
        f"{base}/{revision}/{file.name}",
        hashlib.sha256(data).hexdigest(),
    )


def check_wrapper(environ: Mapping[str, str]) -> None:
    """RequestError where a box could not have the wrapper that SCRIPT_URL names, as far as can be told from here."""
    url, pin, key = (environ.get(name) or "" for name in ("SCRIPT_URL", "SCRIPT_SHA256", "SCRIPT_PUBKEY"))
    if key and not re.match(r"RW|(ssh|ecdsa|sk)-\S+ \S+", key):
        raise RequestError("SCRIPT_PUBKEY is no public key", 'Give "ssh-ed25519 AAAA…" or a minisign key "RW…"')
    if not url:
        return
    if not re.match(r"https://|http://(127\.0\.0\.1|localhost)[:/]", url):
        raise RequestError(f"SCRIPT_URL is {url!r}, which is not an https URL", "`homerun publish` prints one")
    try:
        reply = httpx.get(url, timeout=20.0, follow_redirects=True)
    except httpx.HTTPError as error:
        raise RequestError(f"SCRIPT_URL cannot be had ({error})", "Open it in a browser; was it mistyped?") from None
    if not reply.is_success:
        raise RequestError(f"SCRIPT_URL answers with HTTP {reply.status_code}", "Open it; was the gist deleted?")
    # an unpinned raw URL may be minutes behind the gist, so only a pinned one is held against the pin
    if pin and re.search(r"/raw/[0-9a-f]{40}/", url) and hashlib.sha256(reply.content).hexdigest() != pin.lower():
        raise RequestError("what SCRIPT_URL names does not have SCRIPT_SHA256", "`homerun publish` prints both")


def read_script(file: Path) -> bytes:
    """A file that a box would accept as its wrapper. Raises RequestError."""
    try:
        data = file.read_bytes()
        compile(data, str(file), "exec")
        data.decode()
    except OSError as error:
        raise RequestError(f"{file} cannot be read ({error.strerror})", "Give the wrapper's path") from None
    except (SyntaxError, ValueError) as error:
        raise RequestError(f"{file} is not valid Python ({error})", "No box would run it") from None
    if not data.strip():
        raise RequestError(f"{file} is empty", "No box would run it")
    return data


def signature(file: Path, key: Path) -> str:
    """An ssh signature of `file` in the namespace `homerun`. Raises RequestError."""
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "homerun"]
    done = subprocess.run(command, input=file.read_bytes(), capture_output=True)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RequestError(f"{key} cannot sign ({' '.join(reason)})", "Make one with `ssh-keygen -t ed25519 -f KEY`")
    return done.stdout.decode()
