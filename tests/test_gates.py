"""Stage B of preflight: gates in upstream's environment, and real steps against a table, each fault with a hint."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_upstream import command, environment, homerun, make
from running import Marked, go_on, prepare, wait_until

from homerun.job.gates import TABLE_DEPTHS
from homerun.job.saving import table_tokens_per_second
from homerun.journal import replay
from homerun.trainer.dataset import write_shard
from homerun.upstream import stage_b
from homerun.upstream.flags import Flags
from homerun.upstream.stage_b import LATE, STOPPED, Trial, judge_trial, run_aside, run_gates, trial_argv, try_steps
from tests.fakes.nvml import on_path

EIGHT = [{"name": "NVIDIA H100 80GB HBM3"}] * 8


# -- beside the script --------------------------------------------------------------------------------------------


def test_a_command_beside_the_script_ends_with_its_status_or_is_ended_with_all_it_started(tmp_path):
    mark = Marked()
    env, log = {"PATH": os.environ["PATH"], **mark.env}, tmp_path / "log"

    def aside(script, seconds=60.0, goes_on=lambda: True):
        return run_aside(["bash", "-c", script], tmp_path, env, log, seconds, goes_on)

    assert aside("echo said; exit 3") == 3
    assert log.read_text() == "said\n"
    assert aside("kill -9 $$") == -9
    assert aside("sleep 600 & setsid sleep 600 & wait", seconds=0.0) == LATE
    assert aside("echo more; sleep 600 & sleep 600", goes_on=lambda: "more" not in log.read_text()) == STOPPED
    assert not mark.pids()


def test_a_job_that_is_killed_leaves_nothing_of_it_running(tmp_path):
    mark = Marked()
    program = (
        "import os; from pathlib import Path; from homerun.upstream.stage_b import run_aside\n"
        "run_aside(['sleep', '600'], Path('.'), os.environ, Path('log'), 600, lambda: True)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, **mark.env})
    assert wait_until(lambda: any(line.startswith("sleep") for line in mark.command_lines()))
    job.kill()
    job.wait()
    assert mark.gone()


def test_a_script_that_waits_for_its_gates_is_not_taken_for_stuck(tmp_path):
    seen = []

    def decide(phase):
        ran.runner.idle_seconds()
        ran.runner._activity._active -= 3600
        seen.append(ran.runner.idle_seconds())
        return go_on(phase)

    ran = prepare(tmp_path, "python -c pass\n", decide=decide)
    ran.run()
    assert [seconds < 60 for seconds in seen] == [True]


# -- gates --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gates_run_in_upstreams_python_and_name_what_is_broken(tmp_path):
    found = run_gates(Path(sys.executable), tmp_path, os.environ, 8, tmp_path / "log")
    verdicts = {gate["name"]: gate["verdict"] for gate in found}
    assert verdicts["python-headers"] in ("pass", "fail")
    assert verdicts["torch"] == "fail"  # eight GPUs are wanted, none is here
    assert all(gate["hint"] for gate in found if gate["verdict"] == "fail")
    assert {gate["stage"] for gate in found} == {"B"}


def torch(folder: Path, text: str) -> dict[str, str]:
    """An environment in which `import torch` finds this instead."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(text)
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)}


GOOD_TORCH = """
import types
__version__, version = "2.9.1", types.SimpleNamespace(cuda="12.8")
class Tensor:
    def __matmul__(self, other): return self
    def sum(self): return self
    def item(self): return 192
    def isfinite(self): return self
    def all(self): return self.finite
    finite = True
def ones(*_, **__): return Tensor()
randn, bfloat16 = ones, None
def compile(function): return lambda x: x
cuda = types.SimpleNamespace(device_count=lambda: COUNT, get_device_capability=lambda: (9, 0))
"""
ATTENTION = """
import torch
HAS_FA3 = {has}
class flash_attn:
    @staticmethod
    def flash_attn_func(*_, **__):
        {body}
"""


@pytest.mark.parametrize(
    ("nproc", "torch_is", "attention", "broken", "hint"),
    [
        (1, GOOD_TORCH, (True, "return torch.ones()"), None, None),
        (2, GOOD_TORCH, (True, "return torch.ones()"), "torch", "CUDA_VISIBLE_DEVICES"),
        (1, GOOD_TORCH + "def compile(f): raise RuntimeError('no Python.h')", None, "torch-compile", "python3-dev"),
        (1, GOOD_TORCH + "def compile(f): import os; os._exit(11)", None, "torch-compile", "uv sync"),
        (1, "raise ImportError('libcudart.so.12')", None, "torch", "not whole"),
        (1, GOOD_TORCH, (False, "pass"), "flash-attention", "HF_HOME"),
        (1, GOOD_TORCH, ("True; USE_FA3 = False", "pass"), "flash-attention", "bfloat16"),
        (1, GOOD_TORCH, (True, "raise RuntimeError('no kernel image')"), "flash-attention", "another GPU"),
        (1, GOOD_TORCH + "Tensor.finite = False", (True, "return torch.ones()"), "flash-attention", "another machine"),
    ],
)  # fmt: skip
def test_each_broken_environment_fails_at_its_own_gate_with_a_hint(tmp_path, nproc, torch_is, attention, broken, hint):
    if attention:
        (tmp_path / "nanochat").mkdir()
        (tmp_path / "nanochat" / "__init__.py").touch()
        has, body = attention
        (tmp_path / "nanochat" / "flash_attention.py").write_text(ATTENTION.format(has=has, body=body))
    env = torch(tmp_path, torch_is.replace("COUNT", "1"))
    found = {gate["name"]: gate for gate in run_gates(Path(sys.executable), tmp_path, env, nproc, tmp_path / "log")}
    found.pop("python-headers")  # as this machine has them
    failed = {name: gate for name, gate in found.items() if gate["verdict"] != "pass"}
    assert list(failed) == ([broken] if broken else []), found
    if broken:
        assert hint in failed[broken]["hint"]


def test_python_headers_that_are_missing_are_caught(monkeypatch):
    from homerun.upstream import gates

    monkeypatch.setattr(gates.sysconfig, "get_path", lambda name: "/nonexistent")
    assert gates.gate_headers(8)[0] == "fail"
    assert gates.gate_headers(0)[0] == "warn"
    assert "python3-dev" in gates.gate_headers(8)[2]


def test_gpus_that_do_not_talk_to_each_other_are_caught(monkeypatch, tmp_path):
    from homerun.upstream import gates

    def nccl(text, limit=60):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{text}\n")
        python.chmod(0o755)
        monkeypatch.setattr(gates.sys, "executable", str(python))
        monkeypatch.setattr(gates, "LIMIT_SECONDS", limit)
        return gates.gate_nccl(8)

    assert gates.gate_nccl(1) is None
    assert nccl("exit 0")[0] == "pass"
    verdict, seen, hint = nccl(
        "echo 'torch.distributed.DistBackendError: NCCL error: unhandled system error' >&2; exit 1"
    )
    assert (verdict, "NCCL error" in seen, "shm-size" in hint) == ("fail", True, True)
    verdict, seen, hint = nccl("exec sleep 60", limit=0.1)
    assert (verdict, "did not finish" in seen, "NCCL_P2P_DISABLE" in hint) == ("fail", True, True)


def test_a_gate_that_hangs_is_named(monkeypatch, tmp_path):
    log, clock = tmp_path / "log", SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(stage_b, "time", clock)

    def until_torch_hangs():
        if "-- torch" in log.read_text():
            clock.monotonic = lambda: stage_b.GATES_SECONDS + 1
        return True

    env = torch(tmp_path, "while True: pass")
    *_, last = run_gates(Path(sys.executable), tmp_path, env, 1, log, until_torch_hangs)
    assert (last["name"], last["verdict"]) == ("torch", "fail")
    assert "no answer in 300 s" in last["seen"]


def test_an_environment_without_python_fails_in_one_line(tmp_path):
    (gate,) = run_gates(tmp_path / "no-python", tmp_path, os.environ, 8, tmp_path / "log")
    assert gate["verdict"] == "fail"
    assert "127" in gate["seen"]


# -- real steps ---------------------------------------------------------------------------------------------------


def test_steps_are_judged_against_the_table_by_their_warm_half():
    expected = table_tokens_per_second(24, EIGHT)
    slow_start = [1_000.0] * 10
    for share, verdict in ((1.3, "pass"), (0.75, "pass"), (0.6, "warn"), (0.26, "fail")):
        found, seen, hint = judge_trial(Trial(slow_start + [expected * share] * 10), expected, "8 × H100 at depth 24")
        assert (found, f"{share:.0%} of what is expected" in seen) == (verdict, True)
        assert bool(hint) == (verdict != "pass")
    assert judge_trial(Trial([5.0] * 20), None, "this CPU")[0] == "pass"


def test_the_speed_that_upstream_published_passes_and_a_quarter_of_it_fails():
    """Depth 24 on eight H100 in January 2026: 16,704 steps of 524,288 tokens in 10,949 s."""
    published, expected = 16_704 * 524_288 / 10_949, table_tokens_per_second(24, EIGHT)
    assert judge_trial(Trial([published] * 20), expected, "")[0] == "pass"
    assert judge_trial(Trial([published * 13 / 50] * 20), expected, "")[0] == "fail"  # 13 % MFU where others have 50 %
    assert 24 in TABLE_DEPTHS and 4 not in TABLE_DEPTHS


def test_too_few_steps_fail_with_what_was_printed_and_only_warn_where_time_ran_out():
    words = ("torch.OutOfMemoryError: CUDA out of memory", "halve the batch")
    verdict, seen, hint = judge_trial(Trial([9.0], words, 1), 9.0, "")
    assert (verdict, "OutOfMemory" in seen, hint) == ("fail", True, "halve the batch")
    assert judge_trial(Trial([9.0], ("x", ""), LATE), 9.0, "")[0] == "warn"
    assert judge_trial(Trial([9.0] * 6, ("x", ""), LATE), 9.0, "")[0] == "pass"


def test_the_trial_evaluates_little_and_never_more_than_the_run_would():
    flags = Flags(frozenset({"--eval-tokens"}), {"--eval-tokens": 20 * 524_288}, "argparse")
    assert trial_argv(["x"], flags) == ["x", "--eval-tokens=524288"]
    assert trial_argv(["x", "--eval-tokens=1024"], flags) == ["x", "--eval-tokens=1024"]


@pytest.mark.parametrize("style", ["argparse", "configurator"])
def test_the_trial_never_saves_evaluates_resumes_or_logs_as_that_commit_spells_it(style):
    dash = "-" if style == "argparse" else "_"
    names = frozenset(f"--{name.replace('-', dash)}" for name in ("run", "num-iterations", "save-every", "eval-every"))
    argv = trial_argv(["torchrun", "-m", "scripts.base_train", "--", "--depth=24"], Flags(names, {}, style))
    assert argv[4] == "--depth=24"
    assert set(argv[5:]) == {
        "--run=dummy", f"--num{dash}iterations=1000", f"--save{dash}every=1000000", f"--eval{dash}every=1000000"
    }  # fmt: skip


def test_the_trial_sees_tokenizer_and_data_but_no_checkpoint_and_what_it_saves_is_gone(tmp_path):
    base, log = tmp_path / "nanochat", tmp_path / "log"
    for name in ("tokenizer", "base_data", "base_checkpoints/d24", "chatsft_checkpoints", "report", "base_eval"):
        (base / name).mkdir(parents=True)
    script = (
        'ls "$NANOCHAT_BASE_DIR"; mkdir -p "$NANOCHAT_BASE_DIR/base_checkpoints/d26"\n'
        'for i in {0..30}; do echo "step $i/40 (0.00%) | loss: 1.0 | tok/sec: $((i * 10))"; done; exec sleep 600'
    )
    trial = try_steps(["bash", "-c", script], os.environ, tmp_path, base, log)
    assert log.read_text().split("step")[0].split() == ["base_data", "tokenizer"]
    assert (len(trial.rates), trial.rate, trial.status) == (20, 155, STOPPED)  # the first told of no speed
    assert [path.name for path in (base / "base_checkpoints").iterdir()] == ["d24"]
    assert {path.name for path in tmp_path.iterdir()} == {"nanochat", "log"}


def test_a_trial_that_fails_hands_on_the_warning_that_explains_it(tmp_path):
    (tmp_path / "base").mkdir()
    said = ["WARNING: Flash Attention 3 not available", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"]
    words = f"printf '%s\\n' '{said[0]}' '{said[1]}' 'torch.distributed.elastic.ChildFailedError:'; exit 1"
    trial = try_steps(["bash", "-c", words], os.environ, tmp_path, tmp_path / "base", tmp_path / "log")
    verdict, seen, hint = judge_trial(trial, None, "")
    assert (verdict, "status 1 after 0 steps: torch.OutOfMemoryError" in seen) == ("fail", True)
    assert "--device-batch-size" in hint


@pytest.fixture
def box(tmp_path):
    """A fake upstream at depth 24, on a box of two H100."""
    upstream = make(tmp_path / "upstream")
    script = upstream / "runs" / "speedrun.sh"
    script.write_text(script.read_text().replace("--depth=4", "--depth=24"))
    (tmp_path / "faults").mkdir()
    env = {"HOMERUN_DIR": str(tmp_path / "dir"), "HOMERUN_RUN_ID": "run", "FAULTS": str(tmp_path / "faults")}
    env |= {"HOMERUN_SYNC_SECONDS": "0.1", "HOMERUN_SKIP_CHECKS": "disk"}
    return str(upstream), env | on_path(tmp_path / "box", 2, 80)


def speed_check(env):
    events = list(replay(Path(env["HOMERUN_DIR"]) / "runs" / "run" / "journal.jsonl"))
    (check,) = [event for event in events if event["type"] == "check" and event["name"] == "training-speed"]
    return check, events


@pytest.mark.slow
def test_a_box_that_trains_too_slowly_is_given_back_before_the_training(box):
    upstream, env = box
    done = homerun("train", "--upstream", upstream, "--check-steps", "--gpu-hour-price", "3", **env)
    assert done.returncode == 3, done.stdout + done.stderr
    check, events = speed_check(env)
    assert (check["verdict"], check["stage"]) == ("fail", "B")
    assert "9% of what is expected of 2 × NVIDIA H100 80GB HBM3 at depth 24" in check["seen"]
    assert "($" in check["seen"]  # the cost of it
    assert "base_train" not in [event["phase"] for event in events if event["type"] == "phase.begin"]
    base = Path(env["HOMERUN_DIR"]) / "runs" / "run" / "home" / ".cache"
    assert [path.name for path in base.iterdir()] == ["nanochat"]
    assert not list(base.rglob("*_checkpoints"))


TINY = """\
export OMP_NUM_THREADS=1
export NANOCHAT_BASE_DIR="$HOME/.cache/nanochat"
mkdir -p "$NANOCHAT_BASE_DIR"
cp -r DATA "$NANOCHAT_BASE_DIR/base_data"
python -m homerun.trainer.tok_train --vocab-size=512 --max-chars=50000
torchrun -m homerun.trainer.base_train -- --depth=2 --aspect-ratio=32 --head-dim=32 --max-seq-len=64 \\
  --device-batch-size=2 --total-batch-size=128 --num-iterations=3 --eval-tokens=128 --save-every=1
"""


@pytest.mark.slow
def test_real_steps_of_a_real_recipe_leave_no_trace_in_the_run(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(2):
        write_shard(tmp_path / "data" / f"shard_{number:05d}.parquet", [f"once upon a time {i}" for i in range(3000)])
    (tmp_path / "tiny.sh").write_text(TINY.replace("DATA", str(tmp_path / "data")))
    env = {"HOMERUN_DIR": str(tmp_path / "dir"), "HOMERUN_RUN_ID": "run", "HOMERUN_CHECK_STEPS": "true"}
    done = homerun("train", "--script", str(tmp_path / "tiny.sh"), **env)
    assert done.returncode == 0, done.stdout + done.stderr
    check, events = speed_check(env)
    assert check["verdict"] == "pass" and "tokens/s over 20 steps; this CPU is in no table" in check["seen"]
    (begin,) = [event for event in events if event["type"] == "phase.begin" and event["phase"] == "base_train"]
    assert "--num-iterations=1000" not in begin["argv"]
    assert [event["step"] for event in events if event["type"] == "step"] == [0, 1, 2]
    run = tmp_path / "dir" / "runs" / "run"
    tried = (run / "logs" / "a01" / "raw" / "training-speed.log").read_text()
    assert "step 00019/01000" in tried and "Saved" not in tried and "Validation bpb" in tried.split("step 00000")[0]
    saved = {path.name for path in (run / "home" / ".cache" / "nanochat" / "base_checkpoints").glob("*/model_*")}
    assert saved == {"model_000001.pt", "model_000002.pt", "model_000003.pt"}
    assert [path.name for path in (run / "home" / ".cache").iterdir()] == ["nanochat"]


@pytest.mark.slow
def test_term_during_the_steps_ends_them_and_the_run(box):
    upstream, env = box
    (Path(env["FAULTS"]) / "base_train_hangs").write_text("1")
    mark = Marked()
    more = {"HOMERUN_PASS_ENV": "FAULTS TEST_MARK", **mark.env}
    line = command("train", "--upstream", upstream, "--check-steps")
    job = subprocess.Popen(line, env=environment(**{**env, **more}), stdout=subprocess.PIPE, text=True)
    killer = threading.Timer(120, job.kill)
    killer.start()
    assert job.stdout
    for words in job.stdout:
        if "20 real steps" in words:
            break
    assert wait_until(lambda: any("num-iterations=1000" in line for line in mark.command_lines()))
    job.send_signal(signal.SIGTERM)
    job.communicate()
    killer.cancel()
    assert job.returncode == 143
    assert mark.gone()
    assert not list((Path(env["HOMERUN_DIR"]) / "runs" / "run" / "home" / ".cache").glob(".steps-*"))
