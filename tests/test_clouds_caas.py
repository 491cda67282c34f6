"""The CaaS client, the order and the follower against a fake CaaS at the wire; the vendor's SDK against the same."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from homerun.clouds import api, caas, follow
from homerun.clouds.caas import CaaS
from homerun.clouds.cloud import CloudError, UnknownOutcome
from homerun.clouds.launch import Launch, Wish, check_price, prepare, start
from homerun.clouds.order import booked_hours, check, fill, names, read_template
from homerun.commands.deploy import progress
from homerun.errors import Exit, RequestError
from homerun.settings import Settings
from tests.fakes.caas import FakeCaaS
from tests.fakes.http import FakeService, Reply, Request

ROOT = Path(__file__).parent.parent
TEMPLATE = read_template(ROOT / "caas_deployment.json")
CANARY = "canary-secret-of-the-test"
ENVIRON = {
    "R2_ACCESS_KEY_ID": "key-id-of-the-test",
    "R2_SECRET_ACCESS_KEY": CANARY,
    "R2_ENDPOINT_URL": "https://account.r2.cloudflarestorage.com",
    "R2_BUCKET_NAME": "models",
}
NOW = datetime(2026, 11, 21, 2, 31, tzinfo=UTC)
WISH = Wish("nanochat-d20-test", "someone/nanochat-training:1", "H100", 8, hours=3.9, reserve=1.0, max_usd=200)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCaaS]:
    monkeypatch.setattr(api, "BACKOFF_S", 0.01)
    monkeypatch.setattr(api, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(caas, "LOOKUP_S", 0.01)
    monkeypatch.setattr(caas, "STREAM_RETRY_S", 0.01)
    with FakeCaaS() as service:
        yield service


def client(cloud: FakeCaaS) -> CaaS:
    return CaaS(cloud.key, cloud.api)


def launch(cloud: FakeCaaS, **environ: str) -> Launch:
    environ = {**ENVIRON, **environ}
    return prepare(client(cloud), TEMPLATE, WISH, Settings.load(environ), environ, NOW)


# the order


def test_the_request_is_complete_and_the_server_takes_it(cloud: FakeCaaS) -> None:
    id = start(client(cloud), launch(cloud, SCRIPT_URL="https://gist.github.com/x/abcdef", KEEP_ALIVE="true"))
    body = cloud.bodies[0]
    assert id in cloud.deployments
    assert (
        body["resource_private_name"] == WISH.run_id and body["hardware_id"] == "203" and body["location_ids"] == ["1"]
    )
    assert body["duration_hours"] == 5 and body["gpus_per_container"] == 8
    config = body["container_config"]
    assert config["entrypoint"][-1] == "train" and "args" not in config
    assert config["env_variables"]["HOMERUN_RUN_ID"] == WISH.run_id
    assert config["env_variables"]["HOMERUN_DEADLINE"] == "2026-11-21T07:31:00Z"
    assert config["env_variables"]["HOMERUN_GPU_HOUR_PRICE"] == "3.4850"
    assert config["env_variables"]["KEEP_ALIVE"] == "true"
    assert config["secret_env_variables"]["R2_SECRET_ACCESS_KEY"] == CANARY
    assert len(config["secret_env_variables"]["HOMERUN_SERVE_TOKEN"]) >= 32
    assert "WANDB_API_KEY" not in config["secret_env_variables"]


def test_what_the_box_gets_is_what_its_settings_read(cloud: FakeCaaS) -> None:
    settings = Settings.load(launch(cloud, WANDB_API_KEY="w" * 40, HOMERUN_SKIP="tok_eval").order.environment)
    assert settings.homerun_run_id == WISH.run_id and settings.has_bucket and settings.homerun_skip == ("tok_eval",)
    assert settings.homerun_deadline == datetime(2026, 11, 21, 7, 31, tzinfo=UTC)
    assert settings.homerun_budget_usd == WISH.max_usd


def test_secrets_are_only_in_secret_variables_and_nowhere_in_what_is_shown(cloud: FakeCaaS) -> None:
    made = launch(cloud, WANDB_API_KEY="wandb-key-of-the-test", REGISTRY_USERNAME="me", REGISTRY_SECRET="pull-token-1")
    shown = json.dumps(made.order.shown())
    for secret in (CANARY, "wandb-key-of-the-test", "pull-token-1", made.token):
        assert secret and secret not in shown
    body = made.order.body()
    body["container_config"].pop("secret_env_variables")
    body["registry_config"].pop("registry_secret")
    assert CANARY not in json.dumps(body) and made.token not in json.dumps(body)


def test_every_name_of_the_deployment_file_is_documented() -> None:
    documented = (ROOT / "docs" / "caas.md").read_text() + (ROOT / "docs" / "QUICKSTART.md").read_text()
    assert not {name for name in names(TEMPLATE) if name not in documented}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"container_config": {"args": ["/bin/x"]}}, "CaaS drops args"),
        ({"container_config": {"image_url": "x"}}, "image belongs into registry_config"),
        ({"container_config": {"health_check": {}}}, "container_config.health_check is no field of CaaS's"),
        ({"deployment_config": {}}, "deployment_config is no field of CaaS's"),
        ({"container_config": {"replica_count": 2}}, "replica_count"),
        ({"duration_hours": 0}, "duration_hours"),
        ({"location_ids": [1, 2]}, "location_ids"),
        ({"container_config": {"env_variables": {"WANDB_API_KEY": "x"}}}, "WANDB_API_KEY is or holds a secret"),
        ({"container_config": {"env_variables": {"NOTE": f"x{CANARY}"}}}, "NOTE is or holds a secret"),
        ({"container_config": {"env_variables": {"HOMERUN_RUN_ID": ""}}}, "would not get HOMERUN_RUN_ID"),
        ({"container_config": {"secret_env_variables": {"R2_ACCESS_KEY_ID": ""}}}, "would not get R2_ACCESS_KEY_ID"),
        ({"container_config": {"traffic_port": 9000}}, "Make them equal"),
    ],
)
def test_a_wrong_order_is_refused_before_anything_is_sent(change: dict[str, Any], message: str) -> None:
    def merge(base: Any, over: Any) -> Any:
        return base | {k: merge(base.get(k), v) for k, v in over.items()} if isinstance(base, dict) else over

    values = dict.fromkeys(names(TEMPLATE), "1") | ENVIRON | {"HOMERUN_AFTER": "hold"}
    values |= dict.fromkeys([name for name in names(TEMPLATE) if name.startswith("REGISTRY")], "")
    with pytest.raises(RequestError) as caught:
        check(merge(fill(TEMPLATE, values), change), {"R2_SECRET_ACCESS_KEY": CANARY})
    assert message in str(caught.value) and CANARY not in str(caught.value)


def test_missing_names_are_all_told_at_once(cloud: FakeCaaS) -> None:
    with pytest.raises(RequestError, match="needs IMAGE, R2_BUCKET_NAME"):
        fill({"a": "${IMAGE}", "b": ["${R2_BUCKET_NAME}", "${X:-1}"]}, {})


def test_fill_replaces_defaults_and_leaves_out_what_is_empty() -> None:
    template = {"a": "x${A}y", "b": "${B:-}", "c": "${C:-7}", "d": ["${B:-}"], "e": None, "f": 3}
    assert fill(template, {"A": "1"}) == {"a": "x1y", "c": "7", "e": None, "f": 3}


@pytest.mark.parametrize(
    ("hours", "reserve", "booked"), [(4, 1, 5), (3.9, 1, 5), (0.1, 0, 1), (4.0001, 1, 6), (0.7, 0.3, 1)]
)
def test_booked_hours_are_whole_and_never_less_than_wished(hours: float, reserve: float, booked: int) -> None:
    assert booked_hours(hours, reserve) == booked


# money


def test_over_the_cap_nothing_is_sent(cloud: FakeCaaS) -> None:
    made = launch(cloud)
    assert made.quote.usd == pytest.approx(139.4)
    with pytest.raises(RequestError, match=r"\$139\.40 for 5 h of 8x H100 SXM5, over the cap of \$139\.00"):
        check_price(made, 139.0, None)
    with pytest.raises(RequestError, match="no terminal"):
        check_price(made, None, None)
    with pytest.raises(RequestError, match="not deployed"):
        check_price(made, None, lambda _: False)
    check_price(made, 139.4, None)
    assert cloud.count("POST", "deploy") == 0


def test_sold_out_hardware_and_wrong_keys_are_told_before_anything_is_sent(cloud: FakeCaaS) -> None:
    with pytest.raises(CloudError, match="no free 8x H200"):
        prepare(client(cloud), TEMPLATE, Wish("r", "i", "H200", 8, 4, 1), Settings.load(ENVIRON), ENVIRON, NOW)
    with pytest.raises(CloudError, match=r"HTTP 401, Invalid API key\. Check IOCLOUD_API_KEY"):
        prepare(CaaS("wrong-key", cloud.api), TEMPLATE, WISH, Settings.load(ENVIRON), ENVIRON, NOW)
    assert cloud.count("POST", "") == 0


@pytest.mark.parametrize("enveloped", [True, False])
def test_hardware_is_found_in_either_envelope(cloud: FakeCaaS, enveloped: bool) -> None:
    cloud.enveloped = enveloped
    offers = client(cloud).offers("h100", 8)
    assert [(o.hardware, o.gpus, o.location, o.available) for o in offers] == [("203", 8, "1", 3)]


def test_the_run_itself_is_told_in_one_line() -> None:
    phases = [{"phase": "dataset-2", "background": True}, {"phase": "base_train", "step": 1200, "steps": 21400}]
    metadata = {"phases": phases, "cost": {"usd": 12.31}, "loss_if_it_died": {"secured_step": 1000}}
    assert progress(metadata) == "run: base_train step 1200 of 21400, $12.31; step 1000 is in the bucket"
    assert progress({"phases": [{"phase": "uv-sync", "step": None}]}) == "run: uv-sync"


# deploying, once


@pytest.mark.parametrize("fault", [Reply(lose=True), Reply(502, b"<html>", {"Content-Type": "text/html"}), Reply(504)])
def test_a_deploy_whose_answer_is_lost_is_found_and_never_sent_again(cloud: FakeCaaS, fault: Reply) -> None:
    made = launch(cloud)
    cloud.fail("POST", "/deploy", fault, after=True)
    id = start(client(cloud), made)
    assert list(cloud.deployments) == [id] and cloud.count("POST", "/deploy") == 1


def test_a_deploy_that_may_not_have_happened_is_not_sent_again_either(cloud: FakeCaaS) -> None:
    made = launch(cloud)
    cloud.fail("POST", "/deploy", Reply(503, b""), times=9)
    with pytest.raises(UnknownOutcome, match="no deployment nanochat-d20-test shows up") as caught:
        start(client(cloud), made)
    assert cloud.count("POST", "/deploy") == 1 and CANARY not in str(caught.value)


def test_a_rate_limited_deploy_is_sent_again_because_it_was_not_taken(cloud: FakeCaaS) -> None:
    made = launch(cloud)
    cloud.fail("POST", "/deploy", Reply(429, {"detail": "slow"}, {"Retry-After": "0"}), times=2)
    start(client(cloud), made)
    assert len(cloud.deployments) == 1 and cloud.count("POST", "/deploy") == 3


def test_a_name_that_runs_already_is_not_deployed_twice(cloud: FakeCaaS) -> None:
    made = launch(cloud)
    id = start(client(cloud), made)
    with pytest.raises(RequestError, match=f"deployed already, as {id}"):
        start(client(cloud), made)
    cloud.set_status(id, "completed")
    start(client(cloud), made)
    assert cloud.count("POST", "/deploy") == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(400, {"status": "failed", "error": "not enough credits"}), "HTTP 400, not enough credits"),
        (Reply(403, {"detail": "no scope"}), "HTTP 403, no scope. Give the key"),
        (Reply(422, {"detail": [{"loc": ["body", "x"], "msg": "extra", "type": "t"}]}), "body.x: extra"),
        (Reply(409, b"<html>conflict", {"Content-Type": "text/html"}), "HTTP 409, a web page"),
        (Reply(200, b"<html>login", {"Content-Type": "text/html"}), "a web page instead of JSON"),
    ],
)
def test_every_shape_of_error_is_one_readable_line(cloud: FakeCaaS, reply: Reply, message: str) -> None:
    made = launch(cloud)
    cloud.fail("POST", "/deploy", reply)
    with pytest.raises(CloudError) as caught:
        start(client(cloud), made)
    assert message in str(caught.value) and "\n" not in str(caught.value) and CANARY not in str(caught.value)


def test_reads_are_tried_again_and_redirects_to_other_hosts_do_not_get_the_key(cloud: FakeCaaS) -> None:
    cloud.fail("GET", "/price", Reply(429, {"detail": "x"}, {"Retry-After": "0"}))
    cloud.fail("GET", "/price", Reply(503, b""))
    assert launch(cloud).quote.usd > 0
    with FakeCaaS() as other:
        cloud.fail("GET", "/deployments", Reply(302, b"", {"Location": other.api + "/deployments"}))
        with pytest.raises(CloudError):
            client(cloud).check_key()
        assert other.requests == []


# following


def test_a_deployment_that_cannot_be_read_yet_is_requested_not_lost(cloud: FakeCaaS) -> None:
    cloud.hide_reads = 3
    id = start(client(cloud), launch(cloud))
    cloud.deployments[id]["status"] = "DEPLOYMENT_REQUESTED"
    assert client(cloud).status(id).status == "deployment requested"
    assert client(cloud).status("0" * 8 + "-0000-0000-0000-" + "0" * 12).status == "deployment requested"


def test_log_lines_come_once_each_although_the_stream_breaks_and_replays(cloud: FakeCaaS) -> None:
    cloud.lines = ["one", "same", "same", "", "data: odd", "five"]
    cloud.breaks = [2, 0, 4, 5]
    id = start(client(cloud), launch(cloud))
    assert list(client(cloud).logs(id)) == cloud.lines


def test_a_stream_that_only_breaks_is_given_up(cloud: FakeCaaS) -> None:
    cloud.breaks = [0] * 20
    id = start(client(cloud), launch(cloud))
    with pytest.raises(CloudError, match="broke off 3 times"):
        list(client(cloud).logs(id))


def test_the_platforms_completed_is_not_success(cloud: FakeCaaS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LAST_WORD_S", 0.1)
    id = start(client(cloud), launch(cloud))
    cloud.set_status(id, "completed")
    said: list[str] = []
    code, text = follow.follow(client(cloud), id, lambda: None, said.append, lambda _: None, poll_s=0.02)
    assert code == Exit.UNPROVEN and "no _SUCCESS" in text
    assert said[0].startswith("completed, 300 minutes left")


def test_the_bucket_is_the_judge_while_the_api_is_down(cloud: FakeCaaS) -> None:
    id = start(client(cloud), launch(cloud))
    cloud.lines = ["step 1", "step 2"]
    home = threading.Event()
    shown: list[str] = []

    def show(line: str) -> None:
        shown.append(line)
        if line == "step 2":
            cloud.fail("GET", "/deployment/", Reply(500, b""), times=100)
            home.set()

    def judge() -> follow.Verdict | None:
        return (Exit.GOOD, "home") if home.is_set() else None

    assert follow.follow(client(cloud), id, judge, lambda _: None, show, poll_s=0.02) == (Exit.GOOD, "home")
    assert shown == ["step 1", "step 2"]


class Box(FakeService):
    """What a box says on its port."""

    def __init__(self, said: Any) -> None:
        super().__init__()
        self.said = said

    def answer(self, request: Request) -> Reply:
        return Reply(200, self.said)


@pytest.mark.parametrize("code", [2, 3, 7, 9])
def test_a_box_that_ended_before_it_could_write_to_the_bucket_is_not_followed_for_hours(
    cloud: FakeCaaS, code: int
) -> None:
    id = start(client(cloud), launch(cloud))
    with Box({"status": "held", "code": code}) as box:
        cloud.public_url = box.url
        verdict = follow.follow(client(cloud), id, lambda: None, lambda _: None, lambda _: None, poll_s=0.02)
    assert verdict[0] == Exit(code) and f"its job ended with {code}" in verdict[1]


@pytest.mark.parametrize(
    "said",
    [{"status": "held", "code": 0}, {"status": "fetching"}, {"status": "restarting", "code": 4}, [], "held", b"<html>",
     {"status": "held", "code": "x"}, {"status": "held"}],
)  # fmt: skip
def test_no_other_word_of_the_box_ends_the_following_and_none_is_success(said: Any) -> None:
    with Box(said) as box:
        assert follow.held(box.url) is None
    assert follow.held(box.url) is None and follow.held(None) is None and follow.held("nonsense") is None


def test_extend_and_destroy_reach_the_deployment(cloud: FakeCaaS) -> None:
    id = start(client(cloud), launch(cloud))
    client(cloud).extend(id, 2)
    assert cloud.deployments[id]["compute_minutes_remaining"] == 420
    client(cloud).destroy(id)
    assert cloud.deployments[id]["status"] == "termination requested"


def test_more_than_a_page_of_deployments_is_read(cloud: FakeCaaS) -> None:
    for number in range(205):
        row = {"id": str(number), "name": str(number), "status": "destroyed", "hardware_name": ""}
        cloud.deployments[str(number)] = row | {"compute_minutes_remaining": 0, "compute_minutes_served": 0}
    assert len(client(cloud).deployments()) == 205


# the fake is right: the vendor's own client works with it


def test_the_vendors_sdk_works_with_the_fake(cloud: FakeCaaS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iocloud = pytest.importorskip("iocloud")
    monkeypatch.setenv("HOME", str(tmp_path))
    cloud.hide_reads = 0
    cloud.lines = ["hello"]
    with iocloud.Client(api_key=cloud.key, base_url=cloud.url) as io:
        made = io.deployments.create(
            name="by-the-sdk", image="nginx", gpu="H100:8", hours=1, location=1, args=["dropped"], secrets={"KEY": "x"}
        )
        assert io.deployments.get(made.id).status.value == "running"
        assert [line.text for line in made.logs()] == ["hello"]
        assert made.id in [each.id for each in io.deployments.list()]
        made.delete()
    assert cloud.deployments[made.id]["status"] == "termination requested"
