"""The wrapper's gist: publish a file, and say how to pin what was published."""

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
