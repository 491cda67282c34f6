"""Redaction by value: no form of a secret survives, whatever the chunk borders."""

import base64
import json
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from homerun.redact import Redactor

SECRET = 'pa/ss+w"ö rd=7'


def test_every_form_of_a_secret_is_hidden():
    redactor = Redactor({"KEY": SECRET})
    forms = [SECRET, quote(SECRET, safe=""), json.dumps(SECRET), base64.b64encode(SECRET.encode()).decode()]
    shown = redactor.text("\n".join(forms))
    assert shown.count("[KEY]") == 4
    assert "ss+w" not in shown and "ss%2Bw" not in shown


def test_a_secret_that_contains_another_is_hidden_whole():
    assert Redactor({"A": "abcdef", "B": "abcdefghi"}).text("abcdefghi") == "[B]"


def test_short_and_empty_values_are_left_alone():
    assert Redactor({"A": "1", "B": "", "C": None}).text("1 or 2") == "1 or 2"


def test_values_inside_structures_are_hidden_keys_too():
    redactor = Redactor({"K": "canary-value"})
    assert redactor.value({"canary-value": ["x canary-value", 3, None]}) == {"[K]": ["x [K]", 3, None]}


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(1, 20))
def test_no_secret_survives_at_chunk_borders(before, after, size):
    redactor = Redactor({"K": "canary-value"})
    data = before + b"canary-value" + after
    out, pending = b"", b""
    for start in range(0, len(data), size):
        pending += data[start : start + size]
        held = redactor.held_back(redactor.bytes(pending))
        pending = redactor.bytes(pending)
        out, pending = out + pending[: len(pending) - held], pending[len(pending) - held :]
    out += pending
    assert b"canary-value" not in out
    assert out == redactor.bytes(data)
