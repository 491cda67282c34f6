"""Journals told by tests: `Story` writes events on a clock of its own, `speedrun` a whole run as upstream's looks."""

import math
import random

from homerun.state import fold


class Story:
    """Call it with an event's type and data; `after` seconds pass first."""

    def __init__(self, t=1_763_690_000.0):
        self.events, self.t, self.attempt = [], t, 0

    def __call__(self, type, after=0.0, **data):
        self.t += after
        if type == "attempt.begin":
            self.attempt += 1
        event = {"seq": len(self.events), "t": self.t, "attempt": max(1, self.attempt), "type": type, **data}
        self.events.append(event)
        return event

    def state(self):
        return fold(self.events)

    def write(self, folder):
        """`folder/journal.jsonl`, as the job writes it."""
        import json

        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(event, ensure_ascii=False) + "\n" for event in self.events)
        (folder / "journal.jsonl").write_text("".join(lines), encoding="utf-8")


H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_520_809_984}
MACHINE = {
    "host": "gpu-7",
    "cpus": 208,
    "memory_bytes": 1_900_000_000_000,
    "gpus": [H100] * 8,
    "driver": "570.86.15",
    "cuda": "12.8",
    "python": "3.12.3",
    "platform": "Linux-6.8.0-x86_64-with-glibc2.39",
    "image": None,
}
PLAN = (
    "uv-sync", "dataset", "dataset-2", "tok_train", "tok_eval", "base_train", "base_eval", "chat_sft", "chat_eval-sft",
)  # fmt: skip


def begin(story, run="nanochat-d20-20251121T023100Z-1f3a", price=24.0, **more):
    """The run, an attempt and its plan."""
    story(
        "run.begin",
        run=run,
        recipe="speedrun",
        script={"path": "runs/speedrun.sh", "sha256": "ea0beb34" + "0" * 56, "bytes": 4321},
        upstream={"url": "https://github.com/karpathy/nanochat", "ref": None, "commit": "92d63d4e" + "0" * 32},
        fingerprint="0123456789ab",
        bucket="s3://models at r2.example",
        version="0.1.0",
    )
    attempt(story, price, **more)


def attempt(story, price=24.0, **more):
    story("attempt.begin", 2, machine=MACHINE, nproc=8, price_usd_per_hour=price, **more)
    story(
        "plan",
        1,
        phases=[
            {"phase": name, "line": 40 + index, "background": name == "dataset-2"} for index, name in enumerate(PLAN)
        ],
        drift=[],
        adapted=[
            {
                "phase": "base_train",
                "what": "saves every 500 steps",
                "added": ["--save-every=500"],
                "removed": [],
            }
        ],
    )


def phase(story, name, seconds, verdict="ok", status=0, background=False, **data):
    story(
        "phase.begin", 1, phase=name, name=name, line=40 + PLAN.index(name), background=background,
        argv=["python", "-m", f"scripts.{name}"], original=["python", "-m", f"scripts.{name}"],
        log=f"logs/a{story.attempt:02d}/{len(story.events):04d}-{name}.log",
    )  # fmt: skip
    if not background:
        end(story, name, seconds, verdict, status, **data)


def end(story, name, after, verdict="ok", status=0, **data):
    """The phase ends `after` seconds from now."""
    began = next(e["t"] for e in reversed(story.events) if e["type"] == "phase.begin" and e["phase"] == name)
    story("phase.end", after, phase=name, status=status, seconds=story.t + after - began, verdict=verdict, **data)


def train(story, name="base_train", first=0, last=2000, total=2000, dt=0.5, save_every=500, end_loss=2.7, seed=1):
    """Steps with evaluations, saves that land, a gauge and machine samples."""
    rng = random.Random(seed)
    stage = {"base_train": "base_checkpoints", "chat_sft": "chatsft_checkpoints"}[name]
    saved = None
    for step in range(first, last):
        progress = step / total
        loss = end_loss + 8.3 * math.exp(-step / (total / 18)) + rng.gauss(0, 0.03)
        story(
            "step", dt, phase=name, step=step, total=total, loss=loss,
            lrm=min(1.0, 5 * (1 - progress)), dt_ms=dt * 1000, tok_per_sec=round(524288 / dt * rng.gauss(1, 0.01)),
            mfu=48 * rng.gauss(1, 0.01), tokens=(step + 1) * 524288,
        )  # fmt: skip
        if step % 40 == 0:
            gpus = [{"util": 99, "memory_bytes": 70 << 30, "power_w": 690, "temperature_c": 66}] * 8
            story("machine", cpu=12.5, memory_bytes=90 << 30, disk_free_bytes=800 << 30, gpus=gpus)
            lost = (step - (saved or 0)) * dt / 60
            story("gauge", lost_minutes=lost, lost_usd=lost / 60 * 24, secured_step=saved, pending_bytes=0)
        if step % 250 == 0 and name == "base_train":
            story("eval", 3, phase=name, metric="val_bpb", value=0.29 * loss + 0.05, step=step)
        if step and step % save_every == 0:
            group = f"{stage}/d20/{step:06d}"
            story(
                "group",
                2,
                group=group,
                kind="checkpoint",
                phase=name,
                bytes=2_100_000_000,
                files=2,
                step=step,
                score=0.29 * loss,
            )
            story("secured", 9, group=group, bytes=2_100_000_000, seconds=9.0)
            saved = step
    return saved


def speedrun(steps=2000, fails=None, **more):
    """A whole run; `fails` names the phase that fails."""
    story = Story()
    begin(story, **more)
    for name, verdict in [("disk", "pass"), ("wandb", "warn")]:
        story(
            "check",
            name=name,
            verdict=verdict,
            seen="no key" if verdict == "warn" else "900 GB free",
            hint="set WANDB_API_KEY",
            seconds=0.1,
            stage="A",
        )
    phase(story, "uv-sync", 60)
    phase(story, "dataset", 20)
    phase(story, "dataset-2", 0, background=True)
    phase(story, "tok_train", 70)
    phase(story, "tok_eval", 3)
    end(story, "dataset-2", 0)
    story(
        "phase.begin", 1, phase="base_train", name="base_train", line=45, log="logs/a01/0005-base_train.log",
        argv=["torchrun", "--nproc_per_node=8", "-m", "scripts.base_train", "--", "--depth=20", "--save-every=500"],
    )  # fmt: skip
    for name, value in [("num_params", 560_988_160), ("num_iterations", steps), ("total_batch_tokens", 524_288)]:
        story("fact", phase="base_train", name=name, value=value)
    train(story, last=steps if fails != "base_train" else steps // 2, total=steps)
    if fails == "base_train":
        end(story, "base_train", 4, "failed", 1, reason="torchrun: rank 3 ran out of memory")
        story("warning", text="CUDA out of memory", hint="lower --device-batch-size")
        story("stop", why="phase", text="base_train failed")
        story(
            "attempt.end",
            4,
            code=4,
            reason="base_train failed",
            safe="2 groups in the bucket",
            next="homerun train --resume nanochat-d20",
        )
        story("run.end", code=4, verdict="failed")
        return story
    story("eval", phase="base_train", metric="core", value=0.2219, step=steps)
    story(
        "sample",
        phase="base_train",
        text="The capital of France is Paris. <b>It is</b> the largest city & the seat of government.",
    )
    end(story, "base_train", 5)
    phase(story, "base_eval", 300)
    story("eval", phase="base_eval", metric="val_bpb", value=0.8071)
    story(
        "phase.begin", 1, phase="chat_sft", name="chat_sft", line=47,
        argv=["torchrun", "-m", "scripts.chat_sft"], log="logs/a01/0007.log",
    )  # fmt: skip
    train(story, "chat_sft", last=300, total=300, end_loss=1.1, save_every=299)
    end(story, "chat_sft", 1)
    phase(story, "chat_eval-sft", 240)
    for task, value in [
        ("ARC-Easy", 0.3876),
        ("ARC-Challenge", 0.2807),
        ("MMLU", 0.3151),
        ("GSM8K", 0.0455),
        ("HumanEval", 0.0854),
    ]:
        story("eval", phase="chat_eval-sft", metric=f"accuracy/{task}", value=value)
    story("eval", phase="chat_eval-sft", metric="chatcore", value=0.0884)
    story(
        "attempt.end",
        12,
        code=0,
        reason="",
        safe="7 groups, 9.1 GB in s3://models at r2.example",
        next="homerun pull nanochat-d20-20251121T023100Z-1f3a DIR",
    )
    story("run.end", code=0, verdict="good")
    return story
