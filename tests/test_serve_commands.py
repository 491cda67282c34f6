"""`homerun serve`, `chat` and `export` on runs: on this machine, in the bucket, with upstream's code fetched or not."""

import asyncio
import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import httpx
import pytest
from typer.testing import CliRunner

from homerun.cli import build
from homerun.commands._models import find_checkout, find_source
from homerun.serve.checkpoints import find_checkpoints
from homerun.serve.ours import load_ours
from homerun.serve.talk import Talk
from homerun.settings import Settings
from homerun.upstream.guard import processes
from tests.running import wait_until
from tests.serve_tree import make_tree
from tests.web_run import RUN, make_run

TOKEN = "tok-canary-0123456789"


def test_a_run_on_this_machine_is_found_by_the_beginning_of_its_name(tmp_path):
    make_run(tmp_path / "runs" / RUN)
    source = find_source(Settings.load({"HOMERUN_DIR": str(tmp_path)}), RUN[:12])
    assert source.folder == source.run_dir == tmp_path / "runs" / RUN


def test_a_run_in_the_bucket_is_brought_home_once_and_answers(tmp_path, monkeypatch):
    """A folder bucket filled by the uploader's own code, then the local run is gone."""
    from homerun.bucket.outbox import Outbox, describe
    from homerun.bucket.push import push

    settings = Settings.load({"HOMERUN_DIR": str(tmp_path)})
    run = make_run(tmp_path / "runs" / RUN)
    (run / "metadata.json").write_text(json.dumps({"run": RUN}))
    tree, outbox = run / "home/.cache/nanochat", Outbox(run / "outbox")
    for group, step, paths in (
        ("tokenizer", None, [tree / "tokenizer/tokenizer.pkl"]),
        ("base_checkpoints/d2/000010", 10, sorted((tree / "base_checkpoints/d2").iterdir())),
        ("chatsft_checkpoints/d2/000010", 10, sorted((tree / "chatsft_checkpoints/d2").iterdir())),
    ):
        files = [describe(run, str(path.relative_to(run)), str(path.relative_to(tree))) for path in paths]
        kind = {"keep": "always"} if step is None else {"keep": "checkpoint", "step": step}
        outbox.offer("artifact", group, phase="chat_sft", files=files, **kind)
    assert not push(settings, run, lambda lease: None, lambda error: None).failed
    shutil.rmtree(run)
    monkeypatch.setenv("HOMERUN_DIR", str(tmp_path))
    assert [c.stage for c in find_checkpoints(find_source(settings, RUN, every=True).folder)] == ["sft", "base"]
    shutil.rmtree(tmp_path / "models")
    for _ in range(2):
        done = CliRunner().invoke(build(["chat"]), ["chat", RUN, "-p", "the fox?", "--max-tokens", "4", "--seed", "1"])
        assert done.exit_code == 0, done.exception
        assert done.stdout.strip()
    assert [c.id for c in find_checkpoints(tmp_path / "models" / RUN)] == ["sft-d2-000010"]


def test_upstreams_code_is_fetched_as_metadata_says_and_its_lack_is_told(tmp_path, capsys):
    settings = Settings.load({"HOMERUN_DIR": str(tmp_path / "home")})
    repository = tmp_path / "upstream"
    (repository / "runs").mkdir(parents=True)
    (repository / "runs/speedrun.sh").write_text("echo\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], cwd=repository, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout.strip()
    tree = make_tree(tmp_path / "tree")
    source = find_source(settings, str(tree))
    assert find_checkout(settings, source, None) is None  # no metadata: nobody says that upstream had a part
    (tree / "metadata.json").write_text(json.dumps({"upstream": {"url": str(repository), "commit": commit}}))
    assert (find_checkout(settings, source, None) / "runs/speedrun.sh").is_file()
    (tree / "metadata.json").write_text(json.dumps({"upstream": {"url": str(tmp_path / "gone"), "commit": commit}}))
    assert find_checkout(settings, source, None) is None and "cannot be had" in capsys.readouterr().err


def serve(tree, *arguments, stderr, **environ):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOMERUN")}
    command = [sys.executable, "-m", "homerun", "serve", str(tree), "--port", "0", "--device", "cpu", *arguments]
    return subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL, env={**kept, **environ})


@pytest.mark.slow
def test_serve_answers_a_token_of_the_environment_and_ends_on_term(tmp_path):
    process = serve(make_tree(tmp_path), stderr=subprocess.PIPE, HOMERUN_SERVE_TOKEN=TOKEN)
    line = process.stderr.readline().decode()
    url = re.search(r"http://127.0.0.1:\d+", line)[0]
    assert TOKEN not in line
    ask = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.post(f"{url}/v1/chat/completions", json=ask, headers=headers, timeout=60).status_code == 200
    assert httpx.get(f"{url}/v1/models").status_code == 401
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert TOKEN not in process.stderr.read().decode()


@pytest.mark.slow
def test_a_token_is_made_for_a_terminal_and_for_nothing_else(tmp_path):
    tree = make_tree(tmp_path)
    blind = serve(tree, stderr=subprocess.PIPE)
    said = b"".join(blind.stderr.readline() for _ in range(3)).decode()
    assert "token=" not in said and "only /healthz answers" in said
    url = re.search(r"http://127.0.0.1:\d+", said)[0]
    assert httpx.get(f"{url}/healthz").status_code == 200 and httpx.get(f"{url}/v1/models").status_code == 401
    blind.terminate()
    blind.wait()
    master, terminal = pty.openpty()
    seen = serve(tree, stderr=terminal)
    said = ""
    until = time.monotonic() + 60
    while "api_key" not in said and time.monotonic() < until:
        said += os.read(master, 4096).decode()
    url, token = re.search(r"(http://127.0.0.1:\d+)/chat#token=(\S+)", said).groups()
    assert httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    seen.terminate()
    seen.wait()


def test_a_conversation_goes_on_until_an_empty_line(tmp_path):
    tree = make_tree(tmp_path)
    arguments = ["chat", str(tree), "--max-tokens", "6", "--seed", "1", "--device", "cpu"]

    def talk(words: str) -> list[str]:
        done = CliRunner().invoke(build(["chat"]), arguments, input=words)
        assert done.exit_code == 0, done.exception
        return done.stdout.splitlines()

    first, second, again = talk("the fox?\nand then?\n/new\nthe fox?\n\nnot asked\n")
    assert first == again != second  # a conversation is remembered, and forgotten when told to


def test_an_answer_that_is_interrupted_stays_in_the_conversation(tmp_path):
    engine = load_ours(find_checkpoints(make_tree(tmp_path))[0], "cpu")

    async def main() -> list[str]:
        talk = Talk(engine, 0.6, 50, 200, seed=1)
        async with contextlib.aclosing(talk.say("the fox?")) as pieces:
            said = await anext(pieces)
        talk.max_tokens = 3
        async for _ in talk.say("and then?"):
            pass
        assert talk.messages[1]["content"] == said
        return [message["role"] for message in talk.messages]

    try:
        assert asyncio.run(main()) == ["user", "assistant"] * 2
    finally:
        engine.close()


@pytest.mark.slow
def test_ctrl_c_at_the_prompt_ends_the_talk_at_once(tmp_path):
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "homerun", "chat", str(make_tree(tmp_path)), "--device", "cpu"]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    said = b""
    while b"> " not in said:
        said += os.read(master, 4096)
    # C's fgets misses a signal that comes between the prompt and its read: no person is that fast, a test is.
    assert wait_until(lambda: processes()[process.pid].state == "S")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


@pytest.mark.parametrize("command", ["serve", "chat", "export"])
def test_a_run_that_is_nowhere_is_an_error_with_a_next_step(tmp_path, monkeypatch, command):
    monkeypatch.setenv("HOMERUN_DIR", str(tmp_path))
    more = [str(tmp_path / "out")] if command == "export" else []
    done = CliRunner().invoke(build([command]), [command, "no-such-run", *more])
    assert done.exception is not None and "no-such-run" in str(done.exception)
