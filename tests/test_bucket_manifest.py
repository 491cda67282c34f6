"""Retention and the manifest's rules, as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homerun.bucket.manifest import Entry, Manifest, superseded, whole_steps
from homerun.bucket.prune import waste
from homerun.bucket.restore import choose
from homerun.bucket.store import Head
from homerun.errors import RequestError, UnprovenError


def entry(key, group, keep="always", step=None, score=None, at=0.0):
    return Entry(key, 3, "s" * 64, "e", group, keep, "base_train", at, step, score)


def checkpoint(step, score=None, stage="base_checkpoints/d20", at=0.0):
    group = f"{stage}/{step:06d}"
    return [entry(f"{stage}/{name}_{step:06d}.pt", group, "checkpoint", step, score, at) for name in ("model", "meta")]


def optimizer(step, stage="base_checkpoints/d20"):
    return [entry(f"{stage}/optim_{step:06d}_rank0.pt", f"{stage}/{step:06d}.optim", "optimizer", step)]


def manifest(*groups):
    found = Manifest("run", 3)
    for group in groups:
        found.name(group)
    return found


STEPS = st.lists(
    st.tuples(st.integers(0, 30), st.booleans(), st.booleans(), st.none() | st.floats(0, 5)),
    max_size=12,
    unique_by=lambda step: step[0],
)


@given(STEPS, st.integers(2, 4))
def test_retention_keeps_the_last_the_best_and_two_whole_ones(steps, keep):
    groups = [checkpoint(step, score) for step, model, _, score in steps if model]
    groups += [optimizer(step) for step, _, optim, _ in steps if optim]
    before = manifest(*groups)
    whole = whole_steps(before, "base_checkpoints/d20")
    after = manifest(*groups)
    after.unname(superseded(before, keep))
    models = sorted(step for step, model, _, _ in steps if model)
    kept = {e.step for e in after.entries.values() if e.keep == "checkpoint"}
    assert set(models[-keep:]) <= kept
    scored = [(score, step) for step, model, _, score in steps if model and score is not None]
    if scored:
        assert min(score for score, _ in scored) in {score for score, step in scored if step in kept}
    assert whole_steps(after, "base_checkpoints/d20") == whole[-2:]
    assert len(kept) <= keep + 3
    assert superseded(after, keep) == []  # and then it is content


def test_stages_are_kept_apart_and_what_has_no_step_stays():
    found = manifest(
        [entry("tokenizer/tokenizer.pkl", "tokenizer")],
        *(checkpoint(step) for step in (100, 200, 300)),
        *(checkpoint(step, stage="chatsft_checkpoints/d20") for step in (10, 20)),
    )
    assert superseded(found, 2) == ["base_checkpoints/d20/000100"]


def test_an_optimizer_whose_model_is_still_on_its_way_stays():
    found = manifest(checkpoint(100), optimizer(100), checkpoint(200), optimizer(200), optimizer(300))
    assert superseded(found, 2) == []


def test_overwriting_one_key_takes_its_whole_group_out():
    found = manifest(checkpoint(100), checkpoint(200))
    gone = found.unname(keys={"base_checkpoints/d20/model_000100.pt"})
    assert gone == {"base_checkpoints/d20/model_000100.pt", "base_checkpoints/d20/meta_000100.pt"}
    assert set(found.groups()) == {"base_checkpoints/d20/000200"}


def test_a_group_that_is_named_again_loses_the_members_it_no_longer_has():
    found = manifest([entry("report/a.md", "report"), entry("report/b.md", "report")])
    found.name([entry("report/b.md", "report")])
    assert set(found.entries) == {"report/b.md"}


@given(STEPS)
def test_a_manifest_survives_its_json(steps):
    found = manifest(*(checkpoint(step, score) for step, _, _, score in steps))
    again = Manifest.from_json(found.to_json())
    assert again == found
    assert again.to_json() == found.to_json()  # _SUCCESS holds a hash of it


def test_a_manifest_that_cannot_be_read_is_an_error_for_people():
    for data in (b"", b"{}", b"[1]", b'{"run": "r", "attempt": 1, "entries": [{"key": 1}]}'):
        with pytest.raises(UnprovenError, match="manifest"):
            Manifest.from_json(data)


# -- what pull takes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def full():
    return manifest(
        [entry("tokenizer/tokenizer.pkl", "tokenizer")],
        [entry("logs/a01/0001-x.log", "logs/a01/0001-x.log")],
        checkpoint(100, 1.0, at=1),
        checkpoint(200, 0.8, at=2),
        checkpoint(300, 0.9, at=3),
        optimizer(300),
        checkpoint(50, stage="chatsft_checkpoints/d20", at=9),
    )


def keys(entries):
    return {entry.key for entry in entries}


def test_inference_takes_the_tokenizer_and_one_model_of_the_newest_stage(full):
    sft = "chatsft_checkpoints/d20"
    assert keys(choose(full, inference=True)) == {
        "tokenizer/tokenizer.pkl",
        f"{sft}/model_000050.pt",
        f"{sft}/meta_000050.pt",
    }


@pytest.mark.parametrize("step, number", [("best", 200), ("last", 300), ("100", 100)])
def test_step_picks_one_checkpoint_of_a_stage(full, step, number):
    base = {e.step for e in choose(full, step=step) if e.group.startswith("base")}
    assert base == {number}


def test_a_step_that_is_not_there_is_refused_with_what_is(full):
    with pytest.raises(RequestError, match=r"base_checkpoints/d20 \[100, 200, 300\]"):
        choose(full, step="150")


def test_without_a_choice_everything_is_taken(full):
    assert keys(choose(full)) == set(full.entries)


def test_waste_is_what_is_superseded_or_named_by_nobody_and_never_control_files(full):
    heads = [Head(f"run/{key}", 3, "e") for key in full.entries]
    heads += [Head(f"run/{key}", 5, "e") for key in ("base_checkpoints/d20/optim_000100_rank0.pt", "half")]
    control = ("metadata.json", "manifest.json", "lease.json", "_SUCCESS", "journal/a01-000001.jsonl")
    heads += [Head(f"run/{key}", 7, "e") for key in (*control, "logs/a02/0001-x.log.000001")]
    found = waste(full, heads, keep_last=2)
    assert found.groups == ["base_checkpoints/d20/000100"]
    assert set(found.keys) == {
        "half",
        "base_checkpoints/d20/optim_000100_rank0.pt",
        "base_checkpoints/d20/model_000100.pt",
        "base_checkpoints/d20/meta_000100.pt",
    }
    assert found.bytes == 16
