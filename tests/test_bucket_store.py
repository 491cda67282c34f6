"""Both stores keep the promises of `Store`; the S3 one keeps them through a network that breaks things."""

import base64
import dataclasses
import hashlib
import json
import multiprocessing
import os
import select
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from homerun.bucket import lease
from homerun.bucket.checks import check_landing, check_permission, check_writable
from homerun.bucket.folder import FolderStore
from homerun.bucket.multipart import PART, multipart_etag, part_bytes
from homerun.bucket.restore import find_run
from homerun.bucket.s3 import S3Store
from homerun.bucket.store import Changed, Corrupt, Denied, FileChanged, Missing, Unreachable
from homerun.bucket.wire import HINTS, Endpoint, Throttle
from homerun.errors import RequestError
from homerun.settings import Settings
from tests.s3 import FaultProxy

BIG = 3 * PART + 12345  # four parts


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store(request, tmp_path):
    if request.param == "folder":
        return FolderStore(tmp_path / "bucket")
    return request.getfixturevalue("s3_server").store()


@pytest.fixture
def big(tmp_path):
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(BIG))
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(store, key, dest, landed):
    store.download(key, dest, etag=landed.etag, bytes=landed.bytes, sha256=landed.sha256)
    return dest.read_bytes()


# -- both stores -------------------------------------------------------------------------------------------------------


def test_small_objects_come_back_as_written(store, tmp_path):
    run = tmp_path.name
    for key in ("a.json", "deep/er/b", "sp ace+ü&=~'()*"):
        etag = store.put(f"{run}/{key}", key.encode())
        assert store.get(f"{run}/{key}") == (key.encode(), etag)
        assert store.head(f"{run}/{key}").etag == etag
    assert [head.key for head in store.list(f"{run}/")] == sorted(
        f"{run}/{key}" for key in ("a.json", "deep/er/b", "sp ace+ü&=~'()*")
    )
    assert run in set(store.folders())
    store.delete([f"{run}/a.json", f"{run}/never-there"])
    assert store.head(f"{run}/a.json") is None
    with pytest.raises(Missing):
        store.get(f"{run}/a.json")


def test_of_many_compare_and_swaps_one_wins(store, tmp_path):
    key = f"{tmp_path.name}/lease.json"

    def swap(condition, name):
        try:
            return store.put(key, name.encode(), **condition)
        except Changed:
            return None

    with ThreadPoolExecutor(8) as pool:
        first = [etag for etag in pool.map(lambda n: swap({"if_none_match": True}, f"a{n}"), range(8)) if etag]
        assert len(first) == 1
        second = [etag for etag in pool.map(lambda n: swap({"if_match": first[0]}, f"b{n}"), range(8)) if etag]
    assert len(second) == 1
    assert store.get(key)[1] == second[0]


@pytest.mark.parametrize("size", [0, 1, 3 << 20, PART, PART + 1, BIG])
def test_files_land_and_come_home_whole(store, tmp_path, size):
    path, key = tmp_path / "there", f"{tmp_path.name}/{size}"
    path.write_bytes(os.urandom(size))
    moved = []
    landed = store.upload(path, key, progress=moved.append)
    assert (landed.bytes, landed.sha256, sum(moved)) == (size, sha256(path), size)
    moved.clear()
    store.download(key, tmp_path / "x/back", etag=landed.etag, bytes=size, sha256=landed.sha256, progress=moved.append)
    assert (tmp_path / "x/back").read_bytes() == path.read_bytes()
    assert sum(moved) == size
    assert b"".join(store.chunks(key, etag=landed.etag)) == path.read_bytes()
    assert [name.name for name in (tmp_path / "x").iterdir()] == ["back"]


@pytest.mark.parametrize("count", [2, 40])
@pytest.mark.parametrize("how", ["as it was", "replaced", "deleted"])
def test_only_what_lies_there_as_it_was_uploaded_is_confirmed(store, tmp_path, count, how):
    path, landed = tmp_path / "file", {}
    for number in range(count):
        path.write_bytes(b"%d" % number)
        key = f"{tmp_path.name}/{number:03d}"
        landed[key] = store.upload(path, key)
    if how == "replaced":
        store.put(key, b"?" * landed[key].bytes)
    elif how == "deleted":
        store.delete([key])
    if how == "as it was":
        store.confirm(landed)
    else:
        with pytest.raises(Corrupt, match=key):
            store.confirm(landed)


def test_a_version_that_was_replaced_is_not_taken_for_the_old_one(store, tmp_path, big):
    key = f"{tmp_path.name}/model.pt"
    old = store.upload(big, key)
    big.write_bytes(os.urandom(BIG))
    store.upload(big, key)
    with pytest.raises(Changed):
        fetch(store, key, tmp_path / "back", old)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("how", ["in place", "truncated", "grown", "replaced", "removed"])
def test_a_file_that_changes_during_its_upload_never_counts_as_landed(store, tmp_path, big, how):
    changes = iter([how])  # once; a folder's upload reports every MiB

    def change(moved):
        how = next(changes, None)
        if how == "in place":
            with open(big, "r+b") as file:
                file.seek(BIG - 10)
                file.write(b"changed")
        elif how == "truncated":
            os.truncate(big, BIG // 2)
        elif how == "grown":
            with open(big, "ab") as file:
                file.write(b"more")
        elif how == "replaced":
            (tmp_path / "new").write_bytes(os.urandom(BIG))
            (tmp_path / "new").replace(big)
        elif how == "removed":
            big.unlink()

    with pytest.raises(FileChanged):
        store.upload(big, f"{tmp_path.name}/model.pt", state=tmp_path / "state.json", progress=change)
    assert store.head(f"{tmp_path.name}/model.pt") is None
    assert store.sweep(f"{tmp_path.name}/") == 0  # nothing was left half uploaded


def test_a_file_that_is_gone_is_said_to_be_gone(store, tmp_path):
    with pytest.raises(FileChanged, match="is gone"):
        store.upload(tmp_path / "never", f"{tmp_path.name}/x")


# -- a folder ----------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_an_error_for_people(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Denied, match="HOMERUN_DIR"):
        FolderStore(tmp_path / "file" / "bucket").put("run/x", b"")


def test_a_copy_of_a_folder_bucket_is_that_bucket(tmp_path, big):
    landed = FolderStore(tmp_path / "one").upload(big, "run/x")
    os.system(f"cp -r {tmp_path}/one {tmp_path}/two")
    assert fetch(FolderStore(tmp_path / "two"), "run/x", tmp_path / "back", landed) == big.read_bytes()


def test_what_a_killed_writer_left_in_a_folder_is_swept_and_what_a_live_one_writes_is_not(tmp_path):
    store = FolderStore(tmp_path)
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "dead").write_text("half")
    with store._temporary() as (live, _):
        assert store.sweep("run/") == 1
        assert live.exists()


def test_a_sweep_never_trips_over_what_live_writers_write_nor_they_over_it(tmp_path):
    store, done = FolderStore(tmp_path / "bucket"), threading.Event()

    def sweep() -> None:
        while not done.is_set():
            store.sweep("run/")

    with ThreadPoolExecutor(6) as pool:
        sweeps = [pool.submit(sweep) for _ in range(2)]
        try:
            list(pool.map(lambda number: store.put(f"run/{number % 8}", b"x"), range(600)))
        finally:
            done.set()
        for one in sweeps:
            one.result()
    assert len(list(store.list("run/"))) == 8


# -- S3: pure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [PART + 1, 32 << 30, 100 << 30, 4 << 40])
def test_parts_are_equal_whole_mebibytes_and_at_most_5000(size):
    assert part_bytes(size) % (1 << 20) == 0
    assert -(-size // part_bytes(size)) <= 5000


@pytest.mark.parametrize(
    "url, region",
    [
        ("https://acc.eu.r2.cloudflarestorage.com", "auto"),
        ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("http://127.0.0.1:8333", "auto"),
    ],
)
def test_the_region_is_the_endpoints(url, region):
    assert Endpoint(url, "b", "k", "s").region == region


def test_an_endpoint_with_the_bucket_in_it_is_understood_and_one_that_is_no_url_refused():
    keys = {"R2_ACCESS_KEY_ID": "k" * 8, "R2_SECRET_ACCESS_KEY": "s" * 8, "R2_BUCKET_NAME": "runs"}
    store = S3Store.from_settings(Settings.load({**keys, "R2_ENDPOINT_URL": "https://h/runs/"}))
    assert store.wire.endpoint.url == "https://h"
    with pytest.raises(RequestError, match="R2_ENDPOINT_URL"):
        S3Store.from_settings(Settings.load({**keys, "R2_ENDPOINT_URL": "acc.r2.cloudflarestorage.com"}))


def test_slow_down_halves_the_requests_at_once_and_good_answers_bring_them_back():
    throttle = Throttle(8)
    throttle.slow_down()
    throttle.slow_down()
    assert throttle.limit == 2
    for _ in range(16 * 6):
        throttle.went_well()
    assert throttle.limit == 8
    for _ in range(5):
        throttle.slow_down()
    assert throttle.limit == 1


# -- S3 through faults -------------------------------------------------------------------------------------------------


def once(action, method="PUT", number=0):
    """A fault that hits the `number`-th request of a method, once."""
    seen = []

    def fault(request):
        if request.method == method:
            seen.append(request)
            if len(seen) == number + 1:
                return action
        return None

    return fault


@pytest.mark.s3
@pytest.mark.parametrize("action", [("flip-up",), ("reset", 100_000), ("lose",), ("status", 503, "SlowDown")])
@pytest.mark.parametrize("size", [1000, 3 << 20, BIG])
def test_one_fault_on_the_way_up_is_mended(s3_server, s3_proxy, tmp_path, action, size):
    path, key = tmp_path / "file", f"{tmp_path.name}/x"
    path.write_bytes(os.urandom(size))
    s3_proxy.fault = once(action, number=1 if size == BIG else 0)
    landed = s3_server.store(s3_proxy.endpoint).upload(path, key, state=tmp_path / "state")
    assert landed.sha256 == sha256(path)
    assert fetch(s3_server.store(), key, tmp_path / "back", landed) == path.read_bytes()
    assert s3_proxy.body_bytes <= size + PART + 200_000  # one part at most was sent twice
    assert s3_server.store().sweep(f"{tmp_path.name}/") == 0
    assert not (tmp_path / "state").exists()


@pytest.mark.s3
def test_many_small_files_are_confirmed_by_a_listing_and_one_by_one_where_the_key_may_not_list(
    s3_server, s3_proxy, tmp_path
):
    run, path = tmp_path.name, tmp_path / "file"
    path.write_bytes(b"small")
    store = s3_server.store(s3_proxy.endpoint)
    landed = {f"{run}/{number:03d}": store.upload(path, f"{run}/{number:03d}") for number in range(30)}
    before = len(s3_proxy.seen)
    store.confirm(landed)
    assert [(seen.method, "prefix=" in seen.query) for seen in s3_proxy.seen[before:]] == [("GET", True)]
    s3_proxy.fault = lambda request: ("status", 403, "AccessDenied") if "prefix=" in request.query else None
    before = len(s3_proxy.seen)
    store.confirm(landed)
    assert sum(seen.method == "HEAD" for seen in s3_proxy.seen[before:]) == 30


@pytest.mark.s3
@pytest.mark.parametrize("size", [3 << 20, BIG])
def test_a_file_that_changed_since_its_checksum_was_made_is_given_up_at_once(s3_server, s3_proxy, tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    changed = []

    def change(request):
        if request.method == "PUT" and not changed:
            with open(path, "r+b") as file:
                file.write(b"changed")
            changed.append(request)
            return ("status", 503, "SlowDown")  # it is sent again
        return None

    s3_proxy.fault = change
    begun = time.monotonic()
    with pytest.raises(FileChanged):
        s3_server.store(s3_proxy.endpoint, patience=60).upload(path, f"{tmp_path.name}/x", state=tmp_path / "state")
    assert time.monotonic() - begun < 20


@pytest.mark.s3
def test_a_connection_that_ended_while_it_was_idle_costs_no_wait(s3_server, s3_proxy, tmp_path, monkeypatch):
    store = s3_server.store(s3_proxy.endpoint)
    waits = []
    monkeypatch.setattr(store.stop, "wait", waits.append)
    for number in range(10):
        store.put(f"{tmp_path.name}/{number}", b"x")
        for connection in store.wire._idle:
            connection.sock.shutdown(socket.SHUT_RDWR)
    assert waits == []
    assert len(list(store.list(f"{tmp_path.name}/"))) == 10


@pytest.mark.s3
def test_bytes_that_are_always_flipped_never_land(s3_server, s3_proxy, tmp_path, big):
    s3_proxy.fault = lambda request: ("flip-up",) if request.method == "PUT" else None
    for path in (big, tmp_path / "small"):
        path.write_bytes(path.read_bytes() if path.exists() else b"x" * 100)
        with pytest.raises(Unreachable, match=r"BadDigest|BadRequest|Invalid"):
            s3_server.store(s3_proxy.endpoint, patience=1.5).upload(path, f"{tmp_path.name}/x")
        assert s3_server.store().head(f"{tmp_path.name}/x") is None


@pytest.mark.s3
@pytest.mark.parametrize("action", [("flip-down",), ("truncate", 100), ("truncate", 5 << 20), ("reset", 0)])
@pytest.mark.parametrize("size", [6 << 20, BIG])
def test_one_fault_on_the_way_down_is_mended(s3_server, s3_proxy, tmp_path, action, size):
    path, key = tmp_path / "file", f"{tmp_path.name}/x"
    path.write_bytes(os.urandom(size))
    landed = s3_server.store().upload(path, key)
    s3_proxy.fault = once(action, "GET", 2 if size == BIG else 0)
    assert fetch(s3_server.store(s3_proxy.endpoint), key, tmp_path / "back", landed) == path.read_bytes()


@pytest.mark.s3
@pytest.mark.parametrize("size", [1000, BIG])
def test_bytes_that_are_flipped_on_every_way_down_are_never_accepted(s3_server, s3_proxy, tmp_path, size):
    path, key = tmp_path / "file", f"{tmp_path.name}/x"
    path.write_bytes(os.urandom(size))
    landed = s3_server.store().upload(path, key)
    s3_proxy.fault = lambda request: ("flip-down",) if request.method == "GET" else None
    with pytest.raises(Corrupt):
        fetch(s3_server.store(s3_proxy.endpoint), key, tmp_path / "back", landed)
    assert not list(tmp_path.glob("back*"))


@pytest.mark.s3
def test_a_download_that_was_cut_off_fetches_only_what_is_missing(s3_server, s3_proxy, tmp_path, big):
    key = f"{tmp_path.name}/x"
    landed = s3_server.store().upload(big, key)
    refused = []

    def fault(request):
        if request.method == "GET" and len(s3_proxy.seen) > 2:
            refused.append(request)
            return ("status", 403, "AccessDenied")
        return None

    s3_proxy.fault = fault
    with pytest.raises(Denied):
        fetch(s3_server.store(s3_proxy.endpoint), key, tmp_path / "back", landed)
    assert not (tmp_path / "back").exists()
    s3_proxy.fault, before = None, len(s3_proxy.seen)
    assert fetch(s3_server.store(s3_proxy.endpoint), key, tmp_path / "back", landed) == big.read_bytes()
    assert len(s3_proxy.seen) - before == 2  # of four ranges, two had come


def _upload_and_die(endpoint, path, key, state):
    store = S3Store(endpoint, patience=30, concurrency=1)
    parts = []

    def die_after_two(moved):
        parts.append(moved)
        if len(parts) == 3:  # two are noted
            os._exit(9)

    store.upload(path, key, state=state, progress=die_after_two)


@pytest.mark.s3
def test_an_upload_goes_on_in_another_process_where_a_killed_one_stopped(s3_server, s3_proxy, tmp_path, big):
    key, state = f"{tmp_path.name}/x", tmp_path / "state.json"
    endpoint = dataclasses.replace(s3_server.store().wire.endpoint, url=s3_proxy.endpoint)
    child = multiprocessing.get_context("spawn").Process(target=_upload_and_die, args=(endpoint, big, key, state))
    child.start()
    child.join()
    assert child.exitcode == 9
    noted = len(json.loads(state.read_bytes())["parts"])
    assert noted >= 2
    before = s3_proxy.body_bytes
    store = s3_server.store(s3_proxy.endpoint)
    assert store.sweep(f"{tmp_path.name}/", [state]) == 0  # an upload that is noted is nobody's orphan
    landed = store.upload(big, key, state=state)
    assert s3_proxy.body_bytes - before <= BIG - noted * PART + 10_000
    assert fetch(store, key, tmp_path / "back", landed) == big.read_bytes()
    assert not state.exists()


@pytest.mark.s3
def test_an_unfinished_upload_of_another_state_of_the_file_is_thrown_away(s3_server, tmp_path, big):
    key, state, store = f"{tmp_path.name}/x", tmp_path / "state.json", s3_server.store()
    child = multiprocessing.get_context("spawn").Process(
        target=_upload_and_die, args=(store.wire.endpoint, big, key, state)
    )
    child.start()
    child.join()
    big.write_bytes(os.urandom(BIG))
    landed = store.upload(big, key, state=state)
    assert fetch(store, key, tmp_path / "back", landed) == big.read_bytes()
    assert store.sweep(f"{tmp_path.name}/") == 0


@pytest.mark.s3
def test_orphan_uploads_are_swept(s3_server, tmp_path, big):
    key, state, store = f"{tmp_path.name}/x", tmp_path / "state.json", s3_server.store()
    child = multiprocessing.get_context("spawn").Process(
        target=_upload_and_die, args=(store.wire.endpoint, big, key, state)
    )
    child.start()
    child.join()
    assert store.sweep(f"{tmp_path.name}/") == 1
    landed = store.upload(big, key, state=state)  # the state file names an upload that is gone
    assert fetch(store, key, tmp_path / "back", landed) == big.read_bytes()


@pytest.mark.s3
def test_a_compare_and_swap_whose_answer_was_lost_has_succeeded(s3_server, s3_proxy, tmp_path):
    store, key = s3_server.store(s3_proxy.endpoint), f"{tmp_path.name}/lease.json"
    s3_proxy.fault = once(("lose",))
    etag = store.put(key, b"first", if_none_match=True)
    s3_proxy.fault = once(("lose",))
    assert store.put(key, b"second", if_match=etag)
    assert store.get(key)[0] == b"second"


@pytest.mark.s3
def test_a_completed_upload_whose_answer_was_lost_has_landed(s3_server, s3_proxy, tmp_path, big):
    s3_proxy.fault = once(("lose",), "POST", 1)
    landed = s3_server.store(s3_proxy.endpoint).upload(big, f"{tmp_path.name}/x")
    assert fetch(s3_server.store(), f"{tmp_path.name}/x", tmp_path / "back", landed) == big.read_bytes()


@pytest.mark.s3
@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_slow_down_is_waited_out_with_fewer_requests_at_once(s3_server, s3_proxy, tmp_path, big, seconds):
    end = time.monotonic() + seconds

    def fault(request):
        return ("status", 503, "SlowDown") if time.monotonic() < end and request.method == "PUT" else None

    s3_proxy.fault = fault
    store = s3_server.store(s3_proxy.endpoint, patience=300)
    landed = store.upload(big, f"{tmp_path.name}/x")
    assert landed.sha256 == sha256(big)
    assert store.wire.throttle.limit < 8


@pytest.mark.s3
@pytest.mark.parametrize("code, status", [("NoSuchBucket", 404), ("ExpiredToken", 400), ("Unauthorized", 401)])
def test_a_refusal_names_its_likely_cause_and_is_not_tried_for_long(s3_server, s3_proxy, tmp_path, code, status, big):
    s3_proxy.fault = lambda request: ("status", status, code)
    store = s3_server.store(s3_proxy.endpoint)
    for call in (lambda: store.put("r/x", b""), lambda: store.get("r/x"), lambda: store.upload(big, "r/x")):
        with pytest.raises(Denied) as caught:
            call()
        assert code in str(caught.value) and HINTS[code] in str(caught.value)
    assert len(s3_proxy.seen) <= 6


@pytest.mark.s3
def test_wrong_keys_and_read_only_keys_are_told_apart(s3_server, big):
    with pytest.raises(Denied, match="Object Read & Write"):
        s3_server.store(keys="read").upload(big, "r/x")
    for field, hint in (("secret_key", "does not belong"), ("access_key", "unknown to this endpoint")):
        store = s3_server.store()
        store.wire.endpoint = dataclasses.replace(store.wire.endpoint, **{field: "wrong-one"})
        with pytest.raises(Denied, match=hint):
            store.put("r/x", b"")


@pytest.fixture
def tls(tmp_path):
    """A server's context with a certificate of its own, and the file that trusts it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command = [*request.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@pytest.mark.s3
def test_files_travel_over_tls_and_an_unknown_certificate_is_refused_at_once(
    s3_server, tmp_path, big, tls, monkeypatch
):
    context, certificate = tls
    with FaultProxy(s3_server.endpoint, context) as proxy:
        with pytest.raises(Denied, match="certificate"):
            s3_server.store(proxy.endpoint).put("tls/x", b"")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        store = s3_server.store(proxy.endpoint)
        landed = store.upload(big, f"{tmp_path.name}/x", state=tmp_path / "state")
        assert fetch(store, f"{tmp_path.name}/x", tmp_path / "back", landed) == big.read_bytes()


class Tunnel(socketserver.StreamRequestHandler):
    """A proxy that only does CONNECT; `server.seen` has its requests' heads."""

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.rfile.readline()
        self.server.seen.append(head.decode())
        host, port = head.split()[1].decode().split(":")
        with socket.create_connection((host, int(port))) as other:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            ends = {self.connection: other, other: self.connection}
            while readable := select.select(list(ends), [], [])[0]:
                for end in readable:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)


class Tunnels(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.mark.s3
def test_a_proxy_is_used_where_the_environment_asks_for_one(s3_server, tmp_path, big, tls, monkeypatch):
    context, certificate = tls
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with FaultProxy(s3_server.endpoint, context) as server, Tunnels(("127.0.0.1", 0), Tunnel) as tunnels:
        tunnels.seen = []
        threading.Thread(target=tunnels.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{tunnels.server_address[1]}")
        store = s3_server.store(server.endpoint)
        landed = store.upload(big, f"{tmp_path.name}/x")
        assert fetch(store, f"{tmp_path.name}/x", tmp_path / "back", landed) == big.read_bytes()
        assert tunnels.seen and all(head.startswith("CONNECT 127.0.0.1:") for head in tunnels.seen)
        assert base64.b64encode(b"me:p@ss").decode() in tunnels.seen[0]
        before = len(tunnels.seen)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        s3_server.store(server.endpoint).put(f"{tmp_path.name}/y", b"")
        assert len(tunnels.seen) == before
        tunnels.shutdown()


@pytest.mark.s3
def test_keys_for_one_runs_folder_are_enough_for_that_run_and_for_no_other(s3_server, tmp_path, big):
    store = s3_server.store(keys="scoped")
    lease.acquire(store, "scoped", "me")
    landed = store.upload(big, "scoped/model.pt", state=tmp_path / "state")
    assert fetch(store, "scoped/model.pt", tmp_path / "back", landed) == big.read_bytes()
    assert [head.key for head in store.list("scoped/model")] == ["scoped/model.pt"]
    store.sweep("scoped/")
    assert find_run(store, "scoped") == "scoped"
    assert check_writable(store, "scoped")[0] == check_permission(store, "scoped")[0] == "pass"
    assert check_landing(store, "scoped", tmp_path)[0] == "pass"
    store.delete(["scoped/model.pt", lease.key("scoped")])
    with pytest.raises(Denied, match="Object Read & Write"):
        store.put("other/model.pt", b"")


@pytest.mark.s3
def test_a_clock_that_is_an_hour_off_is_corrected_from_the_stores(s3_server, tmp_path):
    store = s3_server.store()
    store.wire.skew = 3600  # as if this machine's clock were right and we thought otherwise
    store.put(f"{tmp_path.name}/x", b"")
    assert abs(store.wire.skew) < 5
    assert abs(store.clock_skew()) < 5


@pytest.mark.s3
def test_a_store_that_is_nowhere_is_given_up_at_the_deadline(tmp_path):
    store = S3Store(Endpoint("http://127.0.0.1:9", "b", "k" * 8, "s" * 8), patience=0.5)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        store.put("r/x", b"")


@pytest.mark.s3
def test_stop_ends_an_upload_that_waits_for_the_store(s3_server, s3_proxy, tmp_path, big):
    s3_proxy.fault = lambda request: ("status", 503, "SlowDown") if request.method == "PUT" else None
    store = s3_server.store(s3_proxy.endpoint)
    threading.Timer(0.5, store.stop.set).start()
    with pytest.raises(Exception, match="given up"):
        store.upload(big, f"{tmp_path.name}/x")


@pytest.mark.s3
def test_multipart_etags_are_what_the_store_says(s3_server, tmp_path, big):
    landed = s3_server.store().upload(big, f"{tmp_path.name}/x")
    data = big.read_bytes()
    parts = [hashlib.md5(data[start : start + PART]).hexdigest() for start in range(0, BIG, PART)]
    assert landed.etag == multipart_etag(parts)


@pytest.mark.s3
def test_listings_of_more_than_a_page_are_complete(s3_server, tmp_path):
    store = s3_server.store()
    keys = [f"{tmp_path.name}/{number:05d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))
    assert [head.key for head in store.list(f"{tmp_path.name}/")] == keys
