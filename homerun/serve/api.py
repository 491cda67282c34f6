"""The OpenAI-compatible API: /v1/models, /v1/chat/completions, /v1/completions, streamed or whole.

Errors have OpenAI's shape, {"error": {"message", "type", "param", "code"}}. A client that goes away ends its answer.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from homerun.errors import HomerunError
from homerun.serve import schema
from homerun.serve.checkpoints import Checkpoint
from homerun.serve.generation import Busy, Engine, EngineDied, Generation
from homerun.serve.models import Models
from homerun.serve.sampling import Sampling
from homerun.serve.text import TextStream

T = TypeVar("T")
MOST_PROMPTS = 16  # prompts × n of one request
FAILURES: dict[int | str, dict[str, Any]] = {"default": {"model": schema.Failure, "description": "What is wrong"}}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


class ApiError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        self.status, self.message, self.code, self.param = status, message, code, param


def error_response(status: int, message: str, code: str | None = None, param: str | None = None) -> JSONResponse:
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)


def install_errors(app: FastAPI) -> None:
    """Have `app` answer every failure in OpenAI's shape, without a traceback."""

    @app.exception_handler(ApiError)
    async def _api(_: Request, error: ApiError) -> Response:
        return error_response(error.status, error.message, error.code, error.param)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        message = str(first["msg"]).removeprefix("Value error, ")
        return error_response(400, f"{param}: {message}" if param else message, "invalid_value", param)

    @app.exception_handler(Busy)
    async def _busy(_: Request, error: Busy) -> Response:
        return error_response(429, "Too many answers are being written; try again in a moment.", "rate_limit_exceeded")

    @app.exception_handler(EngineDied)
    async def _died(_: Request, error: EngineDied) -> Response:
        return error_response(500, str(error), "engine_failed")


@dataclass
class Choice:
    """One answer on its way: its tokens become text in `pieces`."""

    index: int
    generation: Generation
    text: TextStream
    tokens: int = 0
    finish: str = "length"

    async def pieces(self) -> AsyncIterator[tuple[str, list[dict[str, str]]]]:
        """(text, calculator uses since the last piece), until the answer ends."""
        told = 0
        try:
            async for tokens in self.generation.batches():
                text = ""
                for token in tokens:
                    self.tokens += 1
                    text += self.text.feed(token)
                    if self.text.stopped:
                        break
                calls = [{"expression": c.expression, "result": c.result} for c in self.text.calls[told:]]
                told += len(calls)
                if text or calls:
                    yield text, calls
                if self.text.stopped:
                    break
            self.finish = "stop" if self.text.stopped else self.generation.finish or "stop"
            if rest := self.text.end():
                yield rest, []
            if self.text.stopped:
                self.finish = "stop"
        finally:
            self.generation.cancel()


def router(models: Models, ready: Callable[[], str | None] = lambda: None) -> APIRouter:
    """The routes over `models`. ready: why no model may be loaded now (the run still trains), or None."""
    api = APIRouter(prefix="/v1")

    async def engine_for(name: str) -> tuple[Checkpoint, Engine]:
        if why := ready():
            raise ApiError(503, why, "not_ready")
        try:
            found = await models.get(name)
        except HomerunError as error:  # it cannot be loaded, or not here
            raise ApiError(503, str(error), "model_not_available") from None
        if found is None:
            known = ", ".join(c.id for c in await asyncio.to_thread(models.list)) or "none yet"
            raise ApiError(404, f"The model {name!r} does not exist; there are: {known}", "model_not_found", "model")
        return found

    @api.get("/models")
    async def list_models() -> dict[str, Any]:
        if ready():
            return {"object": "list", "data": []}
        return {"object": "list", "data": [describe(c) for c in await asyncio.to_thread(models.list)]}

    @api.get("/models/{name}")
    async def get_model(name: str) -> dict[str, Any]:
        for checkpoint in await asyncio.to_thread(models.list):
            if checkpoint.id == name:
                return describe(checkpoint)
        raise ApiError(404, f"The model {name!r} does not exist", "model_not_found", "model")

    @api.post("/chat/completions", response_model=None, responses=STREAMED)
    async def chat(body: schema.ChatRequest, request: Request) -> Response | dict[str, Any]:
        checkpoint, engine = await engine_for(body.model)
        messages = [message.plain() for message in body.messages]
        if messages[-1]["role"] != "user":
            raise ApiError(400, "The last message must be the user's.", "invalid_value", "messages")
        try:
            prompt = engine.tokenizer.render_for_completion({"messages": messages})
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_value", "messages") from None
        choices = begin(engine, [prompt], body, body.max_completion_tokens or body.max_tokens, "messages")
        frame = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": checkpoint.id}
        used = usage([prompt], choices)
        if body.stream:
            chunks = chat_chunks(choices, {**frame, "object": "chat.completion.chunk"}, body, used)
            return StreamingResponse(server_sent(chunks), media_type="text/event-stream", headers=NO_BUFFER)

        async def whole(choice: Choice) -> dict[str, Any]:
            pieces = [piece async for piece in choice.pieces()]
            message: dict[str, Any] = {"role": "assistant", "content": "".join(text for text, _ in pieces)}
            if calls := [call for _, made in pieces for call in made]:
                message["calculator"] = calls
            return {"index": choice.index, "message": message, "logprobs": None, "finish_reason": choice.finish}

        answers = await unless_gone(request, together([whole(choice) for choice in choices]), choices)
        return {**frame, "object": "chat.completion", "choices": answers, "usage": used()}

    @api.post("/completions", response_model=None, responses=STREAMED)
    async def complete(body: schema.CompletionRequest, request: Request) -> Response | dict[str, Any]:
        checkpoint, engine = await engine_for(body.model)
        prompts = [to_prompt(engine, prompt) for prompt in body.prompts()]
        choices = begin(engine, prompts, body, body.max_tokens, "prompt")
        frame = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": checkpoint.id}
        frame["object"] = "text_completion"
        used = usage(prompts, choices)
        if body.stream:
            chunks = completion_chunks(choices, frame, body, used)
            return StreamingResponse(server_sent(chunks), media_type="text/event-stream", headers=NO_BUFFER)

        async def whole(choice: Choice) -> dict[str, Any]:
            text = "".join([piece async for piece, _ in choice.pieces()])
            return {"index": choice.index, "text": text, "logprobs": None, "finish_reason": choice.finish}

        answers = await unless_gone(request, together([whole(choice) for choice in choices]), choices)
        return {**frame, "choices": answers, "usage": used()}

    return api


NO_BUFFER = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """A row of /v1/models; stage, tag and step are ours."""
    try:
        created = int(checkpoint.model_path.stat().st_mtime)
    except FileNotFoundError:
        created = 0
    return {
        "id": checkpoint.id,
        "object": "model",
        "created": created,
        "owned_by": "homerun",
        "stage": checkpoint.stage,
        "tag": checkpoint.tag,
        "step": checkpoint.step,
    }


def to_prompt(engine: Engine, prompt: str | list[int]) -> list[int]:
    """Token ids that begin with <|bos|>; ids given by the client are taken as they are."""
    if isinstance(prompt, str):
        return [engine.tokenizer.bos, *engine.tokenizer.encode(prompt)]
    if max(prompt) >= engine.tokenizer.vocab_size:
        limit = engine.tokenizer.vocab_size
        raise ApiError(400, f"Token {max(prompt)} is not in the vocabulary of {limit}.", "invalid_value", "prompt")
    return prompt


def begin(
    engine: Engine, prompts: list[list[int]], body: schema.Request, max_tokens: int | None, param: str
) -> list[Choice]:
    """Submit every prompt n times; all or none. The i-th choice's seed is the request's plus i."""
    if len(prompts) * body.n > MOST_PROMPTS:
        raise ApiError(400, f"At most {MOST_PROMPTS} answers a request (prompts × n).", "invalid_value", param)
    if body.top_p < 1 and not engine.can_top_p:
        raise ApiError(400, "This model runs in upstream's own engine, which has no top_p.", "invalid_value", "top_p")
    for prompt in prompts:
        room = engine.context - len(prompt)
        if room < (max_tokens or 1):
            asked = f" and {max_tokens} for the answer" if max_tokens else ""
            raise ApiError(
                400,
                f"This model's context is {engine.context} tokens; the {param} take {len(prompt)}{asked}.",
                "context_length_exceeded",
                param,
            )
    stop = frozenset((engine.tokenizer.special("<|assistant_end|>"), engine.tokenizer.bos))
    choices: list[Choice] = []
    try:
        for prompt in prompts:
            for _ in range(body.n):
                seed = {} if body.seed is None else {"seed": body.seed + len(choices)}
                limit = max_tokens or engine.context - len(prompt)
                sampling = Sampling(limit, body.temperature, body.top_k, body.top_p, stop_tokens=stop, **seed)
                generation = engine.submit(prompt, sampling)
                choices.append(Choice(len(choices), generation, TextStream(engine.tokenizer, body.stops)))
    except BaseException:
        for choice in choices:
            choice.generation.cancel()
        raise
    return choices


def usage(prompts: list[list[int]], choices: list[Choice]) -> Callable[[], dict[str, int]]:
    asked = sum(map(len, prompts))

    def now() -> dict[str, int]:
        written = sum(choice.tokens for choice in choices)
        return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}

    return now


async def chat_chunks(
    choices: list[Choice], frame: dict[str, Any], body: schema.Request, used: Callable[[], dict[str, int]]
) -> AsyncIterator[dict[str, Any]]:
    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**frame, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    for choice in choices:
        yield chunk(choice.index, {"role": "assistant", "content": ""})
    async for choice, piece in merged(choices):
        if piece is None:
            yield chunk(choice.index, {}, choice.finish)
        else:
            yield chunk(choice.index, {"content": piece[0]} | ({"calculator": piece[1]} if piece[1] else {}))
    if body.stream_options and body.stream_options.include_usage:
        yield {**frame, "choices": [], "usage": used()}


async def completion_chunks(
    choices: list[Choice], frame: dict[str, Any], body: schema.Request, used: Callable[[], dict[str, int]]
) -> AsyncIterator[dict[str, Any]]:
    async for choice, piece in merged(choices):
        finish = choice.finish if piece is None else None
        text = piece[0] if piece else ""
        yield {
            **frame,
            "choices": [{"index": choice.index, "text": text, "logprobs": None, "finish_reason": finish}],
        }
    if body.stream_options and body.stream_options.include_usage:
        yield {**frame, "choices": [], "usage": used()}


Piece = tuple[str, list[dict[str, str]]]


async def merged(choices: list[Choice]) -> AsyncIterator[tuple[Choice, Piece | None]]:
    """The pieces of all choices as they come; None when a choice ends."""
    if len(choices) == 1:  # no task, no second queue
        async for piece in choices[0].pieces():
            yield choices[0], piece
        yield choices[0], None
        return
    inbox: asyncio.Queue[tuple[Choice, Piece | Exception | None]] = asyncio.Queue(16)

    async def pump(choice: Choice) -> None:
        try:
            async for piece in choice.pieces():
                await inbox.put((choice, piece))
            await inbox.put((choice, None))
        except EngineDied as error:
            await inbox.put((choice, error))

    tasks = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        open_ones = len(choices)
        while open_ones:
            choice, item = await inbox.get()
            if isinstance(item, Exception):
                raise item
            open_ones -= item is None
            yield choice, item
    finally:
        for task in tasks:
            task.cancel()


async def server_sent(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events, [DONE] last; a failure midway is an error event, which OpenAI's clients raise."""
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    except EngineDied as error:
        message = {"message": str(error), "type": "server_error", "param": None, "code": "engine_failed"}
        yield f"data: {json.dumps({'error': message})}\n\n"
        return
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]  # now, not when the collector comes by
    yield "data: [DONE]\n\n"


async def together(parts: Sequence[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*parts))


async def unless_gone(request: Request, work: Awaitable[T], choices: list[Choice]) -> T:
    """`work`'s result; if the client hangs up first, its answers are ended."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client went away.", "client_closed")
        return await task
    finally:
        gone.cancel()
        task.cancel()
        for choice in choices:
            choice.generation.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
