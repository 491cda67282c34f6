"""More time for a running job: asked for through the bucket, taken by the box that it was meant for alone."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_upstream import homerun, make

from homerun.bucket import extension
from homerun.bucket.folder import FolderStore
from homerun.bucket.store import Changed
from homerun.job.more_time import limits_now, over_limit
from homerun.journal import replay
from homerun.settings import Settings
from tests import s3
from tests.fakes.caas import FakeCaaS
from tests.fakes.runpod import FakeRunPod
from tests.story import Story, begin

WAS = datetime(2026, 11, 21, 7, 31, tzinfo=UTC)
ENVIRON = {"HOMERUN_DEADLINE": "2026-11-21T07:31:00Z", "HOMERUN_BUDGET_USD": "150"}


def test_hours_add_up_for_one_box_and_begin_anew_for_the_next(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert extension.read(store, "run") is None
    extension.add(store, "run", 1000.0, 3600, 27.88)
    assert extension.add(store, "run", 1000.0, 7200, 55.76) == extension.Extension(1000.0, 11800.0, 83.64)
    assert extension.add(store, "run", 5000.0, 60, 1.0) == extension.Extension(5000.0, 5060.0, 1.0)


def test_one_of_two_who_ask_at_the_same_moment_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = FolderStore(tmp_path), FolderStore(tmp_path)
    really = store.get

    def overtaken(key: str) -> tuple[bytes, str]:
        try:
            return really(key)
        finally:
            extension.add(other, "run", 1000.0, 60, 0.0)

    monkeypatch.setattr(store, "get", overtaken)
    for _ in range(2):  # without an object, and with one
        with pytest.raises(Changed):
            extension.add(store, "run", 1000.0, 60, 0.0)
    assert extension.read(other, "run") == extension.Extension(1000.0, 1120.0, 0.0)


def test_only_the_box_that_was_meant_gets_more_time(tmp_path: Path) -> None:
    store, outbox, settings = FolderStore(tmp_path / "bucket"), tmp_path / "outbox", Settings.load(ENVIRON)
    assert limits_now(settings, outbox) == limits_now(settings, tmp_path / "nowhere")
    extension.add(store, "run", WAS.timestamp(), 3600, 27.88)
    extension.bring(store, "run", outbox)
    limits = limits_now(settings, outbox)
    assert (limits.deadline, limits.cap_usd) == (WAS.timestamp() + 3600, 177.88)
    next_box = Settings.load({**ENVIRON, "HOMERUN_DEADLINE": "2026-11-21T12:00:00Z"})
    limits = limits_now(next_box, outbox)
    assert (limits.deadline, limits.cap_usd) == (datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp(), 150)
    assert limits_now(Settings.load({}), outbox).deadline is None


def test_what_cannot_be_read_asks_for_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "bucket")
    for data in (b"", b"{", b"[]", b'{"was": "x", "deadline": 1}', b'{"was": 1}', b'{"was": 1, "deadline": 2, "x": 3}'):
        store.put("run/extension.json", data)
        assert extension.read(store, "run") is None
        extension.bring(store, "run", tmp_path / "outbox")
    assert not (tmp_path / "outbox").exists()
    assert extension.add(store, "run", 1.0, 2, 3.0).deadline == 3.0  # and is replaced


@pytest.mark.parametrize(
    ("after", "environ", "over"),
    [
        (3000, {}, False),
        (3000, {"HOMERUN_BUDGET_USD": "30"}, False),  # 24 $/h: 20 $ for the serving and a little for the run
        (4500, {"HOMERUN_BUDGET_USD": "30"}, True),
        (99, {"HOMERUN_DEADLINE": "T+100"}, False),
        (101, {"HOMERUN_DEADLINE": "T+100"}, True),
    ],
)
def test_serving_ends_with_the_money_or_the_time(
    tmp_path: Path, after: float, environ: dict[str, str], over: bool
) -> None:
    story = Story()
    begin(story, price=24.0)
    story("attempt.end", after=60, code=0, reason="", safe="", next="")
    if "HOMERUN_DEADLINE" in environ:
        environ = {"HOMERUN_DEADLINE": datetime.fromtimestamp(story.t + 100, UTC).isoformat()}
    limits = limits_now(Settings.load(environ), tmp_path)
    assert over_limit(story.state(), limits, story.t + after) is over


@pytest.mark.slow
@pytest.mark.parametrize("extended", [False, True])
def test_a_job_that_starts_again_at_its_old_deadline_goes_on_if_that_was_moved(tmp_path: Path, extended: bool) -> None:
    make(tmp_path / "upstream")
    deadline = datetime.fromtimestamp(int(time.time()) + 20, UTC)  # a landing is given a minute: too late to begin
    if extended:
        extension.add(FolderStore(tmp_path / "dir" / "bucket"), "run", deadline.timestamp(), 7200, 50.0)
    environ = {"HOMERUN_DEADLINE": deadline.isoformat(), "HOMERUN_RUN_ID": "run", "HOMERUN_DIR": str(tmp_path / "dir")}
    done = homerun("train", "--upstream", str(tmp_path / "upstream"), **environ)
    told = [
        event for event in replay(tmp_path / "dir" / "runs" / "run" / "journal.jsonl") if event["type"] == "extended"
    ]
    assert (done.returncode, len(told)) == ((0, 1) if extended else (8, 0)), done.stdout + done.stderr
    assert not told or told[0]["deadline"] == deadline.timestamp() + 7200
    assert ("more time: the deadline is now" in done.stdout + done.stderr) is extended


def _extend(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "homerun", "extend", *arguments]
    given = {"PATH": os.environ["PATH"], **environ}
    return subprocess.run(command, env=given, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.s3
def test_extend_books_at_the_boxs_own_price_and_tells_its_job(s3_server: s3.Server) -> None:
    store, known = s3_server.store(), {**s3_server.environ()}
    with FakeCaaS() as caas:
        id = caas.add("run-on-caas", hours=5, HOMERUN_RUN_ID="run-on-caas", HOMERUN_DEADLINE="2026-11-21T07:31:00Z")
        known |= {"IOCLOUD_API_KEY": caas.key, "CAAS_API_URL": caas.api}
        for arguments, more, says in (
            (["2", "--max-cost", "55"], {}, "about $55.76, over the cap of $55.00"),
            (["2"], {}, "no terminal to ask at"),
            (["2", "--max-cost", "60"], dict.fromkeys(s3_server.environ(), ""), "the job is told through the bucket"),
            (["2", "--max-cost", "60"], {"R2_SECRET_ACCESS_KEY": "wrong-secret"}, "403"),
        ):
            done = _extend({**known, **more}, id, *arguments)
            assert done.returncode != 0 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert caas.count("POST", "extend") == 0 and extension.read(store, "run-on-caas") is None
        for _ in range(2):
            done = _extend(known, id, "2", "--max-cost", "60")
            assert done.returncode == 0, done.stderr
        assert "run-on-caas lands before 2026-11-21 11:31Z" in done.stderr
        assert caas.deployments[id]["compute_minutes_remaining"] == 9 * 60
    asked = extension.read(store, "run-on-caas")
    assert asked == extension.Extension(WAS.timestamp(), WAS.timestamp() + 4 * 3600, 111.52)


@pytest.mark.s3
def test_a_pods_job_gets_more_time_although_nothing_is_booked(s3_server: s3.Server) -> None:
    with FakeRunPod() as runpod:
        pod = runpod.add_pod(name="run-on-runpod", env={"HOMERUN_DEADLINE": "2026-11-21T07:31:00Z"})
        known = {**s3_server.environ(), "RUNPOD_API_KEY": runpod.key, "RUNPOD_API_URL": runpod.url + "/v1"}
        done = _extend(known, pod, "1", "--on", "runpod", "--max-cost", "30")
        assert done.returncode == 0, done.stderr
    asked = extension.read(s3_server.store(), "run-on-runpod")
    assert asked == extension.Extension(WAS.timestamp(), WAS.timestamp() + 3600, 27.92)


@pytest.mark.slow
def test_a_run_that_failed_gives_its_box_back_although_a_good_one_would_stay_up(tmp_path: Path) -> None:
    make(tmp_path / "upstream")
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "base_train").write_text("1")
    environ = {"HOMERUN_DIR": str(tmp_path / "dir"), "FAULTS": str(tmp_path / "faults")}
    environ |= {"KEEP_ALIVE": "true", "HOMERUN_PORT": "0"}
    assert homerun("train", "--upstream", str(tmp_path / "upstream"), **environ).returncode == 4
