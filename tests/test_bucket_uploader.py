"""The uploader as the job sees it: a real process, fed through the outbox, before a folder and a real S3 server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from homerun.bucket import lease
from homerun.bucket.outbox import Outbox, describe
from homerun.bucket.restore import read_manifest, restore, restore_journal, verify
from homerun.bucket.store import open_store
from homerun.journal import Journal, replay
from homerun.settings import Settings

FAST = {"HOMERUN_SYNC_SECONDS": "0.1", "HOMERUN_UPLOAD_MINUTES": "0.02"}


class Bench:
    """A run's folder, and an uploader for it."""

    def __init__(self, dir: Path, environ: dict[str, str], run: str | None = None):
        self.environ = {"HOMERUN_DIR": str(dir), "PATH": os.environ["PATH"], **FAST, **environ}
        self.settings = Settings.load(self.environ)
        self.run = run or f"toy-{dir.parent.name}-{dir.name}"
        self.dir = dir / "runs" / self.run
        self.dir.mkdir(parents=True)
        self.store = open_store(self.settings)
        self.outbox = Outbox(self.dir / "outbox")
        self.process: subprocess.Popen | None = None
        self.attempt = 0

    def start(self, owner="me"):
        self.attempt = lease.acquire(self.store, self.run, owner).attempt
        command = [sys.executable, "-m", "homerun.bucket.uploader", str(self.dir)]
        self.process = subprocess.Popen(
            [*command, "--attempt", str(self.attempt), "--owner", owner],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environ,
        )
        return self

    def kill(self):
        assert self.process
        self.process.kill()
        self.process.wait()

    def close(self):
        """As when the job ends: its end of the lifeline closes. The uploader's exit status."""
        assert self.process
        self.process.stdin.close()
        return self.process.wait(30)

    def write(self, path: str, data: bytes) -> str:
        (self.dir / path).parent.mkdir(parents=True, exist_ok=True)
        temporary = self.dir / f"{path}.new"
        temporary.write_bytes(data)
        temporary.replace(self.dir / path)
        return path

    def offer(self, group: str, files: dict[str, bytes], kind="artifact", **about):
        described = [describe(self.dir, self.write(f"home/{key}", data), key) for key, data in files.items()]
        return self.outbox.offer(kind, group, described, **about)

    def answers(self, seconds=60.0):
        """All receipts, once nothing is pending."""
        found, end = [], time.monotonic() + seconds
        while True:
            found += self.outbox.receipts()
            if not self.outbox.pending():
                return {request.seq: receipt for request, receipt in found}
            assert time.monotonic() < end, (self.outbox.pending(), self.outbox.status())
            assert self.process and self.process.poll() in (None, 0), self.process.stderr.read().decode()
            time.sleep(0.02)

    def named(self):
        return read_manifest(self.store, self.run).entries


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def bench(request, tmp_path):
    environ = request.getfixturevalue("s3_server").environ() if request.param == "s3" else {}
    bench = Bench(tmp_path, environ)
    yield bench
    if bench.process:
        bench.process.kill()
        bench.process.wait()


def wait_for(what, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def test_a_whole_run_lands_and_success_is_the_last_word(bench, tmp_path):
    bench.start()
    journal = Journal(bench.dir / "journal.jsonl", 1)
    for step in range(100):
        journal.emit("step", phase="base_train", step=step)
    bench.write("logs/a01/0001-base_train.log", b"step 0\n")
    log = [describe(bench.dir, "logs/a01/0001-base_train.log", "logs/a01/0001-base_train.log")]
    bench.outbox.offer("open-log", "logs/a01/0001-base_train.log", log)
    bench.offer("tokenizer", {"tokenizer/tokenizer.pkl": b"tok", "tokenizer/token_bytes.pt": b"bytes"})
    for step in (100, 200, 300):
        bench.offer(
            f"base_checkpoints/d4/{step:06d}",
            {f"base_checkpoints/d4/model_{step:06d}.pt": os.urandom(1000)},
            keep="checkpoint",
            step=step,
            score=3 - step / 100,
        )
    bench.answers()
    with open(bench.dir / "logs/a01/0001-base_train.log", "ab") as file:
        file.write(b"step 1\n")
    wait_for(lambda: any("0001-base_train.log." in head.key for head in bench.store.list(f"{bench.run}/logs/")))
    log = [describe(bench.dir, "logs/a01/0001-base_train.log", "logs/a01/0001-base_train.log")]
    bench.outbox.offer("log", "logs/a01/0001-base_train.log", log)
    journal.emit("run.end", code=0, verdict="good")
    bench.write("metadata.json", b'{"status": "good"}')
    bench.outbox.offer("metadata", "metadata", [describe(bench.dir, "metadata.json", "metadata.json")])
    bench.outbox.offer("finish", "_SUCCESS")
    assert all(receipt.ok for receipt in bench.answers().values())
    journal.emit("secured", group="after the end")
    assert bench.close() == 0
    assert {verdict.verdict for verdict in verify(bench.store, bench.run)} == {"ok"}
    keys = {head.key.removeprefix(f"{bench.run}/") for head in bench.store.list(f"{bench.run}/")}
    assert {"_SUCCESS", "metadata.json", "manifest.json", "lease.json", "journal/a01-000001.jsonl"} <= keys
    assert "logs/a01/0001-base_train.log" in keys
    assert not [key for key in keys if "log.0" in key]  # its segments went when it was whole
    assert "base_checkpoints/d4/model_000100.pt" not in keys  # retention
    assert restore_journal(bench.store, bench.run, tmp_path / "journal") == 102
    assert (tmp_path / "journal").read_bytes() == (bench.dir / "journal.jsonl").read_bytes()
    assert lease.read(bench.store, bench.run).state == "released"


def test_once_the_script_is_over_the_manifest_is_written_as_soon_as_the_store_takes_it(bench):
    bench.environ["HOMERUN_SYNC_SECONDS"] = "600"
    bench.start()
    bench.offer("tokenizer", {"tokenizer/tokenizer.pkl": b"tok"})
    wait_for(lambda: bench.outbox.status().get("in_flight") == ["tokenizer"])  # sent; the manifest has just been opened
    assert not bench.outbox.receipts()
    bench.outbox.offer("over", "the script")
    assert all(receipt.ok for receipt in bench.answers(30).values())
    assert bench.named().keys() == {"tokenizer/tokenizer.pkl"}


def test_a_group_that_changed_since_it_was_offered_is_refused_and_not_named(bench):
    seq = bench.offer("tokenizer", {"tokenizer/a": b"one", "tokenizer/b": b"two"})
    gone = bench.offer("gone", {"gone": b"x"})
    bench.write("home/tokenizer/b", b"three")
    (bench.dir / "home/gone").unlink()
    bench.outbox.offer("finish", "_SUCCESS")
    answers = bench.start().answers()
    assert (answers[seq].ok, answers[seq].why) == (False, "changed")
    assert (answers[gone].ok, answers[gone].why) == (False, "gone")
    assert answers[3].why == "unproven"
    assert bench.named() == {}
    assert bench.store.head(f"{bench.run}/_SUCCESS") is None
    bench.offer("tokenizer", {"tokenizer/a": b"one", "tokenizer/b": b"four"})
    bench.offer("gone", {"gone": b"back"})
    bench.outbox.offer("finish", "_SUCCESS")
    assert all(receipt.ok for receipt in bench.answers().values())


def test_an_overwritten_checkpoint_is_never_named_with_the_old_hash(bench, tmp_path):
    bench.start()
    for data in (b"first", b"second"):
        bench.offer("c/000001", {"c/model": data, "c/meta": data}, keep="checkpoint", step=1)
        bench.answers()
        restore(bench.store, bench.run, tmp_path / data.decode(), lambda entry: True)
        assert (tmp_path / data.decode() / "c/model").read_bytes() == data


def test_a_killed_uploader_is_replaced_and_everything_still_lands(bench):
    for round in range(4):
        for number in range(5):
            bench.offer(f"g{round}-{number}", {f"g{round}-{number}": os.urandom(200_000)})
        bench.start()
        time.sleep(0.15 * round)
        bench.kill()
    bench.outbox.offer("finish", "_SUCCESS")
    assert [receipt for receipt in bench.start().answers().values() if not receipt.ok] == []
    assert len(bench.named()) == 20
    assert {verdict.verdict for verdict in verify(bench.store, bench.run)} == {"ok"}
    assert bench.store.sweep(f"{bench.run}/") == 0


def test_files_that_are_in_the_bucket_already_are_not_sent_again(bench):
    data = {"big": os.urandom(3_000_000)}
    bench.offer("g", data)
    bench.start().answers()
    before = bench.named()["big"]
    bench.kill()
    bench.offer("g", data)  # as after a restore: the same bytes in another inode
    bench.start().answers()
    assert bench.named()["big"] == before  # `at` too


def test_a_lost_lease_ends_the_uploader_with_7_and_says_so(bench):
    bench.start()
    wait_for(lambda: bench.outbox.status())
    taken = read_manifest(bench.store, bench.run)  # as another machine does that saw no beat for 120 s
    taken.attempt = 2
    bench.store.put(f"{bench.run}/manifest.json", taken.to_json())
    lease._write(bench.store, lease.Lease(bench.run, 2, "other", "elsewhere", ""))
    bench.offer("late", {"late": b"x"})
    assert bench.process.wait(30) == 7
    assert "elsewhere (attempt 2)" in bench.outbox.lost_lease()
    assert "late" not in bench.named()


def test_an_attempt_that_begins_after_success_and_changes_something_takes_success_back(bench):
    bench.offer("g", {"g": b"1"})
    bench.outbox.offer("finish", "_SUCCESS")
    bench.start().answers()
    bench.close()
    assert bench.store.head(f"{bench.run}/_SUCCESS")
    bench.offer("g", {"g": b"2"})
    bench.start("again").answers()
    assert bench.store.head(f"{bench.run}/_SUCCESS") is None


def test_the_journal_goes_on_where_an_earlier_attempt_on_another_machine_ended(bench, tmp_path):
    bench.start()
    journal = Journal(bench.dir / "journal.jsonl", 1)
    for number in range(3000):
        journal.emit("step", step=number, pad="x" * 200)
    wait_for(lambda: len(list(bench.store.list(f"{bench.run}/journal/"))) >= 3)
    journal.emit("warning", text="last")
    assert bench.close() == 0
    second = Bench(tmp_path / "second", {k: v for k, v in bench.environ.items() if k.startswith("R2")}, bench.run)
    if second.store.head(lease.key(bench.run)) is None:
        second.store = bench.store
        second.environ["HOMERUN_DIR"] = bench.environ["HOMERUN_DIR"]
    restore_journal(second.store, bench.run, second.dir / "journal.jsonl")
    second.start("second")
    resumed = Journal(second.dir / "journal.jsonl", 2)
    resumed.emit("attempt.begin")
    assert second.close() == 0
    restore_journal(bench.store, bench.run, tmp_path / "both")
    events = list(replay(tmp_path / "both"))
    assert [event["seq"] for event in events] == list(range(3002))
    assert events[-1]["attempt"] == 2


@pytest.mark.s3
def test_no_secret_reaches_a_receipt_a_status_or_the_lost_note(tmp_path, s3_server):
    secret = "canary-9c1f7a"
    environ = s3_server.environ() | {"R2_SECRET_ACCESS_KEY": secret, "R2_BUCKET_NAME": secret}
    bench = Bench(tmp_path, s3_server.environ())
    bench.start()
    bench.kill()
    bench.environ |= environ
    bench.offer("g", {"g": b"x"})
    bench.outbox.offer("finish", "_SUCCESS")
    process = subprocess.run(
        [sys.executable, "-m", "homerun.bucket.uploader", str(bench.dir), "--attempt", "1", "--owner", "me"],
        env=bench.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
    )
    assert process.returncode == 3
    assert b"R2_SECRET_ACCESS_KEY" in process.stderr
    assert secret.encode() not in process.stderr
    for path in (bench.dir / "outbox").rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, 30])
def test_a_server_that_is_away_delays_and_loses_nothing(tmp_path, seconds):
    from tests.s3 import serve

    with serve(tmp_path / "weed") as server:
        bench = Bench(tmp_path, server.environ() | {"HOMERUN_UPLOAD_MINUTES": "3"})
        bench.start()
        bench.offer("one", {"one": os.urandom(100_000)})
        bench.answers()
        bench.offer("two", {"two": os.urandom(40 << 20)})
        time.sleep(0.3)
        server.kill()
        bench.offer("three", {"three": os.urandom(100_000)})
        time.sleep(seconds)
        server.start()
        bench.outbox.offer("finish", "_SUCCESS")
        assert all(receipt.ok for receipt in bench.answers(120).values())
        assert bench.close() == 0
        assert {verdict.verdict for verdict in verify(bench.store, bench.run)} == {"ok"}
        assert bench.store.sweep(f"{bench.run}/") == 0


@pytest.mark.s3
def test_a_bucket_that_was_never_there_refuses_the_end_too(tmp_path, s3_server, s3_proxy):
    bench = Bench(tmp_path, s3_server.environ(s3_proxy.endpoint))
    s3_proxy.fault = lambda request: ("status", 404, "NoSuchBucket") if "manifest" in request.path else None
    bench.start()
    seq, finish = bench.offer("model", {"model": b"x"}), bench.outbox.offer("finish", "_SUCCESS")
    answers = bench.answers()
    assert (answers[seq].why, answers[finish].why) == ("refused", "unproven")
    assert "model" in answers[finish].text
    bench.kill()


@pytest.mark.s3
def test_a_bucket_that_is_gone_for_good_ends_with_what_is_not_in_it(tmp_path, s3_server, s3_proxy):
    bench = Bench(tmp_path, s3_server.environ(s3_proxy.endpoint))
    bench.start()
    wait_for(lambda: bench.outbox.status())
    s3_proxy.fault = lambda request: ("status", 404, "NoSuchBucket")
    seq = bench.offer("model", {"model": b"x"})
    wait_for(lambda: "NoSuchBucket" in bench.outbox.status().get("error", ""))
    assert bench.outbox.pending() and not bench.outbox.receipts()  # while the run lives it is not given up
    finish = bench.outbox.offer("finish", "_SUCCESS")
    answers = bench.answers()
    assert (answers[seq].why, answers[finish].why) == ("refused", "unproven")
    assert "R2_BUCKET_NAME" in answers[seq].text
    assert "model" in answers[finish].text
    bench.kill()
    s3_proxy.fault = None
    lease.release(bench.store, lease.read(bench.store, bench.run))  # its holder, this process, is not dead
    bench.environ["HOMERUN_DIR"] = str(tmp_path)
    Journal(bench.dir / "journal.jsonl", 1).emit("run.begin")
    pushed = subprocess.run(
        [sys.executable, "-m", "homerun", "push", bench.run],
        env=bench.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert pushed.returncode == 0, pushed.stderr
    assert "_SUCCESS is there" in pushed.stderr
    assert pushed.stdout.split() == ["model", "report"]
    assert {verdict.verdict for verdict in verify(bench.store, bench.run)} == {"ok"}


def test_a_disk_that_is_full_for_a_while_delays_and_kills_nothing(tmp_path):
    bench = Bench(tmp_path, {})
    bench.start()
    wait_for(lambda: bench.outbox.status())
    outbox = bench.outbox.dir
    moved = outbox.with_name("outbox.aside")
    outbox.rename(moved)  # as no space: no file can be made
    outbox.write_bytes(b"")
    time.sleep(1.5)
    assert bench.process.poll() is None
    outbox.unlink()
    moved.rename(outbox)
    bench.offer("g", {"g": b"x"})
    assert bench.answers()[1].ok


def test_the_uploader_ignores_ctrl_c_and_term_but_not_its_lifeline(bench):
    bench.start()
    wait_for(lambda: bench.outbox.status())
    for number in (signal.SIGINT, signal.SIGTERM):
        bench.process.send_signal(number)
    bench.offer("g", {"g": b"x"})
    assert bench.answers()[1].ok
    assert os.getpriority(os.PRIO_PROCESS, bench.process.pid) == 19
    assert bench.close() == 0


def test_the_uploader_dies_with_a_job_that_is_killed(tmp_path):
    bench = Bench(tmp_path, {})
    lease.acquire(bench.store, bench.run, "me")
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "homerun.bucket.uploader", {str(bench.dir)!r}, "--attempt", "1",
                          "--owner", "me"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(60)
"""
    job = subprocess.Popen([sys.executable, "-c", code], env=bench.environ, stdout=subprocess.PIPE)
    pid = int(job.stdout.readline())
    wait_for(lambda: bench.outbox.status())
    job.kill()
    job.wait()

    def gone():
        with contextlib.suppress(OSError):
            return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
        return True

    wait_for(gone)
    assert lease.read(bench.store, bench.run).state == "released"
    assert json.loads((bench.outbox.dir / "uploader.json").read_bytes())["error"] == ""


@pytest.mark.s3
def test_an_object_that_reads_back_wrong_is_tried_again_and_at_the_end_named_as_unproven(tmp_path, s3_server, s3_proxy):
    """As when somebody else writes to the run's folder: HEAD never agrees with what was stored."""
    bench = Bench(tmp_path, s3_server.environ(s3_proxy.endpoint))
    s3_proxy.fault = lambda request: ("status", 404, "NoSuchKey") if request.method == "HEAD" else None
    seq = bench.offer("model", {"model": b"x"})
    bench.start()
    wait_for(lambda: "is not there as it was stored" in bench.outbox.status().get("error", ""))
    assert not bench.outbox.receipts()
    finish = bench.outbox.offer("finish", "_SUCCESS")
    answers = bench.answers()
    assert (answers[seq].why, answers[finish].why) == ("unproven", "unproven")
    assert bench.named() == {}


@pytest.mark.s3
def test_the_first_look_at_the_bucket_may_fail_and_is_made_again(tmp_path, s3_server, s3_proxy):
    """A manifest that was read although `_SUCCESS` could not be asked for is not taken for an opened one."""
    bench = Bench(tmp_path, s3_server.environ(s3_proxy.endpoint))
    refused = iter([True])
    s3_proxy.fault = lambda request: (
        ("status", 401, "Unauthorized")
        if request.method == "HEAD" and "_SUCCESS" in request.path and next(refused, False)
        else None
    )
    bench.offer("model", {"model": b"x"})
    assert bench.start().answers()[1].ok
    assert read_manifest(bench.store, bench.run).attempt == 1
