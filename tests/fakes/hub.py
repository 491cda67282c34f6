"""Fake Hugging Face Hubs: one that takes a model from `upload_folder`, one that gives datasets to `load_dataset`."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from tests.fakes.http import FakeService, Reply, Request


class FakeHub(FakeService):
    """Create, card check, preupload, LFS, commit. repos: what each repository's main branch holds, by path."""

    def __init__(self, token: str = "hf_token-of-the-test") -> None:
        super().__init__()
        self.token = token
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}  # by sha256

    def answer(self, request: Request) -> Reply:
        if request.path.startswith("/large/"):  # a URL that was signed: no token
            sha256 = request.path.removeprefix("/large/")
            if hashlib.sha256(request.body).hexdigest() != sha256:
                return Reply(400)
            self.large[sha256] = request.body
            return Reply()
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, {"error": "Invalid credentials in Authorization header"})
        if request.path == "/api/validate-yaml":  # of the model card
            ok = re.match(r"---\n(.*\n)+?---\n", request.json()["content"])
            return Reply(200, {"errors": [] if ok else [{"message": "no metadata"}], "warnings": []})
        if request.path == "/api/repos/create":
            wanted = request.json()
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            status = 409 if name in self.repos else 200
            self.repos.setdefault(name, {})
            self.private.setdefault(name, "private" in (wanted.get("visibility"), wanted.get("private") and "private"))
            return Reply(status, {"url": f"{self.url}/{name}", "name": name})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", request.path):
            return self._preupload(request) if found[2] == "preupload" else self._commit(found[1], request.body)
        if request.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}}
                for one in request.json()["objects"]
            ]
            return Reply(200, {"transfer": "basic", "objects": objects})
        return Reply(404, {"error": "Not here"})

    def _preupload(self, request: Request) -> Reply:
        large = (".safetensors", ".bin")
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(large) else "regular", "shouldIgnore": False}
            for f in request.json()["files"]
        ]
        return Reply(200, {"files": files})

    def _commit(self, repo: str, body: bytes) -> Reply:
        lines: list[dict[str, Any]] = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.large[value["oid"]]
        oid = hashlib.sha1(body).hexdigest()
        return Reply(200, {"success": True, "commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid})


class DatasetsHub(FakeService):
    """The folders `root/<org>/<name>` as dataset repositories of one commit, for anyone to read."""

    COMMIT = "1" * 40

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def answer(self, request: Request) -> Reply:
        found = re.fullmatch(
            r"(?P<api>/api)?/datasets/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree|resolve)/[^/]+/?(?P<path>.*)",
            request.path,
        )
        if not found:
            return Reply(404, {"error": "Not here"})
        repo = self.root / found["repo"]
        path = repo / found["path"]
        if not repo.is_dir():
            return Reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if found["what"] == "revision":
            return Reply(200, {"id": found["repo"], "sha": self.COMMIT, "tags": [], "siblings": []})
        if not path.exists():
            return Reply(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        if found["what"] == "tree":
            return Reply(200, [self._entry(repo, file) for file in sorted(path.iterdir())])
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return Reply(200, data, {"ETag": etag, "X-Repo-Commit": self.COMMIT})

    def _entry(self, repo: Path, file: Path) -> dict[str, Any]:
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        return {"type": "file", "path": str(file.relative_to(repo)), "size": file.stat().st_size, "oid": oid}
