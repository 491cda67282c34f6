"""Port 8000 without a browser: who gets in, what the run's JSON says, logs of any size, limits."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from homerun.curve import POINTS
from homerun.journal import Journal
from homerun.serve.loading import open_models
from homerun.state import RunState
from homerun.web import guard
from homerun.web.app import Site, create_app
from homerun.web.board import Board, snapshot
from homerun.web.logs import Logs
from homerun.web.metrics import render
from homerun.web.server import environment
from tests.serve_live import live
from tests.web_run import RUN, make_run

TOKEN = "tok-canary-0123456789"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


def site_of(run: Path, models: bool = True) -> Site:
    return Site(Board(run / "journal.jsonl"), Logs(run), open_models(run, "cpu") if models else None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / RUN)


@pytest.fixture(scope="module")
def url(run):
    with live(create_app(site_of(run), TOKEN)) as url:
        wait_for(lambda: httpx.get(f"{url}/api/run", headers=AUTH).json()["status"] == "good")
        yield url


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.05)


# -- the token -----------------------------------------------------------------------------------------------------


def test_nothing_but_healthz_answers_without_the_token(run, url):
    assert httpx.get(f"{url}/healthz").json() == {"ok": True, "status": "good"}
    paths = [
        "/",
        "/chat",
        "/metrics",
        "/openapi.json",
        "/api/run",
        "/api/events",
        "/api/logs",
        "/v1/models",
        "/nowhere",
    ]
    for path in [*paths, "/static/run.js", "/api/log?name=x", "//healthz", "/healthz/", "/static/../api/run", "/v1/"]:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "homerun=wrong"}, {"Authorization": TOKEN}):
            answer = httpx.get(url + path, headers=headers)
            assert answer.status_code in (401, 429), (path, headers)
            assert RUN not in answer.text
    assert httpx.post(f"{url}/v1/chat/completions", json={}).status_code == 401


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch):
    monkeypatch.setattr(guard.Bucket, "take", lambda self, client, now: True)


def test_the_token_lets_in_by_header_and_by_cookie(url):
    assert httpx.get(f"{url}/v1/models", headers=AUTH).status_code == 200
    with httpx.Client(base_url=url) as browser:
        assert browser.post("/login", json={"token": "wrong"}).status_code == 401
        answer = browser.post("/login", json={"token": TOKEN})
        cookie = answer.headers["set-cookie"]
        assert (
            answer.status_code == 200 and "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
        )
        assert browser.get("/api/run").json()["run"] == RUN


@pytest.mark.parametrize("shown", [TOKEN[:-1], TOKEN + "x", TOKEN.upper(), TOKEN[1:], TOKEN[:-1] + "0", "*"])
def test_a_token_that_is_nearly_right_is_wrong(url, shown):
    assert httpx.get(f"{url}/api/run", headers={"Authorization": f"Bearer {shown}"}).status_code == 401
    assert httpx.get(f"{url}/api/run", headers={"Cookie": f"homerun={shown}"}).status_code == 401
    assert httpx.post(f"{url}/login", json={"token": shown}).status_code == 401


def test_a_browser_without_the_token_is_asked_for_it(url):
    answer = httpx.get(f"{url}/chat", headers={"Accept": "text/html"})
    assert answer.status_code == 401 and "<form" in answer.text


def test_without_any_token_nobody_gets_in(run):
    with live(create_app(site_of(run, models=False), None)) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer None"}, {"Cookie": "homerun="}):
            assert httpx.get(f"{url}/", headers=headers).status_code == 401
        empty = guard.Guard(None, "")._cookie()
        assert httpx.get(f"{url}/", headers={"Cookie": f"homerun={empty}"}).status_code == 401
        assert httpx.post(f"{url}/login", json={"token": ""}).status_code == 401


def test_a_public_status_shows_the_page_but_neither_log_nor_chat(run):
    with live(create_app(site_of(run), None, public_status=True)) as url:
        for path in ("/", "/api/run", "/metrics", "/static/run.js", "/static/plot.js"):
            assert httpx.get(url + path).status_code == 200, path
        for path in ("/api/logs", "/api/log?name=logs/a01/0003-base_train.log", "/chat", "/v1/models", "/openapi.json"):
            assert httpx.get(url + path).status_code == 401, path


@pytest.mark.parametrize("offered", [10, 40, 1000])
def test_a_client_has_its_rate_whatever_it_asks_for(monkeypatch, offered):
    monkeypatch.undo()
    bucket = guard.Bucket(rate=20, burst=5)
    taken = sum(bucket.take("a", second + i / offered) for second in range(10) for i in range(offered))
    assert abs(taken - min(offered * 10, 5 + 200)) <= 1 and bucket.take("b", 10)


@pytest.mark.slow
def test_wrong_tokens_and_floods_are_slowed_down(monkeypatch, run):
    monkeypatch.undo()
    app = create_app(site_of(run, models=False), TOKEN)
    app.requests.rate, app.guesses.rate = 1.0, 0.0
    with live(app) as url:
        codes = [httpx.get(f"{url}/api/run", headers={"Authorization": f"Bearer {i}"}).status_code for i in range(20)]
        assert codes[0] == 401 and codes[-1] == 429
        codes = [httpx.post(f"{url}/login", json={"token": "x"}).status_code for i in range(3)]
        assert codes[-1] == 429
        with httpx.Client(headers=AUTH) as client:
            codes = [client.get(f"{url}/api/run").status_code for _ in range(int(guard.BURST) + 20)]
        assert codes[0] == 200 and 429 in codes
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_the_token_is_in_no_page_and_no_log(url, capfd):
    with httpx.Client(base_url=url, headers=AUTH) as client:
        for path in ("/", "/chat", "/api/run", "/metrics", "/openapi.json", "/api/logs", "/static/chat.js"):
            assert TOKEN not in client.get(path).text
        client.post("/login", json={"token": TOKEN})
    out, err = capfd.readouterr()
    assert TOKEN not in out + err


def test_other_sites_pages_are_not_served(url):
    answer = httpx.get(f"{url}/api/run", headers={**AUTH, "Origin": "https://evil.example"})
    assert not any(name.lower().startswith("access-control") for name in answer.headers)
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = httpx.post(f"{url}/v1/chat/completions", headers={**AUTH, "Origin": origin}, json={})
        assert answer.status_code == 403
    assert httpx.post(f"{url}/v1/chat/completions", headers={**AUTH, "Origin": url}, json={}).status_code == 400
    preflight = httpx.options(f"{url}/v1/models", headers={"Origin": "https://evil.example"})
    assert preflight.status_code != 200


def test_every_answer_forbids_foreign_scripts_and_frames(url):
    for path in ("/", "/chat", "/login", "/healthz", "/nowhere"):
        headers = httpx.get(url + path, headers=AUTH).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


# -- sizes and garbage -----------------------------------------------------------------------------------------------


def test_an_oversized_body_is_refused_announced_or_not(url):
    big = b"x" * (guard.MOST_BYTES + 1)
    path = f"{url}/v1/chat/completions"
    assert httpx.post(path, content=big, headers=AUTH).status_code == 413

    def pieces():
        for _ in range(20):
            yield b"y" * (guard.MOST_BYTES // 10)

    assert httpx.post(path, content=pieces(), headers=AUTH).status_code == 413
    assert httpx.get(f"{url}/api/run", headers=AUTH).status_code == 200


def test_garbage_on_the_wire_does_not_end_the_server(url):
    host, port = urlsplit(url).hostname, urlsplit(url).port
    for garbage in (
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /login HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with socket.create_connection((host, port)) as connection:
            connection.sendall(garbage)
            connection.settimeout(2)
            with contextlib.suppress(OSError):
                connection.recv(1000)
    connection = HTTPConnection(host, port)
    connection.request("GET", "/api/run", headers={**AUTH, "Content-Length": "abc"})
    assert connection.getresponse().status in (400, 200)
    assert httpx.post(f"{url}/login", content=b"\xff{", headers={"content-type": "application/json"}).status_code == 400
    assert httpx.get(f"{url}/healthz").status_code == 200


# -- the run -------------------------------------------------------------------------------------------------------


def test_the_run_is_told_as_the_journal_has_it(url):
    run = httpx.get(f"{url}/api/run", headers=AUTH).json()
    assert run["run"] == RUN and run["status"] == "good" and run["code"] == 0
    assert [(p["phase"], p["state"]) for p in run["phases"]] == [
        (n, "ok") for n in ("dataset", "tok_train", "base_train")
    ]
    assert run["attempts"][0]["next"] == "homerun serve latest" and run["chat"] is True
    secured = {group["group"]: group["secured_at"] is not None for group in run["groups"]}
    assert secured == {"base_checkpoints/d20/000250": True, "base_checkpoints/d20/000300": False}
    curves = httpx.get(f"{url}/api/curves", headers=AUTH).json()["curves"]
    assert len(curves["base_train/loss"]) == 300 and curves["base_train/val_bpb"][-1][0] == 250


def test_a_running_run_shows_what_is_planned_and_what_could_be_lost(tmp_path):
    board = Board(make_run(tmp_path / "r", ended=False, model=False) / "journal.jsonl")
    while board.refresh():
        pass
    now = board.state.updated + 1
    run = snapshot(board.state, now)
    assert run["status"] == "running" and run["phases"][-1] == {"phase": "chat_sft", "state": "planned"}
    assert run["gauge"]["lost_usd"] == 0.52 and run["money"]["usd"] > 0 and run["time"]["phase_left_seconds"] > 0
    json.dumps(run)
    silent = snapshot(board.state, now + 3600)
    assert silent["status"] == "silent" and silent["money"]["usd"] < 0.1  # a machine that is gone costs no more


def test_an_empty_run_is_about_to_begin(tmp_path):
    board = Board(tmp_path / "journal.jsonl")
    assert not board.refresh() and snapshot(board.state)["status"] == "starting"


def read_events(lines, kinds):
    """The next event of each kind."""
    found, kind = {}, None
    for line in lines:
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: ") and kind in kinds:
            found.setdefault(kind, json.loads(line[6:]))
            if len(found) == len(kinds):
                return found
    raise AssertionError(f"the stream ended with {set(found)}")


def test_a_page_that_follows_sees_new_points_and_only_those(tmp_path):
    run = make_run(tmp_path / "r", ended=False, model=False, steps=50)
    with live(create_app(site_of(run, models=False), TOKEN)) as url:
        wait_for(lambda: httpx.get(f"{url}/api/run", headers=AUTH).json()["seq"] > 50)
        with httpx.stream("GET", f"{url}/api/events", headers=AUTH, timeout=20) as stream:
            lines = stream.iter_lines()
            first = read_events(lines, {"run", "curves"})
            assert len(first["curves"]["curves"]["base_train/loss"]) == 50
            journal = Journal(run / "journal.jsonl", 1)
            journal.emit("step", phase="base_train", step=50, loss=1.5)
            journal.close()
            assert read_events(lines, {"points"})["points"] == {
                "base_train/loss": [[50, pytest.approx(time.time(), abs=30), 1.5]]
            }


@pytest.mark.slow
def test_a_hundred_thousand_steps_stay_small(tmp_path):
    board = Board(tmp_path / "journal.jsonl")
    with open(tmp_path / "journal.jsonl", "w") as file:
        event = {"attempt": 1, "type": "step", "phase": "base_train", "loss": 2.0, "tok_per_sec": 9, "mfu": 40.0}
        for i in range(100_000):
            file.write(json.dumps({"seq": i, "t": 1e9 + i, "step": i, **event}) + "\n")
    while board.refresh():
        pass
    assert board.seq == 99_999
    assert all(len(points) <= POINTS + 2 for points in board.curves().values())
    assert board.points_after(99_998) == {
        "base_train/" + m: [[99_999, 1e9 + 99_999, v]] for m, v in (("loss", 2.0), ("tok_per_sec", 9), ("mfu", 40.0))
    }
    assert board.points_after(5) is None


def test_the_metrics_are_what_prometheus_reads(url):
    answer = httpx.get(f"{url}/metrics", headers=AUTH)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["homerun_up", ("run", RUN), ("status", "good")] == 1
    assert samples["homerun_step", ("phase", "base_train")] == 299
    assert 0.8 < samples["homerun_eval", ("metric", "val_bpb"), ("phase", "base_train")] < 0.9
    assert samples["homerun_gpu_util", ("gpu", "7")] == 98 and samples["homerun_warnings_total",] == 1
    assert samples["homerun_secured_bytes",] == 2e9


def test_a_label_of_any_text_is_read_back_by_prometheus():
    state = RunState()
    state.run = 'a "run"\\with\nall of it'
    (family,) = [
        family for family in text_string_to_metric_families(render(state, {}, 0.0)) if family.name == "homerun_up"
    ]
    assert family.samples[0].labels["run"] == state.run


def test_the_api_describes_itself(url):
    paths = httpx.get(f"{url}/openapi.json", headers=AUTH).json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/api/run"} <= set(paths)


# -- logs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/passwd", "/etc/passwd", "logs/a01/raw/0001-base_train.log", "logs/a01/../a01/0003-base_train.log"),
        *(
            "journal.jsonl",
            "logs/a01/",
            "",
            "logs/a01/x.log\0",
            "logs/a01/link.log",
            "home/.cache",
            "logs/a01/0003-base_train.log/",
        ),
    ],
)
def test_no_name_leads_out_of_the_logs(run, url, name):
    link = run / "logs/a01/link.log"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    for path in ("/api/log", "/api/log/search", "/api/log/follow"):
        answer = httpx.get(url + path, params={"name": name, "q": "root"}, headers=AUTH)
        assert answer.status_code == 404, answer.text
    assert "sk-canary-secret" not in httpx.get(f"{url}/api/logs", headers=AUTH).text


def test_reading_windows_on_gives_the_whole_log(tmp_path):
    (tmp_path / "logs/a01").mkdir(parents=True)
    path = tmp_path / "logs/a01/0001-x.log"
    text = "".join(f"{i} {'日本語 🦊 ' * (i % 7)}\n" for i in range(3000)) + "an unfinished 🦊"
    path.write_text(text)
    logs, got, offset = Logs(tmp_path), "", 0
    while (window := logs.read("logs/a01/0001-x.log", offset, 1000))["text"]:
        got, offset = got + window["text"], window["next"]
    assert got == text
    wide = tmp_path / "logs/a01/0002-y.log"
    wide.write_text("日🦊" * 2000)  # one line, cut in the middle of characters
    got, offset = "", 0
    while (window := logs.read("logs/a01/0002-y.log", offset, 1000))["text"]:
        got, offset = got + window["text"], window["next"]
    assert got == "日🦊" * 2000
    tail = logs.read("logs/a01/0001-x.log", -500)["text"]
    assert text.endswith(tail) and 0 < len(tail.encode()) <= 500 and text[: -len(tail)].endswith("\n")


def test_a_line_without_an_end_is_read_all_the_same(tmp_path):
    (tmp_path / "logs/a01").mkdir(parents=True)
    (tmp_path / "logs/a01/0001-x.log").write_bytes(b"a" * 300_000 + b"\xf0\x9f\xa6")
    logs, offset, got = Logs(tmp_path), 0, 0
    while (window := logs.read("logs/a01/0001-x.log", offset, 4096))["text"]:
        offset, got = window["next"], got + len(window["text"])
        assert got <= 300_001
    assert got >= 300_000


def test_a_search_finds_every_line_with_the_words_across_blocks(tmp_path):
    (tmp_path / "logs/a01").mkdir(parents=True)
    with open(tmp_path / "logs/a01/0001-x.log", "w") as file:
        for i in range(300_000):
            file.write(f"step {i} | loss: 3.14159 | nothing to see{' NEEDLE' if i % 1000 == 7 else ''}\n")
    logs, offset, hits = Logs(tmp_path), 0, []
    while offset is not None:
        found = logs.search("logs/a01/0001-x.log", "needle", offset)
        hits, offset = hits + found["hits"], found["next"]
    assert [int(hit["text"].split()[1]) for hit in hits] == list(range(7, 300_000, 1000))
    assert logs.read("logs/a01/0001-x.log", hits[5]["offset"], 100)["text"].startswith("step 5007 ")


def test_following_a_log_gives_what_is_added_and_nothing_twice(tmp_path):
    run = make_run(tmp_path / "r", ended=False, model=False, steps=5)
    name = "logs/a01/0003-base_train.log"
    before = (run / name).read_text()
    with live(create_app(site_of(run, models=False), TOKEN)) as url:
        query = f"{url}/api/log/follow?name={name}&offset=0"
        with httpx.stream("GET", query, headers=AUTH, timeout=20) as stream:
            lines = stream.iter_lines()
            got = read_events(lines, {"log"})["log"]["text"]
            with open(run / name, "a") as file:
                file.write("one more\n")
            got += read_events(lines, {"log"})["log"]["text"]
    assert got == before + "one more\n"


# -- the process ---------------------------------------------------------------------------------------------------


def start(run, *arguments, **environ):
    return subprocess.Popen(
        [sys.executable, "-m", "homerun.web", str(run), *arguments],
        env={**os.environ, "HOMERUN_SERVE_TOKEN": TOKEN, "HOMERUN_PORT": "0", **environ},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[int(arguments[1])] if arguments else [],
    )


def test_the_process_serves_on_an_inherited_socket_and_ends_on_term(tmp_path):
    run = make_run(tmp_path / "r", model=False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = start(run, "--fd", str(listener.fileno()))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert httpx.get(f"{url}/healthz", timeout=30).json()["ok"]  # waited in the backlog
        assert httpx.get(f"{url}/api/run", headers=AUTH).status_code == 200
        seen = Path(f"/proc/{process.pid}/status").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM), process.stderr.read()
        assert "VmRSS" in seen


def test_a_silence_after_the_runs_end_ends_the_process_with_0(tmp_path):
    run = make_run(tmp_path / "r", model=False)
    process = start(run, HOMERUN_IDLE_MINUTES="0.01")
    assert process.wait(30) == 0


def test_a_page_that_only_stays_open_is_no_use_and_an_answer_is(run):
    site = site_of(run)
    app = create_app(site, TOKEN)
    with live(app) as url:
        wait_for(lambda: httpx.get(f"{url}/api/run", headers=AUTH).json()["chat"])
        before = app.used_at
        for path in ("/", "/chat", "/api/run", "/v1/models", "/metrics"):
            assert httpx.get(url + path, headers=AUTH).status_code == 200
        assert app.used_at == before and not site.answering()
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=AUTH, timeout=60) as stream:
            next(stream.iter_lines())
            assert app.used_at > before
        wait_for(lambda: not site.answering())


@pytest.mark.slow
def test_an_idle_page_ends_the_job_and_so_the_box(tmp_path):
    """KEEP_ALIVE holds the job after its run; HOMERUN_IDLE_MINUTES lets it go, with the run's own exit code."""
    script = tmp_path / "tiny.sh"
    script.write_text("python -c 'print(1)'\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HOMERUN")}
    environ |= {"HOMERUN_DIR": str(tmp_path / "dir"), "HOMERUN_RUN_ID": "run", "HOMERUN_PORT": "0"}
    environ |= {"KEEP_ALIVE": "true", "HOMERUN_IDLE_MINUTES": "0.01", "HOMERUN_SERVE_TOKEN": TOKEN}
    command = [sys.executable, "-m", "homerun", "train", "--script", str(script)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "page and chat stay up" in done.stdout


def test_no_key_of_the_job_reaches_the_web_process():
    keys = {
        "R2_SECRET_ACCESS_KEY": "s",
        "WANDB_API_KEY": "w",
        "HF_TOKEN": "h",
        "AWS_SECRET_ACCESS_KEY": "a",
        "PATH": "/bin",
    }
    assert environment({**keys, "HOMERUN_SERVE_TOKEN": "t"}) == {"PATH": "/bin", "HOMERUN_SERVE_TOKEN": "t"}


def test_a_taken_port_is_an_error_that_says_what_to_type(tmp_path):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        process = start(tmp_path, HOMERUN_PORT=str(other.getsockname()[1]))
        _, error = process.communicate(timeout=30)
    assert process.returncode == 2 and b"cannot be used" in error and b"Traceback" not in error


def test_chat_waits_for_the_runs_end_then_answers(tmp_path):
    run = make_run(tmp_path / "r", ended=False)
    with live(create_app(site_of(run), TOKEN)) as url:
        wait_for(lambda: httpx.get(f"{url}/api/run", headers=AUTH).json()["status"] == "running")
        ask = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        assert httpx.post(f"{url}/v1/chat/completions", json=ask, headers=AUTH).status_code == 503
        journal = Journal(run / "journal.jsonl", 1)
        journal.emit("attempt.end", code=0, reason="good", safe="all", next="")
        journal.emit("run.end", code=0, verdict="good")
        journal.close()
        wait_for(lambda: httpx.get(f"{url}/api/run", headers=AUTH).json()["chat"])
        answer = httpx.post(f"{url}/v1/chat/completions", json=ask, headers=AUTH, timeout=60)
        assert answer.status_code == 200, answer.text
    assert threading.active_count() < 60
