"""metadata.json: valid at every moment of a run's life, and saying what the journal says."""

import json
from pathlib import Path

import jsonschema
import pytest

from homerun.report.metadata import metadata, write_metadata
from homerun.state import RunState
from tests.story import Story, attempt, begin, end, speedrun, train

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "metadata.schema.json").read_text())


@pytest.mark.parametrize("fails", [None, "base_train"])
def test_it_is_valid_after_every_event_of_a_run(fails):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    state, seen = RunState(), set()
    validator.validate(json.loads(json.dumps(metadata(state))))
    for number, event in enumerate(speedrun(steps=1200, fails=fails).events):
        state.apply(event)
        if event["type"] not in seen or number % 97 == 0:  # each type at least once, and now and then
            seen.add(event["type"])
            validator.validate(json.loads(json.dumps(metadata(state))))
    validator.validate(json.loads(json.dumps(metadata(state))))
    assert {"run.end", "attempt.end", "phase.end", "secured", "step"} <= seen


def test_it_says_what_came_out_and_what_it_cost():
    found = metadata(speedrun().state())
    assert (found["status"], found["code"], found["verdict"]) == ("good", 0, "good")
    assert found["model"]["depth"] == 20
    assert found["model"]["params"] == 560_988_160
    assert found["best"]["val_bpb"] == 0.8071
    assert found["best"]["core"] == 0.2219
    assert found["upstream"]["commit"].startswith("92d63d4")
    assert found["cost"]["usd"] == pytest.approx(found["cost"]["seconds"] / 3600 * 24, abs=0.01)
    phases = sum(phase["usd"] for phase in found["phases"])
    assert phases + found["cost"]["between_phases_usd"] == pytest.approx(found["cost"]["usd"], abs=0.01)
    assert all(checkpoint["secured"] for checkpoint in found["checkpoints"])


def test_bits_per_byte_of_chats_are_not_those_of_text():
    story = Story()
    for phase, value in (("base_train", 1.1), ("chat_sft", 0.01)):
        story("eval", phase=phase, metric="val_bpb", value=value, step=1)
    assert metadata(story.state())["best"]["val_bpb"] == 1.1


def test_a_failed_run_names_its_phase_and_reason():
    found = metadata(speedrun(fails="base_train").state())
    assert (found["status"], found["code"]) == ("failed", 4)
    failed = [phase for phase in found["phases"] if phase["verdict"] == "failed"]
    assert [(phase["phase"], phase["status"]) for phase in failed] == [("base_train", 1)]
    assert "memory" in failed[0]["reason"]


def test_several_attempts_add_up():
    story = Story()
    begin(story)
    story("phase.begin", phase="base_train", name="base_train", argv=["torchrun", "--depth=20"])
    train(story, last=600, total=1000)
    attempt(story, resumed_from={"step": 500, "group": "base_checkpoints/d20/000500"})
    story("phase.begin", phase="base_train", name="base_train", argv=["torchrun", "--depth=20"])
    train(story, first=500, last=1000, total=1000)
    end(story, "base_train", 1)
    found = metadata(story.state())
    jsonschema.validate(found, SCHEMA)
    assert [one["attempt"] for one in found["attempts"]] == [1, 2]
    assert found["cost"]["usd"] == pytest.approx(sum(one["usd"] for one in found["attempts"]), abs=0.001)
    assert [phase["verdict"] for phase in found["phases"]] == ["failed", "ok"]


def test_it_is_replaced_whole_and_leaves_no_other_file(tmp_path):
    state = speedrun(steps=60).state()
    for _ in range(2):
        write_metadata(tmp_path / "metadata.json", state)
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.json"]
    assert json.loads((tmp_path / "metadata.json").read_text())["run"] == state.run
