"""Hide secret values wherever text leaves the process.

By value, never by pattern: a `Redactor` knows the secrets of this run and replaces each of them, in any of the forms in
which programs print them (plain, URL-quoted, JSON-escaped, base64), by `[NAME]`.
"""

import base64
import json
import re
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

# Shorter values ("1", "true") would blank out half of every log; settings refuses real secrets this short.
MIN_SECRET = 6


def _forms(value: str) -> set[str]:
    encoded = base64.b64encode(value.encode()).decode().rstrip("=")
    forms = {value, quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1], encoded}
    return {form for form in forms if len(form) >= MIN_SECRET}


class Redactor:
    """Replaces secret values in text and bytes; `held_back` tells what to keep for the next chunk of a stream.

    secrets: {name: value}; empty values and those under `MIN_SECRET` characters are ignored.
    """

    def __init__(self, secrets: Mapping[str, str | None]):
        table = {form: name for name, value in secrets.items() if value for form in _forms(value)}
        ordered = sorted(table, key=len, reverse=True)
        self._names = {form.encode(): f"[{table[form]}]".encode() for form in ordered}
        self._bytes = re.compile(b"|".join(re.escape(form.encode()) for form in ordered)) if ordered else None
        self._first = {form.encode()[:1] for form in ordered}
        self.longest = max((len(form.encode()) for form in ordered), default=0)

    def held_back(self, data: bytes) -> int:
        """How many bytes at the end of `data` must wait for the next chunk: they may be the beginning of a secret.

        What comes before them can be redacted by itself: no whole secret lies across the cut either.
        """
        cut = len(data) - self._unfinished(data)
        if self._bytes and cut < len(data):
            for match in self._bytes.finditer(data):
                if match.start() < cut < match.end():
                    return len(data) - match.start()
        return len(data) - cut

    def _unfinished(self, data: bytes) -> int:
        for length in range(min(self.longest - 1, len(data)), 0, -1):
            tail = data[-length:]
            if tail[:1] in self._first and any(form.startswith(tail) for form in self._names):
                return length
        return 0

    def bytes(self, data: bytes) -> bytes:
        if self._bytes is None:
            return data
        return self._bytes.sub(lambda match: self._names[match.group()], data)

    def text(self, text: str) -> str:
        if self._bytes is None:
            return text
        return self.bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def value(self, value: object) -> object:
        """A copy of a JSON-like value with every string in it redacted, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value
