"""Fixtures that several test files share."""

import pytest

from tests.s3 import FaultProxy, serve

# -- a real S3 server (tests/s3.py) ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A `weed mini` for the session: .endpoint .access_key .secret_key .bucket .store() .settings(dir) .environ()"""
    with serve(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture
def s3_proxy(s3_server):
    """A proxy in front of it that breaks what its `fault` says."""
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy
