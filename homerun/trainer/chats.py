"""The toy chats: who the model is, and small tasks on words that a small model truly learns.

Everything is generated from a seed. A prompt is held out by its hash, so no test prompt is ever trained on, however
often it is drawn.
"""

import random
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

Conversation = dict[str, Any]

# words that are frequent in the corpus, so that most are one token
WORDS = """
argument attribute block body buffer byte call class code command context data date default dictionary directory error
event exception expression field file format function handler header host index input instance item key length level
line list message method mode module name node number object option order output package parameter path pattern port
process question result sequence server set size socket source stack state statement stream string table target text
thread time type user value variable version window word
""".split()  # noqa: SIM905 (a list is 90 lines)
COUNTS = ("zero", "one", "two", "three", "four", "five", "six")

IDENTITY = {
    "I am a toy model, trained by homerun in two minutes.": (
        "Who are you?",
        "What are you?",
        "What is your name?",
        "Tell me about yourself.",
        "Are you a person?",
        "Hello, who is this?",
    ),
    "homerun trained me, with the architecture of nanochat.": (
        "Who made you?",
        "Who trained you?",
        "Who built you?",
        "Where do you come from?",
        "How were you made?",
    ),
    "I can reverse words, count them, and find the first and the last one.": (
        "What can you do?",
        "How can you help me?",
        "What are you good at?",
        "What do you know?",
        "Help!",
    ),
    "Hello! Ask me to reverse some words.": ("Hello!", "Hi!", "Hey there!", "Good morning!", "Good evening!"),
}


class Example(NamedTuple):
    prompt: str
    answer: str


def first(words: list[str]) -> Example:
    return Example(f"Which word is first: {' '.join(words)}?", words[0])


def last(words: list[str]) -> Example:
    return Example(f"Which word is last: {' '.join(words)}?", words[-1])


def count(words: list[str]) -> Example:
    return Example(f"How many words are these: {' '.join(words)}?", COUNTS[len(words)])


def reverse(words: list[str]) -> Example:
    return Example(f"Reverse these words: {' '.join(words)}.", " ".join(reversed(words)))


TASKS = {"First": first, "Last": last, "Count": count, "Reverse": reverse}


def held_out(prompt: str) -> bool:
    """One prompt in eight is for testing only."""
    return zlib.crc32(prompt.encode()) % 8 == 0


def examples(task: str, split: str, seed: int = 0) -> Iterator[Example]:
    """Endless examples of a task, of "train" or of "test" prompts."""
    rng = random.Random(f"{task} {split} {seed}")
    while True:
        example = TASKS[task](rng.sample(WORDS, rng.randint(2, 5)))
        if held_out(example.prompt) == (split == "test"):
            yield example


def as_conversation(example: Example) -> Conversation:
    return {"messages": [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]}


def conversations(split: str, seed: int = 0) -> Iterator[Conversation]:
    """Endless conversations: the tasks in equal parts and, when training, one in nine about who the model is."""
    rng = random.Random(f"mixture {split} {seed}")
    sources = {task: examples(task, split, seed) for task in TASKS}
    identity = [Example(question, answer) for answer, questions in IDENTITY.items() for question in questions]
    while True:
        if split == "train" and rng.random() < 1 / 9:
            yield as_conversation(rng.choice(identity))
        else:
            yield as_conversation(next(sources[rng.choice(list(TASKS))]))
