"""The input cache: filled by one run, verified by the next, never trusted, never in a run's way."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from fake_upstream import homerun, make

from homerun.bucket import cache
from homerun.bucket.folder import FolderStore
from homerun.bucket.outbox import Outbox, Request, describe
from homerun.bucket.store import Changed, Corrupt, FileChanged
from homerun.errors import UnprovenError
from homerun.job.inputs import InputCache
from homerun.journal import replay
from homerun.upstream.adapt import Wishes
from homerun.upstream.inputs import Inputs, find_inputs
from homerun.upstream.plan import read_plan

SCRIPT = "python -m nanochat.dataset -n 2\npython -m scripts.tok_train\n"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store(request, tmp_path):
    if request.param == "folder":
        return FolderStore(tmp_path / "bucket")
    server = request.getfixturevalue("s3_server")
    store = server.store()
    store.delete([head.key for head in store.list("_cache/")])
    return store


def unit(folder: Path, name: str, files: dict[str, str]) -> Request:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return Request(1, "cache", name, tuple(describe(folder, path, path) for path in files))


def keep(store, request: Request, folder: Path) -> int:
    return cache.keep(store, request, folder, lambda: None)


def tree(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): path.read_text() for path in sorted(place.rglob("*")) if path.is_file()}


def test_a_unit_comes_home_as_it_was_kept_and_nothing_lies_beside_it(store, tmp_path):
    files = {"eval_bundle/core.yaml": "tasks", "eval_bundle/eval_data/one.jsonl": "{}"}
    assert keep(store, unit(tmp_path / "a", "base/eval_bundle", files), tmp_path / "a") == 7
    assert list(cache.names(store)) == ["base/eval_bundle"]
    place = tmp_path / "b" / "eval_bundle"
    place.parent.mkdir()
    assert cache.bring(store, "base/eval_bundle", place) == (2, 7)
    assert tree(tmp_path / "b") == files
    assert [path.name for path in place.parent.iterdir()] == ["eval_bundle"]


def test_content_that_is_there_is_not_sent_again_under_any_name(store, tmp_path):
    first = unit(tmp_path, "base/base_data-1", {"base_data/a": "same", "base_data/b": "other"})
    assert keep(store, first, tmp_path) == 9
    assert keep(store, first, tmp_path) == 0
    assert keep(store, unit(tmp_path, "base/base_data-2", {"base_data/c": "same"}), tmp_path) == 0


def test_what_two_runs_keep_of_one_unit_is_kept_together(store, tmp_path):
    keep(store, unit(tmp_path, "base/task_data", {"task_data/arc": "1"}), tmp_path)
    keep(store, unit(tmp_path, "base/task_data", {"task_data/mmlu": "2"}), tmp_path)
    (tmp_path / "home").mkdir()
    cache.bring(store, "base/task_data", tmp_path / "home" / "task_data")
    assert tree(tmp_path / "home") == {"task_data/arc": "1", "task_data/mmlu": "2"}


def test_a_link_comes_home_as_the_link_that_it_was(store, tmp_path):
    files = {"models--x--y/blobs/abc": "kernel"}
    unit(tmp_path, "n", files)
    link = tmp_path / "models--x--y/snapshots/1/kernel.so"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../blobs/abc")
    paths = [*files, "models--x--y/snapshots/1/kernel.so"]
    keep(store, Request(1, "cache", "n", tuple(describe(tmp_path, path, path) for path in paths)), tmp_path)
    (tmp_path / "home").mkdir()
    cache.bring(store, "n", tmp_path / "home" / "models--x--y")
    home = tmp_path / "home/models--x--y/snapshots/1/kernel.so"
    assert str(home.readlink()) == "../../blobs/abc" and home.read_text() == "kernel"


def spoil(store, text: str) -> None:
    """Put other bytes of the same length where `text` is kept."""
    key = next(head.key for head in store.list(cache.OBJECTS) if store.get(head.key)[0] == text.encode())
    store.put(key, text.upper().encode())


def test_wrong_bytes_are_never_given_to_a_run_and_are_replaced_by_the_next(store, tmp_path):
    request = unit(tmp_path, "base/eval_bundle", {"eval_bundle/a": "right", "eval_bundle/b": "fine"})
    keep(store, request, tmp_path)
    spoil(store, "right")
    place = tmp_path / "home" / "eval_bundle"
    place.parent.mkdir()
    with pytest.raises((Changed, Corrupt)):
        cache.bring(store, "base/eval_bundle", place)
    assert list(place.parent.iterdir()) == []
    assert keep(store, request, tmp_path) == len("right")
    assert cache.bring(store, "base/eval_bundle", place) == (2, 9)


def test_of_shards_the_right_ones_come_home_although_one_is_wrong(store, tmp_path):
    keep(store, unit(tmp_path, "base/base_data-1", {"base_data/a": "right", "base_data/b": "fine"}), tmp_path)
    spoil(store, "right")
    place = tmp_path / "home" / "base_data"
    place.parent.mkdir()
    assert cache.bring(store, "base/base_data-1", place, partial=True) == (1, len("fine"))
    assert tree(place) == {"b": "fine"}


def test_a_full_disk_gets_its_space_back(tmp_path):
    store = FolderStore(tmp_path / "bucket")
    keep(store, unit(tmp_path, "n", {"base_data/a": "one", "base_data/b": "two"}), tmp_path)
    place = tmp_path / "home" / "base_data"
    place.parent.mkdir()
    download = store.download

    def full(key: str, dest: Path, **more) -> None:
        if dest.name == "b":
            dest.with_name("b.part").write_text("t")
            raise OSError(errno.ENOSPC, "No space left on device")
        download(key, dest, **more)

    store.download = full
    with pytest.raises(OSError, match="space"):
        cache.bring(store, "n", place, partial=True)
    assert not list(place.parent.iterdir())


def test_what_a_killed_attempt_had_brought_is_not_fetched_again(tmp_path):
    store = FolderStore(tmp_path / "bucket")
    keep(store, unit(tmp_path, "n", {"task_data/a": "one", "task_data/b": "two"}), tmp_path)
    place = tmp_path / "home" / "task_data"
    half = place.parent / ".task_data.homerun" / "task_data"
    half.mkdir(parents=True)
    (half / "a").write_text("one")
    (half / "b").write_text("tw")  # torn
    fetched = []
    download = store.download
    store.download = lambda key, dest, **more: (fetched.append(dest.name), download(key, dest, **more))
    cache.bring(store, "n", place)
    assert fetched == ["b"] and tree(place) == {"a": "one", "b": "two"}


def test_a_file_that_changes_while_it_is_kept_is_named_by_no_index(tmp_path):
    store = FolderStore(tmp_path / "bucket")
    request = unit(tmp_path, "n", {"task_data/a": "one"})
    (tmp_path / "task_data/a").write_text("another")
    with pytest.raises(FileChanged):
        keep(store, request, tmp_path)
    assert list(cache.names(store)) == []


@pytest.mark.parametrize(
    "path, link", [("../x", ""), ("/etc/x", ""), ("other/x", ""), ("n/x", "../../x"), ("n/x", "/x")]
)
def test_an_index_that_leads_out_of_its_unit_is_not_followed(tmp_path, path, link):
    store = FolderStore(tmp_path / "bucket")
    store.put(f"{cache.INDEX}n.json", json.dumps({"files": [{"path": path, "link": link}]}).encode())
    with pytest.raises(UnprovenError, match="outside"):
        cache.bring(store, "n", tmp_path / "home" / "n")


# -- which inputs are a run's ------------------------------------------------------------------------------------------


def inputs(root: Path, script: str = SCRIPT, **wishes) -> Inputs:
    return find_inputs(root, read_plan(script.encode()), Wishes(**wishes), root / "base", root / "hf")


def test_shards_are_those_of_the_same_code_and_arguments_only(tmp_path):
    root = make(tmp_path)
    name = inputs(root).name("base/base_data")
    assert name == inputs(root).name("base/base_data")
    others = [
        inputs(root, SCRIPT.replace("-n 2", "-n 4")),
        inputs(root, SCRIPT + "python -m nanochat.dataset -n 9\n"),
        inputs(root, phase_args={"dataset": "-n 8"}),
        inputs(root, skip=frozenset({"dataset"})),
    ]
    (root / "nanochat/dataset.py").write_text("another")
    others.append(inputs(root))
    names = [name, *(other.name("base/base_data") for other in others)]
    assert len(set(names)) == len(names)
    assert all(other.path(name) is None for other in others)
    assert inputs(root, SCRIPT, phase_args={"base_train": "--depth=26"}).data == inputs(root).data


def test_a_tokenizer_is_that_of_the_same_data_code_and_arguments_only(tmp_path):
    root = make(tmp_path)
    name = inputs(root).name("base/tokenizer")
    assert inputs(root).path(name) == "base/tokenizer"
    for other in (inputs(root, SCRIPT.replace("-n 2", "-n 4")), inputs(root, phase_args={"tok_train": "--x=1"})):
        assert other.path(name) is None


def test_only_what_the_sources_name_is_an_input_and_a_machines_other_models_are_not(tmp_path):
    root = make(tmp_path)
    (root / "tasks.py").write_text('load_dataset("allenai/ai2_arc"); get_kernel("kernels-community/flash-attn3")\n')
    for folder in (
        "hub/models--kernels-community--flash-attn3",
        "hub/kernels--kernels-community--flash-attn3",
        "hub/datasets--allenai--ai2_arc",
        "hub/models--me--secret",
    ):
        (root / "hf" / folder).mkdir(parents=True)
        (root / "hf" / folder / "file").write_text("x")
    (root / "hf/datasets/allenai___ai2_arc").mkdir(parents=True)
    (root / "hf/datasets/allenai___ai2_arc/data.arrow").write_text("x")
    (root / "hf/datasets/allenai___ai2_arc/data.arrow.incomplete").write_text("x")
    (root / "base/eval_bundle").mkdir(parents=True)
    (root / "base/eval_bundle/core.yaml").write_text("x")
    (root / "base/base_data").mkdir()
    (root / "base/base_data/shard_00000.parquet").write_text("x")
    (root / "base/base_data/shard_00001.parquet.tmp").write_text("x")
    (root / "base/base_checkpoints").mkdir()
    (root / "base/base_checkpoints/model.pt").write_text("x")
    found = {name: [file.path for file in files] for name, _, files in inputs(root).present()}
    shards = inputs(root).name("base/base_data")
    assert found == {
        shards: ["base_data/shard_00000.parquet"],
        "base/eval_bundle": ["eval_bundle/core.yaml"],
        "huggingface/hub/models--kernels-community--flash-attn3": ["models--kernels-community--flash-attn3/file"],
        "huggingface/hub/kernels--kernels-community--flash-attn3": ["kernels--kernels-community--flash-attn3/file"],
        "huggingface/hub/datasets--allenai--ai2_arc": ["datasets--allenai--ai2_arc/file"],
        "huggingface/datasets/allenai___ai2_arc": ["allenai___ai2_arc/data.arrow"],
    }
    assert inputs(root).path(shards) == "base/base_data"


@pytest.mark.s3
def test_keys_for_one_run_alone_turn_the_cache_off_with_one_warning(s3_server, tmp_path):
    root, said = make(tmp_path), []
    (root / "base/base_data").mkdir(parents=True)
    (root / "base/base_data/shard_00000.parquet").write_text("x")
    outbox = Outbox(tmp_path / "outbox")
    off = InputCache(
        s3_server.store(keys="scoped"), inputs(root), tmp_path, outbox, lambda type, **_: said.append(type)
    )
    off.bring()
    off.offer()
    assert said == ["warning"] and not outbox.pending()
    on = InputCache(s3_server.store(), inputs(root), tmp_path, outbox, lambda type, **_: said.append(type))
    on.bring()
    on.offer()
    on.offer()
    assert said == ["warning"] and len(outbox.pending()) == 1


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    make(tmp_path / "upstream")
    (tmp_path / "faults").mkdir()
    return tmp_path


def train(place: Path, run: str, **more: str):
    env = {"HOMERUN_DIR": str(place / "dir"), "HOMERUN_RUN_ID": run, "FAULTS": str(place / "faults")}
    return homerun("train", "--upstream", str(place / "upstream"), **env, HOMERUN_SYNC_DATA="true", **more)


def events(place: Path, run: str, type: str) -> list[dict]:
    return [event for event in replay(place / "dir/runs" / run / "journal.jsonl") if event["type"] == type]


@pytest.mark.slow
def test_the_next_run_on_an_emptied_machine_needs_no_network_and_a_resume_of_it_no_cache(place):
    first = train(place, "one")
    assert first.returncode == 0, first.stdout + first.stderr
    kept = {event["unit"].partition("-")[0] for event in events(place, "one", "cache") if event["way"] == "kept"}
    assert kept == {"base/base_data", "base/tokenizer", "base/eval_bundle"}
    shutil.rmtree(place / "dir/runs")
    (place / "faults/offline").write_text("1")
    (place / "faults/chat_sft_fails").write_text("1")
    second = train(place, "two")
    assert second.returncode == 4, second.stdout + second.stderr
    brought = {event["unit"].partition("-")[0]: event for event in events(place, "two", "cache")}
    assert set(brought) == kept and all(event["way"] == "brought" for event in brought.values())
    assert (brought["base/base_data"]["files"], brought["base/base_data"]["bytes"]) == (4, 108)
    (skip,) = events(place, "two", "phase.skip")
    assert skip["phase"] == "tok_train" and "input cache" in skip["reason"]
    assert not any("Downloading" in log.read_text() for log in (place / "dir/runs/two/logs").rglob("*dataset*"))

    (place / "faults/offline").unlink()
    (place / "faults/chat_sft_fails").unlink()
    shutil.rmtree(place / "dir/runs")
    shutil.rmtree(place / "dir/bucket/_cache")
    third = train(place, "two")
    assert third.returncode == 0, third.stdout + third.stderr
    begun = [event["phase"] for event in events(place, "two", "phase.begin")]
    assert "tok_train" not in begun and begun.count("base_train") == 1
    manifest = (place / "dir/bucket/two/manifest.json").read_text()
    assert "tokenizer/tokenizer.pkl" in manifest and "base_data" not in manifest and "eval_bundle" not in manifest


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_or_read_is_a_warning(place):
    (place / "dir/bucket").mkdir(parents=True)
    (place / "dir/bucket/_cache").write_text("in the way")
    done = train(place, "one")
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("not in the input cache" in event["text"] for event in events(place, "one", "warning"))
    assert (place / "dir/bucket/one/_SUCCESS").exists()
