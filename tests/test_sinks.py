"""TensorBoard and W&B get what the journal has: every reading once, one unbroken curve over attempts."""

import json
import os
import struct

import pytest
import torch

from homerun.errors import RequestError
from homerun.job.deciding import Deciding
from homerun.job.resume import Resume
from homerun.report.sinks import readings, write_tensorboard, write_wandb
from homerun.trainer.runtime import Runtime, wandb_log
from homerun.upstream.adapt import Wishes
from homerun.upstream.plan import read_plan
from homerun.upstream.runner import Phase
from homerun.upstream.worktree import Source
from tests.story import Story, attempt, begin, train


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


def wandb_records(path):
    """What an offline run's file holds: records in a levelDB log, in blocks of 32 KiB after 7 bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, length, part = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.slow
def test_wandb_has_one_run_of_one_unbroken_curve_over_attempts(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    events = resumed().events
    cut = next(at for at, event in enumerate(events) if event["attempt"] == 2) + 200
    for upto in (cut, len(events)):  # once while it runs, and at its end
        write_wandb(events[:upto], "run-1", {"depth": 20})
    files = sorted(tmp_path.glob("wandb/offline-run-*-run-1/*.wandb"))
    records = [list(wandb_records(path)) for path in files]
    assert {record.run.run_id for found in records for record in found if record.HasField("run")} == {"run-1"}
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records[-1]
        if record.HasField("history")
    ]
    assert [row["base_train/step"] for row in rows if "base_train/loss" in row] == list(range(1000))
    places = [row["_step"] for row in rows]
    assert places == sorted(set(places))
    again = {(r.history.step.num) for r in records[0] if r.HasField("history")} & set(places)
    assert again  # what both have, both have at the same place: W&B takes it once


@pytest.mark.slow
def test_a_phase_is_one_wandb_run_whatever_number_of_attempts_it_takes(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    script = b"python -m homerun.trainer.base_train --run=toy\n"
    plan = read_plan(script)
    source = Source(None, None, None, tmp_path, "toy.sh", "0" * 64)
    step = plan.steps[0]
    words = list(step.words)
    phase = Phase(step.name, step, step.line, step.index, 1, words, words, tmp_path, 1, False, tmp_path / "log", 0.0)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # it keeps the folder of the first run that a process made
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    for begin_step in (0, 2):  # the second attempt goes on from step 2
        decision = Deciding(source, Wishes(), Resume([], set()), "run-1")(phase)
        for name, value in decision.env.items():
            monkeypatch.setenv(name, value)
        log = wandb_log(Runtime(torch.device("cpu")), "toy", {})
        for number in range(begin_step, begin_step + 3):
            log({"step": number, "train/loss": 1.0})
        wandb.finish()
    records = [list(wandb_records(path)) for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    assert len(records) == 2
    ids = {record.run.run_id for found in records for record in found if record.HasField("run")}
    assert ids == {"run-1-base_train"}


def test_wandb_online_without_a_key_is_one_clear_error(monkeypatch):
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with pytest.raises(RequestError, match="WANDB_API_KEY"):
        write_wandb([], "run-1", {})
