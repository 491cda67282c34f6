"""The image's entrypoint without an image: fetch.py against a fake gist service, box.py as a real process."""

import functools
import hashlib
import http.server
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.fakes.gist import FakeGist, blob_sha1
from tests.fakes.http import Reply
from tests.fakes.runpod import FakeRunPod

ENTRYPOINT = Path(__file__).parent.parent / "entrypoint"
OLD, NEW = b"print('old')\n", b"print('new')\n"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ENTRYPOINT / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fetch = _load("fetch")


@pytest.fixture
def gist(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGist]:
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    with FakeGist() as service:
        yield service


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# fetch.py: which content, and is it what it should be?


def test_the_newest_revision_is_fetched_although_the_unpinned_raw_url_is_stale(gist: FakeGist) -> None:
    name = gist.write({"train_and_upload.py": OLD})
    gist.write({"train_and_upload.py": NEW}, name)
    data, record = fetch.fetch({"SCRIPT_URL": gist.raw(name), **gist.environ})
    assert data == NEW
    assert record["revision"] == gist.revision(name) and record["gist"] == name
    assert record["sha256"] == sha256(NEW) and record["blob_sha1"] == blob_sha1(NEW)
    assert record["url"].endswith(f"/raw/{gist.revision(name)}/train_and_upload.py")


def test_a_pinned_revision_is_fetched_without_the_api(gist: FakeGist) -> None:
    name = gist.write({"train_and_upload.py": OLD})
    gist.write({"train_and_upload.py": NEW}, name)
    data, record = fetch.fetch({"SCRIPT_URL": gist.raw(name, revision=gist.revision(name, 0)), **gist.environ})
    assert data == OLD and record["revision"] == gist.revision(name, 0)
    assert gist.count("GET", "^/gists/") == 0


def test_a_used_up_api_limit_is_got_around_by_git(gist: FakeGist) -> None:
    name = gist.write({"train_and_upload.py": NEW})
    gist.limit()
    data, record = fetch.fetch({"SCRIPT_URL": gist.raw(name), **gist.environ})
    assert data == NEW and record["revision"] == gist.revision(name)


def test_a_gist_page_url_works_when_the_gist_has_one_file_and_lists_them_when_it_has_more(gist: FakeGist) -> None:
    name = gist.write({"train_and_upload.py": NEW})
    page = f"{gist.url}/{gist.user}/{name}"
    assert fetch.fetch({"SCRIPT_URL": page, **gist.environ})[0] == NEW
    gist.write({"notes.md": b"hello"}, name)
    with pytest.raises(fetch.BadRequestError, match=r"holds train_and_upload\.py, notes\.md"):
        fetch.fetch({"SCRIPT_URL": page, **gist.environ})


def test_a_wrong_pin_never_runs_and_nothing_stands_in_for_it(gist: FakeGist, tmp_path: Path) -> None:
    name = gist.write({"train_and_upload.py": NEW})
    environ = {
        "SCRIPT_URL": gist.raw(name),
        "SCRIPT_SHA256": sha256(OLD),
        "HOMERUN_ALLOW_BAKED": "true",
        **gist.environ,
    }
    with pytest.raises(fetch.RefusedError, match="but SCRIPT_SHA256 is"):
        fetch.obtain(environ, tmp_path / "wrapper")
    assert not (tmp_path / "wrapper").exists()
    assert fetch.obtain({**environ, "SCRIPT_SHA256": sha256(NEW).upper()}, tmp_path / "wrapper")[0].read_bytes() == NEW


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(200, b"<!DOCTYPE html><p>sign in"), "web page"),
        (Reply(200, b"print(1)", {"Content-Type": "text/html"}), "web page"),
        (Reply(200, b"def broken(:\n"), "not valid Python, line 1"),
        (Reply(200, b"print(1)\0"), "not valid Python"),
        (Reply(200, b"  \n"), "is empty"),
        (Reply(200, b"#" * ((1 << 20) + 1)), "more than 1048576 bytes"),
        (Reply(302, b"", {"Location": "http://elsewhere.invalid/x"}), "another host"),
    ],
)
def test_what_is_not_a_wrapper_is_refused_even_where_the_baked_copy_is_allowed(
    gist: FakeGist, tmp_path: Path, reply: Reply, message: str
) -> None:
    name = gist.write({"train_and_upload.py": NEW})
    url = gist.raw(name, revision=gist.revision(name))  # pinned: no blob name from the API to catch it first
    gist.fail("GET", "/raw/", reply, times=9)
    with pytest.raises(fetch.RefusedError, match=message):
        fetch.obtain({"SCRIPT_URL": url, "HOMERUN_ALLOW_BAKED": "true", **gist.environ}, tmp_path)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(500, b"oops"), "HTTP 500, 3 times"),
        (Reply(429, b"slow down"), "rate limit is used up"),
        (Reply(404, b"gone"), "was the gist deleted"),
        (Reply(200, b"print('half", {"Content-Length": "400"}), "cut off after 11 bytes, 3 times"),
        (Reply(lose=True), "3 times"),
    ],
)
def test_a_failed_fetch_says_why_and_the_baked_copy_stands_in_only_when_allowed(
    gist: FakeGist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply, message: str
) -> None:
    baked = tmp_path / "baked.py"
    baked.write_bytes(OLD)
    monkeypatch.setattr(fetch, "BAKED", baked)
    name = gist.write({"train_and_upload.py": NEW})
    gist.fail("GET", "/raw/", reply, times=9)
    environ = {"SCRIPT_URL": gist.raw(name), **gist.environ}
    with pytest.raises(fetch.FetchError, match=message):
        fetch.obtain(environ, tmp_path)
    path, record = fetch.obtain({**environ, "HOMERUN_ALLOW_BAKED": "true"}, tmp_path)
    assert path.read_bytes() == OLD and record["sha256"] == sha256(OLD) and message in record["fallback"]
    assert json.loads((tmp_path / "wrapper.json").read_text()) == record
    with pytest.raises(fetch.RefusedError):  # the pin counts for the baked copy too
        fetch.obtain({**environ, "HOMERUN_ALLOW_BAKED": "true", "SCRIPT_SHA256": sha256(NEW)}, tmp_path)


def test_a_hiccup_of_the_service_is_survived(gist: FakeGist) -> None:
    name = gist.write({"train_and_upload.py": NEW})
    gist.fail("GET", "/raw/", Reply(502, b"<html>bad gateway"), times=2)
    assert fetch.fetch({"SCRIPT_URL": gist.raw(name), **gist.environ})[0] == NEW


def test_content_that_changed_after_the_revision_was_resolved_is_refused(gist: FakeGist) -> None:
    name = gist.write({"train_and_upload.py": NEW})
    gist.fail("GET", "/raw/", Reply(200, OLD))
    with pytest.raises(fetch.RefusedError, match="but the gist says"):
        fetch.fetch({"SCRIPT_URL": gist.raw(name), **gist.environ})


@pytest.mark.parametrize(
    "url", ["ftp://x/y.py", "http://example.com/y.py", "train.py", "https://gist.github.com/karpathy"]
)
def test_a_url_that_cannot_be_right_is_a_wrong_request(url: str) -> None:
    with pytest.raises(fetch.BadRequestError, match="SCRIPT_URL is"):
        fetch.fetch({"SCRIPT_URL": url})


def test_another_host_needs_a_pin(gist: FakeGist) -> None:
    url = gist.raw(gist.write({"train_and_upload.py": NEW}))
    other = {
        "GIST_API_URL": "https://a.invalid",
        "GIST_RAW_URL": "https://b.invalid",
        "GIST_GIT_URL": "https://c.invalid",
    }
    with pytest.raises(fetch.BadRequestError, match="Set SCRIPT_SHA256 or SCRIPT_PUBKEY"):
        fetch.fetch({"SCRIPT_URL": url, **other})
    data, record = fetch.fetch({"SCRIPT_URL": url, "SCRIPT_SHA256": sha256(NEW), **other})
    assert data == NEW and record["revision"] is None


def _keygen(folder: Path, name: str) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    return (folder / f"{name}.pub").read_text().strip()


def test_a_signed_wrapper_keeps_newest_and_a_wrong_or_missing_signature_never_runs(
    gist: FakeGist, tmp_path: Path
) -> None:
    key, other = _keygen(tmp_path, "key"), _keygen(tmp_path, "other")
    script = tmp_path / "train_and_upload.py"
    script.write_bytes(NEW)
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", str(tmp_path / "key"), "-n", "homerun", str(script)],
        check=True,
        capture_output=True,
    )
    signature = (tmp_path / "train_and_upload.py.sig").read_bytes()
    name = gist.write({"train_and_upload.py": NEW, "train_and_upload.py.sig": signature})
    environ = {"SCRIPT_URL": gist.raw(name), "SCRIPT_PUBKEY": key, **gist.environ}
    data, record = fetch.fetch(environ)
    assert data == NEW and record["signed"] is True
    with pytest.raises(fetch.RefusedError, match="does not match SCRIPT_PUBKEY"):
        fetch.fetch({**environ, "SCRIPT_PUBKEY": other})
    gist.write({"train_and_upload.py": NEW + b"import evil\n"}, name)
    with pytest.raises(fetch.RefusedError, match="does not match SCRIPT_PUBKEY"):
        fetch.fetch(environ)
    unsigned = gist.write({"train_and_upload.py": NEW})
    with pytest.raises(fetch.FetchError, match="HTTP 404"):
        fetch.fetch({**environ, "SCRIPT_URL": gist.raw(unsigned)})
    with pytest.raises(fetch.BadRequestError, match="neither"):
        fetch.fetch({**environ, "SCRIPT_PUBKEY": "hello"})


@pytest.mark.skipif(shutil.which("minisign") is None, reason="no minisign: apt-get install minisign")
def test_minisign_signs_as_well(gist: FakeGist, tmp_path: Path) -> None:
    for name in ("key", "other"):
        pair = ["-p", f"{tmp_path}/{name}.pub", "-s", f"{tmp_path}/{name}"]
        subprocess.run(["minisign", "-G", "-W", *pair], check=True, capture_output=True)
    key, other = ((tmp_path / f"{name}.pub").read_text().splitlines()[1] for name in ("key", "other"))
    script = tmp_path / "train_and_upload.py"
    script.write_bytes(NEW)
    subprocess.run(["minisign", "-S", "-s", tmp_path / "key", "-m", script], check=True, capture_output=True)
    signature = (tmp_path / "train_and_upload.py.minisig").read_bytes()
    name = gist.write({"train_and_upload.py": NEW, "train_and_upload.py.minisig": signature})
    environ = {"SCRIPT_URL": gist.raw(name), "SCRIPT_PUBKEY": key, **gist.environ}
    data, record = fetch.fetch(environ)
    assert data == NEW and record["signed"] is True
    with pytest.raises(fetch.RefusedError, match="does not match SCRIPT_PUBKEY"):
        fetch.fetch({**environ, "SCRIPT_PUBKEY": other})
    gist.write({"train_and_upload.py": NEW + b"import evil\n"}, name)
    with pytest.raises(fetch.RefusedError, match="does not match SCRIPT_PUBKEY"):
        fetch.obtain({**environ, "HOMERUN_ALLOW_BAKED": "true"}, tmp_path / "wrapper")
    assert not (tmp_path / "wrapper").exists()


# box.py: a real process, its port, its signals


class Box:
    """A running box.py with a wrapper of the test's own."""

    def __init__(self, tmp_path: Path, wrapper: str, **environ: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        root = tmp_path / "image"
        (root / "entrypoint").mkdir(parents=True)
        for name in ("box.py", "fetch.py"):
            source = (ENTRYPOINT / name).read_text().replace("RESTART_AFTER_S = 10.0", "RESTART_AFTER_S = 0.1")
            source = source.replace("(30.0, 60.0, 120.0, 240.0, 480.0)", "(0.1, 0.1)")
            (root / "entrypoint" / name).write_text(source)
        (root / "train_and_upload.py").write_text(wrapper)
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HOMERUN_DIR": str(tmp_path / "homerun"),
            "HOMERUN_PORT": str(self.port),
            "TMP_OF_TEST": str(tmp_path),
            **environ,
        }
        self.process = subprocess.Popen(
            [sys.executable, str(root / "entrypoint" / "box.py"), "--flag"],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def signal(self, number: int) -> None:
        """To the whole process group, as `tini -g` does."""
        os.killpg(self.process.pid, number)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def until(self, text: str) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if text in line:
                return
        raise AssertionError(f"never said {text!r}")

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Any]:
    boxes: list[Box] = []

    def start(wrapper: str, **environ: str) -> Box:
        boxes.append(Box(tmp_path, wrapper, **environ))
        return boxes[-1]

    yield start
    for each in boxes:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def test_the_port_answers_while_the_wrapper_is_fetched_and_then_belongs_to_the_wrapper(box: Any) -> None:
    server = """
import os, socket
listener = socket.socket(fileno=int(os.environ["HOMERUN_PORT_FD"]))
connection, _ = listener.accept()
connection.recv(1000)
connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 11\\r\\n\\r\\nthe wrapper")
connection.close()
"""
    with FakeGist() as gist:
        name = gist.write({"train_and_upload.py": server.encode()})
        with gist.lock:  # the fetch hangs until the lock is free
            running = box("", SCRIPT_URL=gist.raw(name), **gist.environ)
            deadline = time.monotonic() + 20
            while True:
                try:
                    assert running.get("/healthz") == (200, '{"status": "fetching"}\n')
                    break
                except OSError:
                    assert time.monotonic() < deadline
            assert running.get("/")[0] == 503
        running.until("wrapper http")
        assert running.get("/") == (200, "the wrapper")
        assert running.end()[0] == 0


def test_the_wrapper_gets_its_arguments_and_its_record_and_its_exit_code_passes(box: Any, tmp_path: Path) -> None:
    wrapper = """
import json, os, sys
record = json.load(open(os.environ["HOMERUN_WRAPPER_RECORD"]))
print("got", sys.argv[1:], record["sha256"], record["url"].startswith("file://"))
sys.exit(6)
"""
    code, output = box(wrapper).end()
    assert code == 6
    assert f"got ['--flag'] {sha256(wrapper.encode())} True" in output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_wrapper_once_and_its_answer_passes(box: Any, number: int, code: int) -> None:
    wrapper = f"""
import signal, sys, time
caught = []
signal.signal({int(number)}, lambda *_: caught.append(1))
print("ready", flush=True)
while not caught:
    time.sleep(0.01)
time.sleep(0.3)
print("caught", len(caught), flush=True)
sys.exit({code})
"""
    running = box(wrapper, HOMERUN_AFTER="hold")
    running.until("ready")
    running.signal(number)
    status, output = running.end()
    assert status == code and "caught 1" in output


def test_a_signal_during_the_fetch_ends_the_box_at_once(box: Any) -> None:
    with FakeGist() as gist, gist.lock:
        running = box("", SCRIPT_URL=gist.raw("0" * 32), **gist.environ)
        while True:
            try:
                running.get("/healthz")
                break
            except OSError:
                time.sleep(0.02)
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 143


def test_a_killed_wrapper_is_137_and_is_not_restarted_by_default(box: Any) -> None:
    code, output = box("import os; print('start', flush=True); os.kill(os.getpid(), 9)").end()
    assert code == 137 and output.count("start\n") == 1


COUNTED = """
import os, pathlib, sys
log = pathlib.Path(os.environ["TMP_OF_TEST"], "starts")
starts = len(log.read_text()) if log.exists() else 0
log.write_text("x" * (starts + 1))
codes = [int(code) for code in os.environ["CODES"].split()]
code = codes[min(starts, len(codes) - 1)]
os.kill(os.getpid(), 9) if code == 137 else sys.exit(code)
"""


@pytest.mark.parametrize(
    ("codes", "starts", "final"),
    [("137 1 0", 3, 0), ("4 4 4", 3, 4), ("3", 1, 3), ("6", 1, 6), ("5", 1, 5), ("0", 1, 0)],
)
def test_a_held_box_starts_a_crashed_job_again_but_never_one_that_has_decided(
    box: Any, tmp_path: Path, codes: str, starts: int, final: int
) -> None:
    running = box(COUNTED, CODES=codes, HOMERUN_AFTER="hold")
    running.until(f"the job ended with {final}; holding")
    assert len((tmp_path / "starts").read_text()) == starts
    assert running.get("/healthz") == (200, json.dumps({"status": "held", "code": final}) + "\n")
    assert running.process.poll() is None
    running.signal(signal.SIGTERM)
    assert running.end()[0] == final


@pytest.mark.parametrize(("code", "gone"), [(0, True), (6, False)])
def test_a_runpod_pod_ends_itself_deleted_after_success_and_stopped_otherwise(
    box: Any, tmp_path: Path, code: int, gone: bool
) -> None:
    with FakeRunPod() as cloud:
        pod = cloud.add_pod()
        environ = {"RUNPOD_POD_ID": pod, "RUNPOD_API_KEY": cloud.key, "RUNPOD_API_URL": cloud.url + "/v1"}
        if code:  # any secret may come from a file
            (tmp_path / "key").write_text(environ.pop("RUNPOD_API_KEY") + "\n")
            environ["RUNPOD_API_KEY_FILE"] = str(tmp_path / "key")
        assert box(COUNTED, CODES=str(code), HOMERUN_AFTER="stop", **environ).end()[0] == code
        assert (pod not in cloud.pods) == gone
        assert gone or cloud.pods[pod]["desiredStatus"] == "EXITED"


def test_a_box_that_cannot_end_itself_says_so(box: Any) -> None:
    code, output = box("pass", HOMERUN_AFTER="stop").end()
    assert code == 0 and "END THIS BOX YOURSELF" in output


def test_wrong_settings_of_the_box_are_one_line(box: Any) -> None:
    code, output = box("", HOMERUN_AFTER="never").end()
    assert (code, output) == (2, "error: HOMERUN_AFTER is 'never'. Set it to exit, hold or stop\n")


def test_a_taken_port_is_one_line(tmp_path: Path, box: Any) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        code, output = box("", HOMERUN_PORT=str(other.getsockname()[1])).end()
    assert code == 2 and output.startswith("error: HOMERUN_PORT is") and output.count("\n") == 1


def test_a_failed_fetch_is_exit_3_and_one_line(box: Any) -> None:
    with FakeGist() as gist:
        code, output = box("print('baked')", SCRIPT_URL=gist.raw("0" * 32), **gist.environ).end()
    assert code == 3 and "baked" not in output and output.count("\n") == 1


@pytest.mark.parametrize(
    ("reply", "says", "asked"),
    [
        (Reply(429, b"slow down"), "the job ended with 0; holding", 3),
        (Reply(200, b"<html>sign in"), "the job ended with 3; holding", 1),
    ],
)
def test_a_box_that_would_only_hold_asks_again_for_what_it_could_not_have_never_for_what_it_refused(
    box: Any, reply: Reply, says: str, asked: int
) -> None:
    with FakeGist() as gist:
        name = gist.write({"train_and_upload.py": b"print('here at last')"})
        url = gist.raw(name, revision=gist.revision(name))
        gist.fail("GET", "/raw/", reply, times=2)
        running = box("", SCRIPT_URL=url, HOMERUN_AFTER="hold", **gist.environ)
        running.until(says)
        assert gist.count("GET", "/raw/") == asked
        running.signal(signal.SIGTERM)
        running.end()


@pytest.mark.slow
def test_a_wrapper_with_dependencies_is_run_by_uv_with_them(box: Any, tmp_path: Path) -> None:
    package = tmp_path / "greeting"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "greeting"\nversion = "1"\n'
    )
    (package / "backend.py").write_text(
        """
import zipfile, pathlib
def build_wheel(folder, config=None, metadata=None):
    name = "greeting-1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("greeting.py", "text = 'newer'")
        wheel.writestr("greeting-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: greeting\\nVersion: 1\\n")
        tags = "Root-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("greeting-1.dist-info/WHEEL", "Wheel-Version: 1.0\\n" + tags)
        wheel.writestr("greeting-1.dist-info/RECORD", "")
    return name
"""
    )
    wrapper = f"""# /// script
# dependencies = ["greeting @ file://{package}"]
# ///
import greeting, os, signal, socket, sys, time
socket.socket(fileno=int(os.environ["HOMERUN_PORT_FD"]))
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
print("ready", greeting.text, sys.argv[1:], flush=True)
while not caught:
    time.sleep(0.05)
time.sleep(0.5)
print("caught", len(caught))
sys.exit(143)
"""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    running = box(wrapper, PATH=path, UV_CACHE_DIR=str(tmp_path / "uv"))
    running.until("ready newer ['--flag']")
    running.signal(signal.SIGTERM)
    status, output = running.end()
    assert status == 143 and "caught 1" in output


# The linters, each a real binary

SCRIPTS = ["build_and_push.sh", "entrypoint/docker-entrypoint.sh", "entrypoint/prewarm.sh", ".ci/run"]


@pytest.mark.parametrize(
    "command", [["hadolint", "Dockerfile.training"], ["shellcheck", "-x", *SCRIPTS], ["shfmt", "-d", *SCRIPTS[:3]]]
)
def test_the_linters_have_nothing_to_say(command: list[str]) -> None:
    tool = Path(sys.executable).parent / command[0]
    done = subprocess.run([tool, *command[1:]], cwd=ENTRYPOINT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# prewarm.sh

KERNELS = """
import os, pathlib
def get_kernel(name):
    place = pathlib.Path(os.environ["HOME"], ".cache/huggingface/hub/models--" + name.replace("/", "--"))
    if name == "someone/attention":
        place.mkdir(parents=True)
        (place / "kernel.so").touch()
    raise OSError("no GPU here")
"""


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Path]:
    """A git repository whose one dependency, `kernels`, is served over HTTP while the fixture's server lives."""
    wheels, source = tmp_path / "wheels", tmp_path / "source"
    wheels.mkdir()
    source.mkdir()
    with zipfile.ZipFile(wheels / "kernels-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("kernels.py", KERNELS)
        wheel.writestr("kernels-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: kernels\nVersion: 1\n")
        wheel.writestr("kernels-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("kernels-1.dist-info/RECORD", "")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(wheels))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    index = f"http://127.0.0.1:{server.server_port}/"
    (source / "pyproject.toml").write_text(
        f'[project]\nname = "u"\nversion = "1"\nrequires-python = ">=3.10"\ndependencies = ["kernels"]\n'
        f'[tool.uv]\nno-index = true\nfind-links = ["{index}"]\n'
    )
    git = ["git", "-C", str(source), "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    yield source
    server.shutdown()
    server.server_close()


def _prewarm(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {"PATH": path, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), "UV_PYTHON": sys.executable}
    command = [str(ENTRYPOINT / "prewarm.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def test_a_prewarmed_cache_is_all_that_upstreams_environment_needs(upstream: Path, tmp_path: Path) -> None:
    def sync_offline(home: str) -> int:
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / home), "UV_PYTHON": sys.executable}
        command = [Path(sys.executable).parent / "uv", "sync", "-q", "--offline", "--project", upstream]
        return subprocess.run(command, env=environ, capture_output=True).returncode

    done = _prewarm(tmp_path, upstream, "main", "someone/attention")
    assert done.returncode == 0, done.stderr
    assert sync_offline("elsewhere") != 0
    assert sync_offline("home") == 0
    assert list((tmp_path / "home").rglob("kernel.so"))
    assert not list(tmp_path.glob("tmp.*"))  # upstream's own folder stays out of the image


def test_what_cannot_be_prewarmed_fails_the_build_in_one_line(upstream: Path, tmp_path: Path) -> None:
    done = _prewarm(tmp_path, upstream, "main", "someone/gone")
    assert done.returncode == 2 and "error: the kernel 'someone/gone' did not come" in done.stderr
    done = _prewarm(tmp_path, upstream, "0123456")
    assert done.returncode == 2 and "error: PREWARM_REF is '0123456'" in done.stderr


# docker-entrypoint.sh


def _shell(script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f"source {ENTRYPOINT}/docker-entrypoint.sh\n{script}"]
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def test_sourcing_the_entrypoint_runs_nothing() -> None:
    done = _shell("echo sourced")
    assert (done.returncode, done.stdout, done.stderr) == (0, "sourced\n", "")


def test_an_unwritable_folder_is_replaced_and_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = _shell(f"HOMERUN_DIR={tmp_path}/file/x; writable_or HOMERUN_DIR {tmp_path}/y; echo $HOMERUN_DIR")
    assert done.stdout == f"{tmp_path}/y\n" and "which is lost with the box" in done.stderr
    done = _shell(f"HOMERUN_DIR={tmp_path}/file/x; writable_or HOMERUN_DIR {tmp_path}/file/z; echo on")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: HOMERUN_DIR is")


@pytest.mark.parametrize(
    ("arguments", "becomes"),
    [
        ("", "python3 box.py"),
        ("train", "python3 box.py"),
        ("train --skip x", "python3 box.py --skip x"),
        ("--skip x", "python3 box.py --skip x"),
        ("--help", "homerun --help"),
        ("shell -c ls", "bash -c ls"),
        ("true 1", "true 1"),
        ("plan --json", "homerun plan --json"),
    ],
)
def test_arguments_become_the_program_that_they_name(tmp_path: Path, arguments: str, becomes: str) -> None:
    stub = 'exec() { echo "${@/$HERE\\//}"; exit; }; homerun() { [ "$1" = plan ]; }; HOME=$T HOMERUN_DIR=$T;'
    done = _shell(f"{stub} _main {arguments}", T=str(tmp_path))
    assert (done.stdout, done.stderr) == (becomes + "\n", "")


def test_an_unknown_command_is_one_line(tmp_path: Path) -> None:
    done = _shell("homerun() { false; }; HOME=$T HOMERUN_DIR=$T; _main tarin", T=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("error: 'tarin' is neither") and done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user without a name")
def test_a_user_without_a_name_gets_one(tmp_path: Path) -> None:
    script = f"source {ENTRYPOINT}/docker-entrypoint.sh; HOME=/tmp HOMERUN_DIR=/tmp; prepare; "
    script += "python3 -c 'import getpass; print(getpass.getuser())'"
    command = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", "bash", "-c", script]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.stdout == "homerun\n", done.stderr
