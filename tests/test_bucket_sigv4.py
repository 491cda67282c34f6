"""Our signer against botocore's own, on requests of every shape that we send."""

import datetime
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from homerun.bucket.sigv4 import query_string, quote_path, sign

NOW = 1795238653.0
TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)


class Auth(S3SigV4Auth):
    def add_auth(self, request):
        request.context["client_config"] = Config(s3={"payload_signing_enabled": False})
        request.context["timestamp"] = datetime.datetime.fromtimestamp(NOW, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        self._inject_signature_to_request(request, self._signature(request))

    def _signature(self, request):
        self._modify_request_before_signing(request)
        canonical = self.canonical_request(request)
        return self.signature(self.string_to_sign(request, canonical), request)


@given(
    key=TEXT.filter(lambda key: "/./" not in f"/{key}/" and "/../" not in f"/{key}/" and "//" not in f"/{key}/"),
    query=st.dictionaries(TEXT, TEXT, max_size=3),
    token=st.none() | st.just("a/session+token=="),
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD"]),
)
def test_signature_is_botocores(key, query, token, method):
    path, text = quote_path(f"/bucket/{key}"), query_string(query)
    headers = {"x-amz-checksum-crc32": "AAAAAA==", "if-match": '"abc"'}
    ours = sign(
        method,
        "acc.r2.cloudflarestorage.com",
        path,
        text,
        headers,
        access_key="AK",
        secret_key="SK",
        session_token=token,
        region="auto",
        now=NOW,
    )
    request = AWSRequest(
        method,
        f"https://acc.r2.cloudflarestorage.com{quote(f'/bucket/{key}', safe='/-_.~')}" + (f"?{text}" if text else ""),
        headers={"x-amz-checksum-crc32": "AAAAAA=="},
    )
    Auth(Credentials("AK", "SK", token), "s3", "auto").add_auth(request)
    assert ours["authorization"].rpartition("=")[2] == request.headers["Authorization"].rpartition("=")[2]
    assert ours["if-match"] == '"abc"'
