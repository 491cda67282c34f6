"""Budget and deadline: simulated runs with noisy and drifting step times, and a real one that is told to save."""

import heapq
import json
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import torch
from fake_upstream import environment

from homerun.budget import ENDING_SECONDS, Saving, plan_stop
from homerun.cost import dollars
from homerun.errors import Exit
from homerun.job.limits import UNMEASURED_LANDING_SECONDS, Limits
from homerun.job.saving import UNKNOWN_STEPS, save_every, table_step_seconds, unknown_save_every
from homerun.journal import replay
from homerun.projection import Pace
from homerun.settings import Settings
from homerun.state import RunState
from tests.story import H100, Story

PRICE = 24.0  # USD per hour


@dataclass
class Ended:
    """How a simulated run ended. unspent: seconds of the limit that were left when all was over, landing included.
    saved: the newest step on the disk; landed: the newest in the bucket. interval: the longest time between saves."""

    unspent: float
    saved: int | None
    landed: int | None
    interval: float
    landing: float
    stop: tuple[str, str] | None
    warnings: list[tuple[str, str]]
    asked: int


def simulate(seed: int, told: bool, deadline: bool) -> Ended:
    """A training as the job sees it, under `Limits`: steps, and saves that are written, found whole, and land later.

    Saves 10 to 30 minutes apart that take up to a minute to write and two to land; step times that scatter by up to
    15 %, drift by up to 60 % over the run, and now and then take four times as long.
    """
    rng = random.Random(seed)
    base, noise, drift = rng.uniform(1, 6), rng.uniform(0, 0.15), rng.uniform(-0.2, 0.6)
    every, landing, writing = round(rng.uniform(600, 1800) / base), rng.uniform(5, 120), rng.uniform(2, 60)
    total, cap = 6 * every, rng.uniform(1.5, 6) * every * base
    story, state = Story(), RunState()
    end = story.t + cap
    limit = (
        {"HOMERUN_DEADLINE": datetime.fromtimestamp(end, UTC).isoformat()}
        if deadline
        else {"HOMERUN_BUDGET_USD": str(dollars(cap, PRICE))}
    )
    warnings, asked, coming, landed = [], [], [], []
    limits = Limits(
        Settings.load(limit),
        state,
        warn=lambda *words: warnings.append(words),
        tell=lambda: asked.append(story.t),
        clock=lambda: story.t,
    )

    def emit(type, **data):
        state.apply(story(type, **data))
        return limits.check()

    def wait_until(t):
        """What the uploader does meanwhile."""
        while coming and coming[0][0] <= t:
            story.t, type, step = heapq.heappop(coming)
            landed.extend([step] if type == "secured" else [])
            group = f"base_checkpoints/d4/{step:06d}"
            if stop := emit(type, group=group, step=step, kind="checkpoint", phase="base_train"):
                return stop
        story.t = max(story.t, t)
        return None

    emit("attempt.begin", price_usd_per_hour=PRICE)
    story.t += rng.uniform(20, 60)
    emit("phase.begin", phase="base_train", argv=["python", f"--save-every={every}"])
    if told:
        emit("fact", phase="base_train", name="saves_when_told", value=True)
    step, saved, served, stop, longest, last = 0, None, 0, None, 0.0, story.t
    while not stop and step <= total:
        if served < len(asked) or step == total or (step and step % every == 0):
            served = len(asked)
            story.t += writing * rng.uniform(0.7, 1.2)
            whole = story.t + rng.uniform(2, 4)
            heapq.heappush(coming, (whole, "group", step))
            heapq.heappush(coming, (whole + landing * rng.uniform(0.8, 1.2), "secured", step))
            saved, longest, last = step, max(longest, story.t - last), story.t
        if step == total:
            break
        straggles = 4 if rng.random() < 0.005 else 1
        dt = base * (1 + drift * step / total) * rng.lognormvariate(0, noise) * straggles
        stop = wait_until(story.t + dt)
        stop = stop or emit("step", phase="base_train", step=step, total=total, dt_ms=dt * 1000)
        step += 1
    for at, type, saved_step in coming:
        story.t = max(story.t, at)
        landed.extend([saved_step] if type == "secured" else [])
    story.t += rng.uniform(1, ENDING_SECONDS - 1)
    longest = max(longest, every * base * (1 + max(0.0, drift) * step / total))
    return Ended(end - story.t, saved, max(landed, default=None), longest, landing, stop, warnings, len(asked))


@pytest.mark.parametrize("seed", range(20))
def test_a_limit_is_never_broken_and_the_newest_save_is_always_in_the_bucket(seed):
    deadline = seed % 2 == 1
    ended = simulate(seed, told=False, deadline=deadline)
    assert ended.unspent >= 0
    assert ended.landed is not None and ended.landed == ended.saved
    assert ended.asked == 0  # upstream's own training is never told
    if ended.stop:
        why, sentence = ended.stop
        assert why == ("deadline" if deadline else "budget")
        assert f"step {ended.saved} is kept" in sentence
        assert re.search(r"at least .* \(\$[\d.]+\) stay unspent", sentence)
        assert len(ended.warnings) == 1
        # one save interval, and what the reserve of the next landing was too careful by
        assert ended.unspent <= 1.05 * ended.interval + 0.8 * ended.landing + ENDING_SECONDS


@pytest.mark.parametrize("seed", range(20))
def test_a_training_that_saves_when_told_uses_its_budget_up_to_the_landings_reserve(seed):
    ended = simulate(seed, told=True, deadline=False)
    assert ended.unspent >= 0
    assert ended.landed is not None and ended.landed == ended.saved
    if ended.stop:
        assert ended.asked == 1
        assert f"step {ended.saved} is kept" in ended.stop[1]
        assert ended.unspent <= 0.15 * ended.interval + 0.6 * ended.landing + ENDING_SECONDS


def training(story: Story, steps: int, every: str = "--save-every=1000", told: bool = True) -> RunState:
    story("attempt.begin", price_usd_per_hour=PRICE)
    story("phase.begin", phase="base_train", argv=["python", every])
    if told:
        story("fact", phase="base_train", name="saves_when_told", value=True)
    for step in range(steps):
        story("step", 1.0, phase="base_train", step=step, total=100_000, dt_ms=1000)
    return story.state()


def limits_of(story: Story, state: RunState, seconds: float, asked: list[bool]) -> Limits:
    deadline = datetime.fromtimestamp(story.t + seconds, UTC).isoformat()
    settings = Settings.load({"HOMERUN_DEADLINE": deadline})
    return Limits(settings, state, lambda *words: None, lambda: asked.append(True), lambda: story.t)


def test_it_is_told_once_and_ended_as_soon_as_the_save_is_whole():
    story, asked = Story(), []
    state = training(story, 60)
    limits = limits_of(story, state, UNMEASURED_LANDING_SECONDS + ENDING_SECONDS + 7, asked)
    assert limits.check() is None and not asked
    story.t += 4
    assert limits.check() is None and asked == [True]
    state.apply(story("step", 1.0, phase="base_train", step=60, total=100_000, dt_ms=1000))
    assert limits.check() is None and asked == [True]
    state.apply(story("group", 2.0, group="base_checkpoints/d4/000061", phase="base_train", step=61))
    why, sentence = limits.check()
    assert why == "deadline" and "step 61 is kept" in sentence


def test_a_trainer_that_does_not_answer_is_ended_while_what_is_there_can_still_land():
    story, asked = Story(), []
    limits = limits_of(story, training(story, 60), UNMEASURED_LANDING_SECONDS + ENDING_SECONDS, asked)
    assert limits.check() is None and asked == [True]
    while not (stop := limits.check()):
        story.t += 1.0
    assert "nothing of this phase is saved" in stop[1]
    assert limits.caps.deadline - story.t >= UNMEASURED_LANDING_SECONDS / 1.5 + ENDING_SECONDS - 1.0


def test_a_training_that_did_not_announce_it_is_never_told():
    story, asked = Story(), []
    limits = limits_of(story, training(story, 60, told=False), 30, asked)
    assert limits.check()[0] == "deadline"
    assert not asked


def test_a_save_that_is_due_but_not_seen_yet_is_waited_for():
    saving = Saving(step=501, total=9000, every=500, saved_step=None, secured=True, landing_seconds=20, pace=Pace(1.0))
    assert not plan_stop(saving, left=100, price=None).stop_now
    assert plan_stop(saving, left=25, price=None).stop_now  # no longer
    seen = Saving(step=501, total=9000, every=500, saved_step=500, secured=False, landing_seconds=20, pace=Pace(1.0))
    assert plan_stop(seen, left=100, price=None).stop_now


def test_the_time_to_write_a_save_is_reserved():
    quick = Saving(step=499, total=9000, every=500, saved_step=None, secured=True, landing_seconds=20, pace=Pace(1.0))
    slow = Saving(**{**vars(quick), "pause_seconds": 60.0})
    assert not plan_stop(quick, left=60, price=None).stop_now
    assert plan_stop(slow, left=60, price=None).stop_now


def test_saves_are_as_far_apart_as_asked_and_closer_where_money_or_time_is_short():
    gpus, settings = [H100] * 8, Settings.load({})
    seconds = table_step_seconds(20, gpus)
    assert save_every(settings, RunState(), 20, gpus) * seconds == pytest.approx(20 * 60, rel=0.01)
    assert save_every(settings, RunState(), 20, gpus, left=1e6) * seconds == pytest.approx(20 * 60, rel=0.01)
    assert save_every(settings, RunState(), 20, gpus, left=3600) * seconds == pytest.approx(10 * 60, rel=0.01)
    assert save_every(settings, RunState(), 20, gpus, left=-5) == 1
    assert save_every(settings, RunState(), 20, [{"name": "Radeon"}]) is None


def test_base_training_on_an_unknown_gpu_does_not_wait_for_its_end_to_save():
    assert unknown_save_every(["torchrun", "-m", "scripts.base_train", "--depth=20"]) == UNKNOWN_STEPS
    assert unknown_save_every(["python", "--save_every=100"]) is None
    assert unknown_save_every(["python", "--save-every", "100"]) is None


# -- for real ------------------------------------------------------------------------------------------------------

# As recipes/toy.sh, as small as it can be, and never at its end.
RECIPE = """\
#!/bin/bash
export NANOCHAT_BASE_DIR="$HOME/.cache/nanochat"
mkdir -p "$NANOCHAT_BASE_DIR"
python -m homerun.trainer.dataset -n 2
python -m homerun.trainer.tok_train --vocab-size=512 --max-chars=100000
torchrun --standalone --nproc_per_node=1 -m homerun.trainer.base_train -- --depth=2 --aspect-ratio=16 --head-dim=16 \
--max-seq-len=64 --device-batch-size=2 --num-iterations=1000000 --save-every=900000 \
--eval-every=100000 --eval-tokens=1024
"""
# `homerun train`, for which all but the last 72 seconds of the budget have gone by as soon as it has made 30 steps.
TRAIN = """\
import sys, time
from homerun.job import job, limits
class Late(limits.Limits):
    leap = 0.0
    def __init__(self, *given):
        super().__init__(*given, clock=self.now)
    def now(self):
        phase, t = self.state.current, time.time()
        if not self.leap and phase and phase.step and phase.step >= 30:
            self.leap = self.state.attempt.began + 10 * 3600 - 72 - t
        return t + self.leap
job.Limits = Late
from homerun.cli import main
main()
"""


@pytest.mark.slow
def test_a_real_run_out_of_budget_saves_lands_and_ends_6(tmp_path):
    """Nothing of it would be kept otherwise: its own next save is a million steps away."""
    (tmp_path / "tiny.sh").write_text(RECIPE)
    env = environment(HOMERUN_DIR=str(tmp_path / "dir"), HOMERUN_RUN_ID="run")
    words = ["--script", str(tmp_path / "tiny.sh"), "--nproc", "0", "--gpu-hour-price", "24", "--budget-usd", "240"]
    done = subprocess.run([sys.executable, "-c", TRAIN, "train", *words], env=env, capture_output=True, text=True)
    assert done.returncode == Exit.BUDGET, done.stdout[-3000:] + done.stderr
    events = list(replay(tmp_path / "dir" / "runs" / "run" / "journal.jsonl"))
    (stop,) = [event for event in events if event["type"] == "stop"]
    metadata = json.loads((tmp_path / "dir" / "bucket" / "run" / "metadata.json").read_text())
    (kept,) = {one["step"] for one in metadata["checkpoints"] if one["secured"]}
    assert 30 < kept < 1_000_000
    assert stop["why"] == "budget" and f"step {kept} is kept" in stop["text"]
    manifest = json.loads((tmp_path / "dir" / "bucket" / "run" / "manifest.json").read_text())
    assert any(entry["key"].endswith(f"model_{kept:06d}.pt") for entry in manifest["entries"])
    assert "homerun train --resume run" in done.stdout.splitlines()[-1]
    assert metadata["facts"]["dataset/torch_version"].partition("+")[0] == torch.__version__.partition("+")[0]
