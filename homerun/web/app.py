"""The web application of port 8000: the live page over a run's journal, the chat page and the API over its models."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from homerun import __version__
from homerun.errors import RequestError
from homerun.serve.api import FAILURES, NO_BUFFER, STREAMED, error_response, install_errors, router
from homerun.serve.models import Models
from homerun.web.board import Board, clock, snapshot
from homerun.web.guard import LOGIN_PAGE, Guard
from homerun.web.logs import Logs
from homerun.web.metrics import render

STATIC = Path(__file__).parent / "static"
FILES = {"page.css", "run.js", "plot.js", "chat.js", "markdown.js", "login.js"}
REFRESH_SECONDS = 0.5
STREAM_SECONDS = 1.0  # at most one message a second and reader
MOST_STREAMS = 64  # pages that follow at once


@dataclass
class Site:
    """What one application serves. board, logs: None without a journal; models: None without a model to come.

    ready: why no model may be loaded now, or None. By default: while the run goes on, its machine is for training.
    """

    board: Board | None = None
    logs: Logs | None = None
    models: Models | None = None
    ready: Callable[[], str | None] | None = None
    streams: int = 0
    stopping: bool = False  # streams end by themselves then, and nobody waits for them

    def answering(self) -> bool:
        """Whether a model is at work."""
        engines = self.models.loaded().values() if self.models else ()
        return any(engine.stats()["running"] for engine in engines)

    def why_not(self) -> str | None:
        if self.ready is not None:
            return self.ready()
        state = self.board.state if self.board else None
        if state is not None and state.status == "running":
            return "The run still trains; its models can be talked to when it has ended."
        return None


def create_app(site: Site, token: str | None, public_status: bool = False) -> Guard:
    """The application, guarded: an ASGI callable whose `used_at` tells when it was last talked to."""

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        follow = asyncio.create_task(_refresh(site.board)) if site.board else None
        yield
        if follow:
            follow.cancel()
        if site.models:
            await asyncio.to_thread(site.models.close)

    app = FastAPI(
        title="homerun", version=__version__, docs_url=None, redoc_url=None, lifespan=life, responses=FAILURES
    )
    install_errors(app)
    app.add_exception_handler(RequestError, _not_there)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, Any]:
        return {"ok": True, "status": site.board.state.status if site.board else "serving"}

    @app.get("/login", include_in_schema=False)
    async def login() -> Response:
        return Response(LOGIN_PAGE, media_type="text/html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

    if site.board:
        _add_run(app, site, site.board)
    else:

        @app.get("/", include_in_schema=False)
        async def home() -> Response:
            return Response(status_code=307, headers={"Location": "/chat"})

    if site.logs:
        _add_logs(app, site, site.logs)
    if site.models:

        @app.get("/chat", include_in_schema=False)
        async def chat() -> Response:
            return FileResponse(STATIC / "chat.html", headers={"Cache-Control": "no-cache"})

        app.include_router(router(site.models, site.why_not))
    return Guard(app, token, public_status)


def _add_run(app: FastAPI, site: Site, board: Board) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "run.html", headers={"Cache-Control": "no-cache"})

    @app.get("/api/run")
    async def run() -> dict[str, Any]:
        """The run as it is now; `curves` are in /api/curves."""
        return {**snapshot(board.state), "chat": site.models is not None and site.why_not() is None}

    @app.get("/api/curves")
    async def curves() -> dict[str, Any]:
        """{"curves": {"phase/metric": [[step, Unix seconds, value], …]}, "clock": [[Unix seconds, hours, USD], …]}"""
        return {"curves": board.curves(), "clock": clock(board.state)}

    @app.get("/api/events", response_class=StreamingResponse, responses=STREAMED)
    async def events(request: Request) -> Response:
        """Server-sent events: `run` (/api/run), `curves` (whole, first), `points` (what is new)."""
        return _stream(site, _events(site, board))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        engines = {c.id: engine.stats() for c, engine in (site.models.loaded() if site.models else {}).items()}
        return PlainTextResponse(
            render(board.state, engines, time.time()), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _add_logs(app: FastAPI, site: Site, logs: Logs) -> None:
    Name = Annotated[str, Query(max_length=300)]

    @app.get("/api/logs")
    async def list_logs() -> list[dict[str, Any]]:
        return await asyncio.to_thread(logs.list)

    @app.get("/api/log")
    async def read_log(
        name: Name,
        offset: Annotated[int, Query(ge=-(2**40), le=2**60)] = -65536,
        limit: Annotated[int, Query(ge=1)] = 65536,
    ) -> dict[str, Any]:
        """A window of a log: from `offset`, or from the end where that is negative."""
        return await asyncio.to_thread(logs.read, name, offset, limit)

    @app.get("/api/log/search")
    async def search_log(
        name: Name,
        q: Annotated[str, Query(min_length=1, max_length=200)],
        offset: Annotated[int, Query(ge=0, le=2**60)] = 0,
    ) -> dict[str, Any]:
        """Lines that hold `q`, from `offset` on; `next` says where to go on."""
        return await asyncio.to_thread(logs.search, name, q, offset)

    @app.get("/api/log/follow", response_class=StreamingResponse, responses=STREAMED)
    async def follow_log(name: Name, offset: Annotated[int, Query(ge=-(2**40), le=2**60)] = -65536) -> Response:
        """Server-sent events: windows of the log as it grows."""
        await asyncio.to_thread(logs.path, name)
        return _stream(site, _tail(site, logs, name, offset))


async def _refresh(board: Board) -> None:
    while True:
        await asyncio.sleep(0 if board.refresh() else REFRESH_SECONDS)


def _stream(site: Site, messages: AsyncIterator[tuple[str, Any]]) -> Response:
    if site.streams >= MOST_STREAMS:
        return error_response(429, "Too many pages are open.", "rate_limit_exceeded")

    async def lines() -> AsyncIterator[str]:
        site.streams += 1
        try:
            yield "retry: 2000\n\n"
            async for name, data in messages:
                body = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=str)
                yield f"event: {name}\ndata: {body}\n\n" if name else ": still here\n\n"
        finally:
            site.streams -= 1
            await messages.aclose()  # type: ignore[attr-defined]

    return StreamingResponse(lines(), media_type="text/event-stream", headers=NO_BUFFER)


async def _events(site: Site, board: Board) -> AsyncIterator[tuple[str, Any]]:
    """`run` whenever anything is new, and every 10 s for the clock; curves whole at first, then by points."""
    seen, told = -2, 0.0
    while not site.stopping:
        now = time.monotonic()
        if board.seq != seen or now - told > 10:
            yield "run", {**snapshot(board.state), "chat": site.models is not None and site.why_not() is None}
            told = now
        if board.seq != seen:
            points = board.points_after(seen) if seen >= -1 else None
            seen = board.seq
            if points is None:
                yield "curves", {"curves": board.curves(), "clock": clock(board.state)}
            elif points:
                yield "points", points
        await asyncio.sleep(STREAM_SECONDS)


async def _tail(site: Site, logs: Logs, name: str, offset: int) -> AsyncIterator[tuple[str, Any]]:
    quiet = 0
    while not site.stopping:
        window = await asyncio.to_thread(logs.read, name, offset)
        if window["size"] < offset:  # a new attempt began the file again
            offset = 0
            continue
        if window["text"] or quiet == 0:
            yield "log", window
            quiet = 0
        offset = window["next"]
        if window["next"] < window["size"] and window["text"]:
            continue
        quiet += 1
        if quiet % 30 == 0:
            yield "", None  # so that a reader who left is noticed
        await asyncio.sleep(STREAM_SECONDS / 2)


async def _not_there(_: Request, error: Exception) -> JSONResponse:
    return error_response(404, str(error), "not_found")


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = error_response(error.status_code, str(error.detail), None)
    answer.headers.update(error.headers or {})  # a 405's Allow
    return answer


async def _bug(_: Request, error: Exception) -> JSONResponse:
    return error_response(500, "The server failed; its log says why.", "internal_error")
