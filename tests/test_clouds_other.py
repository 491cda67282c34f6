"""RunPod, SkyPilot, gists, and the commands as a person types them, against the fakes."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from homerun.clouds import api
from homerun.clouds.cloud import CloudError, UnknownOutcome
from homerun.clouds.gist import check_wrapper
from homerun.clouds.launch import Wish, prepare, start
from homerun.clouds.order import Order, check, fill, names, read_template
from homerun.clouds.runpod import RunPod
from homerun.clouds.sky import task
from homerun.errors import RequestError
from homerun.settings import Settings
from tests import s3
from tests.fakes.caas import FakeCaaS
from tests.fakes.gist import FakeGist
from tests.fakes.http import Reply
from tests.fakes.runpod import FakeRunPod

ROOT = Path(__file__).parent.parent
TEMPLATE = read_template(ROOT / "caas_deployment.json")
CANARY = "canary-secret-of-the-test"
ENVIRON = {
    "R2_ACCESS_KEY_ID": "key-id-of-the-test",
    "R2_SECRET_ACCESS_KEY": CANARY,
    "R2_ENDPOINT_URL": "https://account.r2.cloudflarestorage.com",
    "R2_BUCKET_NAME": "models",
}
WISH = Wish("speedrun-test", "someone/nanochat-training:1", "H100", 4, hours=8, reserve=1, max_usd=200)


def order(**more: str) -> Order:
    known = {"HOMERUN_RUN_ID": "nanochat-d20-Test", "HOMERUN_DEADLINE": "2026-11-21T07:31:00Z", "IMAGE": "me/image:1"}
    known |= {"HARDWARE_ID": "203", "HOURS": "5", "GPUS": "8", "HOMERUN_SERVE_TOKEN": "serve-token-of-test"}
    return check(fill(TEMPLATE, {**ENVIRON, **known, **more}), {"R2_SECRET_ACCESS_KEY": CANARY})


@pytest.fixture
def runpod(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunPod]:
    monkeypatch.setattr(api, "BACKOFF_S", 0.01)
    with FakeRunPod() as service:
        monkeypatch.setenv("RUNPOD_GRAPHQL_URL", service.url)
        yield service


def client(service: FakeRunPod) -> RunPod:
    return RunPod(service.key, service.url + "/v1")


# RunPod


def test_a_pod_is_priced_started_and_told_to_end_itself(runpod: FakeRunPod) -> None:
    made = prepare(client(runpod), TEMPLATE, WISH, Settings.load(ENVIRON), ENVIRON, datetime.now(UTC))
    assert made.quote.usd == pytest.approx(3.49 * 4 * 9)
    id = start(client(runpod), made)
    body = runpod.bodies[0]
    assert body["gpuTypeIds"] == ["NVIDIA H100 80GB HBM3"] and body["gpuCount"] == 4
    assert body["env"]["HOMERUN_IDLE_MINUTES"] == "30" and body["env"]["HOMERUN_UPLOAD_MINUTES"] == "60"
    assert body["containerDiskInGb"] == 300 and body["volumeInGb"] == 0
    assert body["env"]["HOMERUN_AFTER"] == "stop" and body["env"]["HOMERUN_BUDGET_USD"] == "200"
    assert body["env"]["HOMERUN_RUN_ID"] == WISH.run_id and body["env"]["R2_SECRET_ACCESS_KEY"] == CANARY
    assert body["dockerEntrypoint"][-1] == "train" and body["ports"] == ["8000/http"]
    box = client(runpod).status(id)
    assert box.status == "running" and box.url == f"https://{id}-8000.proxy.runpod.net"
    client(runpod).destroy(id)
    assert runpod.pods == {}


def test_a_pod_whose_answer_is_lost_is_found_by_name_or_reported_never_made_twice(runpod: FakeRunPod) -> None:
    made = prepare(client(runpod), TEMPLATE, WISH, Settings.load(ENVIRON), ENVIRON, datetime.now(UTC))
    runpod.fail("POST", "/pods", Reply(lose=True), after=True)
    assert start(client(runpod), made) in runpod.pods
    runpod.pods.clear()
    runpod.fail("POST", "/pods", Reply(500, b""))
    with pytest.raises(UnknownOutcome):
        start(client(runpod), made)
    assert runpod.count("POST", "/pods$") == 2


def test_runpods_errors_are_one_line(runpod: FakeRunPod) -> None:
    with pytest.raises(CloudError, match=r"HTTP 401, Unauthorized\. Check RUNPOD_API_KEY"):
        RunPod("wrong", runpod.url + "/v1").check_key()
    with pytest.raises(RequestError, match="bucket: `homerun logs RUN -f`"):
        client(runpod).logs("x")
    with pytest.raises(CloudError, match="no free 8x B200"):
        prepare(
            client(runpod),
            TEMPLATE,
            Wish("r", "i", "B200", 8, 1, 1),
            Settings.load(ENVIRON),
            ENVIRON,
            datetime.now(UTC),
        )


# SkyPilot

PARSE = """
import json, sys, os
import sky
task = sky.Task.from_yaml(sys.argv[1])
resources = list(task.resources)[0]
print(json.dumps({
    "nodes": task.num_nodes, "spot": resources.use_spot, "gpus": resources.accelerators,
    "image": resources.image_id, "recovery": resources.job_recovery, "envs": task.envs, "secrets": list(task.secrets),
    "run": task.run, "ports": resources.ports,
}))
"""


def test_a_rendered_task_holds_no_secret() -> None:
    text = task(order(), "H100")
    assert CANARY not in text and "serve-token-of-test" not in text
    assert "sky jobs launch" in text.splitlines()[0] and "--secret R2_SECRET_ACCESS_KEY" in text.splitlines()[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_skypilots_own_parser_takes_the_task(tmp_path: Path) -> None:
    uv = importlib.util.find_spec("uv")
    assert uv
    for nodes in (1, 2):
        path = tmp_path / f"{nodes}.yaml"
        # SkyPilot wants a value for each secret when it parses; `--secret NAME` gives it, here the file does.
        path.write_text(
            task(order(HOMERUN_PHASE_ARGS='{"base_train": "--depth=26"}'), "H100", nodes).replace(": null", ": x")
        )
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "uv",
                "run",
                "-q",
                "--no-project",
                "--with",
                "skypilot==0.14.1",
                "python",
                "-c",
                PARSE,
                path,
            ],
            env={**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        parsed = json.loads(done.stdout.splitlines()[-1])
        assert parsed["nodes"] == nodes and parsed["spot"] is True and parsed["gpus"] == {"H100": 8}
        assert "me/image:1" in json.dumps(parsed["image"])
        assert parsed["envs"]["HOMERUN_RUN_ID"] == "nanochat-d20-Test" and "HOMERUN_DEADLINE" not in parsed["envs"]
        assert parsed["envs"]["HOMERUN_PHASE_ARGS"] == '{"base_train": "--depth=26"}'
        assert "R2_SECRET_ACCESS_KEY" in parsed["secrets"]
        assert ("--node_rank" in parsed["run"]) == (nodes > 1)


# The commands, as typed


def homerun(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the real command with nothing else in its environment, and no terminal."""
    known = {"PATH": os.environ["PATH"], "HOME": environ.pop("HOME", "/nonexistent"), **environ}
    return subprocess.run(
        [sys.executable, "-m", "homerun", *arguments],
        env=known,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
    )


@pytest.fixture
def caas() -> Iterator[FakeCaaS]:
    with FakeCaaS() as service:
        yield service


def environ(caas: FakeCaaS, server: s3.Server | None = None, **more: str) -> dict[str, str]:
    """Of someone who deploys, with a real bucket where one is given."""
    bucket = {**ENVIRON, **(server.environ() if server else {})}
    return {**bucket, "IOCLOUD_API_KEY": caas.key, "CAAS_API_URL": caas.api, "IMAGE": "me/nanochat-training:1", **more}


@pytest.mark.s3
def test_a_dry_run_checks_and_prices_and_sends_nothing_and_shows_no_secret(
    caas: FakeCaaS, s3_server: s3.Server
) -> None:
    done = homerun("deploy", "--dry-run", **environ(caas, s3_server))
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(done.stdout)["container_config"]["secret_env_variables"]["R2_SECRET_ACCESS_KEY"]
        == "[R2_SECRET_ACCESS_KEY]"
    )
    assert s3_server.secret_key not in done.stdout + done.stderr and "$139.40 for 5 h" in done.stderr
    assert caas.count("POST", "") == 0 and caas.count("GET", "/price") == 1


@pytest.mark.s3
@pytest.mark.parametrize(
    ("change", "arguments", "message", "code"),
    [
        ({"R2_SECRET_ACCESS_KEY": "a-wrong-secret"}, [], "SignatureDoesNotMatch", 3),
        ({"R2_ENDPOINT_URL": "https://….r2.cloudflarestorage.com"}, [], "not a URL", 2),
        ({"SCRIPT_URL": "http://example.com/x.py"}, [], "which is not an https URL", 2),
        ({"SCRIPT_URL": "http://127.0.0.1:9/x.py"}, [], "SCRIPT_URL cannot be had", 2),
        ({"SCRIPT_PUBKEY": "hello"}, [], "SCRIPT_PUBKEY is no public key", 2),
        ({"HOMERUN_PHASE_ARGS": "--depth=26"}, [], "HOMERUN_PHASE_ARGS is not a JSON object", 2),
        ({"HOMERUN_AFTER": "never"}, [], "Set it to exit, hold or stop", 2),
        ({"IMAGE": "UPPER CASE"}, [], "names no image", 2),
        ({"IMAGE": "docker.io/Me/x"}, [], "names no image", 2),
        ({"KEEP_ALIVE": "yep"}, [], "KEEP_ALIVE", 2),
        ({"IMAGE": ""}, [], "there is no image", 2),
        ({"IOCLOUD_API_KEY": ""}, [], "IOCLOUD_API_KEY is not set", 2),
        ({"IOCLOUD_API_KEY": "wrong-key"}, [], "HTTP 401", 3),
        ({"R2_BUCKET_NAME": ""}, [], "R2_BUCKET_NAME not set although", 2),
        (dict.fromkeys(ENVIRON, ""), [], "no R2 variables are set", 2),
        ({}, ["--max-cost", "100"], "over the cap of $100.00", 2),
        ({}, [], "Set HOMERUN_SERVE_TOKEN", 2),
        ({"HOMERUN_SERVE_TOKEN": "my-own-token"}, [], "no cap and no terminal", 2),
        ({}, ["--gpu", "H200"], "no free 8x H200", 3),
        ({}, ["--gpus", "16"], "no free 16x H100", 3),
        ({}, ["missing.json"], "missing.json cannot be read", 2),
        ({}, ["README.md"], "is not JSON", 2),
        ({}, ["--on", "azure"], "there is no cloud 'azure'", 2),
        ({"HOMERUN_RUN_ID": "a b"}, [], "HOMERUN_RUN_ID", 2),
        ({"CAAS_API_URL": "http://127.0.0.1:9"}, [], "Check the network", 3),
    ],
)
def test_each_wrong_value_is_one_clear_line_and_nothing_is_sent(
    caas: FakeCaaS, s3_server: s3.Server, change: dict[str, str], arguments: list[str], message: str, code: int
) -> None:
    if "--max-cost" in arguments:
        change = {**change, "HOMERUN_SERVE_TOKEN": "my-own-token"}
    given = environ(caas, s3_server, **change)
    done = homerun("deploy", *arguments, **given)
    assert done.returncode == code and message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert s3_server.secret_key not in done.stderr
    assert caas.count("POST", "") == 0


@pytest.mark.parametrize(
    ("reply", "pin", "message"),
    [
        (Reply(404, b"gone"), None, "SCRIPT_URL answers with HTTP 404"),
        (None, "0" * 64, "does not have SCRIPT_SHA256"),
        (None, None, None),
    ],
)
def test_a_wrapper_that_no_box_would_run_is_told_before_a_box_is_paid(
    reply: Reply | None, pin: str | None, message: str | None
) -> None:
    with FakeGist() as service:
        name = service.write({"train_and_upload.py": b"print(1)"})
        if reply:
            service.fail("GET", "/raw/", reply)
        given = {"SCRIPT_URL": service.raw(name, revision=service.revision(name)), "SCRIPT_SHA256": pin or ""}
        if message is None:
            check_wrapper(given)
            check_wrapper({"SCRIPT_URL": service.raw(name), "SCRIPT_SHA256": "0" * 64})  # it may lag behind the gist
            check_wrapper({})
        else:
            with pytest.raises(RequestError, match=message):
                check_wrapper(given)


@pytest.mark.s3
def test_deploy_list_logs_destroy(caas: FakeCaaS, s3_server: s3.Server) -> None:
    caas.lines = ["hello from the box", f"a leak {s3_server.secret_key}"]
    given = environ(caas, s3_server, HOMERUN_SERVE_TOKEN="my-own-token")
    done = homerun("deploy", "--detach", "--max-cost", "140", "--run-id", "speedrun-x", **given)
    assert done.returncode == 0, done.stderr
    id = done.stdout.strip()
    assert caas.deployments[id]["name"] == "speedrun-x" and "my-own-token" not in done.stderr
    again = homerun("deploy", "--detach", "--max-cost", "140", "--run-id", "speedrun-x", **given)
    assert again.returncode == 2 and "deployed already" in again.stderr and caas.count("POST", "/deploy") == 1
    listed = homerun("deployments", "--json", **given)
    assert [(each["id"], each["minutes_left"]) for each in json.loads(listed.stdout)] == [(id, 300)]
    logs = homerun("deployments", "--logs", id, **given)
    assert logs.stdout == "hello from the box\na leak [R2_SECRET_ACCESS_KEY]\n"
    for command in (["deployments", "--logs", "nosuch"], ["extend", "nosuch", "2", "--max-cost", "60"]):
        unknown = homerun(*command, **given)
        assert unknown.returncode == 2 and unknown.stderr.startswith("error: there is no deployment nosuch")
    assert homerun("destroy", "nosuch", "--yes", **given).returncode == 3
    assert homerun("destroy", id, **given).returncode == 2
    assert homerun("destroy", id, "--yes", **given).returncode == 0
    assert caas.deployments[id]["status"] == "termination requested"


def test_the_documented_curl_sends_what_deploy_would(caas: FakeCaaS) -> None:
    given = environ(caas, HARDWARE_ID="203", LOCATION_ID="1", HOURS="5", GPUS="8", HOMERUN_RUN_ID="speedrun-curl")
    given |= {"HOMERUN_DEADLINE": "2026-11-21T07:31:00Z", "HOMERUN_SERVE_TOKEN": "my-own-token"}
    done = homerun("render", "caas", **given)
    assert CANARY not in done.stdout and "[R2_SECRET_ACCESS_KEY]" in done.stdout
    guide = (ROOT / "docs" / "caas.md").read_text()
    lines = [line for line in guide.splitlines() if line.startswith("key() ") or "--with-secrets | curl" in line]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)], env={**given, "PATH": path}, check=True, cwd=ROOT
    )
    body = caas.bodies[0]
    assert body["container_config"]["secret_env_variables"]["R2_SECRET_ACCESS_KEY"] == CANARY
    assert body["resource_private_name"] == "speedrun-curl"


def test_render_needs_what_only_a_price_query_can_know() -> None:
    done = homerun("render", "caas", **ENVIRON)
    assert (
        done.returncode == 2 and "needs HARDWARE_ID, HOMERUN_DEADLINE, HOMERUN_SERVE_TOKEN, HOURS, IMAGE" in done.stderr
    )
    assert homerun("render", "sky", IMAGE="me/image:1", **ENVIRON).returncode == 0


# Publishing


def test_publish_prints_a_pin_that_a_box_accepts(tmp_path: Path) -> None:
    wrapper = tmp_path / "train_and_upload.py"
    wrapper.write_text("print('one')\n")
    fetch: Any = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location("fetch", ROOT / "entrypoint" / "fetch.py")  # type: ignore[arg-type]
    )
    assert spec and spec.loader
    spec.loader.exec_module(fetch)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    key = (tmp_path / "key.pub").read_text()
    with FakeGist() as gist:
        given = {"GITHUB_TOKEN": gist.token, **gist.environ}
        done = homerun("publish", str(wrapper), "--json", "--sign", str(tmp_path / "key"), **given)
        assert done.returncode == 0, done.stderr
        first = json.loads(done.stdout)
        assert first["sha256"] == hashlib.sha256(b"print('one')\n").hexdigest()
        pin = {"SCRIPT_URL": first["pinned"], "SCRIPT_SHA256": first["sha256"], "SCRIPT_PUBKEY": key, **gist.environ}
        assert fetch.fetch(pin)[0] == b"print('one')\n"
        wrapper.write_text("print('two')\n")
        shown = homerun("publish", str(wrapper), "--gist", first["gist"], **given)
        assert shown.stdout.splitlines()[0] == f"export SCRIPT_URL={first['latest']}"
        assert fetch.fetch({"SCRIPT_URL": first["latest"], **gist.environ})[0] == b"print('two')\n"
        assert fetch.fetch(pin)[0] == b"print('one')\n"


@pytest.mark.parametrize(
    ("content", "change", "message", "code"),
    [
        ("print(1)", {"GITHUB_TOKEN": ""}, "GITHUB_TOKEN is not set", 2),
        ("print(1)", {"GITHUB_TOKEN": "wrong-token"}, "HTTP 401, Bad credentials", 3),
        ("def broken(:", {}, "is not valid Python", 2),
        ("", {}, "is empty", 2),
        (None, {}, "cannot be read", 2),
    ],
)
def test_publish_refuses_with_one_line(
    tmp_path: Path, content: str | None, change: dict[str, str], message: str, code: int
) -> None:
    wrapper = tmp_path / "train_and_upload.py"
    if content is not None:
        wrapper.write_text(content)
    with FakeGist() as gist:
        done = homerun("publish", str(wrapper), **{"GITHUB_TOKEN": gist.token, **gist.environ, **change})
    assert done.returncode == code and message in done.stderr and done.stderr.count("\n") == 1
    assert not gist.gists


def test_every_name_in_the_template_is_a_setting_or_made_by_deploy() -> None:
    made = {
        "HARDWARE_ID",
        "LOCATION_ID",
        "HOURS",
        "GPUS",
        "IMAGE",
        "REGISTRY_USERNAME",
        "REGISTRY_SECRET",
        "HOMERUN_AFTER",
        "HOMERUN_ALLOW_BAKED",
    }
    assert names(TEMPLATE) - made <= {name.upper() for name in Settings.model_fields}
