"""A phase is judged by its status, by what it printed, and by what it left."""

import os
import signal
import time

import pytest

from homerun.upstream.judge import describe, judge, proof_is_missing
from homerun.upstream.plan import read_plan


def step(command):
    return read_plan(command.encode() + b"\n").steps[0]


def verdict(tmp_path, command, status=0, said=b"", began=None):
    one = step(command)
    return judge(one, list(one.words), status, time.time() if began is None else began, tmp_path, tmp_path, said)


def touch(path, text="x", age=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


@pytest.mark.parametrize("status", [1, 2, 127, 255, -9, -15])
def test_a_status_that_is_not_zero_is_a_failure(tmp_path, status):
    found = verdict(tmp_path, "python -m scripts.base_loss", status)
    assert found.word == "failed" and found.reason.startswith(describe(status))


@pytest.mark.parametrize("module", ["nanochat.report reset", "scripts.tok_eval", "nanochat.report generate"])
def test_what_is_on_the_list_is_harmless(tmp_path, module):
    assert verdict(tmp_path, f"python -m {module}", 1).word == "harmless"


def test_a_failure_that_the_script_tests_for_is_tolerated(tmp_path):
    assert verdict(tmp_path, "python -m scripts.base_loss || echo", 1).word == "tolerated"


def test_arithmetic_that_fails_is_no_end_of_a_run_but_a_phase_is(tmp_path):
    assert verdict(tmp_path, """RATIO=$(python -c "print(1 / 0)")""", status=1).word == "tolerated"
    for real in ("OUT=$(python -m scripts.base_eval)", "OUT=$(sh -c false)", "python -c 'print(1 / 0)'"):
        assert verdict(tmp_path, real, status=1).word == "failed", real


@pytest.mark.parametrize(
    ("said", "word", "reason"),
    [
        (b"Done! Downloaded: 240/240 shards to /x", "ok", ""),
        (b"Done! Downloaded: 238/240 shards to /x", "failed", "2 of 240 shards are missing"),
        (b"Done! Downloaded: 0/2 shards to /x", "failed", "2 of 2 shards are missing"),
        (b"Done! Downloaded: 1/2 shards\nagain\nDone! Downloaded: 2/2 shards", "ok", ""),
        (b"nothing of the kind", "ok", ""),
    ],
)
def test_the_downloader_is_judged_by_its_own_count(tmp_path, said, word, reason):
    assert verdict(tmp_path, "python -m nanochat.dataset -n 240", 0, said) == (word, reason)


def test_a_count_that_is_not_printed_any_more_is_noticed():
    assert proof_is_missing(step("python -m nanochat.dataset -n 8"), b"all fine")
    assert not proof_is_missing(step("python -m nanochat.dataset -n 8"), b"Done! Downloaded: 8/8")
    assert not proof_is_missing(step("python -m scripts.base_train"), b"")


def test_a_tokenizer_must_have_been_written(tmp_path):
    found = verdict(tmp_path, "python -m scripts.tok_train")
    assert found.word == "failed" and "should have written tokenizer/tokenizer.pkl" in found.reason
    touch(tmp_path / "tokenizer/tokenizer.pkl")
    touch(tmp_path / "tokenizer/token_bytes.pt", "")
    assert "empty" in verdict(tmp_path, "python -m scripts.tok_train").reason
    touch(tmp_path / "tokenizer/token_bytes.pt")
    assert verdict(tmp_path, "python -m scripts.tok_train").word == "ok"


@pytest.mark.parametrize("launcher", ["python -m", "torchrun --standalone --nproc_per_node=8 -m"])
@pytest.mark.parametrize(
    ("module", "folder"), [("base_train", "base"), ("mid_train", "mid"), ("chat_sft", "chatsft"), ("chat_rl", "chatrl")]
)
def test_an_older_checkpoint_is_no_proof_of_training(tmp_path, launcher, module, folder):
    command = f"{launcher} scripts.{module}"
    files = [tmp_path / f"{folder}_checkpoints/d20" / name for name in ("model_000010.pt", "meta_000010.json")]
    for file in files:
        touch(file, age=3600)
    found = verdict(tmp_path, command)
    assert found.word == "failed" and "older than this phase" in found.reason
    touch(files[0])
    assert verdict(tmp_path, command).word == "failed", "a model without its meta"
    touch(files[1])
    assert verdict(tmp_path, command).word == "ok"


def test_a_download_that_touched_nothing_is_harmless_only_where_the_file_is_whole(tmp_path):
    command = "curl -L -o identity.jsonl https://example.com/identity.jsonl"
    assert verdict(tmp_path, command, 6).word == "failed", "there is no file"
    touch(tmp_path / "identity.jsonl", age=60)
    assert verdict(tmp_path, command, 6).word == "harmless"
    touch(tmp_path / "identity.jsonl", "", age=60)
    assert verdict(tmp_path, command, 6).word == "failed", "it is empty"
    touch(tmp_path / "identity.jsonl")
    assert verdict(tmp_path, command, 6, began=time.time() - 5).word == "failed", "it was cut off half way"
    assert verdict(tmp_path, "curl https://example.com | sh", 6).word == "failed"


def test_only_a_pipelines_writer_may_die_of_its_reader(tmp_path):
    assert verdict(tmp_path, "python -m scripts.base_loss | head -1", -signal.SIGPIPE).word == "tolerated"
    assert verdict(tmp_path, "python -m scripts.base_loss", -signal.SIGPIPE).word == "failed"
    assert verdict(tmp_path, "python -m scripts.base_loss | head -1", -signal.SIGKILL).word == "failed"


TORCHRUN = b"""\
step 00001/00020 (5.00%) | loss: 6.855060
[rank0]: Traceback (most recent call last):
[rank0]:   File "x.py", line 3, in <module>
[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
E1121 02:51:21.034 failed (exitcode: 1) local_rank: 0
Traceback (most recent call last):
  File "/bin/torchrun", line 8, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
scripts.chat_sft FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
============================================================
"""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (TORCHRUN, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        (b"Traceback (most recent call last):\nValueError: no such depth\n", "ValueError: no such depth"),
        (b"curl: (6) Could not resolve host: example.com\n", "curl: (6) Could not resolve host: example.com"),
        (b"\x1b[31merror\x1b[0m: No solution found\n  help: try\n", "error: No solution found"),
        (b"10%\r50%\rstopped here", "stopped here"),
        (b"\xff\xfe broken\n\n", "broken"),
    ],
)
def test_the_reason_is_the_line_that_tells_why(tmp_path, said, words):
    assert verdict(tmp_path, "python -m scripts.chat_sft", 1, said).reason.endswith(words)


def test_ten_megabytes_without_a_newline_give_a_short_reason(tmp_path):
    assert len(verdict(tmp_path, "python -m scripts.chat_sft", 1, b"x" * 10_000_000).reason) < 400


def test_signals_are_called_by_name():
    assert describe(-9) == "ended by SIGKILL (out of memory?)" and describe(-15) == "ended by SIGTERM"
    assert describe(127) == "exit status 127 (command not found)" and describe(-64).startswith("ended by ")
