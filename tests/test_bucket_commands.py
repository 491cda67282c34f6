"""verify, pull and prune as a person runs them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from homerun.bucket.checks import check_clock, check_landing, check_writable
from homerun.bucket.folder import FolderStore
from homerun.bucket.landing import Landing
from homerun.bucket.lease import acquire, read, release
from homerun.bucket.outbox import File, Request, describe
from homerun.bucket.restore import find_run, runs, safe_path
from homerun.bucket.store import open_store
from homerun.errors import RequestError, UnprovenError
from homerun.settings import Settings

RUN = "toy-20261121T023100Z-1f3a"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def environ(request, tmp_path):
    s3 = {}
    if request.param == "s3":
        server = request.getfixturevalue("s3_server")
        s3 = server.environ() | {"R2_BUCKET_NAME": f"b{abs(hash(tmp_path))}"}
        server.store(bucket=s3["R2_BUCKET_NAME"]).wire.request("PUT", fine=(409,))
    return {"HOMERUN_DIR": str(tmp_path), "PATH": os.environ["PATH"], **s3}


@pytest.fixture
def store(environ):
    return open_store(Settings.load(environ))


@pytest.fixture
def landed(environ, store, tmp_path):
    """A finished run with a tokenizer, three base checkpoints and one of SFT in the bucket."""
    folder = tmp_path / "made"
    lease = acquire(store, RUN, "me")
    landing = Landing(store, RUN, folder, 1, keep_last=9, spacing=0)
    landing.open()
    groups = [("tokenizer", ["tokenizer/tokenizer.pkl"], "always", None)]
    for stage, steps in (("base_checkpoints/d4", (100, 200, 300)), ("chatsft_checkpoints/d4", (50,))):
        for step in steps:
            names = [f"{stage}/{kind}_{step:06d}" for kind in ("model", "meta")]
            groups.append((f"{stage}/{step:06d}", names, "checkpoint", step))
    requests = []
    for seq, (group, keys, keep, step) in enumerate(groups, 1):
        files = []
        for key in keys:
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(os.urandom(2000))
            os.utime(folder / key, (1e9 + seq, 1e9 + seq))
            files.append(describe(folder, key, key))
        score = abs(step - 200) if step else None
        requests.append(Request(seq, "artifact", group, tuple(files), "p", keep, step, score))
    for request in reversed(requests):  # what is newest is told by when it was made
        (receipt,) = landing.land([request])
        assert receipt.ok
    store.put(f"{RUN}/metadata.json", b'{"status": "good"}')
    landing.succeed(b'{"manifest": {"sha256": "%s"}}' % store_sha(store).encode())
    release(store, lease)
    return folder


def store_sha(store):
    import hashlib

    return hashlib.sha256(store.get(f"{RUN}/manifest.json")[0]).hexdigest()


def homerun(environ, *arguments, **options):
    command = [sys.executable, "-m", "homerun", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, **options)


def test_verify_says_ok_for_every_file_and_5_when_one_byte_is_wrong(environ, store, landed, tmp_path):
    good = homerun(environ, "verify", "latest", "--json")
    assert good.returncode == 0, good.stderr
    lines = [json.loads(line) for line in good.stdout.splitlines()]
    assert len(lines) == 10 and {line["verdict"] for line in lines} == {"ok"}
    key = f"{RUN}/base_checkpoints/d4/model_000200"
    data = bytearray(store.get(key)[0])
    data[7] ^= 1
    store.put(key, bytes(data))
    store.delete([f"{RUN}/tokenizer/tokenizer.pkl"])
    bad = homerun(environ, "verify", RUN[:8])
    assert bad.returncode == 5
    wrong = {line.split()[2]: line.split()[0] for line in bad.stdout.splitlines() if not line.startswith("ok")}
    assert wrong.pop("tokenizer/tokenizer.pkl") == "missing"
    assert wrong.pop("base_checkpoints/d4/model_000200") in ("corrupt", "changed")
    assert wrong == {}
    assert "8 of 10 files are right" in bad.stderr
    pulled = homerun(environ, "pull", RUN, str(tmp_path / "home"))
    assert pulled.returncode == 5
    assert not (tmp_path / "home/base_checkpoints/d4/model_000200").exists()


def test_pull_brings_what_was_asked_for_and_nothing_else(environ, landed, tmp_path):
    home = tmp_path / "home"
    pulled = homerun(environ, "pull", "latest", str(home), "--inference")
    assert pulled.returncode == 0, pulled.stderr
    found = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    sft = "chatsft_checkpoints/d4"
    assert found == {"metadata.json", "tokenizer/tokenizer.pkl", f"{sft}/model_000050", f"{sft}/meta_000050"}
    for name in found - {"metadata.json"}:
        assert (home / name).read_bytes() == (landed / name).read_bytes()
    assert sorted(pulled.stdout.split()) == sorted(str(home / name) for name in found - {"metadata.json"})


def copy_plainly(environ, folder) -> None:
    """What `cp -r` does with a folder bucket, and `aws s3 cp --recursive` with any other: it knows of no manifest."""
    if "R2_BUCKET_NAME" not in environ:
        shutil.copytree(f"{environ['HOMERUN_DIR']}/bucket/{RUN}", folder)
        return
    boto3 = pytest.importorskip("boto3")
    keys = {"aws_access_key_id": environ["R2_ACCESS_KEY_ID"], "aws_secret_access_key": environ["R2_SECRET_ACCESS_KEY"]}
    s3 = boto3.client("s3", endpoint_url=environ["R2_ENDPOINT_URL"], region_name="auto", **keys)
    for item in s3.list_objects_v2(Bucket=environ["R2_BUCKET_NAME"], Prefix=f"{RUN}/")["Contents"]:
        path = folder / item["Key"].removeprefix(f"{RUN}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(environ["R2_BUCKET_NAME"], item["Key"], str(path))


def test_a_plain_copy_is_the_run_and_a_pull_into_it_finds_every_file_right(environ, landed, tmp_path):
    home = tmp_path / "home"
    copy_plainly(environ, home)
    made = {path.relative_to(landed) for path in landed.rglob("*") if path.is_file() and "outbox" not in path.parts}
    assert made and all((home / name).read_bytes() == (landed / name).read_bytes() for name in made)
    before = {path: path.stat().st_ino for path in home.rglob("*model*")}
    assert homerun(environ, "pull", RUN, str(home)).returncode == 0
    assert {path: path.stat().st_ino for path in home.rglob("*model*")} == before  # none was fetched again


def test_a_pull_mends_a_torn_file_and_leaves_right_ones_alone(environ, landed, tmp_path):
    home = tmp_path / "home"
    assert homerun(environ, "pull", RUN, str(home)).returncode == 0
    kept = home / "tokenizer/tokenizer.pkl"
    before = kept.stat()
    torn = home / "base_checkpoints/d4/model_000100"
    torn.write_bytes(b"x" * 2000)
    assert homerun(environ, "pull", RUN, str(home)).returncode == 0
    assert torn.read_bytes() == (landed / "base_checkpoints/d4/model_000100").read_bytes()
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_prune_deletes_what_is_superseded_and_the_run_stays_good(environ, store, landed):
    store.put(f"{RUN}/base_checkpoints/d4/model_000007", b"left by a crash")
    asked = homerun(environ, "prune", RUN, "--keep", "1", input="n\n")
    assert asked.returncode == 0 and "model_000100" in asked.stdout
    assert store.head(f"{RUN}/base_checkpoints/d4/model_000100")
    done = homerun(environ, "prune", RUN, "--keep", "1", "--yes")
    assert done.returncode == 0, done.stderr
    left = {head.key.rpartition("/")[2] for head in store.list(f"{RUN}/base_checkpoints/")}
    assert left == {f"{kind}_{step:06d}" for kind in ("model", "meta") for step in (200, 300)}  # best and last
    assert homerun(environ, "verify", RUN).returncode == 0
    assert store.head(f"{RUN}/_SUCCESS")
    assert read(store, RUN).state == "released"


def test_runs_are_found_by_id_by_beginning_and_as_latest(environ, store, landed):
    acquire(store, "toy-other", "me")
    assert [run.id for run in runs(store)] == [RUN, "toy-other"]
    assert find_run(store, "latest") == "toy-other"
    assert find_run(store, "toy-2026") == RUN
    for wrong, word in (("toy", "2 runs begin"), ("nope", "no run 'nope'")):
        with pytest.raises(RequestError, match=word):
            find_run(store, wrong)
    assert homerun(environ, "verify", "nope").returncode == 2


def test_an_empty_bucket_is_said_to_be_empty(environ):
    empty = homerun(environ, "verify", "latest")
    assert empty.returncode == 2
    assert "no run 'latest'" in empty.stderr and "Traceback" not in empty.stderr


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_names_a_file_outside_is_not_followed(tmp_path, key):
    with pytest.raises(UnprovenError, match="outside"):
        safe_path(tmp_path, key)


def test_the_checks_pass_on_a_good_bucket_and_leave_nothing_behind(store, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert check_writable(store, "run")[0] == check_landing(store, "run", folder)[0] == "pass"
    assert check_clock(store)[0] == "pass"
    assert not list(folder.iterdir())
    assert list(store.list("run/")) == []


@pytest.mark.s3
def test_the_checks_name_a_read_only_key_and_a_store_without_conditions(s3_server, s3_proxy, tmp_path):
    verdict, seen, hint = check_writable(s3_server.store(keys="read"), "run")
    assert (verdict, "AccessDenied" in seen, "Object Read & Write" in hint) == ("fail", True, True)
    assert check_landing(s3_server.store(keys="read"), "run", tmp_path)[0] == "fail"
    store = s3_server.store()
    put = store.put
    store.put = lambda key, data, **condition: put(key, data)  # as a server that ignores them
    assert "ignores If-None-Match" in check_writable(store, "run")[1]


@pytest.mark.s3
def test_a_token_that_may_not_delete_is_a_warning(s3_server, s3_proxy, tmp_path):
    s3_proxy.fault = lambda request: ("status", 403, "AccessDenied") if request.method == "DELETE" else None
    store = s3_server.store(s3_proxy.endpoint)
    assert check_writable(store, "no-delete")[0] == "pass"
    verdict, seen, _ = check_landing(store, "no-delete", tmp_path)
    assert (verdict, seen) == ("warn", "objects cannot be deleted")


def test_a_file_that_a_request_describes_is_told_by_its_stat(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    one = describe(tmp_path, "a", "k")
    assert one == File("a", "k", 1, (tmp_path / "a").stat().st_mtime_ns, (tmp_path / "a").stat().st_ino)


def test_one_run_with_a_broken_lease_does_not_hide_the_others(tmp_path):
    store = FolderStore(tmp_path / "bucket")
    for name in ("good", "broken"):
        store.put(f"{name}/metadata.json", b'{"run": "x"}')
    store.put("broken/lease.json", b"not json")
    assert {info.id for info in runs(store)} == {"good", "broken"}
