"""TensorBoard and W&B get what the journal has: every reading once, one unbroken curve over attempts."""

import os

import pytest

from homerun.errors import RequestError
from homerun.report.sinks import readings, write_tensorboard, write_wandb
from tests.story import Story, attempt, begin, speedrun, train


def resumed():
    story = Story()
    begin(story)
    train(story, last=600, total=1000)
    attempt(story)
    train(story, first=500, last=1000, total=1000, seed=2)
    return story


def test_a_resume_replaces_what_was_lost():
    found = [reading for reading in readings(resumed().events) if "loss" in reading.values]
    assert [reading.step for reading in found] == list(range(1000))
    assert [reading.t for reading in found] == sorted(reading.t for reading in found)


def test_tensorboard_reads_every_reading_back(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = resumed().events
    write_tensorboard(events, tmp_path)
    board = loader.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    board.Reload()
    scalars = board.Scalars("base_train/loss")
    expected = [reading.values["loss"] for reading in readings(events) if "loss" in reading.values]
    assert [scalar.step for scalar in scalars] == list(range(1000))
    assert [scalar.value for scalar in scalars] == pytest.approx(expected)
    assert {"base_train/val_bpb", "base_train/mfu"} <= set(board.Tags()["scalars"])


@pytest.mark.slow
def test_wandb_takes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert write_wandb(speedrun(steps=100).events, "run-1", {"depth": 20}) > 100
    assert list(tmp_path.glob("wandb/offline-run-*-run-1/*.wandb"))


def test_wandb_online_without_a_key_is_one_clear_error(monkeypatch):
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with pytest.raises(RequestError, match="WANDB_API_KEY"):
        write_wandb([], "run-1", {})
