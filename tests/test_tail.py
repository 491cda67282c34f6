"""The redacted copy of a log: byte for byte what the phase wrote, but for secrets; whatever happens on the way."""

import contextlib
import errno
import os
import resource
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homerun.redact import Redactor
from homerun.upstream.metrics import LogReader
from homerun.upstream.tail import Tail

CANARY = "cAnArY-7f3e91/+=x"


def make(tmp_path, secrets=None, reader=None, **options):
    raw, shown = tmp_path / "raw.log", tmp_path / "shown.log"
    raw.touch()
    return raw, shown, Tail(raw, shown, Redactor(secrets or {}), reader, **options)


def append(path, data):
    with open(path, "ab") as file:
        file.write(data)


def test_the_copy_is_what_was_written(tmp_path):
    raw, shown, tail = make(tmp_path)
    data = bytes(range(256)) * 5000 + b"no newline at the end"
    append(raw, data)
    while tail.offset < len(data):
        tail.poll(limit=100_000)
    tail.finish()
    assert shown.read_bytes() == data


def test_the_console_gets_what_the_copy_gets(tmp_path):
    seen = []
    raw, shown, tail = make(tmp_path, {"KEY": CANARY}, text=seen.append)
    for piece in (b"one\n", CANARY.encode()[:7], CANARY.encode()[7:] + b"\ntwo"):
        append(raw, piece)
        tail.poll()
    tail.finish()
    assert b"".join(seen) == shown.read_bytes() == b"one\n[KEY]\ntwo"


# Secrets that overlap themselves and each other, over an alphabet so small that almost every border is a bad one.
NASTY = st.lists(st.text("ab", min_size=6, max_size=9), min_size=1, max_size=3, unique=True)


@settings(max_examples=400, deadline=None)
@given(NASTY, st.text("ab ", max_size=80), st.lists(st.integers(1, 12), min_size=1, max_size=80))
def test_no_secret_crosses_a_border_into_the_copy(tmp_path_factory, values, text, sizes):
    tmp_path = tmp_path_factory.mktemp("tail")
    secrets = {f"S{number}": value for number, value in enumerate(values)}
    data = "".join(text + value for value in values).encode()
    raw, shown, tail = make(tmp_path, secrets)
    start = 0
    for size in [*sizes, len(data)]:
        append(raw, data[start : start + size])
        tail.poll()
        start += size
    tail.finish()
    assert shown.read_bytes() == Redactor(secrets).bytes(data)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 40))
def test_a_canary_is_never_in_the_copy(tmp_path_factory, before, after, size):
    raw, shown, tail = make(tmp_path_factory.mktemp("tail"), {"KEY": CANARY})
    data = before + CANARY.encode() + after
    for start in range(0, len(data), size):
        append(raw, data[start : start + size])
        tail.poll()
        assert CANARY.encode() not in shown.read_bytes()
    tail.finish()
    assert CANARY.encode() not in shown.read_bytes()
    assert b"[KEY]" in shown.read_bytes()


def test_the_beginning_of_a_secret_that_never_comes_is_not_lost(tmp_path):
    raw, shown, tail = make(tmp_path, {"KEY": CANARY})
    append(raw, b"text " + CANARY.encode()[:9])
    tail.poll()
    assert shown.read_bytes() == b"text "
    tail.finish()
    assert shown.read_bytes() == b"text " + CANARY.encode()[:9]


def test_a_full_disk_loses_no_position_and_leaves_no_half(tmp_path):
    raw, shown, tail = make(tmp_path)
    append(raw, b"a" * 1000)
    tail.poll()
    append(raw, b"b" * 9000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        stack.callback(signal.signal, signal.SIGXFSZ, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # the write that passes it is cut short, the next fails
        with pytest.raises(OSError) as caught:
            tail.poll()
    assert caught.value.errno == errno.EFBIG
    assert shown.stat().st_size == 1000
    tail.finish()
    assert shown.read_bytes() == b"a" * 1000 + b"b" * 9000


def test_enospc_reaches_the_caller(tmp_path):
    raw = tmp_path / "raw.log"
    raw.write_bytes(b"text\n")
    tail = Tail(raw, tmp_path / "shown.log", Redactor({}))
    os.close(tail._shown_fd)
    tail._shown_fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError) as caught:
        tail.poll()
    assert caught.value.errno == errno.ENOSPC
    assert tail.offset == 0


def test_a_log_that_its_writer_removes_or_empties_goes_on(tmp_path):
    raw, shown, tail = make(tmp_path)
    append(raw, b"one long line\n")
    tail.poll()
    os.truncate(raw, 0)
    append(raw, b"two\n")
    tail.poll()
    raw.unlink()
    assert tail.poll() == []
    tail.finish()
    assert shown.read_bytes() == b"one long line\ntwo\n"


def test_nothing_new_costs_one_fstat(tmp_path, monkeypatch):
    raw, _shown, tail = make(tmp_path, {"KEY": CANARY}, LogReader())
    append(raw, b"text " + CANARY.encode()[:5])  # held back: still nothing new
    tail.poll()
    calls = []
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: calls.append("fstat") or real(fd))
    for name in ("pread", "write", "open", "stat"):
        monkeypatch.setattr(os, name, lambda *args, name=name: calls.append(name))
    assert tail.poll() == []
    assert calls == ["fstat"]


def test_events_come_from_the_redacted_text_and_the_last_line_counts(tmp_path):
    raw, _shown, tail = make(tmp_path, {"KEY": CANARY}, LogReader())
    append(raw, f"2026-11-21 - x - INFO - Saved model parameters to: /x/{CANARY}/model_000010.pt\n".encode())
    append(raw, b"Step 00010 | Validation bpb: 1.5")  # no newline: the phase was killed
    assert tail.poll() == [("saved", {"path": "/x/[KEY]/model_000010.pt", "step": 10})]
    assert tail.finish() == [("eval", {"metric": "val_bpb", "value": 1.5, "step": 10})]
