"""A run from the first check to `_SUCCESS`, and the ways in which it can go wrong, on a small upstream of our own."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from fake_upstream import SCRIPT, command, environment, homerun, make

from homerun.bucket.outbox import Outbox
from homerun.errors import Exit
from homerun.journal import replay

pytestmark = pytest.mark.slow
ENDING = ["report", "metadata", "finish"]


@pytest.fixture
def place(tmp_path):
    """Upstream's folder, HOMERUN_DIR and a folder for faults, as environment variables for `homerun`."""
    make(tmp_path / "upstream")
    (tmp_path / "faults").mkdir()
    return {"HOMERUN_DIR": str(tmp_path / "dir"), "FAULTS": str(tmp_path / "faults"), "HOMERUN_RUN_ID": "run"}


def train(place, *arguments, **more):
    upstream = Path(place["HOMERUN_DIR"]).parent / "upstream"
    return homerun("train", "--upstream", str(upstream), *arguments, **{**place, **more})


def fault(place, name, text="1"):
    (Path(place["FAULTS"]) / name).write_text(text)


def mend(place, name):
    (Path(place["FAULTS"]) / name).unlink()


def events(place, *types):
    path = Path(place["HOMERUN_DIR"]) / "runs" / "run" / "journal.jsonl"
    return [event for event in replay(path) if not types or event["type"] in types]


def bucket(place):
    return Path(place["HOMERUN_DIR"]) / "bucket" / "run"


def manifest(place):
    return json.loads((bucket(place) / "manifest.json").read_text())["entries"]


def keys(place):
    entries = manifest(place)
    return {entry["key"] for entry in (entries.values() if isinstance(entries, dict) else entries)}


def alive(place):
    """Processes of this run: those that work in its folder."""
    folder, found = place["HOMERUN_DIR"], []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and folder in " ".join([process.cwd(), *process.cmdline()]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.05)


def test_a_good_run_ends_0_with_everything_proven(place):
    done = train(place)
    assert done.returncode == Exit.GOOD, done.stdout + done.stderr
    assert (bucket(place) / "_SUCCESS").exists()
    verdicts = {event["phase"]: event["verdict"] for event in events(place, "phase.end")}
    assert verdicts == {
        "dataset": "ok",
        "dataset-2": "ok",
        "tok_train": "ok",
        "tok_eval": "harmless",
        "base_train": "ok",
        "base_eval": "ok",
        "chat_sft": "ok",
        "chat_eval-sft": "ok",
    }
    assert {
        "tokenizer/tokenizer.pkl",
        "base_checkpoints/d4/model_000020.pt",
        "base_checkpoints/d4/meta_000020.json",
        "base_checkpoints/d4/optim_000020_rank0.pt",
        "base_eval/base_model_000020.csv",
        "chatsft_checkpoints/d4/model_000010.pt",
    } <= keys(place)
    assert homerun("verify", "latest", **place).returncode == 0
    metrics = {(event["phase"], event["metric"]): event["value"] for event in events(place, "eval")}
    assert metrics["base_eval", "core"] == 0.1667
    assert len(events(place, "step")) == 20
    outbox = Outbox(Path(place["HOMERUN_DIR"]) / "runs" / "run" / "outbox")
    kinds = [request.kind for request in outbox.all()]
    assert kinds.count("over") == 1 and set(kinds[kinds.index("over") + 1 :]) <= {"artifact", "log", *ENDING}
    assert kinds[-3:] == ENDING
    assert not alive(place)


def test_pull_brings_the_same_bytes_home(place, tmp_path):
    assert train(place).returncode == 0
    assert homerun("pull", "latest", str(tmp_path / "home"), **place).returncode == 0
    name = "base_checkpoints/d4/model_000020.pt"
    trained = Path(place["HOMERUN_DIR"]) / "runs/run/home/.cache/nanochat" / name
    assert (tmp_path / "home" / name).read_bytes() == trained.read_bytes()


def test_verify_finds_one_flipped_bit(place):
    assert train(place).returncode == 0
    path = bucket(place) / "chatsft_checkpoints/d4/model_000010.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert homerun("verify", "latest", **place).returncode == Exit.UNPROVEN


def test_a_failed_base_train_stops_the_run_although_an_older_larger_checkpoint_is_around(place):
    older = Path(place["HOMERUN_DIR"]) / ".cache/nanochat/base_checkpoints/d26"
    older.mkdir(parents=True)
    (older / "model_999999.pt").write_text("a larger one from another run")
    fault(place, "base_train", "3")
    done = train(place)
    assert done.returncode == Exit.PHASE, done.stdout
    began = [event["phase"] for event in events(place, "phase.begin")]
    assert began[-1] == "base_train"
    assert not (bucket(place) / "_SUCCESS").exists()
    assert "tokenizer/tokenizer.pkl" in keys(place)


def test_a_taken_port_ends_before_anything_else_and_only_where_a_page_is_wanted(place):
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = str(other.getsockname()[1])
        refused = train(place, HOMERUN_PORT=port)
        assert refused.returncode == Exit.PREFLIGHT and f"port {port} cannot be had" in refused.stderr
        assert refused.stderr.count("\n") == 1 and not (Path(place["HOMERUN_DIR"]) / "runs" / "run").exists()
    with socket.socket() as other:  # the default port; whoever has it has it
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            other.bind(("0.0.0.0", 8000))
            other.listen()
        fault(place, "dataset", "1")
        assert train(place).returncode == Exit.PHASE


def test_a_missing_shard_stops_the_run_and_names_the_count(place):
    fault(place, "dataset", "1")
    done = train(place)
    assert done.returncode == Exit.PHASE
    end = next(event for event in events(place, "phase.end") if event["verdict"] == "failed")
    assert "1 of 2" in end["reason"] or "3 of 4" in end["reason"] or "1/2" in end["reason"] or "3/4" in end["reason"]
    assert "base_train" not in [event["phase"] for event in events(place, "phase.begin")]


def test_a_phase_that_writes_nothing_has_failed(place):
    fault(place, "tok_train_writes_nothing")
    done = train(place)
    assert done.returncode == Exit.PHASE
    (end,) = [event for event in events(place, "phase.end") if event["phase"] == "tok_train"]
    assert end["verdict"] == "failed"
    assert "tokenizer" in end["reason"]


def test_the_last_line_says_what_happened_what_is_safe_and_what_to_type(place):
    fault(place, "base_train", "3")
    done = train(place)
    last = done.stdout.strip().splitlines()[-1]
    assert "base_train" in done.stdout
    assert "homerun train --resume run" in last


def test_the_command_that_the_last_line_names_goes_on_as_the_run_began(place):
    fault(place, "base_train", "3")
    failed = train(place, "--phase-args", "base_train=--sleep=0.01", "--skip", "tok_eval", HOMERUN_RUN_ID="run")
    command = failed.stdout.strip().splitlines()[-1].partition("Next: homerun ")[2]
    mend(place, "base_train")
    done = homerun(*command.split(), **{**place, "HOMERUN_RUN_ID": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    again = [event for event in events(place, "phase.begin", "phase.skip") if event["attempt"] == 2]
    words = {event["phase"]: event.get("argv") for event in again}
    assert "--sleep=0.01" in words["base_train"] and words["tok_eval"] is None


def test_after_the_fault_is_mended_the_same_run_goes_on_and_skips_what_is_done(place):
    fault(place, "base_train", "3")
    assert train(place).returncode == Exit.PHASE
    mend(place, "base_train")
    done = train(place)
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = [event["phase"] for event in events(place, "phase.skip")]
    assert "tok_train" in skipped and "base_train" not in skipped
    assert (bucket(place) / "_SUCCESS").exists()


def test_a_run_that_is_finished_is_not_trained_again(place):
    assert train(place).returncode == 0
    count = len(events(place, "phase.begin"))
    again = train(place)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(events(place, "phase.begin")) == count


def test_no_secret_is_in_anything_that_leaves(place):
    canary = "canary-7f3a9b1c5d"
    secrets = {
        "R2_SECRET_ACCESS_KEY_UNUSED": "x",
        "HOMERUN_SERVE_TOKEN": canary,
        "GITHUB_TOKEN": canary,
        "WANDB_API_KEY": canary,
    }
    upstream = Path(place["HOMERUN_DIR"]).parent / "upstream"
    (upstream / "scripts" / "tok_eval.py").write_text("import os; print(dict(os.environ))")
    done = train(place, **secrets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert canary not in done.stdout + done.stderr
    run = Path(place["HOMERUN_DIR"]) / "runs" / "run"
    for root in (bucket(place), run / "logs", run / "outbox"):
        for path in root.rglob("*"):
            if path.is_file() and path.parent.name != "raw":
                assert canary.encode() not in path.read_bytes(), path
    assert canary not in (run / "journal.jsonl").read_text()
    (raw,) = (run / "logs" / "a01" / "raw").glob("*-tok_eval.log")
    assert raw.stat().st_mode & 0o777 == 0o600
    seen = raw.read_text()
    assert "GITHUB_TOKEN" not in seen and "HOMERUN_SERVE_TOKEN" not in seen


def _start(place, *arguments, **more):
    upstream = Path(place["HOMERUN_DIR"]).parent / "upstream"
    line = command(
        "train", "--upstream", str(upstream), "--phase-args", "base_train=--save-every=5 --sleep=0.1", *arguments
    )
    return subprocess.Popen(
        line, env=environment(**{**place, **more}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_term_flushes_ends_143_and_leaves_nothing_running(place):
    job = _start(place)
    wait_for(lambda: len(events(place, "step")) > 8)
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=30)
    assert job.returncode == Exit.TERM, out
    assert not alive(place)
    assert "base_checkpoints/d4/model_000005.pt" in keys(place)
    assert events(place, "attempt.end")[-1]["code"] == 143


def test_ctrl_c_asks_once_and_ends_130_the_second_time(place):
    job = _start(place)
    wait_for(lambda: len(events(place, "step")) > 3)
    job.send_signal(signal.SIGINT)
    time.sleep(1)
    assert job.poll() is None
    job.send_signal(signal.SIGINT)
    out, _ = job.communicate(timeout=30)
    assert job.returncode == Exit.INTERRUPT, out
    assert "Press it again" in out
    assert not alive(place)


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_a_random_time_leaves_nothing_running_and_the_run_goes_on(place, seed):
    rng = random.Random(seed)
    job = _start(place)
    wait_for(lambda: events(place, "phase.begin"))
    time.sleep(rng.uniform(0, 4))
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    wait_for(lambda: not alive(place), 20)
    manifest = bucket(place) / "manifest.json"
    if manifest.exists() and json.loads(manifest.read_bytes())["entries"]:
        assert homerun("verify", "run", **place).returncode == 0
    again = _start(place)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert homerun("verify", "run", **place).returncode == 0
    steps = [event["step"] for event in events(place, "step")]
    assert set(range(20)) <= set(steps)


def test_a_killed_run_goes_on_from_its_checkpoint_on_an_emptied_disk(place):
    job = _start(place, "--phase-args", "base_train=--sleep=0.5")
    wait_for(lambda: any("000010.optim" in event["group"] for event in events(place, "secured")))
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    wait_for(lambda: not alive(place), 20)
    directory = Path(place["HOMERUN_DIR"])
    (directory / "runs").rename(directory / "lost-disk")
    done = _start(place)
    out, _ = done.communicate(timeout=120)
    assert done.returncode == 0, out
    resumed = [event for event in events(place, "phase.begin") if event["phase"] == "base_train"][-1]
    assert any(word.startswith("--resume-from-step=") for word in resumed["argv"])
    assert homerun("verify", "run", **place).returncode == 0


def test_a_second_runner_of_a_living_run_refuses(place):
    job = _start(place, "--phase-args", "base_train=--sleep=2")
    wait_for(lambda: events(place, "step"))
    second = train(place)
    assert second.returncode == Exit.LEASE, second.stdout + second.stderr
    job.communicate(timeout=60)
    assert job.returncode == 0


def test_a_hanging_phase_is_ended_by_the_watchdog(place):
    fault(place, "base_train_hangs")
    done = train(place, "--gpu-hour-price", "24", HOMERUN_WATCHDOG_MINUTES="0.05")
    assert done.returncode == Exit.STUCK, done.stdout
    assert "base_train" in events(place, "stop")[-1]["text"]
    assert ", which cost $0.0" in events(place, "stop")[-1]["text"]
    assert not alive(place)


@pytest.mark.parametrize(
    ("script", "word"),
    [(SCRIPT + "\nif [ ; then\n", "line"), (SCRIPT.replace("\n", "\r\n"), "CRLF"), ("\x00\x01\x02", "script")],
)
def test_a_script_that_bash_cannot_read_is_one_line_and_exit_2(place, script, word):
    upstream = Path(place["HOMERUN_DIR"]).parent / "upstream"
    make(upstream, script)
    done = train(place)
    assert done.returncode == Exit.REQUEST, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_script_without_a_newline_at_its_end_runs_whole(place):
    make(Path(place["HOMERUN_DIR"]).parent / "upstream", SCRIPT.rstrip())
    assert train(place).returncode == 0
    assert events(place, "phase.end")[-1]["phase"] == "chat_eval-sft"


def test_without_a_writable_folder_it_is_one_line_and_exit_2(place, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = train({**place, "HOMERUN_DIR": str(tmp_path / "file" / "x")})
    assert done.returncode in (Exit.REQUEST, Exit.PREFLIGHT), done.stdout + done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system: needs root")
def test_a_full_disk_ends_the_run_with_what_is_safe_said(place, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine cannot mount a tmpfs")
    try:
        upstream = Path(place["HOMERUN_DIR"]).parent / "upstream"
        hog = 'open(os.environ["HOME"] + "/hog", "wb").write(b"x" * (1 << 30))'
        (upstream / "scripts" / "base_eval.py").write_text(f"import os\n{hog}\n")
        small = {**place, "HOMERUN_DIR": str(disk / "dir"), "HOMERUN_SKIP_CHECKS": "disk,disk-speed,bucket-landing"}
        done = homerun("train", "--upstream", str(upstream), **small)
        assert done.returncode == Exit.PHASE, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        last = done.stdout.strip().splitlines()[-1]
        assert "Safe:" in last and "homerun train --resume run" in last
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.s3
def test_a_good_run_over_a_real_s3_server_is_proven_and_comes_home(place, s3_server, tmp_path):
    cloud = {**place, **s3_server.environ(), "HOMERUN_RUN_ID": "cloud-run"}
    done = train(cloud)
    assert done.returncode == 0, done.stdout + done.stderr
    assert homerun("verify", "cloud-run", **cloud).returncode == 0
    elsewhere = {**cloud, "HOMERUN_DIR": str(tmp_path / "elsewhere")}
    home = tmp_path / "home"
    assert homerun("pull", "cloud-run", str(home), **elsewhere).returncode == 0
    trained = Path(place["HOMERUN_DIR"]) / "runs/cloud-run/home/.cache/nanochat"
    for name in ("tokenizer/tokenizer.pkl", "chatsft_checkpoints/d4/model_000010.pt"):
        assert (home / name).read_bytes() == (trained / name).read_bytes()
    listed = json.loads(homerun("runs", "--json", **elsewhere).stdout)
    assert "cloud-run" in json.dumps(listed)
    assert homerun("status", "cloud-run", **elsewhere).returncode == 0


@pytest.mark.s3
def test_a_wrong_key_ends_in_exit_3_before_any_training(place, s3_server):
    wrong = {**place, **s3_server.environ(), "R2_SECRET_ACCESS_KEY": "wrong-secret-0123456789"}
    done = train(wrong)
    assert done.returncode == Exit.PREFLIGHT, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "wrong-secret" not in done.stdout + done.stderr
    assert not events(place, "phase.begin")


def test_a_container_without_a_name_adopts_the_one_unfinished_run_of_the_same_request(place):
    nameless = {name: value for name, value in place.items() if name != "HOMERUN_RUN_ID"} | {"HOMERUN_ADOPT": "true"}
    fault(place, "base_train", "3")
    assert train(nameless).returncode == Exit.PHASE
    mend(place, "base_train")
    assert train(nameless).returncode == 0
    assert len(list((Path(place["HOMERUN_DIR"]) / "bucket").glob("speedrun-*/_SUCCESS")) or []) <= 1
    runs = json.loads(homerun("runs", "--json", **nameless).stdout)
    assert len(runs) == 1
    assert train(nameless).returncode == 0
    assert len(json.loads(homerun("runs", "--json", **nameless).stdout)) == 2


def test_another_number_of_processes_than_saved_the_optimizer_is_one_sentence_and_exit_3(place):
    job = _start(place, "--phase-args", "base_train=--sleep=1")
    wait_for(lambda: any("000010.optim" in event["group"] for event in events(place, "secured")))
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    wait_for(lambda: not alive(place), 20)
    again = train(place, NPROC_PER_NODE="2")
    assert again.returncode == Exit.PREFLIGHT, again.stdout
    assert "saved by 1 processes" in again.stdout
    assert [event["attempt"] for event in events(place, "phase.begin")].count(2) == 0


def test_the_gates_in_upstreams_own_environment_end_a_run_before_its_first_phase(place):
    """A GPU is asked for that torch cannot see: told as soon as the script's environment is there, exit 3."""
    prepared = SCRIPT.replace(
        "mkdir -p $NANOCHAT_BASE_DIR\n",
        'mkdir -p $NANOCHAT_BASE_DIR .venv/bin\n    ln -sf "$(command -v python)" .venv/bin\n',
    )
    make(Path(place["HOMERUN_DIR"]).parent / "upstream", prepared)
    done = train(place, NPROC_PER_NODE="1", HOMERUN_SKIP_CHECKS="gpus,gpu-health")
    assert done.returncode == Exit.PREFLIGHT, done.stdout + done.stderr
    assert [event for event in events(place, "check") if event["stage"] == "B" and event["verdict"] == "fail"]
    assert not events(place, "phase.begin")


def test_a_run_is_given_up_after_its_attempts_with_a_clear_word(place):
    fault(place, "base_train", "3")
    assert train(place, HOMERUN_MAX_ATTEMPTS="1").returncode == Exit.PHASE
    again = train(place, HOMERUN_MAX_ATTEMPTS="1")
    assert again.returncode == Exit.ATTEMPTS
    assert "HOMERUN_MAX_ATTEMPTS=" in again.stderr and len(again.stderr.strip().splitlines()) == 1
    assert train(place, HOMERUN_MAX_ATTEMPTS="2").returncode == Exit.PHASE
