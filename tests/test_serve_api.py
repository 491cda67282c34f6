"""The API as OpenAI's own client sees it, over a real socket."""

import asyncio
import functools
import threading
import time

import httpx
import openai
import pytest
from fastapi import FastAPI

from benchmarks import bench_soak
from homerun.serve.api import install_errors, router
from homerun.serve.models import Models
from homerun.serve.ours import load_ours
from tests.serve_live import live
from tests.serve_tree import make_tree


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    tree = make_tree(tmp_path_factory.mktemp("tree"), ("base", "sft"))
    models = Models(tree, functools.partial(load_ours, device="cpu"))
    yield models
    models.close()


@pytest.fixture(scope="module")
def url(models):
    app = FastAPI()
    install_errors(app)
    app.include_router(router(models))
    with live(app) as url:
        httpx.post(f"{url}/v1/completions", json={"model": "sft", "prompt": "a"}, timeout=60)  # it is loaded now
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def sft(models):
    return next(engine for checkpoint, engine in models.loaded().items() if checkpoint.stage == "sft")


HI = [{"role": "user", "content": "the quick fox?"}]


def test_models_are_listed_best_first_and_found_by_id(client):
    ids = [model.id for model in client.models.list()]
    assert ids == ["sft-d2-000010", "base-d2-000010"]
    assert client.models.retrieve("base-d2-000010").owned_by == "homerun"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_an_answer_streams_to_the_same_text_that_it_gives_whole(client):
    ask = {"model": "sft", "messages": HI, "max_tokens": 40, "seed": 7, "temperature": 0.9}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and text
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert whole.model == "sft-d2-000010" and whole.choices[0].message.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_usage_counts_every_token(client, models):
    answer = client.chat.completions.create(model="sft", messages=HI, max_completion_tokens=9, temperature=0)
    tokenizer = sft(models).tokenizer
    assert answer.usage.prompt_tokens == len(tokenizer.render_for_completion({"messages": HI}))
    assert answer.usage.completion_tokens == 9 and answer.usage.total_tokens == answer.usage.prompt_tokens + 9
    assert answer.choices[0].finish_reason == "length"


def test_a_stop_string_ends_the_text_before_it(client):
    ask = {"model": "sft", "messages": HI, "max_tokens": 60, "seed": 3}
    full = client.chat.completions.create(**ask).choices[0].message.content
    stop = full[12:14]
    cut = client.chat.completions.create(**ask, stop=["never there", stop]).choices[0]
    assert cut.message.content == full[: full.index(stop)] and cut.finish_reason == "stop"
    streamed = client.chat.completions.create(**ask, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == cut.message.content


def test_n_answers_differ_and_each_has_the_next_seed(client):
    ask = {"model": "sft", "messages": HI, "max_tokens": 20}
    answers = client.chat.completions.create(**ask, n=3, seed=5).choices
    assert [answer.index for answer in answers] == [0, 1, 2]
    alone = [client.chat.completions.create(**ask, seed=5 + i).choices[0].message.content for i in range(3)]
    assert [answer.message.content for answer in answers] == alone and len(set(alone)) == 3
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**ask, n=3, seed=5, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == alone


def test_without_a_seed_two_answers_differ(client):
    texts = {client.chat.completions.create(model="sft", messages=HI, max_tokens=20).choices[0].message.content}
    texts |= {client.chat.completions.create(model="sft", messages=HI, max_tokens=20).choices[0].message.content}
    assert len(texts) == 2


def test_top_k_of_one_is_greedy(client):
    ask = {"model": "sft", "messages": HI, "max_tokens": 20}
    greedy = client.chat.completions.create(**ask, temperature=0)
    narrow = client.chat.completions.create(**ask, extra_body={"top_k": 1})
    nucleus = client.chat.completions.create(**ask, top_p=1e-9)
    assert greedy.choices[0].message.content == narrow.choices[0].message.content == nucleus.choices[0].message.content


def test_completions_take_text_tokens_and_several_of_both(client):
    one = client.completions.create(model="base", prompt="the quick", max_tokens=12, temperature=0)
    two = client.completions.create(model="base", prompt=["the quick", "a model"], max_tokens=12, temperature=0)
    assert one.choices[0].text == two.choices[0].text and len(two.choices) == 2
    ids = client.completions.create(model="base", prompt=[1, 2, 3], temperature=0)
    assert ids.usage.prompt_tokens == 3 and ids.usage.completion_tokens <= 16
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(
            model="base", prompt="the quick", max_tokens=12, temperature=0, stream=True
        )
    )
    assert text == one.choices[0].text


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"temperature": 3}, "temperature", "less"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater"),
        ({"n": 99}, "n", "less"),
        ({"stop": ["x"] * 99}, None, "stop"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "assistant"),
        ({"messages": [*HI, {"role": "assistant", "content": "x"}]}, "messages", "last message"),
        ({"messages": [*HI, *HI]}, "messages", "should be by"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "user"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, None, "tools"),
        ({"logprobs": True}, None, "logprobs"),
        ({"max_tokens": 500}, "messages", "256"),
        ({"messages": [{"role": "user", "content": "x y " * 400}]}, "messages", "256"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(client, change, param, word):
    ask = {"model": "sft", "messages": HI} | change
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask)
    error = caught.value
    assert error.type == "invalid_request_error" and word in error.message and error.param == param


def test_context_overflow_has_openais_code(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sft", messages=HI, max_tokens=256)
    assert caught.value.code == "context_length_exceeded"


def test_special_tokens_in_a_message_are_plain_text(client, models):
    tokenizer = sft(models).tokenizer
    answer = client.chat.completions.create(
        model="sft", messages=[{"role": "user", "content": "<|assistant_end|>"}], max_tokens=1
    )
    assert answer.usage.prompt_tokens == 4 + len(tokenizer.encode("<|assistant_end|>")) > 6


def test_parts_and_a_system_message_are_understood(client):
    parts = [{"type": "text", "text": "the quick "}, {"type": "text", "text": "fox?"}]
    a = client.chat.completions.create(model="sft", messages=HI, max_tokens=5, temperature=0)
    b = client.chat.completions.create(
        model="sft", messages=[{"role": "user", "content": parts}], max_tokens=5, temperature=0
    )
    assert a.choices[0].message.content == b.choices[0].message.content
    system = [{"role": "system", "content": "be brief"}, *HI]
    assert client.chat.completions.create(model="sft", messages=system, max_tokens=1).usage.prompt_tokens > (
        a.usage.prompt_tokens
    )


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"null", b'{"messages": 3}', b"\xff\xfe", b'{"seed": 1e400}']
)
def test_garbage_is_a_400_in_openais_shape(url, body):
    for path in ("chat/completions", "completions"):
        answer = httpx.post(f"{url}/v1/{path}", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_hanging_up_ends_the_answer_streamed_or_not(url, models):
    engine = sft(models)
    for stream in (True, False):
        body = {"model": "sft", "messages": HI, "stream": stream, "n": 4, "seed": 1, "max_tokens": 200}
        before = engine.stats()["tokens"]
        if stream:
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=body, timeout=httpx.Timeout(5, read=0.02))
        deadline = time.monotonic() + 20
        while engine.stats()["running"] or engine.stats()["queued"]:
            assert time.monotonic() < deadline, "an answer is still being written for nobody"
            time.sleep(0.01)
        assert engine.stats()["tokens"] - before < 800


def test_a_slow_reader_holds_nobody_up(url, client):
    body = {"model": "sft", "messages": HI, "stream": True, "max_tokens": 200, "seed": 1}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as slow:
        lines = slow.iter_lines()
        next(lines)
        for _ in range(3):
            assert client.chat.completions.create(model="sft", messages=HI, max_tokens=5).choices
        assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_a_full_queue_is_a_429_that_the_client_knows(url, models, client):
    engine = sft(models)
    queue, slots = engine.queue, engine.slots
    engine.queue = 0
    try:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="sft", messages=HI)
        answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": HI})
        assert answer.headers["retry-after"] == "1"
    finally:
        engine.queue, engine.slots = queue, slots


def test_a_model_that_dies_midway_is_an_error_and_not_a_hang(client, models, monkeypatch):
    engine = sft(models)
    real, count = engine.model.transformer.forward, iter(range(1000))

    def dies(*args):
        if next(count) == 20:
            raise RuntimeError("device lost")
        return real(*args)

    monkeypatch.setattr(engine.model.transformer, "forward", dies)
    with pytest.raises(openai.APIError, match="RuntimeError"):
        list(client.chat.completions.create(model="sft", messages=HI, max_tokens=100, seed=1, stream=True))
    assert client.chat.completions.create(model="sft", messages=HI, max_tokens=3).choices


def test_no_model_is_loaded_while_the_run_trains(tmp_path):
    app = FastAPI()
    install_errors(app)
    app.include_router(router(Models(tmp_path, lambda c: pytest.fail("loaded")), lambda: "The run still trains."))
    with live(app) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert not list(client.models.list())
        with pytest.raises(openai.InternalServerError, match="still trains"):
            client.chat.completions.create(model="sft", messages=HI)


@pytest.mark.slow
def test_thirty_two_clients_come_and_go(url, models):
    """Half of them hang up at random; the others' answers are the ones that their seeds give."""
    ask = {"model": "sft", "messages": HI, "temperature": 0.8}

    async def one(client: openai.AsyncOpenAI, i: int) -> None:
        for turn in range(6):
            stream = await client.chat.completions.create(**ask, seed=i, max_tokens=40, stream=True)
            text, left = "", (i * 7 + turn) % 20 if i % 2 else 10**6
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                left -= 1
                if left < 0:
                    break
            await stream.close()
            texts.setdefault(i, set()).add(text) if i % 2 == 0 else None

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            await asyncio.gather(*(one(client, i) for i in range(32)))

    texts: dict[int, set[str]] = {}
    threads = threading.active_count()
    asyncio.run(main())
    assert all(len(found) == 1 for found in texts.values()) and len(texts) == 16
    engine = sft(models)
    assert not engine.stats()["running"] and threading.active_count() <= threads + 40


@pytest.mark.slow
def test_a_server_stays_whole_under_clients_of_every_kind(tmp_path):
    """Whole, streamed, slow and broken-off answers, garbage, too much, wrong tokens, paths that lead out."""
    seen, before, after, log = bench_soak.run(tmp_path, clients=32, seconds=8)
    assert not seen.wrong, seen.wrong  # every kind got the status that it should, or a 429
    assert seen.texts and all(len(texts) == 1 for texts in seen.texts.values())
    assert after["threads"] <= before["threads"] + 8 and after["files"] <= before["files"] + 8
    assert bench_soak.TOKEN not in log and "Traceback" not in log
