"""A few of `make chaos`: kills at random moments and an emptied disk; a bucket that goes away; one that refuses."""

import json

import pytest
from chaos import disturbed, fake_case, kills_of, problems, slow_down, wait_for
from s3 import serve

from homerun.errors import Exit
from homerun.journal import replay
from homerun.state import fold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
QUICK = {"HOMERUN_SYNC_SECONDS": "0.5"}  # no R2 here that takes one write a second a key


@pytest.mark.parametrize("seed", [4, 20, 28])
def test_a_run_killed_at_random_moments_ends_good_on_an_emptied_disk_and_lost_no_more_than_was_shown(tmp_path, seed):
    case = fake_case(tmp_path)
    case.play(kills_of(seed, case.total))
    assert not problems(case)


@pytest.mark.s3
def test_so_it_does_over_s3_where_the_uploader_alone_dies(tmp_path, s3_server):
    case = fake_case(tmp_path, "chaos-33", **s3_server.environ())
    case.play(kills_of(33, case.total))
    assert not problems(case)


@pytest.mark.s3
def test_training_does_not_notice_that_the_bucket_is_dead_for_three_seconds(tmp_path):
    with serve(tmp_path / "weed") as server:
        case = fake_case(tmp_path, **server.environ(), **QUICK)
        assert not disturbed(case, server.kill, server.start, 3)


@pytest.mark.s3
def test_training_does_not_notice_that_the_bucket_asks_to_slow_down(tmp_path, s3_proxy, s3_server):
    case = fake_case(tmp_path, "chaos-slow", **s3_server.environ(s3_proxy.endpoint), **QUICK)
    found = disturbed(case, lambda: setattr(s3_proxy, "fault", slow_down), lambda: setattr(s3_proxy, "fault", None), 5)
    assert not found


@pytest.mark.s3
def test_what_the_bucket_refused_at_the_end_is_named_with_exit_5_and_push_brings_it(tmp_path, s3_proxy, s3_server):
    env = s3_server.environ(s3_proxy.endpoint) | QUICK | {"HOMERUN_UPLOAD_MINUTES": "0.05"}
    case = fake_case(tmp_path, "chaos-refused", total=20, **env)
    job = case.start()
    wait_for(lambda: any(e["type"] == "phase.begin" and e["phase"] == "chat_sft" for e in replay(case.journal)), 120)
    s3_proxy.fault = lambda seen: ("status", 403, "AccessDenied") if seen.method in ("PUT", "POST") else None
    assert job.wait() == Exit.UNPROVEN, case.said
    assert "not in the bucket: " in case.said and "base_checkpoints/d4/000020" in case.said
    assert f"homerun push {case.run}" in case.said.splitlines()[-1]
    s3_proxy.fault = None
    pushed = case.homerun("push", case.run)
    assert pushed.returncode == 0, pushed.stderr
    verified = case.homerun("verify", case.run)
    assert verified.returncode == 0 and "base_checkpoints/d4/model_000020.pt" in verified.stdout
    assert "_SUCCESS is there" in pushed.stderr
    case.code = pushed.returncode
    assert not problems(case)
    state = fold(replay(case.journal))
    assert (state.code, state.verdict, len(state.attempts)) == (0, "good", 1)
    assert state.attempt.ended < state.updated  # a machine that had ended by then costs nothing more
    said = json.loads((case.dir / "runs" / case.run / "metadata.json").read_text())
    assert said["code"] == 0 and all(group["secured"] for group in said["checkpoints"])
    assert case.homerun("push", case.run).returncode == 0  # nothing left to do
    assert [e["phase"] for e in replay(case.journal) if e["type"] == "phase.begin"].count("base_train") == 1
