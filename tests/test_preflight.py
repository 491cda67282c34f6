"""Preflight: every seeded fault is caught with a hint, a good box raises no alarm, a check that hangs is cut off."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

import homerun.machine
from homerun.errors import RequestError
from homerun.machine import GIB, Gpu, Gpus, checks, describe, read_gpus, sample
from homerun.preflight import Check, failed, run_checks, table
from homerun.settings import Settings
from homerun.upstream import checks as upstream
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
    names = list(table(results).columns[0].cells)
    assert names == ["good", "bad"]


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


# -- the machine --------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_caught(tmp_path):
    assert checks.check_disk(tmp_path, 1 << 60)[0] == "fail"
    assert checks.check_disk(tmp_path, 1)[0] == "pass"


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
    assert checks.check_port(8000, inherited=True) is None


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


def test_the_command_ends_with_3_and_names_the_check_that_failed(tmp_path):
    done = preflight(tmp_path, WANDB_RUN="d24")
    assert done.returncode == 3
    assert "wandb" in done.stderr
    assert "WANDB_API_KEY" in done.stdout
