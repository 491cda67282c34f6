"""Who may come in: the token, request sizes and rates, and the headers that every answer bears.

A client shows the token as `Authorization: Bearer …`; a browser gives it once to /login and then bears a cookie made
from it. The token travels in no URL: the link that a terminal shows has it after the `#`, which browsers keep to
themselves. Without a token nothing but /healthz answers.
"""

import contextlib
import hashlib
import hmac
import json
import time
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homerun.serve.api import error_response

COOKIE = "homerun"
MOST_BYTES = 1 << 20  # of a request's body
RATE, BURST = 20.0, 120.0  # requests a second and client, and how many at once
GUESSES, GUESS_RATE = 10.0, 0.2  # wrong tokens a client may show at once, and how many more a second
ALWAYS_OPEN = {"/healthz"}
TO_LOG_IN = {"/login", "/static/page.css", "/static/login.js"}
PUBLIC_STATUS = {"/", "/metrics", "/api/run", "/api/events", "/static/page.css", "/static/run.js", "/static/plot.js"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Bucket:
    """A token bucket for each client; those that are full again are forgotten."""

    def __init__(self, rate: float, burst: float):
        self.rate, self.burst = rate, burst
        self._left: dict[str, tuple[float, float]] = {}

    def left(self, client: str, now: float) -> float:
        left, then = self._left.get(client, (self.burst, now))
        return min(self.burst, left + (now - then) * self.rate)

    def take(self, client: str, now: float) -> bool:
        """Whether `client` may do it once more; if so, it is counted. What is refused costs nothing: a client that asks
        for twice its rate has its rate, not nothing."""
        left = self.left(client, now)
        if len(self._left) > 10_000:
            self._left = {other: state for other, state in self._left.items() if self.left(other, now) < self.burst}
        self._left[client] = (left - 1 if left >= 1 else left, now)
        return left >= 1


@dataclass
class Guard:
    """ASGI middleware. token: None lets nobody in. public_status: the live page needs no token; logs and chat do."""

    app: ASGIApp
    token: str | None
    public_status: bool = False
    used_at: float = field(default_factory=time.time)  # when a model was last asked for an answer
    requests: Bucket = field(default_factory=lambda: Bucket(RATE, BURST))
    guesses: Bucket = field(default_factory=lambda: Bucket(GUESS_RATE, GUESSES))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = self._refuse(scope)
        if answer is None and scope["path"] == "/login" and scope["method"] == "POST":
            answer = await self._log_in(scope, receive)
        if answer is not None:
            await answer(scope, receive, _dressed(send))
            return
        limited = _Limited(receive)
        with contextlib.suppress(TooLarge):  # or the application has made an answer of it, which is not sent
            await self.app(scope, limited.receive, limited.unless_exceeded(_dressed(send)))
        if limited.exceeded:
            await _too_large()(scope, receive, _dressed(send))

    def _refuse(self, scope: Scope) -> Response | None:
        """Why this request is not answered, or None where it is."""
        path, headers = scope["path"], Headers(scope=scope)
        if path in ALWAYS_OPEN:
            return None
        client, now = _client(scope), time.monotonic()
        if not self.requests.take(client, now):
            return error_response(429, "Too many requests; slow down.", "rate_limit_exceeded")
        if int(headers.get("content-length") or 0) > MOST_BYTES:
            return _too_large()
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and origin.partition("://")[2] != headers.get("host"):
            return error_response(403, "Requests from other sites' pages are not answered.", "cross_origin")
        if self.token is None and not (self.public_status and path in PUBLIC_STATUS):
            return error_response(401, "This server has no token yet: set HOMERUN_SERVE_TOKEN.", "no_token")
        if path in TO_LOG_IN or (self.public_status and path in PUBLIC_STATUS):
            return None
        if self._known(headers):
            if path.startswith("/v1/") and scope["method"] == "POST":  # a page that only stays open is no use
                self.used_at = time.time()
            return None
        if headers.get("authorization") and not self.guesses.take(client, now):
            return error_response(429, "Too many wrong tokens; wait a minute.", "rate_limit_exceeded")
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return Response(LOGIN_PAGE, 401, {"WWW-Authenticate": "Bearer"}, "text/html")
        answer = error_response(401, "The token is missing or wrong.", "invalid_api_key")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    def _known(self, headers: Headers) -> bool:
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._right(shown.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self._cookie())

    def _right(self, shown: str) -> bool:
        return self.token is not None and _same(shown, self.token)

    def _cookie(self) -> str:
        return hmac.new((self.token or "").encode(), b"homerun cookie", hashlib.sha256).hexdigest()

    async def _log_in(self, scope: Scope, receive: Receive) -> Response:
        """POST /login {"token": …}: a cookie that ends with the browser."""
        try:
            body = b""
            limited = _Limited(receive)
            while (message := await limited.receive())["type"] == "http.request":
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            shown = str(json.loads(body)["token"])
        except (ValueError, KeyError, TypeError, TooLarge):
            return error_response(400, 'POST {"token": "…"} as JSON.', "invalid_value")
        if not self._right(shown):
            if not self.guesses.take(_client(scope), time.monotonic()):
                return error_response(429, "Too many wrong tokens; wait a minute.", "rate_limit_exceeded")
            return error_response(401, "The token is wrong.", "invalid_api_key")
        answer = JSONResponse({"ok": True})
        secure = scope.get("scheme") == "https" or Headers(scope=scope).get("x-forwarded-proto") == "https"
        answer.set_cookie(COOKIE, self._cookie(), httponly=True, samesite="strict", secure=secure)
        return answer


class TooLarge(Exception):
    pass


class _Limited:
    """`receive`, up to `MOST_BYTES`: a body sent in chunks announces no length."""

    def __init__(self, receive: Receive):
        self._receive, self._taken, self.exceeded = receive, 0, False

    async def receive(self) -> Message:
        message = await self._receive()
        self._taken += len(message.get("body", b""))
        if self._taken > MOST_BYTES:
            self.exceeded = True
            raise TooLarge
        return message

    def unless_exceeded(self, send: Send) -> Send:
        async def checked(message: Message) -> None:
            if not self.exceeded:
                await send(message)

        return checked


def _dressed(send: Send) -> Send:
    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return dressed


def _too_large() -> Response:
    return error_response(413, f"The body is over {MOST_BYTES} bytes.", "too_large")


def _client(scope: Scope) -> str:
    return (scope.get("client") or ("unknown",))[0]


def _same(shown: str, right: str) -> bool:
    """Equal, in a time that tells nothing: hashes of one length are compared, whatever was shown."""
    return hmac.compare_digest(_hash(shown), _hash(right))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


LOGIN_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>homerun</title>
<link rel="stylesheet" href="/static/page.css">
<script src="/static/login.js" defer></script>
</head>
<body class="login">
<main>
<h1>homerun</h1>
<form id="login">
<label for="token">Token</label>
<input id="token" type="password" autocomplete="current-password" required autofocus>
<button>Open</button>
<p id="wrong" role="alert"></p>
<p class="quiet">It is HOMERUN_SERVE_TOKEN of the run; where it was made for you, the terminal showed it.</p>
</form>
</main>
</body>
</html>
"""
