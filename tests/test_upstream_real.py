"""The real upstream, unmodified, offline on a CPU at toy size: a commit of each generation, from checks to `_SUCCESS`.

HOMERUN_UPSTREAM_SRC=~/nanochat python -m pytest tests/test_upstream_real.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_upstream import command, environment
from offline import GENERATIONS, PHASE_ARGS, SHARDS, build_kit
from offline import environment as offline

from homerun.journal import replay
from tests.fakes.hub import DatasetsHub

SOURCE = os.environ.get("HOMERUN_UPSTREAM_SRC")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.upstream,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SOURCE, reason="HOMERUN_UPSTREAM_SRC names no git clone of karpathy/nanochat"),
]
SAME = ["tok_train", "base_train", "base_eval", "chat_sft", "chat_eval-sft"]
PHASES = {
    "G1": [*SAME, "base_loss", "mid_train", "chat_eval-mid", "report-reset", "report-generate"],
    "G2": [*SAME, "report-reset", "report-generate"],
    "G3": SAME,
}
ARTIFACTS = {
    "G1": ["base_checkpoints/d2/optim_000020.pt", "mid_checkpoints/d2/model_000009.pt", "upstream_report/report.md"],
    "G2": ["base_checkpoints/d2/optim_000020_rank0.pt", "upstream_report/report.md"],
    "G3": ["base_checkpoints/d2/optim_000020_rank0.pt"],
}


@pytest.fixture(scope="session")
def kit(tmp_path_factory):
    return build_kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="session")
def hub(kit):
    with DatasetsHub(kit / "hub") as hub:
        yield hub


def settings(kit: Path, directory: Path, generation: str, hub: str = "") -> dict[str, str]:
    args = json.dumps(PHASE_ARGS[generation])
    return environment(HOMERUN_DIR=str(directory), HOMERUN_RUN_ID="run", HOMERUN_PHASE_ARGS=args) | offline(kit, hub)


def train(env: dict[str, str], generation: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = command("train", "--upstream", str(SOURCE), "--ref", GENERATIONS[generation], *arguments)
    return subprocess.run(line, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_runs_whole_unmodified_and_is_proven(kit, hub, tmp_path, generation):
    env = settings(kit, tmp_path, generation, hub.url) | {"HOMERUN_CHECK_STEPS": "true"}
    done = train(env, generation)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    events = list(replay(tmp_path / "runs" / "run" / "journal.jsonl"))
    verdicts = {event["phase"]: event["verdict"] for event in events if event["type"] == "phase.end"}
    for phase in PHASES[generation]:
        assert verdicts[phase] == "ok", phase
    assert set(verdicts.values()) <= {"ok", "harmless"}
    script = next(event["script"] for event in events if event["type"] == "run.begin")
    show = subprocess.run(
        ["git", "-C", str(SOURCE), "show", f"{GENERATIONS[generation]}:{script['path']}"],
        capture_output=True,
        check=True,
    )
    assert len(show.stdout) == script["bytes"]
    manifest = json.loads((tmp_path / "bucket" / "run" / "manifest.json").read_text())
    keys = {entry["key"] for entry in manifest["entries"]}
    common = ["tokenizer/tokenizer.pkl", "base_checkpoints/d2/model_000020.pt", "base_eval/base_model_000020.csv"]
    assert {*common, *ARTIFACTS[generation]} <= keys
    assert any(key.startswith("chatsft_checkpoints/d2/model_") for key in keys)
    assert (tmp_path / "bucket" / "run" / "_SUCCESS").exists()
    verify = subprocess.run(command("verify", "run"), env=env, capture_output=True, check=False)
    assert verify.returncode == 0
    metrics = {(event["phase"], event["metric"]) for event in events if event["type"] == "eval"}
    assert ("base_train", "val_bpb") in metrics and ("base_eval", "core") in metrics
    steps = [event for event in events if event["type"] == "step" and event["phase"] == "base_train"]
    assert [event["step"] for event in steps] == list(range(20))
    (speed,) = [event for event in events if event["type"] == "check" and event["name"] == "training-speed"]
    assert speed["verdict"] == "pass" and "tokens/s over 20 steps; this CPU" in speed["seen"]
    tried = (tmp_path / "runs" / "run" / "logs" / "a01" / "raw" / "training-speed.log").read_text()
    assert "step 00019/01000" in tried and "Saved" not in tried and "CORE metric" not in tried
    assert "accuracy/ARC-Easy" in {metric for phase, metric in metrics if phase == "chat_eval-sft"}


@pytest.mark.parametrize(("script", "trainings"), [("runcpu", 1), ("runs/miniseries.sh", 8)])
def test_upstreams_other_scripts_run_whole_too(kit, tmp_path, script, trainings):
    """A loop over depths with pipes, functions, `$( )` and a W&B run of its own; without a W&B key."""
    env = settings(kit, tmp_path, "G3")
    arguments = json.loads(env["HOMERUN_PHASE_ARGS"])
    wanted = ["tok_train", "base_train"] + (["base_eval", "chat_sft"] if trainings == 1 else [])
    if trainings > 1:
        arguments["base_train"] += " --num-iterations=2 --eval-every=2 --core-metric-every=2 --sample-every=-1"
    env["HOMERUN_PHASE_ARGS"] = json.dumps({name: arguments[name] for name in wanted})
    env["HOMERUN_SKIP_CHECKS"] = "dataset,disk"
    done = train(env, "G3", "--script", script)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    events = list(replay(tmp_path / "runs" / "run" / "journal.jsonl"))
    verdicts = [event["verdict"] for event in events if event["type"] == "phase.end" and "base_train" in event["phase"]]
    assert verdicts == ["ok"] * trainings
    manifest = json.loads((tmp_path / "bucket" / "run" / "manifest.json").read_text())
    models = {
        e["key"] for e in manifest["entries"] if e["key"].startswith("base_checkpoints/") and "/model_" in e["key"]
    }
    assert len(models) == trainings


def test_the_newest_generation_goes_on_at_its_checkpoint_after_a_kill_on_an_emptied_disk(kit, tmp_path):
    env = settings(kit, tmp_path, "G3")
    arguments = json.loads(env["HOMERUN_PHASE_ARGS"])
    arguments["base_train"] += " --num-iterations=300 --save-every=20 --eval-every=100"
    env["HOMERUN_PHASE_ARGS"] = json.dumps(arguments)
    line = command("train", "--upstream", str(SOURCE), "--ref", GENERATIONS["G3"])
    job = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert job.stdout
    for words in job.stdout:
        if "secured base_checkpoints/d2/0000" in words and "optim" in words:
            break
    job.kill()
    job.communicate()
    (tmp_path / "runs").rename(tmp_path / "lost-disk")
    done = train(env, "G3")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    events = list(replay(tmp_path / "runs" / "run" / "journal.jsonl"))
    again = [e for e in events if e["type"] == "phase.begin" and e["phase"] == "base_train" and e["attempt"] == 2]
    (begin,) = again
    resumed = [int(word.partition("=")[2]) for word in begin["argv"] if word.startswith("--resume-from-step=")]
    assert resumed and resumed[0] >= 20
    steps = [e["step"] for e in events if e["type"] == "step" and e["phase"] == "base_train" and e["attempt"] == 2]
    assert steps == list(range(resumed[0], 300))
    assert "tok_train" in [e["phase"] for e in events if e["type"] == "phase.skip"]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_next_run_starts_from_the_input_cache_alone(kit, hub, tmp_path, generation):
    """Run 1 has its inputs from the kit and the hub; then both give nothing, and no network does."""
    env = settings(kit, tmp_path, generation, hub.url) | {"HOMERUN_SYNC_DATA": "true"}
    one = train(env, generation)
    assert one.returncode == 0, one.stdout[-5000:] + one.stderr
    for folder in ("runs", ".cache"):
        shutil.rmtree(tmp_path / folder)
    (kit / "empty").touch()
    try:
        offline = settings(kit, tmp_path, generation) | {"HOMERUN_SYNC_DATA": "true", "HOMERUN_RUN_ID": "two"}
        two = train(offline, generation)
    finally:
        (kit / "empty").unlink()
    assert two.returncode == 0, two.stdout[-5000:] + two.stderr
    events = list(replay(tmp_path / "runs" / "two" / "journal.jsonl"))
    brought = {event["unit"]: event["files"] for event in events if event["type"] == "cache"}
    shards = "base_data_climbmix" if generation == "G3" else "base_data"
    files = {unit.partition("-")[0]: count for unit, count in brought.items()}
    assert files[f"base/{shards}"] == len(SHARDS[shards]) and files["base/tokenizer"] == 2
    repos = [folder.relative_to(hub.root).parts for folder in hub.root.glob("*/*")]
    datasets = {f"huggingface/hub/datasets--{org}--{name}" for org, name in repos}
    datasets |= {f"huggingface/datasets/{org}___{name}" for org, name in repos}
    assert {"base/eval_bundle", *({"base/task_data"} if generation == "G3" else datasets)} < set(brought)
    assert "tok_train" in [event["phase"] for event in events if event["type"] == "phase.skip"]
    assert (tmp_path / "bucket" / "two" / "_SUCCESS").exists()
