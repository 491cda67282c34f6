"""Preflight: every seeded fault is caught with a hint, a good box raises no alarm, a check that hangs is cut off."""

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from fake_upstream import homerun as homerun_command

import homerun.machine
from homerun.bucket.folder import FolderStore
from homerun.errors import RequestError
from homerun.job.checks import stage_a
from homerun.job.estimate import estimate_seconds
from homerun.job.gates import TRAINING_SPEED
from homerun.machine import GIB, Gpu, Gpus, checks, describe, read_gpus, sample
from homerun.preflight import Check, failed, run_checks, table
from homerun.settings import Settings
from homerun.upstream import checks as upstream
from homerun.upstream import stage_b
from homerun.upstream.gates import GATES
from homerun.upstream.plan import read_plan
from homerun.upstream.worktree import Source
from tests.fakes.nvml import BOXES, nvml

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, capability=(9, 0), ecc_errors=0, links=18)
GOOD = Gpus((H100,) * 8, "570.86.15", (12, 8))


def change(**what):
    """The good box with its fourth GPU changed."""
    gpus = list(GOOD.gpus)
    gpus[3] = Gpu(**{**vars(H100), **what})
    return Gpus(tuple(gpus), GOOD.driver, GOOD.cuda)


def gpu_checks(found, wanted=8, xid=None):
    return {
        "gpus": checks.check_gpus(found, wanted),
        "health": checks.check_gpu_health(found, xid),
        "idle": checks.check_gpus_idle(found),
        "links": checks.check_links(found),
    }


# -- the runner ---------------------------------------------------------------------------------------------------


def test_checks_run_side_by_side_and_one_that_hangs_is_cut_off():
    gate = threading.Barrier(5, timeout=10)  # passes only when all five run at once
    side_by_side = [Check(f"c{number}", lambda: (gate.wait(), ("pass", "", ""))[1]) for number in range(5)]
    hangs = Check("hangs", lambda: time.sleep(60) or ("pass", "", ""), limit=0.5, hint="take another")
    results = {result.name: result for result in run_checks([*side_by_side, hangs])}
    assert [results[f"c{number}"].verdict for number in range(5)] == ["pass"] * 5
    assert (results["hangs"].verdict, results["hangs"].hint) == ("fail", "take another")


def test_a_check_that_raises_has_failed_and_one_that_does_not_apply_is_left_out():
    def wrong():
        raise RequestError("the key is wrong", "Set it")

    def broken():
        raise KeyError("x")

    results = {one.name: one for one in run_checks([Check("w", wrong), Check("b", broken), Check("n", lambda: None)])}
    assert set(results) == {"w", "b"}
    assert (results["w"].seen, results["w"].hint) == ("the key is wrong", "Set it")
    assert "KeyError" in results["b"].seen
    assert len(failed(results.values())) == 2


def test_the_table_ends_with_what_failed():
    results = list(run_checks([Check("good", lambda: ("pass", "", "")), Check("bad", lambda: ("fail", "x", "do y"))]))
    names, _, said = (list(column.cells) for column in table(results).columns)
    assert names == ["good", "bad"]
    assert [str(cell) for cell in said] == ["", "x\n→ do y"]


# -- GPUs ---------------------------------------------------------------------------------------------------------


MATRIX = list(itertools.product([1, 2, 4, 8], BOXES, ["470.57.02", "535.183.01", "570.86.15", "580.65.06"]))


@pytest.mark.parametrize(("count", "gib", "driver"), MATRIX)
def test_a_good_box_raises_no_alarm_and_an_old_driver_does(monkeypatch, tmp_path, count, gib, driver):
    name, _ = BOXES[gib]
    monkeypatch.setattr(homerun.machine, "_nvml", lambda: nvml(count, gib, driver))
    found = read_gpus()
    assert len(found.gpus) == count
    assert describe()["gpus"] == [{"name": name, "memory_bytes": gib * GIB}] * count
    assert (
        sample(tmp_path)["gpus"]
        == [{"util": 97, "memory_bytes": 400 << 20, "power_w": 650, "temperature_c": 61}] * count
    )
    verdicts = {key: finding[0] for key, finding in gpu_checks(found, count, []).items() if finding}
    expected = {"470": "fail", "535": "warn"}.get(driver[:3], "pass")
    assert verdicts.pop("gpus") == expected
    assert set(verdicts.values()) == {"pass"}


@pytest.mark.parametrize(
    ("found", "check", "verdict", "says"),
    [
        (Gpus(GOOD.gpus[:4], "570.86.15"), "gpus", "fail", "--nproc 4"),
        (Gpus(), "gpus", "fail", "--nproc 0"),
        (Gpus(GOOD.gpus, "470.1"), "gpus", "fail", "525"),
        (change(name="NVIDIA A100"), "gpus", "warn", "slowest"),
        (change(rows_pending=True), "health", "fail", "another machine"),
        (change(ecc_errors=2), "health", "warn", "another machine"),
        (change(throttled=True), "health", "warn", "another machine"),
        (change(used_bytes=30 * GIB, processes=(77,)), "idle", "fail", "nvidia-smi"),
        (change(processes=(77,)), "idle", "warn", "nvidia-smi"),
        (change(links=0), "links", "warn", "PCIe"),
    ],
)
def test_each_seeded_gpu_fault_is_caught_with_a_hint(found, check, verdict, says):
    got, seen, hint = gpu_checks(found)[check]
    assert got == verdict
    assert says in hint
    assert seen


def test_xid_errors_of_the_kernel_are_caught():
    assert gpu_checks(GOOD, xid=["NVRM: Xid (PCI:0000:07:00): 79, GPU has fallen off the bus"])["health"][0] == "warn"


def test_no_gpu_is_fine_when_none_is_wanted():
    assert checks.check_gpus(Gpus(), 0)[0] == "pass"
    assert checks.check_gpu_health(Gpus(), None) is None
    assert checks.check_links(Gpus()) is None


BATCH_16 = b"torchrun --nproc_per_node=8 -m scripts.base_train -- --depth=20 --device-batch-size=16 --fp8\n"
FLAGS = "import argparse\np = argparse.ArgumentParser()\n" + "".join(
    f"p.add_argument({flag})\n"
    for flag in (
        '"--depth", type=int, default=20',
        '"--device-batch-size", type=int, default=32',
        '"--fp8", action="store_true"',
    )
)


def stage(tmp_path, script=BATCH_16, nproc=None, **environ):
    """Stage A for a script over a module of base training that takes the flags of FLAGS."""
    (tmp_path / "scripts").mkdir(exist_ok=True)
    (tmp_path / "scripts" / "base_train.py").write_text(FLAGS)
    (tmp_path / "speedrun.sh").write_bytes(script)
    return stage_a(
        settings=Settings.load({"HOMERUN_DIR": str(tmp_path), "HOMERUN_FIT": "auto", **environ}),
        store=FolderStore(tmp_path / "bucket"),
        run="run",
        folder=tmp_path,
        base=tmp_path / "base",
        source=Source("https://example.invalid/nanochat", None, "92d63d4", tmp_path, "speedrun.sh", "0" * 64),
        plan=read_plan(script),
        nproc=nproc,
        environ={},
    )


OF_THE_BOX = {"gpus", "gpu-health", "gpu-idle", "nvlink", "shm", "memory", "fit", "compiler", "time-and-money"}


@pytest.mark.parametrize(("count", "gib", "driver"), MATRIX)
def test_stage_a_passes_a_good_box_of_any_size_and_names_what_it_will_cost(monkeypatch, tmp_path, count, gib, driver):
    monkeypatch.setattr(homerun.machine, "_nvml", lambda: nvml(count, gib, driver))
    monkeypatch.setattr(homerun.machine, "xid_errors", list)
    monkeypatch.setattr(checks, "memory_bytes", lambda: 2000 * GIB)
    monkeypatch.setattr(checks.psutil, "disk_usage", lambda folder: SimpleNamespace(total=64 * GIB, free=2000 * GIB))
    wanted = [check for check in stage(tmp_path, HOMERUN_GPU_HOUR_PRICE="3") if check.name in OF_THE_BOX]
    results = {check.name: check.run() for check in wanted}
    alarms = {name: found for name, found in results.items() if found and found[0] != "pass"}
    assert alarms.keys() <= ({"gpus"} if driver[:3] in ("470", "535") else set()), alarms
    seen = results["time-and-money"][1]
    assert "about" in seen and "$" in seen
    assert f"{count} of {count} GPUs" in results["fit"][1]


def test_time_and_money_are_held_against_budget_and_deadline(monkeypatch, tmp_path):
    monkeypatch.setattr(homerun.machine, "_nvml", lambda: nvml(8, 80))

    def money(**environ):
        (check,) = [one for one in stage(tmp_path, **environ) if one.name == "time-and-money"]
        return check.run()

    assert money(HOMERUN_GPU_HOUR_PRICE="3", HOMERUN_BUDGET_USD="500")[0] == "pass"
    verdict, seen, hint = money(HOMERUN_GPU_HOUR_PRICE="3", HOMERUN_BUDGET_USD="5")
    assert (verdict, "the budget is $5.00" in seen, "lower --depth" in hint) == ("warn", True, True)
    verdict, seen, hint = money(HOMERUN_DEADLINE="2020-01-01T00:00:00Z")
    assert (verdict, "deadline" in seen, bool(hint)) == ("warn", True, True)


def estimate(tmp_path, script, flags="", depth=20):
    (tmp_path / "scripts").mkdir(exist_ok=True)
    (tmp_path / "scripts" / "base_train.py").write_text(FLAGS + flags)
    source = Source("u", None, None, tmp_path, "speedrun.sh", "0" * 64)
    return estimate_seconds(source, read_plan(script), depth, [{"name": "NVIDIA H100 80GB HBM3"}] * 8) / 3600


def test_the_estimate_takes_upstreams_own_ratio_where_the_script_gives_none(tmp_path):
    script = b"torchrun -m scripts.base_train -- --depth=20"
    flags = 'p.add_argument("--target-param-data-ratio", default=10)\n'
    assert estimate(tmp_path, script, flags) == pytest.approx(estimate(tmp_path, script) / 2)


def test_the_estimate_is_near_what_upstreams_own_speedruns_took(tmp_path):
    """October 2025: 3 h 51 min in all. March 2026: 1 h 39 min of pretraining alone."""
    assert 3.5 < estimate(tmp_path, b"torchrun -m scripts.base_train -- --depth=20") < 4.2
    newer = b"torchrun -m scripts.base_train -- --depth=24 --target-param-data-ratio=8 --fp8"
    assert 1.8 < estimate(tmp_path, newer, "num_scaling_params = 0\n", 24) < 2.5


def test_what_the_docs_say_of_the_checks_is_what_they_are(tmp_path):
    rows = re.findall(r"^\| `([a-z-]+)` \| ([AB]) \| (\d+) s \|", Path("docs/preflight.md").read_text(), re.MULTILINE)
    told = {name: (stage, float(limit)) for name, stage, limit in rows}
    of_b = dict.fromkeys(GATES, ("B", stage_b.GATES_SECONDS)) | {TRAINING_SPEED: ("B", stage_b.STEPS_SECONDS)}
    assert told == {check.name: (check.stage, check.limit) for check in stage(tmp_path)} | of_b
    assert len(rows) == len(told)
    assert max(limit for stage, limit in told.values() if stage == "A") < 60


# -- the machine --------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_caught(tmp_path):
    assert checks.check_disk(tmp_path, 1 << 60)[0] == "fail"
    assert checks.check_disk(tmp_path, 1)[0] == "pass"


def test_an_old_python_is_caught():
    assert checks.check_python()[0] == "pass"
    verdict, seen, hint = checks.check_python((3, 9, 2))
    assert (verdict, "3.9.2" in seen, "3.11" in hint) == ("fail", True, True)


def test_a_slow_disk_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "WRITE_BYTES", 1 << 20)
    monkeypatch.setattr(checks, "SLOW_WRITE", 1e15)
    verdict, seen, hint = checks.check_write_speed(tmp_path)
    assert (verdict, "MB/s" in seen, "local disk" in hint) == ("warn", True, True)


def test_little_memory_is_warned_of(monkeypatch):
    monkeypatch.setattr(checks, "memory_bytes", lambda: 16 * GIB)
    verdict, seen, hint = checks.check_memory(GOOD)
    assert (verdict, "16 GiB" in seen, "40 GiB" in hint) == ("warn", True, True)
    assert checks.check_memory(Gpus())[0] == "pass"


def test_a_folder_that_cannot_be_written_is_caught():
    verdict, _, hint = checks.check_write_speed(checks.Path("/proc"))
    assert verdict == "fail"
    assert "HOMERUN_DIR" in hint


def test_a_port_in_use_is_caught():
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        verdict, _, hint = checks.check_port(other.getsockname()[1])
    assert (verdict, "HOMERUN_PORT" in hint) == ("fail", True)
    assert checks.check_port(8000, bound=True) is None


def test_a_compiler_that_is_missing_or_broken_is_caught(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.check_compiler(GOOD)[0] == "fail"
    assert checks.check_compiler(Gpus())[0] == "warn"
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cannot find crt1.o' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "crt1.o" in checks.check_compiler(GOOD)[1]


def test_a_small_dev_shm_is_warned_of_where_nccl_may_want_it(tmp_path):
    assert checks.check_shm(GOOD, tmp_path / "absent")[0] == "warn"
    assert checks.check_shm(Gpus()) is None


def test_an_old_bash_is_caught(tmp_path, monkeypatch):
    old = tmp_path / "bash"
    old.write_text("#!/bin/sh\necho 4 4\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert checks.check_bash()[0] == "fail"


# -- upstream -----------------------------------------------------------------------------------------------------

SCRIPT = b"""
python -m nanochat.dataset -n 8
python -m nanochat.dataset -n 170 &
torchrun --nproc_per_node=8 -m scripts.base_train -- --depth=24
"""


@pytest.fixture
def hub():
    """A server of shards; `missing` names those it does not have."""

    class Handler(BaseHTTPRequestHandler):
        missing: ClassVar[set] = set()

        def do_HEAD(self):
            self.send_response(404 if self.path in self.missing else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()


def source(tmp_path, url):
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat" / "dataset.py").write_text(f'BASE_URL = "{url}"\nMAX_SHARD = 6542 # the last\n')
    return Source(url, None, None, tmp_path, "speedrun.sh", "0" * 64)


def test_the_first_and_the_last_shard_must_be_there(tmp_path, hub):
    url, handler = hub
    found, plan = source(tmp_path, url), read_plan(SCRIPT)
    assert upstream.check_dataset(found, plan, tmp_path / "base")[0] == "pass"
    handler.missing = {"/shard_06542.parquet"}
    verdict, seen, _ = upstream.check_dataset(found, plan, tmp_path / "base")
    assert (verdict, "shard_06542" in seen) == ("fail", True)
    assert upstream.check_dataset(found, plan, tmp_path / "base", frozenset({"dataset"})) is None
    (tmp_path / "base" / "base_data_climbmix").mkdir(parents=True)
    (tmp_path / "base" / "base_data_climbmix" / "shard_00000.parquet").write_bytes(b"x")
    assert upstream.check_dataset(found, plan, tmp_path / "base")[0] == "pass"


def test_an_unreachable_dataset_is_caught(tmp_path):
    found = source(tmp_path, "http://127.0.0.1:9")
    verdict, _, hint = upstream.check_dataset(found, read_plan(SCRIPT), tmp_path / "base")
    assert (verdict, "network" in hint) == ("fail", True)


def test_a_plan_that_is_not_recognised_is_warned_of():
    assert upstream.check_plan(read_plan(SCRIPT))[0] == "pass"
    assert upstream.check_plan(read_plan(b"python -m scripts.brand_new\n"))[0] == "warn"
    assert upstream.check_plan(read_plan(b"echo hello\n"))[0] == "fail"


def test_the_disk_that_a_plan_needs_grows_with_shards_depth_and_retention():
    plan = read_plan(SCRIPT)
    assert upstream.disk_needed(plan, 24, 2) > 170 * upstream.SHARD + 4 * upstream.MODEL_AT_D24
    assert upstream.disk_needed(plan, 24, 2) < upstream.disk_needed(plan, 24, 4) < upstream.disk_needed(plan, 32, 4)


@pytest.mark.parametrize(
    ("environ", "answer", "verdict"),
    [
        ({}, None, "pass"),
        ({"WANDB_RUN": "dummy"}, None, "pass"),
        ({"WANDB_RUN": "d24"}, None, "warn"),
        ({"WANDB_MODE": "online"}, None, "fail"),
        ({"WANDB_RUN": "d24", "WANDB_MODE": "offline"}, None, "pass"),
        ({"WANDB_API_KEY": "k" * 40}, (200, {"data": {"viewer": {"username": "someone"}}}), "pass"),
        ({"WANDB_API_KEY": "k" * 40}, (200, {"data": {"viewer": None}}), "fail"),
        ({"WANDB_API_KEY": "k" * 40}, (401, {}), "fail"),
        ({"WANDB_API_KEY": "k" * 40}, (503, {}), "warn"),
        ({"WANDB_API_KEY": "k" * 40}, "unreachable", "warn"),
    ],
)
def test_wandb_is_refused_only_where_it_would_stop_the_run(monkeypatch, environ, answer, verdict):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(upstream, "WANDB", f"http://127.0.0.1:{9 if answer == 'unreachable' else server.server_port}")
    found = upstream.check_wandb(Settings.load(environ), environ)
    server.shutdown()
    server.server_close()
    assert found[0] == verdict
    assert "kkkk" not in str(found)
    assert found[0] == "pass" or found[2]


# -- the command ----------------------------------------------------------------------------------------------------


def preflight(tmp_path, *arguments, **environ):
    script = tmp_path / "recipe.sh"
    script.write_text("python -m homerun.trainer.tok_train\n")
    return subprocess.run(
        [sys.executable, "-m", "homerun", "preflight", "--script", str(script), "--nproc", "0", *arguments],
        env={**os.environ, "HOMERUN_DIR": str(tmp_path / "home"), "HOMERUN_PORT": "0", **environ},
        capture_output=True,
        text=True,
    )


def test_the_command_passes_here_and_leaves_nothing_behind(tmp_path):
    done = preflight(tmp_path, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    results = {one["name"]: one for one in json.loads(done.stdout)}
    assert {"python", "bash", "disk", "bucket", "bucket-landing", "plan", "wandb"} <= set(results)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_an_upstream_that_cannot_be_reached_is_a_failed_check(tmp_path):
    env = {"HOMERUN_DIR": str(tmp_path / "home"), "HOMERUN_PORT": "0"}
    done = homerun_command("preflight", "--upstream", "http://127.0.0.1:9/nanochat", "--json", **env)
    assert done.returncode == 3
    (check,) = json.loads(done.stdout)
    assert (check["name"], check["verdict"], bool(check["hint"])) == ("upstream", "fail", True)


def test_the_command_ends_with_3_and_names_the_check_that_failed(tmp_path):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        done = preflight(tmp_path, HOMERUN_PORT=str(other.getsockname()[1]))
    assert done.returncode == 3
    assert done.stderr.startswith("error: 1 check failed: port")
    assert "HOMERUN_PORT" in done.stdout
