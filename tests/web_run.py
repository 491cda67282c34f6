"""A run's folder as a job leaves it: journal, logs and models, for the tests of web/."""

import math
import time
from pathlib import Path

from homerun.journal import Journal
from tests.serve_tree import make_tree

RUN = "nanochat-d20-20261121T023100Z-1f3a"
GPU = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_000_000_000}


def make_run(folder: Path, steps: int = 300, ended: bool = True, model: bool = True, **config: int) -> Path:
    """A run that trained for `steps` steps; `ended` well, or still training. config: its models' shape."""
    (folder / "logs/a01/raw").mkdir(parents=True)
    (folder / "logs/a01/raw/0001-base_train.log").write_text("sk-canary-secret\n")
    if model:
        make_tree(folder / "home/.cache/nanochat", ("base", "sft"), **config)
    journal = Journal(folder / "journal.jsonl", 1)
    emit = journal.emit
    emit(
        "run.begin",
        run=RUN,
        recipe="speedrun",
        script={"path": "runs/speedrun.sh", "sha256": "0530f6d7" * 8, "bytes": 4000},
        upstream={"url": "https://github.com/karpathy/nanochat", "ref": "main", "commit": "b4e67636" * 5},
        bucket="s3://models",
        version="0.1.0",
    )
    machine = {"host": "box", "cpus": 208, "gpus": [GPU] * 8, "driver": "570.86", "cuda": "12.8"}
    emit("attempt.begin", machine=machine, nproc=8, price_usd_per_hour=24.0)
    emit("check", name="gpus", verdict="pass", seen="8 × NVIDIA H100 80GB HBM3", seconds=0.4, stage="A")
    emit("check", name="disk", verdict="warn", seen="410 GB free", hint="500 GB are safer", seconds=0.1, stage="A")
    phases = [{"phase": name, "name": name} for name in ("dataset", "tok_train", "base_train", "chat_sft")]
    change = {"phase": "base_train", "added": ["--save-every=250"], "removed": [], "why": "no save before the end"}
    emit("plan", phases=phases, drift=["files-to-prompt is not called any more"], adapted=[change])
    for name in ("dataset", "tok_train"):
        emit(
            "phase.begin", phase=name, name=name, line=50, argv=["python", "-m", name], log=f"logs/a01/0001-{name}.log"
        )
        (folder / f"logs/a01/0001-{name}.log").write_text(f"{name} says <b>hello</b> & <script>alert(1)</script>\n")
        emit("phase.end", phase=name, status=0, seconds=31.0, verdict="ok")
    log = "logs/a01/0003-base_train.log"
    emit("phase.begin", phase="base_train", name="base_train", line=67, argv=["torchrun", "--depth=20"], log=log)
    with open(folder / log, "w") as file:
        for step in range(steps):
            loss = 3 + 6 * math.exp(-step / 60) + 0.1 * math.sin(step * 1.7)
            figures = {"loss": round(loss, 6), "lrm": 1.0, "dt_ms": 480.0, "tok_per_sec": 1_092_000 + step, "mfu": 47.9}
            emit("step", phase="base_train", step=step, total=2 * steps, **figures)
            file.write(f"step {step:05d}/{2 * steps:05d} | loss: {loss:.6f} | lrm: 1.00 | dt: 480.00ms\n")
            if step % 50 == 0:
                emit("eval", phase="base_train", metric="val_bpb", value=0.8 + math.exp(-step / 80), step=step)
                gpus = [{"util": 98, "memory_bytes": 70_000_000_000 + step * 10**7, "power_w": 690}] * 8
                emit("machine", cpu=12.0, memory_bytes=200_000_000_000, gpus=gpus)
        file.write("The capital of France is <img src=x onerror=alert(1)> Paris\n")
    emit("sample", phase="base_train", text="<|bos|>The capital of France is Paris. <script>alert(1)</script>")
    emit(
        "group",
        group="base_checkpoints/d20/000250",
        kind="artifact",
        phase="base_train",
        bytes=2 * 10**9,
        files=3,
        step=250,
    )
    emit("secured", group="base_checkpoints/d20/000250", bytes=2 * 10**9, seconds=14.2, at=time.time())
    emit(
        "group",
        group="base_checkpoints/d20/000300",
        kind="artifact",
        phase="base_train",
        bytes=2 * 10**9,
        files=3,
        step=300,
    )
    emit("gauge", lost_minutes=1.3, lost_usd=0.52, secured_step=250, pending_bytes=2 * 10**9)
    emit("warning", text="Flash Attention 3 not available", hint="see docs/preflight.md")
    if ended:
        emit("phase.end", phase="base_train", status=0, seconds=144.0, verdict="ok")
        emit("attempt.end", code=0, reason="good", safe="4 groups, proven in s3://models", next="homerun serve latest")
        emit("run.end", code=0, verdict="good")
    journal.close()
    return folder


def fail_run(folder: Path) -> None:
    """The run that trains in `folder` comes to an end that nobody wanted."""
    journal = Journal(folder / "journal.jsonl", 1)
    reason = "CUDA out of memory at step 300"
    journal.emit("phase.end", phase="base_train", status=1, seconds=144.0, verdict="failed", reason=reason)
    resume = f"homerun train --run-id {RUN}"
    journal.emit("attempt.end", code=4, reason=f"base_train failed: {reason}", safe="step 250, proven", next=resume)
    journal.emit("run.end", code=4, verdict="failed")
    journal.close()


def begin_run(folder: Path) -> Path:
    """A run in its preflight: no phase has begun. Returns its folder."""
    (folder / "logs/a01").mkdir(parents=True)
    journal = Journal(folder / "journal.jsonl", 1)
    journal.emit("run.begin", run=RUN, recipe="speedrun", bucket="s3://models", version="0.1.0")
    journal.emit("attempt.begin", machine={"host": "box", "gpus": [GPU] * 8}, nproc=8, price_usd_per_hour=24.0)
    journal.emit("check", name="gpus", verdict="pass", seen="8 × NVIDIA H100 80GB HBM3", seconds=0.4, stage="A")
    journal.close()
    return folder
