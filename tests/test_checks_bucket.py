"""What preflight asks of a bucket, against a real S3 server with each fault seeded: caught, with a hint."""

import dataclasses
import resource
import time
from types import SimpleNamespace

import pytest

from homerun.bucket import s3
from homerun.bucket.checks import check_clock, check_landing, check_permission, check_writable
from homerun.bucket.folder import FolderStore

pytestmark = pytest.mark.s3


def refuse(request, *what):
    """A fault: AccessDenied for requests whose method, path or query is one of these."""
    asked = {request.method, request.path, request.query.partition("=")[0]}
    return ("status", 403, "AccessDenied") if asked & set(what) else None


def test_a_key_that_reaches_other_buckets_is_warned_of(s3_server):
    s3_server.store(bucket="another").wire.request("PUT", fine=(409,))
    verdict, seen, hint = check_permission(s3_server.store(), "run")
    assert (verdict, "more buckets" in seen) == ("warn", True)
    assert "Object Read & Write" in hint and "docs/r2.md" in hint
    assert check_permission(s3_server.store(keys="scoped"), "scoped")[0] == "pass"


def test_a_key_that_reaches_the_buckets_rules_is_warned_of_although_it_lists_no_other(s3_server, s3_proxy):
    s3_proxy.fault = lambda request: refuse(request, "/")
    verdict, seen, hint = check_permission(s3_server.store(s3_proxy.endpoint), "run")
    assert (verdict, "rules" in seen, "docs/r2.md" in hint) == ("warn", True, True)


def test_a_key_for_objects_alone_as_r2_makes_them_raises_no_alarm(s3_server, s3_proxy):
    s3_proxy.fault = lambda request: refuse(request, "/", "lifecycle")
    assert check_permission(s3_server.store(s3_proxy.endpoint), "run")[0] == "pass"
    assert {request.method for request in s3_proxy.seen} == {"GET"}


def test_a_key_that_may_not_list_could_not_resume_and_is_refused(s3_server, s3_proxy):
    s3_proxy.fault = lambda request: refuse(request, "list-type")
    verdict, seen, hint = check_permission(s3_server.store(s3_proxy.endpoint), "run")
    assert (verdict, "may not list" in seen, "Object Read & Write" in hint) == ("fail", True, True)


def test_a_service_that_answers_nothing_useful_is_no_alarm_and_a_folder_has_no_key(s3_server, s3_proxy, tmp_path):
    s3_proxy.fault = lambda request: ("status", 501, "NotImplemented") if request.path == "/" else None
    assert check_permission(s3_server.store(s3_proxy.endpoint, keys="scoped"), "scoped")[0] == "pass"
    assert check_permission(FolderStore(tmp_path), "run") is None


@pytest.mark.parametrize(("ahead", "verdict"), [(5, "pass"), (-120, "warn"), (3600, "fail")])
def test_a_clock_that_is_off_is_caught(s3_server, monkeypatch, ahead, verdict):
    monkeypatch.setattr(s3, "time", SimpleNamespace(time=lambda: time.time() + ahead))
    found, seen, hint = check_clock(s3_server.store())
    assert (found, "timedatectl" in hint) == (verdict, verdict != "pass")
    assert ("behind" if ahead < 0 else "ahead of") in seen


@pytest.mark.parametrize("change", [{"secret_key": "wrong-secret"}, {"access_key": "wrong-key"}])
def test_wrong_keys_are_caught_by_the_name_of_their_variable(s3_server, tmp_path, change):
    store = s3_server.store(patience=1)
    store.wire.endpoint = dataclasses.replace(store.wire.endpoint, **change)
    for verdict, _, hint in (check_landing(store, "run", tmp_path), check_writable(store, "run")):
        assert verdict == "fail"
        assert "R2_" in hint and "ACCESS_KEY" in hint


def test_a_bucket_that_is_not_there_is_caught(s3_server, s3_proxy, tmp_path):
    s3_proxy.fault = lambda request: ("status", 404, "NoSuchBucket")
    store = s3_server.store(s3_proxy.endpoint, patience=1)
    found = check_landing(store, "run", tmp_path), check_writable(store, "run"), check_permission(store, "run")
    for verdict, _, hint in found:
        assert (verdict, "R2_BUCKET_NAME" in hint) == ("fail", True)


@pytest.mark.parametrize("action", [("flip-down",), ("status", 403, "QuotaExceeded")])
def test_wrong_bytes_and_a_full_account_are_caught(s3_server, s3_proxy, tmp_path, action):
    method = "GET" if action[0] == "flip-down" else "PUT"
    s3_proxy.fault = lambda request: action if request.method == method else None
    found, seen, _ = check_landing(s3_server.store(s3_proxy.endpoint, patience=2), "run", tmp_path)
    assert (found, bool(seen)) == ("fail", True)


def test_a_disk_that_cannot_hold_the_proof_is_caught(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        verdict, _, hint = check_landing(FolderStore(tmp_path / "bucket"), "run", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (verdict, "HOMERUN_DIR" in hint) == ("fail", True)


def test_the_proof_comes_from_the_folder_that_the_run_will_use(tmp_path):
    verdict, seen, _ = check_landing(FolderStore(tmp_path / "bucket"), "run", tmp_path / "absent")
    assert (verdict, str(tmp_path / "absent") in seen) == ("fail", True)
