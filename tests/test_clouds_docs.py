"""Every command in the guides is run, in order, as written: against the fakes and a real S3 server.

Lines with `…` are the reader's to fill in; here the test's environment does. docker, pip, git clone and sky are
stand-ins that accept anything; everything else is real.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import homerun.commands
from homerun.bucket.manifest import Entry, Manifest
from homerun.bucket.s3 import S3Store
from tests import s3
from tests.fakes.caas import FakeCaaS
from tests.fakes.gist import FakeGist
from tests.fakes.http import FakeService, Reply, Request
from tests.fakes.runpod import FakeRunPod

ROOT = Path(__file__).parent.parent
GUIDES = ["QUICKSTART", "r2", "caas", "runpod", "costs", "wrapper"]
PARTS = "homerun entrypoint recipes Dockerfile.training build_and_push.sh caas_deployment.json train_and_upload.py docs"
STAND_INS = {
    "docker": "exit 0",
    "pip": "exit 0",
    "sky": '[ -s "$3" ]',
    "git": f'[ "$1" = clone ] || exec {shutil.which("git")} "$@"\nexit 0',
}
SPEEDRUN = """#!/bin/bash
python -m nanochat.dataset -n 8
python -m nanochat.dataset -n 240 &
python -m scripts.tok_train
torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20 --run=$WANDB_RUN
"""


class FakeCloudflare(FakeService):
    """The one call of Cloudflare's API that docs/r2.md shows."""

    def __init__(self, server: s3.Server) -> None:
        super().__init__()
        self.store = server

    def answer(self, request: Request) -> Reply:
        body = request.json()
        assert request.path == "/accounts/account-of-test/r2/temp-access-credentials" and body["ttlSeconds"] == 21600
        assert body["bucket"] == self.store.bucket and body["prefixes"] == ["nanochat-d20-first/"]
        keys = {
            "accessKeyId": self.store.access_key,
            "secretAccessKey": self.store.secret_key,
            "sessionToken": "token-1",
        }
        return Reply(200, {"result": keys, "success": True})


def blocks(guide: str) -> str:
    """The shell of a guide: its bash blocks without the lines to fill in."""
    text = (ROOT / "docs" / f"{guide}.md").read_text()
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()
    return "\n".join(line for line in lines if "…" not in line)


def bring_home(store: S3Store, run: str) -> None:
    """What a good run leaves in the bucket, in the order in which it does."""
    data = b"the model of the test"
    key = "base_checkpoints/d20/model_000100.pt"
    etag = store.put(f"{run}/{key}", data)
    entries = {
        key: Entry(
            key,
            len(data),
            hashlib.sha256(data).hexdigest(),
            etag,
            "base_checkpoints/d20/000100",
            "checkpoint",
            step=100,
        )
    }
    manifest, metadata = (
        Manifest(run, 1, entries).to_json(),
        json.dumps({"run": run, "status": "good", "code": 0}).encode(),
    )
    store.put(f"{run}/manifest.json", manifest)
    store.put(f"{run}/metadata.json", metadata)
    event = {"seq": 0, "t": 1.0, "attempt": 1, "type": "run.begin", "run": run, "recipe": "speedrun"}
    store.put(f"{run}/journal/a01-000001.jsonl", (json.dumps(event) + "\n").encode())
    store.put(f"{run}/logs/a01/0001-base_train.log", b"step 100\n")
    names = {"manifest": manifest, "metadata": metadata}
    vouched = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in names.items()}
    store.put(f"{run}/_SUCCESS", json.dumps(vouched).encode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.serve(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_of_the_guides_work_as_written(guide: str, server: s3.Server, tmp_path: Path) -> None:
    tools, repository = tmp_path / "tools", tmp_path / "homerun"
    tools.mkdir()
    for name, body in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    upstream = tmp_path / "upstream"
    upstream.mkdir()
    (upstream / "speedrun.sh").write_text(SPEEDRUN)
    docker = tmp_path / ".docker"
    docker.mkdir()
    (docker / "config.json").write_text('{"auths": {"https://index.docker.io/v1/": {}}}')
    with FakeCaaS() as caas, FakeRunPod() as runpod, FakeGist() as gist, FakeCloudflare(server) as cloudflare:

        def launch(body: dict[str, Any]) -> None:
            caas.lines = ["the box begins", "the box ends"]
            if guide in ("QUICKSTART", "caas"):
                bring_home(server.store(), body["container_config"]["env_variables"]["HOMERUN_RUN_ID"])

        caas.launch = launch
        caas.hide_reads = 0
        wrapper = gist.write({"train_and_upload.py": (ROOT / "train_and_upload.py").read_bytes()})
        known = {
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            **server.environ(),
            **gist.environ,
            "GITHUB_TOKEN": gist.token,
            "GIST_ID": wrapper,
            "SCRIPT_URL": gist.raw(wrapper),
            "DOCKER_USER": "someone",
            "IMAGE": "someone/nanochat-training:test",
            "IOCLOUD_API_KEY": caas.key,
            "CAAS_API_URL": caas.api,
            "RUNPOD_API_KEY": runpod.key,
            "RUNPOD_API_URL": runpod.url + "/v1",
            "RUNPOD_GRAPHQL_URL": runpod.url,
            "CLOUDFLARE_API": cloudflare.url,
            "ACCOUNT_ID": "account-of-test",
            "PARENT_API_TOKEN": "parent-token",
            "PARENT_ACCESS_KEY_ID": "parent-key",
            "HOMERUN_SERVE_TOKEN": "serve-token-of-test",
            "HOMERUN_UPSTREAM": str(upstream),
        }
        repository.mkdir()
        for part in PARTS.split():
            (repository / part).symlink_to(ROOT / part)
        begin = "" if guide == "QUICKSTART" else "cd homerun\n"
        script = blocks(guide).replace(
            '"$DEPLOYMENT"',
            '"$(homerun deployments --json | python3 -c \'import json, sys; print(json.load(sys.stdin)[0]["id"])\')"',
        )
        done = subprocess.run(
            ["bash", "-Eeuo", "pipefail", "-xc", begin + script],
            env=known,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        if guide == "QUICKSTART":
            assert len(caas.bodies) == 1
            model = repository / "model" / "base_checkpoints" / "d20" / "model_000100.pt"
            assert model.read_bytes() == b"the model of the test"
        if guide == "caas":
            assert len(caas.bodies) == 2
            assert caas.bodies[1]["resource_private_name"] == "nanochat-d20-first"
        if guide == "runpod":
            assert len(runpod.bodies) == 1
        if guide == "costs":
            assert caas.count("POST", "") == 0 and "--depth=26" in done.stdout


def test_every_command_named_in_the_guides_exists() -> None:
    folder = Path(homerun.commands.__path__[0])
    for guide in [*GUIDES, "troubleshooting"]:
        for name in re.findall(r"homerun ([a-z]+)(?=[ `\n])", (ROOT / "docs" / f"{guide}.md").read_text()):
            if name in ("runs", "deploy") or (folder / f"{name}.py").exists():
                continue
            assert name in PROSE, f"{guide}.md names `homerun {name}`"


PROSE = {"is", "does", "measures", "before", "command", "without", "and", "on", "with"}


def test_links_between_the_guides_lead_somewhere() -> None:
    for guide in [*GUIDES, "troubleshooting"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "docs" / f"{guide}.md").read_text()):
            assert (ROOT / "docs" / link).exists(), f"{guide}.md links to {link}"


def test_every_message_in_troubleshooting_is_one_that_the_code_can_say() -> None:
    sources = "".join(
        path.read_text()
        for path in [*(ROOT / "homerun").rglob("*.py"), *(ROOT / "entrypoint").iterdir()]
        if path.is_file()
    )
    plain = re.sub(r"\{[^{}]*\}", "", sources)
    for row in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines():
        cell = row.split("|")[1].strip() if row.startswith("| `") else ""
        for message in re.findall(r"`([^`]+)`", cell.partition(" and HTTP")[0]):
            for part in re.split(r"…|:|'|\d+|\bN\b|\bX\b|\bID\b|R2 |Address already in use", message):
                words = part.strip(" ,$")
                assert len(words) < 4 or words in plain or words in sources, f"nothing says {words!r}"
