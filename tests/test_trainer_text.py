"""Corpus, shards, tokenizer and chats: honest splits, nothing lost, nothing learnt that should not be."""

import itertools
import re

import pytest

from homerun.errors import RequestError
from homerun.trainer import corpus as c
from homerun.trainer.chats import TASKS, as_conversation, conversations, examples
from homerun.trainer.dataset import shards, texts, write_shard
from homerun.trainer.tokenizer import SPECIAL, Tokenizer


@pytest.fixture(scope="module")
def split() -> tuple[list[c.Document], list[c.Document]]:
    return c.corpus()


@pytest.fixture(scope="module")
def tokenizer(split) -> Tokenizer:
    return Tokenizer.train((d.text for d in split[0][:200]), 512)


def test_the_corpus_is_real_and_large_enough(split):
    train, held_out = split
    assert sum(len(d.text) for d in train) > 1_500_000
    assert sum(len(d.text) for d in held_out) > 60_000


def test_no_held_out_source_paragraph_or_phrase_is_trained_on(split):
    train, held_out = split
    assert {d.name for d in train}.isdisjoint(d.name for d in held_out)
    paragraphs = {" ".join(p.split()).lower() for d in train for p in d.text.split("\n\n")}
    assert all(" ".join(p.split()).lower() not in paragraphs for d in held_out for p in d.text.split("\n\n"))
    phrases = {g for d in train for p in d.text.split("\n\n") for g in c.ngrams(p)}
    assert all(phrases.isdisjoint(c.ngrams(p)) for d in held_out for p in d.text.split("\n\n"))


def test_no_paragraph_is_in_the_corpus_twice(split):
    paragraphs = [" ".join(p.split()).lower() for side in split for d in side for p in re.split(r"\n\s*\n", d.text)]
    assert len(paragraphs) == len(set(paragraphs))


def test_the_corpus_is_the_same_every_time(split):
    assert c.corpus() == split


def test_shards_give_back_their_texts_and_the_last_is_held_out(tmp_path):
    (tmp_path / "base_data").mkdir()
    with pytest.raises(RequestError, match=r"homerun\.trainer\.dataset"):
        shards(tmp_path, "train")
    documents = [f"text {i} é\n" for i in range(100)]
    for i in range(2):
        write_shard(tmp_path / "base_data" / f"shard_{i:05d}.parquet", documents[i * 50 :][:50])
    write_shard(tmp_path / "base_data" / "shard_00008.parquet", ["held out"])
    assert list(texts(shards(tmp_path, "train"))) == documents
    assert list(texts(shards(tmp_path, "val"))) == ["held out"]
    assert sorted(p.name for p in (tmp_path / "base_data").iterdir())[0] == "shard_00000.parquet", "nothing temporary"


def test_any_text_comes_back_from_its_tokens(tokenizer, tmp_path):
    text = "naïve 漢字 🙂 \x00\t  def f(x):\r\n    return x + 1234567  <|bos|> "
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.bos not in tokenizer.encode("<|bos|>"), "text cannot forge a special token"
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode(text) == tokenizer.encode(text)


def test_special_tokens_are_last_and_weigh_nothing(tokenizer):
    assert [tokenizer.special(name) for name in SPECIAL] == list(range(512 - 9, 512))
    lengths = tokenizer.token_lengths()
    assert lengths[512 - 9 :] == [0] * 9 and min(lengths[: 512 - 9]) == 1
    text = "Some English text, and naïve bytes."
    assert sum(lengths[i] for i in tokenizer.encode(text)) == len(text.encode())


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(RequestError, match="265"):
        Tokenizer.train(["text"], 264)


def test_only_what_the_assistant_says_is_learnt(tokenizer):
    parts = [
        {"type": "text", "text": "Let me see: "},
        {"type": "python", "text": "1+2"},
        {"type": "python_output", "text": "3"},
        {"type": "text", "text": "three"},
    ]
    conversation = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+2?"},
            {"role": "assistant", "content": parts},
            {"role": "user", "content": "Thanks!"},
            {"role": "assistant", "content": "Bye."},
        ]
    }
    ids, mask = tokenizer.render_conversation(conversation)
    learnt = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert learnt == ("Let me see: <|python_start|>1+2<|python_end|>three<|assistant_end|>Bye.<|assistant_end|>")
    assert tokenizer.decode(ids).startswith("<|bos|><|user_start|>Be brief.\n\n1+2?<|user_end|><|assistant_start|>Let")
    short_ids, short_mask = tokenizer.render_conversation(conversation, max_tokens=5)
    assert (short_ids, short_mask) == (ids[:5], mask[:5])


def test_a_prompt_ends_where_the_assistant_begins(tokenizer):
    conversation = as_conversation(next(examples("Last", "test")))
    prompt = tokenizer.render_for_completion(conversation)
    ids, mask = tokenizer.render_conversation(conversation)
    assert prompt == ids[: mask.index(1)]
    assert len(conversation["messages"]) == 2, "the conversation itself is left alone"


def test_speakers_out_of_turn_are_refused(tokenizer):
    with pytest.raises(ValueError, match="message 1"):
        tokenizer.render_conversation(
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
        )


@pytest.mark.parametrize("task", TASKS)
def test_no_test_prompt_is_ever_trained_on(task):
    trained_on = {e.prompt for e in itertools.islice(examples(task, "train", seed=42), 20_000)}
    assert not any(e.prompt in trained_on for e in itertools.islice(examples(task, "test"), 500))


def test_the_mixture_draws_from_the_training_prompts_alone():
    test = {e.prompt for task in TASKS for e in itertools.islice(examples(task, "test"), 2000)}
    drawn = itertools.islice(conversations("train", seed=42), 20_000)
    assert test.isdisjoint(c["messages"][0]["content"] for c in drawn)


def test_answers_are_right():
    for task in TASKS:
        for prompt, answer in itertools.islice(examples(task, "train"), 50):
            words = prompt.split(": ")[1].rstrip("?.").split()
            right = {"First": words[0], "Last": words[-1], "Reverse": " ".join(words[::-1])}
            right["Count"] = ["zero", "one", "two", "three", "four", "five"][len(words)]
            assert answer == right[task]
