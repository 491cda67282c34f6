"""The journal: whole lines or none, whatever dies."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homerun.journal import Follower, Journal, replay
from homerun.redact import Redactor


def _write(path, count, attempt=1):
    journal = Journal(path, attempt)
    for number in range(count):
        journal.emit("step", phase="base_train", step=number, text="naïve\n\u2028x")
    journal.close()


def test_events_come_back_in_order_with_their_numbers(tmp_path):
    path = tmp_path / "journal.jsonl"
    _write(path, 3)
    _write(path, 2, attempt=2)
    events = list(replay(path))
    assert [event["seq"] for event in events] == [0, 1, 2, 3, 4]
    assert [event["attempt"] for event in events] == [1, 1, 1, 2, 2]
    assert events[0]["text"] == "naïve\n\u2028x"


@given(cut=st.integers(0, 400))
def test_a_journal_torn_at_any_byte_loses_only_the_torn_line(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    _write(path, 3)
    data = path.read_bytes()
    torn = data[: min(cut, len(data))]
    path.write_bytes(torn)
    whole = torn.count(b"\n")
    assert [event["seq"] for event in replay(path)] == list(range(whole))
    _write(path, 1, attempt=2)
    assert [event["seq"] for event in replay(path)] == list(range(whole + 1))


def test_kill_9_while_writing_never_leaves_a_line_that_is_not_an_event(tmp_path):
    path = tmp_path / "journal.jsonl"
    code = (
        "import sys; from pathlib import Path; from homerun.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), 1)\nprint('ready', flush=True)\n"
        "while True: journal.emit('step', text='x' * 5000)\n"
    )
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    seqs = [event["seq"] for event in replay(path)]
    assert seqs == list(range(len(seqs)))
    assert len(seqs) > 10


def test_a_follower_sees_each_event_once_and_never_half_of_one(tmp_path):
    path = tmp_path / "journal.jsonl"
    follower = Follower(path)
    assert follower.poll() == []
    _write(path, 2)
    assert [event["seq"] for event in follower.poll()] == [0, 1]
    with open(path, "ab") as file:
        file.write(b'{"seq": 2, "type": "st')
    assert follower.poll() == []
    with open(path, "ab") as file:
        file.write(b'ep"}\n')
    assert [event["seq"] for event in follower.poll()] == [2]


def test_a_secret_never_reaches_the_journal(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", 1, Redactor({"K": "canary-value"}).value)
    journal.emit("warning", text="the key is canary-value", nested={"canary-value": ["canary-value"]})
    assert "canary" not in (tmp_path / "journal.jsonl").read_text()


def test_a_full_disk_leaves_no_half_event(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, 1)
    journal.emit("step", step=0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limit[1]))
    try:
        with pytest.raises(OSError):
            journal.emit("step", step=1, text="x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    journal.emit("step", step=2)
    assert [event["step"] for event in replay(path)] == [0, 2]
    assert [event["seq"] for event in replay(path)] == [0, 1]
