"""The batching engine: what it writes depends on the request alone, and nobody waits for somebody else's prompt."""

import asyncio
import random
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homerun.serve.cache import Pass, SlotCache
from homerun.serve.calculator import LONGEST, Caller, calculate
from homerun.serve.checkpoints import choose, find_checkpoints, load_tokenizer
from homerun.serve.draw import draw
from homerun.serve.engine import BatchEngine
from homerun.serve.generation import Busy, EngineDied
from homerun.serve.ours import load_ours
from homerun.serve.packed import PackedLinear
from homerun.serve.sampling import Sampling
from homerun.serve.text import TextStream
from tests.serve_tree import make_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"), ("base", "sft"))


@pytest.fixture
def engine(tree):
    engine = load_ours(find_checkpoints(tree)[0], "cpu")
    yield engine
    engine.close()


def prompt_of(engine: BatchEngine, i: int) -> list[int]:
    return [engine.tokenizer.bos, *engine.tokenizer.encode("the quick fox " * (1 + i % 11))]


async def answer(engine: BatchEngine, prompt: list[int], sampling: Sampling) -> list[int]:
    return [token async for token in engine.submit(prompt, sampling)]


def settings_of(i: int) -> Sampling:
    return Sampling(30, (0.0, 0.7, 1.0)[i % 3], (None, 5, 50)[i % 3], (1.0, 0.9)[i % 2], seed=i)


def test_the_same_seed_writes_the_same_text_alone_and_in_a_full_batch(engine):
    async def main():
        alone = [await answer(engine, prompt_of(engine, i), settings_of(i)) for i in range(24)]
        together = await asyncio.gather(*(answer(engine, prompt_of(engine, i), settings_of(i)) for i in range(24)))
        return alone, together

    alone, together = asyncio.run(main())
    assert alone == together
    assert len({tuple(a) for a in alone}) > 12  # and different seeds write different texts


def test_answers_follow_the_model_token_by_token_without_any_cache(engine):
    async def main():
        return await answer(engine, prompt_of(engine, 10), Sampling(20, temperature=0))

    written = asyncio.run(main())
    tokens = prompt_of(engine, 10)
    start = len(tokens)
    with torch.inference_mode():
        for _ in written:
            tokens.append(int(engine.model(torch.tensor([tokens]))[0, -1].argmax()))
    forced_free = [engine.tokenizer.special("<|python_start|>")]
    if not set(forced_free) & set(tokens[start:]):
        assert tokens[start:] == written


def test_batched_logits_equal_unbatched_ones(engine):
    """Rows of different lengths in one pass, as decoding runs them."""
    model, cache = engine.model, SlotCache(engine.model, 4, 64)
    lengths = [3, 17, 1, 40]
    rows = [torch.randint(0, 250, (1, n + 1), generator=torch.Generator().manual_seed(n)) for n in lengths]
    with torch.inference_mode():
        for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
            positions = torch.arange(n)[None]
            view = Pass(cache, [i], positions, torch.ones(1, n, dtype=torch.bool), n)
            model(row[:, :n], cache=view, positions=positions)
        positions = torch.tensor(lengths)[:, None]
        view = Pass(cache, None, positions, torch.ones(4, 1, dtype=torch.bool), max(lengths) + 1)
        batched = model(torch.cat([row[:, -1:] for row in rows]), cache=view, positions=positions)[:, 0]
        for i, row in enumerate(rows):
            torch.testing.assert_close(batched[i], model(row)[0, -1], rtol=0, atol=2e-5)


def test_a_short_prompt_does_not_wait_for_a_long_one(tree, monkeypatch):
    engine = load_ours(find_checkpoints(tree)[0], "cpu")
    engine.chunk = 4  # 200 prompt tokens are 50 turns
    real, go = engine.model.transformer.forward, threading.Event()
    monkeypatch.setattr(engine.model.transformer, "forward", lambda *args: (go.wait(30), real(*args))[1])
    begun: list[str] = []

    async def first(name: str, tokens: int) -> None:
        async for _ in engine.submit([engine.tokenizer.bos] * tokens, Sampling(5, seed=1)):
            if name not in begun:
                begun.append(name)

    async def main() -> None:
        long = asyncio.create_task(first("long", 200))
        await asyncio.sleep(0)  # it is submitted
        short = asyncio.create_task(first("short", 3))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(long, short)

    try:
        asyncio.run(main())
        assert begun == ["short", "long"]
    finally:
        engine.close()


def test_an_answer_that_nobody_reads_any_more_leaves_the_batch(engine):
    async def main():
        stream = aiter(engine.submit(prompt_of(engine, 1), Sampling(200, seed=1)))
        await anext(stream)
        await stream.aclose()
        for _ in range(500):
            if not engine.stats()["running"]:
                return engine.stats()["tokens"]
            await asyncio.sleep(0.01)

    made = asyncio.run(main())
    assert made is not None and made < 200


def test_a_full_queue_refuses_and_a_cancelled_place_in_it_is_free_again(tree):
    loaded = load_ours(find_checkpoints(tree)[0], "cpu")
    engine = BatchEngine(loaded.model, loaded.tokenizer, slots=1, queue=2)
    loaded.close()

    async def main():
        running = engine.submit(prompt_of(engine, 0), Sampling(240, seed=0))
        stream = aiter(running)
        await anext(stream)
        queued = [engine.submit(prompt_of(engine, 0), Sampling(2, seed=i)) for i in range(2)]
        with pytest.raises(Busy):
            engine.submit(prompt_of(engine, 0), Sampling(2))
        queued[0].cancel()
        late = engine.submit(prompt_of(engine, 0), Sampling(2, seed=9))
        running.cancel()
        return [len([t async for t in g]) for g in (queued[1], late)]

    try:
        assert asyncio.run(main()) == [2, 2]
    finally:
        engine.close()


def test_a_failing_model_fails_its_answers_and_serves_the_next(engine, monkeypatch):
    real = engine.model.transformer.forward
    calls = iter([True])

    def once(*args):
        if next(calls, False):
            raise RuntimeError("out of memory")
        return real(*args)

    monkeypatch.setattr(engine.model.transformer, "forward", once)

    async def main():
        with pytest.raises(EngineDied, match="try again"):
            await answer(engine, prompt_of(engine, 0), Sampling(3, seed=0))
        return await answer(engine, prompt_of(engine, 0), Sampling(3, seed=0))

    assert len(asyncio.run(main())) == 3


def test_closing_fails_what_is_being_written(tree):
    engine = load_ours(find_checkpoints(tree)[0], "cpu")

    async def main():
        generation = engine.submit(prompt_of(engine, 0), Sampling(240, seed=0))
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineDied):
            async for _ in generation:
                pass

    asyncio.run(main())


def test_a_call_of_the_calculator_is_answered_within_the_text(engine, monkeypatch):
    """Whatever the model would have drawn: python_start 6*7 python_end is followed by output_start 42 output_end."""
    t = engine.tokenizer
    script = [t.special("<|python_start|>"), *t.encode("6*7"), t.special("<|python_end|>"), *t.encode("x")]
    feed = iter(script)
    monkeypatch.setattr("homerun.serve.engine.draw", lambda logits, s, g: [next(feed)])
    expected = [*script[:-1], t.special("<|output_start|>"), *t.encode("42"), t.special("<|output_end|>"), script[-1]]

    async def main():
        return await answer(engine, prompt_of(engine, 0), Sampling(len(expected), seed=0))

    tokens = asyncio.run(main())
    assert tokens == expected
    text = TextStream(t, [])
    assert "".join(map(text.feed, tokens)) + text.end() == "x"
    assert [(c.expression, c.result) for c in text.calls] == [("6*7", "42")]


@given(st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(1, 5), min_size=1, max_size=2), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_packed_layer_is_the_same_layer(inside, outside, shape, seed):
    torch.manual_seed(seed)
    linear = torch.nn.Linear(inside, outside, bias=False)
    x = torch.randn(*shape, inside)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x), rtol=0, atol=1e-5)


# -- sampling ------------------------------------------------------------------------------------------------------


def test_draws_have_the_probabilities_that_the_settings_say():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -5.0]])
    for sampling, allowed in (
        (Sampling(1), {0, 1, 2, 3, 4}),
        (Sampling(1, temperature=2.0), {0, 1, 2, 3, 4}),
        (Sampling(1, top_k=2), {0, 1}),
        (Sampling(1, top_p=0.7), {0, 1}),
        (Sampling(1, top_p=0.01), {0}),
        (Sampling(1, temperature=0), {0}),
    ):
        rng = random.Random(0)
        N = 4000
        counts = torch.zeros(5)
        for token in draw(logits.expand(N, 5), [sampling] * N, [rng] * N):
            counts[token] += 1
        keep = torch.tensor([i in allowed for i in range(5)])
        expected = (logits[0] / (sampling.temperature or 1e-3)).masked_fill(~keep, -torch.inf).softmax(-1)
        assert not counts[~keep].any(), sampling
        torch.testing.assert_close(counts / N, expected, rtol=0, atol=0.03)


@given(st.integers(0, 2**32), st.integers(1, 6), st.data())
@settings(max_examples=40, deadline=None)
def test_a_draw_is_its_rows_own_affair(seed, B, data):
    logits = torch.randn(B, 50, generator=torch.Generator().manual_seed(seed))
    one = st.builds(
        Sampling,
        st.just(1),
        temperature=st.sampled_from([0, 0.5, 1.0]),
        top_k=st.sampled_from([None, 1, 7, 500]),
        top_p=st.sampled_from([1.0, 0.9, 0.1]),
        seed=st.integers(0, 99),
    )
    each = data.draw(st.lists(one, min_size=B, max_size=B))
    together = draw(logits, each, [random.Random(s.seed) for s in each])
    assert together == [draw(logits[i : i + 1], [s], [random.Random(s.seed)])[0] for i, s in enumerate(each)]


def test_seeds_are_fresh_unless_they_are_given():
    assert Sampling(1).seed != Sampling(1).seed


# -- calculator and text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+2", "3"),
        ("12*(3+4)", "84"),
        ("10/4", "2.5"),
        ("1,000 * 3", "3000"),
        ("-7+2", "-5"),
        ("2.5*2", "5.0"),
        ("'strawberry'.count('r')", "3"),
        ('"a,b".count(",")', "1"),
    ],
)
def test_the_calculator_calculates(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "2**100",
        "1/0",
        "__import__('os').system('ls')",
        "().__class__",
        "'a'*99",
        "open('x')",
        "(" * 300,
        "1 if 1 else 2",
        "-" * LONGEST + "1",
        "",
        "1+",
        "'a'.upper()",
        "'a'.count('a').bit_length()",
        "True+1",
        "[1][0]",
        "x",
        "1e999-1e999j",
    ],
)
def test_the_calculator_answers_nothing_else(expression):
    assert calculate(expression) is None


@given(st.text(max_size=LONGEST + 5))
@settings(deadline=None)
def test_the_calculator_survives_anything(expression):
    assert isinstance(calculate(expression), str | None)


def test_a_call_that_has_no_answer_forces_nothing(tree):
    t = load_tokenizer(tree)
    caller = Caller(t)
    tokens = [t.special("<|python_start|>"), *t.encode("2**9"), t.special("<|python_end|>")]
    assert [caller.see(token) for token in tokens] == [[]] * len(tokens)


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=4), max_size=3))
@settings(deadline=None)
def test_streamed_text_is_the_text_up_to_the_first_stop(text, stops):
    tokenizer = _TOKENIZER[0]
    stream = TextStream(tokenizer, stops)
    got = "".join(map(stream.feed, tokenizer.encode(text))) + stream.end()
    cuts = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert stream.stopped == bool(cuts)
    if not cuts:
        assert got == text
    else:
        assert text.startswith(got) and not any(stop in got for stop in stops)


_TOKENIZER: list = []


@pytest.fixture(autouse=True, scope="module")
def _one_tokenizer(tree):
    _TOKENIZER.append(load_tokenizer(tree))


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_the_latest_stage_of_the_deepest_model(tmp_path):
    for stage, tag, step in [
        ("base", "d20", 5),
        ("chatsft", "d4", 900),
        ("chatsft", "d20", 7),
        ("chatsft", "d20", 650),
        ("chatsft", "d20", 9999),
    ]:
        folder = tmp_path / f"{stage}_checkpoints" / tag
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"model_{step:06d}.pt").touch()
        if step != 9999:  # a model without its meta is not whole
            (folder / f"meta_{step:06d}.json").write_text("{}")
    found = find_checkpoints(tmp_path)
    assert [c.id for c in found] == ["sft-d20-000650", "sft-d20-000007", "sft-d4-000900", "base-d20-000005"]
    assert [choose(found, name).id for name in ("", "sft", "sft-d4", "base")] == [found[i].id for i in (0, 0, 2, 3)]
    assert choose(found, "sft-d2") is None


def test_a_tokenizer_that_would_run_code_is_refused(tmp_path):
    import os
    import pickle

    from homerun.errors import RequestError

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RequestError, match="mkdir"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_the_folders_are_those_that_training_writes():
    from homerun.serve import checkpoints
    from homerun.trainer import checkpoint

    assert checkpoints.FOLDERS == checkpoint.FOLDERS
