"""HTTP to a cloud's API: reads are retried, writes are sent once, and no error ever shows a request's body.

Not the `ionet-cloud` SDK: it follows redirects to other hosts with the key in a header, and reads log streams without a
time limit, so that a silent connection hangs for ever. (The tests run it against the same fake server as this.)
"""

import random
import time
from collections.abc import Iterator
from typing import Any

import httpx

from homerun.clouds.cloud import CloudError, UnknownOutcome

TRIES = 4
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
STREAM_SILENCE_S = 90.0  # a log stream that says nothing for so long is opened again
BACKOFF_S = 1.0
LONGEST_WAIT_S = 30.0


class ApiError(CloudError):
    """The API answered with an error. status: its HTTP status."""

    def __init__(self, what: str, next: str = "", status: int = 0):
        super().__init__(what, next)
        self.status = status


class Api:
    """One provider's API. headers carry the key; hints: {HTTP status: what to do about it}."""

    def __init__(self, name: str, url: str, headers: dict[str, str], hints: dict[int, str]):
        self.name, self.url, self._hints = name, url.rstrip("/"), hints
        self._client = httpx.Client(headers={**headers, "User-Agent": "homerun"}, timeout=TIMEOUT)

    def get(self, path: str, **params: Any) -> Any:
        """The JSON answer; tried again on 408, 429, 5xx and a broken connection."""
        for attempt in range(TRIES):
            try:
                response = self._client.get(self.url + path, params=_present(params))
            except httpx.TransportError as error:
                problem: CloudError = CloudError(
                    f"{self.name}: {path}: {_reason(error)}", "Check the network, try again"
                )
                wait = None
            else:
                if response.is_success:
                    return self._json(response, path)
                problem, wait = self._error(response, path), response.headers.get("Retry-After")
                if response.status_code not in (408, 429) and response.status_code < 500:
                    raise problem
            if attempt + 1 < TRIES:
                _pause(attempt, wait)
        raise problem

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer to a write (None if empty). Sent again only when it was not taken: no connection, or 429.

        UnknownOutcome when the request left and no answer, or a gateway's, came.
        """
        for attempt in range(TRIES):
            try:
                response = self._client.request(method, self.url + path, json=body)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem = CloudError(f"{self.name}: {path}: {_reason(error)}", "Nothing was sent; check the network")
                wait = None
            except httpx.TransportError as error:
                raise UnknownOutcome(
                    f"{self.name}: {method} {path} was sent, but no answer came ({_reason(error)})"
                ) from None
            else:
                if response.is_success:
                    return self._json(response, path) if response.content else None
                if response.status_code >= 500 or response.status_code == 408:
                    raise UnknownOutcome(f"{self.name}: {method} {path} was answered with HTTP {response.status_code}")
                problem, wait = self._error(response, path), response.headers.get("Retry-After")
                if response.status_code != 429:
                    raise problem
            if attempt + 1 < TRIES:
                _pause(attempt, wait)
        raise problem

    def events(self, path: str, **params: Any) -> Iterator[tuple[str, str]]:
        """(event, data) of a server-sent event stream, until it ends or breaks off; ApiError if it does not begin."""
        timeout = httpx.Timeout(STREAM_SILENCE_S, connect=10.0)
        try:
            with self._client.stream("GET", self.url + path, params=_present(params), timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise self._error(response, path)
                event, data = "message", list[str]()
                for line in response.iter_lines():
                    field, _, value = line.partition(":")
                    value = value.removeprefix(" ")
                    if field == "event":
                        event = value
                    elif field == "data":
                        data.append(value)
                    elif not line and (data or event != "message"):
                        yield event, "\n".join(data)
                        event, data = "message", []
        except httpx.TransportError:
            return

    def _json(self, response: httpx.Response, path: str) -> Any:
        try:
            return response.json()
        except ValueError:
            raise CloudError(
                f"{self.name}: {path} was answered with {_kind(response)} instead of JSON", "Try again"
            ) from None

    def _error(self, response: httpx.Response, path: str) -> ApiError:
        text = f"{self.name}: {path}: HTTP {response.status_code}, {explain(response)}"
        return ApiError(text, self._hints.get(response.status_code, ""), response.status_code)


def explain(response: httpx.Response) -> str:
    """The message in any shape that the APIs use: {error}, {detail: str}, {detail: [{loc, msg}]}, or no JSON."""
    try:
        body = response.json()
    except ValueError:
        return _kind(response)
    detail = (body.get("detail") or body.get("error") or body.get("message")) if isinstance(body, dict) else None
    if isinstance(detail, list):
        return "; ".join(f"{'.'.join(map(str, item.get('loc', [])))}: {item.get('msg')}" for item in detail)
    return str(detail or "no message")[:300]


def _kind(response: httpx.Response) -> str:
    return "a web page" if "html" in response.headers.get("Content-Type", "") else "an answer without a message"


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


def _present(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if value is not None}


def _pause(attempt: int, retry_after: str | None) -> None:
    wait = BACKOFF_S * 2**attempt * random.uniform(0.5, 1.0)
    if retry_after and retry_after.isdigit():
        wait = float(retry_after)
    time.sleep(min(wait, LONGEST_WAIT_S))
