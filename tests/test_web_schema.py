"""The API against its own description: whatever the schema allows, or just does not, is answered as it says."""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from homerun.serve.loading import open_models
from homerun.web.app import Site, create_app
from homerun.web.board import Board
from homerun.web.logs import Logs
from tests.serve_live import live
from tests.web_run import RUN, make_run

TOKEN = "tok-canary-0123456789"
ENDLESS = "/api/(events|log/follow)"  # tested by hand in test_web_app.py


def site_of(run: Path) -> Site:
    return Site(Board(run / "journal.jsonl"), Logs(run), open_models(run, "cpu"))


described = create_app(site_of(Path("nowhere")), None).app.openapi()
schema = schemathesis.openapi.from_dict(described).exclude(path_regex=ENDLESS)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    app = create_app(site_of(make_run(tmp_path_factory.mktemp("runs") / RUN)), TOKEN)
    app.requests.rate = app.requests.burst = 1e9
    with live(app) as url:
        yield url


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=8, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_is_answered_as_the_api_describes_itself(case, url):
    """A 400 may also come of what no schema tells: the order of a conversation, the model's context."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    case.call_and_validate(base_url=url, headers=headers, excluded_checks=[positive_data_acceptance])
