"""A fake gist service: the REST API, the raw host and dumb git over HTTP, on one port; with GitHub's habits.

Raw URLs without a revision are stale (the CDN's cache): they give the revision before the newest one. The API's raw_url
carries the blob's sha1. `limit()` uses the API's rate limit up; git still tells the newest revision.
"""

import hashlib
import json
import re
from typing import Any

from tests.fakes.http import FakeService, Reply, Request


def blob_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class FakeGist(FakeService):
    def __init__(self, token: str = "github-token-of-the-test") -> None:
        super().__init__()
        self.token, self.user = token, "someone"
        self.gists: dict[str, list[tuple[str, dict[str, bytes]]]] = {}

    @property
    def environ(self) -> dict[str, str]:
        return {"GIST_API_URL": self.url, "GIST_RAW_URL": self.url, "GIST_GIT_URL": self.url}

    def write(self, files: dict[str, bytes], gist: str | None = None) -> str:
        """A new gist, or a new revision of one; the gist's id."""
        gist = gist or hashlib.md5(repr((files, len(self.gists))).encode()).hexdigest()
        revisions = self.gists.setdefault(gist, [])
        whole = {**(revisions[-1][1] if revisions else {}), **files}
        revisions.append((hashlib.sha1(repr((gist, len(revisions), whole)).encode()).hexdigest(), whole))
        return gist

    def raw(self, gist: str, file: str = "train_and_upload.py", revision: str | None = None) -> str:
        return f"{self.url}/{self.user}/{gist}/raw/" + (f"{revision}/" if revision else "") + file

    def revision(self, gist: str, index: int = -1) -> str:
        return self.gists[gist][index][0]

    def limit(self) -> None:
        reply = Reply(403, {"message": "API rate limit exceeded"}, {"X-RateLimit-Remaining": "0"})
        self.fail("GET", "^/gists/", reply, times=1000)

    def _describe(self, gist: str) -> dict[str, Any]:
        files = self.gists[gist][-1][1]
        return {
            "id": gist,
            "html_url": f"{self.url}/{self.user}/{gist}",
            "owner": {"login": self.user},
            "files": {
                name: {"raw_url": f"{self.url}/{self.user}/{gist}/raw/{blob_sha1(data)}/{name}", "size": len(data)}
                for name, data in files.items()
            },
            "history": [{"version": version} for version, _ in reversed(self.gists[gist])],
        }

    def answer(self, request: Request) -> Reply:
        if request.path == "/gists" or request.path.startswith("/gists/"):
            return self._api(request)
        if match := re.fullmatch(r"/([0-9a-f]{32})\.git/(info/refs|HEAD)", request.path):
            gist, what = match.groups()
            if gist not in self.gists:
                return Reply(404, b"not found")
            if what == "HEAD":
                return Reply(200, b"ref: refs/heads/main\n")
            return Reply(200, f"{self.revision(gist)}\trefs/heads/main\n".encode(), {"Content-Type": "text/plain"})
        match = re.fullmatch(r"/[^/]+/([0-9a-f]{32})/raw(?:/([0-9a-f]{40}))?(?:/([^/]+))?", request.path)
        if not match or match[1] not in self.gists:
            return Reply(404, b"404: Not Found")
        gist, wanted, name = match.groups()
        revisions = self.gists[gist]
        files = dict(revisions).get(wanted) if wanted else revisions[max(0, len(revisions) - 2)][1]
        if files is None or (name and name not in files):
            return Reply(404, b"404: Not Found")
        data = files[name] if name else next(iter(files.values()))
        return Reply(200, data, {"Content-Type": "text/plain; charset=utf-8"})

    def _api(self, request: Request) -> Reply:
        gist = request.path.removeprefix("/gists").strip("/")
        if request.method == "GET":
            return Reply(200, self._describe(gist)) if gist in self.gists else Reply(404, {"message": "Not Found"})
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, {"message": "Bad credentials"})
        if gist and gist not in self.gists:
            return Reply(404, {"message": "Not Found"})
        files = {name: entry["content"].encode() for name, entry in json.loads(request.body)["files"].items()}
        return Reply(200 if gist else 201, self._describe(self.write(files, gist or None)))
