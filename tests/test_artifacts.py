"""Artifact groups: offered when whole, never before, however the files come to be."""

import io
import json
import os
import pickle
import random
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homerun.upstream.artifacts import Saver, Watch, groups, read_saver, scan, torn

FOLDER = "base_checkpoints/d4"


def archive(seed=0):
    """What torch.save writes, as far as its form goes."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("archive/data.pkl", random.Random(seed).randbytes(300))
        file.writestr("archive/data/0", random.Random(seed + 1).randbytes(2000))
    return data.getvalue()


def meta(step, **more):
    return json.dumps({"step": step, "val_bpb": 1.25, "model_config": {"n_layer": 4}, **more}, indent=2).encode()


def write(base, path, data):
    target = base / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return target


def checkpoint(base, step, ranks=1, folder=FOLDER):
    write(base, f"{folder}/model_{step:06d}.pt", archive(step))
    write(base, f"{folder}/meta_{step:06d}.json", meta(step))
    for rank in range(ranks):
        write(base, f"{folder}/optim_{step:06d}_rank{rank}.pt", archive(step + rank))


def names(found):
    return [group.name for group in found]


def twice(watch, ended=()):
    """Two scans: what is at rest is offered at the second."""
    return [*watch.poll(ended), *watch.poll(ended)]


def test_a_checkpoint_is_offered_at_the_second_equal_scan_and_once(tmp_path):
    watch = Watch(tmp_path, 2, Saver())
    checkpoint(tmp_path, 10, ranks=2)
    assert watch.poll(()) == []
    model, optimizer = watch.poll(())
    assert (model.name, model.keep, model.step, model.score, model.stage) == (
        f"{FOLDER}/000010",
        "checkpoint",
        10,
        1.25,
        "base",
    )
    assert [file.path.rpartition("/")[2] for file in model.files] == ["model_000010.pt", "meta_000010.json"]
    assert (optimizer.name, optimizer.keep, optimizer.step) == (f"{FOLDER}/000010.optim", "optimizer", 10)
    assert len(optimizer.files) == 2
    assert watch.poll(()) == []


def test_what_a_resume_brought_back_is_not_offered_again_until_it_is_written_again(tmp_path):
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20)
    watch = Watch(tmp_path, 1, Saver(), known=[path for path in scan(tmp_path) if "000010" in path])
    assert names(twice(watch)) == [f"{FOLDER}/000020", f"{FOLDER}/000020.optim"]
    os.utime(tmp_path / FOLDER / "model_000010.pt", (1, 1))
    assert names(twice(watch)) == [f"{FOLDER}/000010"]


@pytest.mark.slow  # imports torch
def test_what_torch_saves_is_whole_and_cut_anywhere_it_is_not(tmp_path):
    torch = pytest.importorskip("torch")
    checkpoint(tmp_path, 10)
    path = tmp_path / FOLDER / "model_000010.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for size in [0, 1, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert Watch(tmp_path, 1, Saver()).poll((), settled=True) == []
    path.write_bytes(whole)
    assert len(Watch(tmp_path, 1, Saver()).poll((), settled=True)) == 2


@pytest.mark.parametrize(
    "member", ["model_000010.pt", "meta_000010.json", "optim_000010_rank0.pt", "optim_000010_rank1.pt"]
)
@pytest.mark.parametrize("harm", ["missing", "empty", "half", "all but one byte"])
def test_one_bad_member_holds_back_both_groups(tmp_path, member, harm):
    checkpoint(tmp_path, 10, ranks=2)
    path = tmp_path / FOLDER / member
    data = path.read_bytes()
    size = {"missing": 0, "empty": 0, "half": len(data) // 2, "all but one byte": len(data) - 1}[harm]
    path.unlink() if harm == "missing" else path.write_bytes(data[:size])
    watch = Watch(tmp_path, 2, Saver())
    assert [*twice(watch), *watch.poll((), settled=True)] == []
    assert path in torn(tmp_path, Saver(), 2) or harm == "missing"
    path.write_bytes(data)
    assert names(twice(watch)) == [f"{FOLDER}/000010", f"{FOLDER}/000010.optim"]


def test_an_older_whole_step_is_offered_beside_a_torn_newer_one(tmp_path):
    checkpoint(tmp_path, 10)
    write(tmp_path, f"{FOLDER}/model_000020.pt", archive()[:100])
    assert names(Watch(tmp_path, 1, Saver()).poll((), settled=True)) == [f"{FOLDER}/000010", f"{FOLDER}/000010.optim"]


def test_the_end_of_its_phase_saves_the_second_look_for_its_own_files_only(tmp_path):
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 3, folder="chatsft_checkpoints/d4")
    watch = Watch(tmp_path, 1, Saver())
    assert names(watch.poll({"base_train.2"})) == [f"{FOLDER}/000010", f"{FOLDER}/000010.optim"]
    checkpoint(tmp_path, 20)
    assert f"{FOLDER}/000020" not in names(watch.poll({"base_train.2"}))  # that end is old: another may be writing now
    assert names(watch.poll({"base_train.2"})) == [f"{FOLDER}/000020", f"{FOLDER}/000020.optim"]


def test_a_checkpoint_that_is_written_again_is_offered_again(tmp_path):
    watch = Watch(tmp_path, 1, Saver())
    checkpoint(tmp_path, 10)
    assert len(twice(watch)) == 2
    write(tmp_path, f"{FOLDER}/meta_000010.json", meta(10, val_bpb=1.0))
    [again] = twice(watch)
    assert (again.name, again.score) == (f"{FOLDER}/000010", 1.0)


def test_a_group_that_is_forgotten_is_offered_again_alone(tmp_path):
    watch = Watch(tmp_path, 1, Saver())
    checkpoint(tmp_path, 10)
    assert len(twice(watch)) == 2
    watch.forget(f"{FOLDER}/000010.optim")
    assert names(watch.poll(())) == [f"{FOLDER}/000010.optim"]


def test_a_group_that_vanishes_and_comes_back_is_offered_again(tmp_path):
    watch = Watch(tmp_path, 1, Saver())
    checkpoint(tmp_path, 10)
    assert len(twice(watch)) == 2
    for path in (tmp_path / FOLDER).iterdir():
        path.unlink()
    assert twice(watch) == []
    checkpoint(tmp_path, 10)
    assert len(twice(watch)) == 2


def test_each_saver_has_its_own_members(tmp_path):
    model = [f"{FOLDER}/model_000010.pt", f"{FOLDER}/meta_000010.json"]
    for path in model:
        write(tmp_path, path, meta(10) if path.endswith("json") else archive())
    none = Saver(with_optimizer=frozenset())
    one = Saver(ranked=False)
    zero = Saver(rank0_only=frozenset({"base"}))
    assert names(groups(scan(tmp_path), none, 8)) == [f"{FOLDER}/000010"]
    assert groups(scan(tmp_path), one, 8) == groups(scan(tmp_path), zero, 8) == []
    write(tmp_path, f"{FOLDER}/optim_000010_rank0.pt", archive())
    assert len(groups(scan(tmp_path), zero, 8)) == 2
    assert groups(scan(tmp_path), Saver(), 8) == []
    write(tmp_path, f"{FOLDER}/optim_000010.pt", archive())
    assert len(groups(scan(tmp_path), one, 8)) == 2


def test_shards_of_more_ranks_than_run_now_belong_to_the_checkpoint(tmp_path):
    checkpoint(tmp_path, 10, ranks=4)
    _, optimizer = groups(scan(tmp_path), Saver(), 2)
    assert len(optimizer.files) == 4


@pytest.mark.parametrize("ranks", [0, 1])
def test_a_recipe_that_saves_fewer_optimizer_files_than_expected_is_offered_when_its_phase_ends_well(tmp_path, ranks):
    watch = Watch(tmp_path, 8, Saver())
    checkpoint(tmp_path, 10, ranks=ranks)
    assert twice(watch) == []
    assert names(watch.poll({"base_train"})) == [f"{FOLDER}/000010", f"{FOLDER}/000010.optim"][: 1 + ranks]


def test_scores_that_are_no_number_are_none(tmp_path):
    checkpoint(tmp_path, 10)
    for value in (float("nan"), float("inf"), True, "1.2", None):
        write(tmp_path, f"{FOLDER}/meta_000010.json", meta(10, val_bpb=value))
        assert Watch(tmp_path, 1, Saver()).poll((), settled=True)[0].score is None
    write(tmp_path, f"{FOLDER}/meta_000010.json", b"[1, 2]")
    assert Watch(tmp_path, 1, Saver()).poll((), settled=True) == []


def test_a_tokenizer_waits_for_both_files_of_one_training(tmp_path):
    watch = Watch(tmp_path, 1, Saver())
    tokenizer = write(tmp_path, "tokenizer/tokenizer.pkl", pickle.dumps([b"a"]))
    assert twice(watch) == []
    token_bytes = write(tmp_path, "tokenizer/token_bytes.pt", archive())
    assert names(twice(watch)) == ["tokenizer"]
    tokenizer.write_bytes(pickle.dumps([b"b", b"c"]))  # trained again; the second file is still the older one's
    os.utime(token_bytes, (1, 1))
    assert twice(watch) == []
    token_bytes.write_bytes(archive(7))
    assert names(twice(watch)) == ["tokenizer"]
    tokenizer.write_bytes(tokenizer.read_bytes()[:-1])
    assert watch.poll((), settled=True) == []


def test_inputs_and_files_of_the_moment_are_no_artifacts(tmp_path):
    for path in (
        "base_data/shard_00000.parquet",
        "base_data_climbmix/shard_00000.parquet",
        "eval_bundle/core.yaml",
        "task_data/openai--gsm8k/main/test/00000.parquet",
        "words_alpha.txt",
        "identity_conversations.jsonl",
        "eval_bundle.zip",
        "tokenizer/.tokenizer.pkl.77.tmp",
        "x.lock",
    ):
        write(tmp_path, path, b"x")
    assert scan(tmp_path) == {}
    write(tmp_path, "base_eval/base_model_000010.csv", b"Task, Accuracy")
    write(tmp_path, "report/header.md", b"# report")
    write(tmp_path, "notes/of/mine.txt", b"x")
    found = twice(Watch(tmp_path, 1, Saver()))
    assert [(group.name, group.kind, group.keep) for group in found] == [
        ("base_eval/base_model_000010.csv", "eval", "always"),
        ("notes/of/mine.txt", "other", "always"),
        ("report/header.md", "report", "always"),
    ]


def test_no_tree_is_no_error(tmp_path):
    assert scan(tmp_path / "not there") == {}
    assert Watch(tmp_path / "not there", 1, Saver()).poll((), settled=True) == []


def test_a_link_to_nowhere_or_to_itself_is_no_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert scan(tmp_path) == {}


def test_a_file_that_changes_while_it_is_checked_is_not_offered(tmp_path, monkeypatch):
    checkpoint(tmp_path, 10)
    watch = Watch(tmp_path, 1, Saver())
    watch.poll(())
    real = zipfile.ZipFile

    def opened(path, *more):
        os.utime(path)
        return real(path, *more)

    monkeypatch.setattr(zipfile, "ZipFile", opened)
    assert watch.poll(()) == []


WRITES = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), max_size=25)


@settings(max_examples=100, deadline=None)
@given(WRITES, st.booleans(), st.sampled_from([(), ("base_train",)]))
def test_whatever_the_order_of_writes_only_whole_files_are_offered(tmp_path_factory, writes, settled, ended):
    """Every member grows, shrinks and is finished in any order; whatever is offered is, at that moment, the whole."""
    base = tmp_path_factory.mktemp("tree")
    whole = {
        "model_000010.pt": archive(1),
        "meta_000010.json": meta(10),
        "optim_000010_rank0.pt": archive(2),
        "optim_000010_rank1.pt": archive(3),
    }
    watch = Watch(base, 2, Saver())
    offered = set()
    for member, share in [*writes, *((number, 1.0) for number in range(4)), (3, 1.0), (3, 1.0)]:
        name = list(whole)[member]
        write(base, f"{FOLDER}/{name}", whole[name][: round(share * len(whole[name]))])
        for group in watch.poll(ended if share < 1 else (), settled=settled):
            offered.add(group.name)
            for file in group.files:
                assert (base / file.path).read_bytes() == whole[file.path.rpartition("/")[2]]
    offered |= set(names(watch.poll((), settled=True)))
    assert offered == {f"{FOLDER}/000010", f"{FOLDER}/000010.optim"}


def test_our_own_trainer_is_the_saver_where_upstream_is_not(tmp_path):
    assert read_saver(tmp_path) == Saver()


def test_a_saver_that_cannot_be_parsed_is_taken_for_the_usual_one(tmp_path):
    write(tmp_path, "nanochat/checkpoint_manager.py", b'x = f"optim_{step:06d}_rank{rank:d}.pt"')
    write(tmp_path, "scripts/base_train.py", b"def broken(:\n")
    assert read_saver(tmp_path) == Saver()


@pytest.mark.upstream
@pytest.mark.parametrize(
    ("commit", "saver"),
    [
        ("7031985", Saver(ranked=False, with_optimizer=frozenset({"base", "mid"}))),
        ("c6abcdf", Saver(True, frozenset({"base", "mid"}), frozenset({"mid", "sft", "rl"}))),
        ("788dade~1", Saver(True, frozenset({"base", "mid", "sft"}), frozenset({"sft", "rl"}))),
        ("788dade", Saver(True, frozenset({"base", "mid", "sft"}), frozenset({"rl"}))),
        ("92d63d4", Saver(True, frozenset({"base", "mid", "sft"}), frozenset({"rl"}))),
    ],
)
def test_the_saver_of_each_age_is_read_from_its_source(tmp_path, commit, saver):
    source = os.environ.get("HOMERUN_UPSTREAM_SRC")
    if not source:
        pytest.skip("HOMERUN_UPSTREAM_SRC names no clone of karpathy/nanochat")
    paths = ["nanochat/checkpoint_manager.py", "scripts"]
    tar = subprocess.run(["git", "-C", source, "archive", commit, *paths], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", Path(tmp_path)], input=tar, check=True)
    assert read_saver(tmp_path) == saver
