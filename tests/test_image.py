"""The image, really built and really run: as nobody, read-only, out of memory, stopped, killed, with wrong keys.

    pytest -m docker tests/test_image.py

It wants a Docker engine (DOCKER_HOST). On Debian, as root, it starts one of its own (.ci/docker-engine.sh) in
HOMERUN_DOCKER_DIR; HOMERUN_TEST_IMAGE names an image that is built already.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright

from homerun.bucket import restore
from homerun.bucket.manifest import whole_steps
from tests import fake_upstream, s3
from tests.fakes.caas import FakeCaaS
from tests.fakes.gist import FakeGist

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.s3, pytest.mark.timeout(900)]
ROOT = Path(__file__).parent.parent
CANARY = "canary0secret0of0the0image0test"
LONG = '{"base_train": "--num-iterations=1500 --sleep=0.02 --save-every=50"}'


def docker(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """A Docker engine, or a skip that says what is missing."""
    if shutil.which("docker") and docker("version", check=False).returncode == 0:
        yield
        return
    folder = os.environ.get("HOMERUN_DOCKER_DIR")
    if not folder or os.geteuid() != 0:
        pytest.skip("no Docker engine answers; as root on Debian, HOMERUN_DOCKER_DIR=/var/tmp/engine starts one")
    script = str(ROOT / ".ci" / "docker-engine.sh")
    for step in ("up", "base"):
        subprocess.run(["bash", script, folder, step], check=True)
    for line in (Path(folder) / "env").read_text().removeprefix("export ").split():
        name, _, value = line.partition("=")
        os.environ[name] = value.replace("$PATH", os.environ["PATH"])
    yield
    subprocess.run(["bash", script, folder, "down"], check=False)


def standin() -> list[str]:
    """Build arguments for the base that stands in for nvidia/cuda where there is no registry."""
    found = docker("image", "inspect", "cuda-standin", check=False).returncode == 0
    return ["--network", "host", "--build-arg", "BASE_IMAGE=cuda-standin"] if found else []


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    if name := os.environ.get("HOMERUN_TEST_IMAGE"):
        return name
    docker("build", *standin(), "-f", "Dockerfile.training", "-t", "nanochat-training:test", ".", cwd=ROOT)
    return "nanochat-training:test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.serve(tmp_path_factory.mktemp("s3")) as running:
        yield running


class Box:
    """A container of the image with the tiny upstream mounted, on the host's network."""

    def __init__(self, image: str, server: s3.Server, folder: Path, *flags: str, **environ: str):
        self.name = f"homerun-test-{uuid.uuid4().hex[:8]}"
        self.run_id = environ.get("HOMERUN_RUN_ID", self.name)
        self.store = server.store()
        upstream, self.faults = folder / "upstream", folder / "faults"
        if not upstream.exists():
            fake_upstream.make(upstream)
            self.faults.mkdir()
            self.faults.chmod(0o777)
        settings = {
            **server.environ(),
            "HOMERUN_RUN_ID": self.run_id,
            "HOMERUN_UPSTREAM": "/upstream",
            "HOMERUN_PASS_ENV": "FAULTS",
            "FAULTS": "/faults",
            "NPROC_PER_NODE": "0",
            "HOMERUN_PORT": "0",
            "WANDB_API_KEY": CANARY,
            "WANDB_MODE": "disabled",
            **environ,
        }
        env = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
        mounts = ["-v", f"{upstream}:/upstream:ro", "-v", f"{self.faults}:/faults"]
        docker("create", "--name", self.name, "--network", "host", *env, *mounts, *flags, image)

    def start(self) -> None:
        docker("start", self.name)

    def wait(self, seconds: float = 240) -> int:
        return int(docker("wait", self.name, timeout=seconds).stdout)

    @property
    def log(self) -> str:
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    @property
    def state(self) -> dict[str, Any]:
        return json.loads(docker("inspect", "--format", "{{json .State}}", self.name).stdout)

    def secured(self) -> int:
        """The newest step of base training that a run could go on from, -1 if there is none."""
        return max(whole_steps(restore.read_manifest(self.store, self.run_id), "base_checkpoints/d4"), default=-1)

    def until_secured(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while self.secured() < 0:
            assert time.monotonic() < deadline and self.state["Running"], self.log[-3000:]
            time.sleep(0.2)

    def events(self, tmp_path: Path) -> list[dict[str, Any]]:
        path = tmp_path / "journal.jsonl"
        restore.restore_journal(self.store, self.run_id, path)
        return [json.loads(line) for line in path.read_text().splitlines()]

    def is_proven(self) -> bool:
        verdicts = list(restore.verify(self.store, self.run_id))
        return restore.run_info(self.store, self.run_id).good and all(each.verdict == "ok" for each in verdicts)


@pytest.fixture
def box(image: str, server: s3.Server, tmp_path: Path) -> Iterator[Any]:
    boxes: list[Box] = []

    def make(*flags: str, **environ: str) -> Box:
        boxes.append(Box(image, server, tmp_path, *flags, **environ))
        return boxes[-1]

    yield make
    for each in boxes:
        docker("rm", "-f", "-v", each.name, check=False)


HARDENED = [
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--memory",
    "1g",
]


def test_the_structure_test_passes(image: str) -> None:
    tool = Path(sys.executable).parent / "container-structure-test"
    test = [tool, "test", "--image", image, "--config", "container-structure-test.yaml"]
    done = subprocess.run(test, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def test_from_the_gist_to_a_proven_model_as_nobody_on_a_read_only_root(box: Any, tmp_path: Path) -> None:
    with FakeGist() as gist:
        name = gist.write({"train_and_upload.py": (ROOT / "train_and_upload.py").read_bytes()})
        flags = [*HARDENED, "--user", "4242", "--mount", "type=volume,dst=/data"]
        running = box(*flags, SCRIPT_URL=gist.raw(name), **gist.environ)
        running.start()
        assert running.wait() == 0, running.log[-3000:]
        begun = next(event for event in running.events(tmp_path) if event["type"] == "attempt.begin")
        assert begun["wrapper"]["revision"] == gist.revision(name) and begun["wrapper"]["gist"] == name
    assert running.is_proven()
    keys = {entry.key for entry in restore.read_manifest(running.store, running.run_id).entries.values()}
    assert {"tokenizer/tokenizer.pkl", "chatsft_checkpoints/d4/model_000010.pt"} <= keys
    secrets = [CANARY.encode(), s3.KEYS["full"][1].encode()]
    for head in running.store.list(running.run_id + "/"):
        data = running.store.get(head.key)[0]
        assert not any(secret in data for secret in secrets), head.key
    assert not any(secret.decode() in running.log for secret in secrets)


def test_no_secret_is_in_any_layer(image: str, tmp_path: Path) -> None:
    """A canary in the build's environment, and in files that must not be in the build's context."""
    context = tmp_path / "context"
    shutil.copytree(ROOT, context, ignore=shutil.ignore_patterns(".venv", ".git", "tests", ".*cache*", "*.pyc"))
    for place in (".env", "homerun.env", "id_ed25519", "docs/key", ".aws"):
        (context / place).write_text(CANARY)
    environ = {**os.environ, "R2_SECRET_ACCESS_KEY": CANARY, "WANDB_API_KEY": CANARY}
    docker(
        "build",
        *standin(),
        "-f",
        "Dockerfile.training",
        "-t",
        "nanochat-training:canary",
        ".",
        cwd=context,
        env=environ,
    )
    saved = tmp_path / "image.tar"
    docker("save", "-o", str(saved), "nanochat-training:canary")
    found = subprocess.run(["grep", "-c", "-a", CANARY, str(saved)], capture_output=True, text=True)
    assert found.stdout.strip() == "0"
    assert CANARY not in docker("history", "--no-trunc", "nanochat-training:canary").stdout
    docker("rmi", "nanochat-training:canary")


def test_stop_flushes_and_leaves_with_143_and_a_start_goes_on(box: Any, tmp_path: Path) -> None:
    running = box(*HARDENED, "--mount", "type=volume,dst=/data", HOMERUN_PHASE_ARGS=LONG, HOMERUN_SAVE_MINUTES="0.05")
    running.start()
    running.until_secured()
    docker("stop", "-t", "60", running.name)
    assert running.state["ExitCode"] == 143, running.log[-3000:]
    secured = running.secured()
    running.start()
    assert running.wait() == 0, running.log[-3000:]
    assert running.is_proven()
    second = [event for event in running.events(tmp_path) if event["type"] == "attempt.begin"][1]
    assert second["resumed_from"]["step"] == secured >= 50


HOG = """
for process in /proc/[0-9]*; do [ $process = /proc/$$ ] || echo 1000 > $process/oom_score_adj; done
exec python3 -c 'hog = []
while True: hog.append(bytearray(1 << 24))'
"""


def test_a_box_killed_for_memory_goes_on_in_a_new_one_with_an_empty_disk(box: Any, tmp_path: Path) -> None:
    """Something beside the job eats all memory, and the kernel takes everyone else first: the job, the entrypoint."""
    first = box("--memory", "600m", "--memory-swap", "600m", HOMERUN_PHASE_ARGS=LONG, HOMERUN_SAVE_MINUTES="0.05")
    first.start()
    first.until_secured()
    docker("exec", first.name, "bash", "-c", HOG, check=False)
    assert first.wait() == 137 and first.state["OOMKilled"]
    docker("rm", "-f", "-v", first.name)
    second = box(HOMERUN_RUN_ID=first.run_id, HOMERUN_PHASE_ARGS=LONG, HOMERUN_SAVE_MINUTES="0.05")
    second.start()
    assert second.wait(400) == 0, second.log[-3000:]
    assert second.is_proven()
    attempts = [e for e in second.events(tmp_path) if e["type"] == "attempt.begin"]
    assert len(attempts) == 2 and attempts[1]["resumed_from"]["step"] >= 50


EATER = """
from pathlib import Path
import os
place = Path(os.environ["FAULTS"], "eat")
if place.exists():
    place.unlink()
    hog = []
    while True:
        hog.append(bytearray(1 << 24))
"""


def test_running_out_of_memory_costs_the_phase_not_the_run(box: Any, tmp_path: Path) -> None:
    running = box("--memory", "600m", "--memory-swap", "600m", HOMERUN_AFTER="hold")
    module = tmp_path / "upstream" / "scripts" / "base_eval.py"
    module.write_text(EATER + module.read_text())
    (running.faults / "eat").touch()
    (running.faults / "eat").chmod(0o666)
    running.start()
    deadline = time.monotonic() + 240
    while "holding the box" not in running.log:
        assert time.monotonic() < deadline and running.state["Running"], running.log[-3000:]
        time.sleep(0.5)
    assert "starting it again in 10 s (1 of 2)" in running.log
    assert "the job ended with 0; holding" in running.log
    assert running.is_proven() and len({e["attempt"] for e in running.events(tmp_path)}) == 2
    docker("stop", "-t", "10", running.name)
    assert running.state["ExitCode"] == 0


@pytest.mark.parametrize(
    ("change", "says", "code"),
    [
        ({"R2_SECRET_ACCESS_KEY": "wrong-secret-key"}, "403 Forbidden", 3),
        ({"R2_BUCKET_NAME": ""}, "R2_BUCKET_NAME not set although", 2),
        ({"SCRIPT_SHA256": "0" * 64}, "but SCRIPT_SHA256 is", 3),
        ({"SCRIPT_URL": "http://127.0.0.1:9/x.py", "SCRIPT_SHA256": "0" * 64}, "Connection refused, 3 times", 3),
    ],
)
def test_what_is_wrong_is_said_before_any_training(box: Any, change: dict[str, str], says: str, code: int) -> None:
    running = box(**change)
    running.start()
    assert running.wait(120) == code, running.log[-3000:]
    assert says in running.log and "Traceback" not in running.log
    assert not list(running.store.list(running.run_id + "/tokenizer"))


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["--help"], "Usage: homerun", 0),
        (["plan", "--help"], "Usage: homerun plan", 0),
        (["shell", "-c", "echo $HOME; id -u"], "/data/home\n10001", 0),
        (["shell", "-c", "exit 7"], "", 7),
        (["python3", "-c", "import homerun, boto3, fastapi, wandb; print('imported')"], "imported", 0),
        (["nosuch"], "error: 'nosuch' is neither a homerun command nor a program", 2),
    ],
)
def test_what_the_image_is_asked_for_is_what_it_does(image: str, arguments: list[str], says: str, code: int) -> None:
    done = docker("run", "--rm", "--network", "host", image, *arguments, check=False)
    assert done.returncode == code and says in done.stdout + done.stderr


def test_secrets_may_come_from_files(box: Any, tmp_path: Path, server: s3.Server) -> None:
    secret = tmp_path / "secret"
    secret.write_text(server.secret_key + "\n")
    secret.chmod(0o644)
    running = box(
        "-v", f"{secret}:/run/secrets/r2:ro", R2_SECRET_ACCESS_KEY="", R2_SECRET_ACCESS_KEY_FILE="/run/secrets/r2"
    )  # fmt: skip
    running.start()
    assert running.wait() == 0, running.log[-3000:]


SHORT_TOY = {
    "base_train": "--num-iterations=6 --eval-every=6 --save-every=6 --eval-tokens=2048",
    "base_eval": "--split-tokens=2048",
    "chat_sft": "--num-iterations=40",  # enough to learn who it is: 14 CPU seconds
    "chat_eval": "-x 4",
}
CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
)


@pytest.fixture(scope="session")
def image_with_torch(engine: None) -> str:
    """EXTRAS=serve,train; PyTorch from the folder of PIP_FIND_LINKS where there is one."""
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    context = ["--build-context", f"wheels={wheels}"] if Path(wheels).is_dir() and wheels else []
    extras = ["--build-arg", "EXTRAS=serve,train"]
    name = "nanochat-training:torch"
    docker("build", *standin(), *context, *extras, "-f", "Dockerfile.training", "-t", name, ".", cwd=ROOT)
    return name


def health(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as reply:
        return reply.read().decode()


@pytest.mark.browser
def test_kept_alive_it_ends_in_a_chat_page_that_answers(
    image_with_torch: str, server: s3.Server, tmp_path: Path
) -> None:
    """The toy recipe, shortened; then a real browser talks to what it trained; TERM ends it with the run's code."""
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no Chromium: apt-get install chromium")
    port = s3.free_ports(1)[0]
    settings = {
        "HOMERUN_SCRIPT": "/opt/homerun/recipes/toy.sh",
        "HOMERUN_PHASE_ARGS": json.dumps(SHORT_TOY),
        "KEEP_ALIVE": "true",
        "HOMERUN_PORT": str(port),
        "HOMERUN_SERVE_TOKEN": "serve-token-of-test",
    }
    running = Box(
        image_with_torch,
        server,
        tmp_path,
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--mount",
        "type=volume,dst=/data",
        **settings,
    )
    try:
        running.start()
        deadline = time.monotonic() + 300
        while not running.is_proven():
            assert time.monotonic() < deadline and running.state["Running"], running.log[-3000:]
            time.sleep(1)
        assert '"good"' in health(port)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS.split())
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/chat")
            assert page.locator("#words").count() == 0  # not without the token
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/chat#token=serve-token-of-test")
            page.locator("#words").fill("Who are you?")
            page.locator("#send").click()
            answer = page.locator("#messages li").nth(1)
            expect(answer).to_contain_text("homerun", timeout=60_000)  # in each answer that it was taught
            browser.close()
        docker("stop", "-t", "30", running.name)
        assert running.state["ExitCode"] == 0
    finally:
        docker("rm", "-f", "-v", running.name, check=False)


def test_from_deploy_to_a_model_at_home(image: str, server: s3.Server, tmp_path: Path) -> None:
    """The whole way: `homerun deploy` against a fake CaaS that really runs the box, then `pull` and `verify`."""
    upstream = fake_upstream.make(tmp_path / "upstream")
    port = s3.free_ports(1)[0]
    order = json.loads((ROOT / "caas_deployment.json").read_text())
    order["container_config"]["traffic_port"] = port
    order["container_config"]["env_variables"]["HOMERUN_PORT"] = str(port)
    file = tmp_path / "deployment.json"
    file.write_text(json.dumps(order))
    name = f"homerun-test-{uuid.uuid4().hex[:8]}"

    def launch(body: dict[str, Any]) -> None:
        config = body["container_config"]
        settings = {**config["env_variables"], **config["secret_env_variables"]}
        env = [word for key, value in settings.items() for word in ("--env", f"{key}={value}")]
        argv = config["entrypoint"]
        mount = ["-v", f"{upstream}:/upstream:ro", "--network", "host"]
        docker(
            "run",
            "-d",
            "--name",
            name,
            *env,
            *mount,
            "--entrypoint",
            argv[0],
            body["registry_config"]["image_url"],
            *argv[1:],
        )

    with FakeCaaS() as caas, FakeGist() as gist:
        caas.launch = launch
        wrapper = gist.write({"train_and_upload.py": (ROOT / "train_and_upload.py").read_bytes()})
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            **server.environ(),
            "IMAGE": image,
            "IOCLOUD_API_KEY": caas.key,
            "CAAS_API_URL": caas.api,
            "SCRIPT_URL": gist.raw(wrapper),
            "HOMERUN_UPSTREAM": "/upstream",
            "NPROC_PER_NODE": "0",
            "HOMERUN_SERVE_TOKEN": "serve-token-of-test",
            "WANDB_API_KEY": CANARY,
        }
        # Where the fake gist is, is no business of a deployment file: only this test's box needs to know.
        order["container_config"]["env_variables"] |= gist.environ
        file.write_text(json.dumps(order))

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "homerun", *arguments]
            return subprocess.run(
                command, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=400
            )

        try:
            done = run("deploy", str(file), "--max-cost", "140", "--run-id", name)
            log = docker("logs", name).stderr
            assert done.returncode == 0, done.stderr + log[-3000:]
            assert f"{name} is home, proven" in done.stderr and CANARY not in done.stdout + done.stderr
            assert docker("inspect", "--format", "{{.State.Running}}", name).stdout == "true\n"
            assert run("verify", name).returncode == 0
            assert run("pull", name, str(tmp_path / "model"), "--inference").returncode == 0
            assert (tmp_path / "model" / "chatsft_checkpoints" / "d4" / "model_000010.pt").exists()
        finally:
            docker("rm", "-f", "-v", name, check=False)


def test_build_and_push_checks_builds_tests_and_prints_what_to_type(image: str) -> None:
    with FakeGist() as gist:
        name = gist.write({"train_and_upload.py": (ROOT / "train_and_upload.py").read_bytes()})
        environ = {**os.environ, **gist.environ, "BUILD_ARGS": " ".join(standin())}
        command = ["./build_and_push.sh", "someone", gist.raw(name), "dry", "--dry-run"]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout == f"export IMAGE=someone/nanochat-training:dry SCRIPT_URL={gist.raw(name)}\n"
        assert "not pushed" in done.stderr
        label = docker("inspect", "--format", "{{json .Config.Labels}}", "someone/nanochat-training:dry").stdout
        assert json.loads(label)["org.opencontainers.image.revision"] != "unknown"
        told = docker("inspect", "--format", "{{json .Config.Env}}", "someone/nanochat-training:dry").stdout
        assert "HOMERUN_IMAGE=docker.io/someone/nanochat-training:dry" in json.loads(told)
        gist.gists.clear()
        broken = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
        assert broken.returncode == 3 and "HTTP 404" in broken.stderr
    docker("rmi", "someone/nanochat-training:dry")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["someone"], "./build_and_push.sh USER GIST_URL [TAG]"),
        (["Some One", "https://x"], "is no registry account"),
        (["someone", "https://x", "a b"], "is no image tag"),
        (["someone", "https://x", "--push"], "--push is no option"),
    ],
)
def test_build_and_push_refuses_wrong_arguments(arguments: list[str], says: str) -> None:
    done = subprocess.run(["./build_and_push.sh", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr
