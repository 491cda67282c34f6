"""Fixtures that several test files share."""

import signal

import pytest

from tests.s3 import FaultProxy, serve

# What a shell ignores for its background jobs (`make test &`, nohup), the programs that are tested would ignore too.
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

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
