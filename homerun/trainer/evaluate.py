"""Figures of merit: bits per byte, the unigram baseline, and the share of a task's prompts answered exactly."""

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from homerun.errors import RequestError
from homerun.trainer.chats import as_conversation, examples
from homerun.trainer.dataset import texts
from homerun.trainer.generate import generate
from homerun.trainer.model import GPT
from homerun.trainer.runtime import Runtime
from homerun.trainer.tokenizer import Tokenizer


@torch.no_grad()
def bits_per_byte(rt: Runtime, model: GPT, batches: Iterable[tuple[Tensor, Tensor]], token_bytes: Tensor) -> float:
    """Cross entropy of the targets over the bytes they stand for, all ranks together.

    Special and ignored targets count on neither side, so the figure does not depend on the vocabulary.
    Raises RequestError if there is not one whole batch.
    """
    nats, total = 0.0, 0.0
    for inputs, targets in batches:
        with rt.autocast():
            losses = model(inputs, targets, loss_reduction="none")
        lengths = torch.where(targets >= 0, token_bytes[targets.clamp(min=0)], 0).flatten()
        nats += (losses * (lengths > 0)).double().sum().item()
        total += lengths.sum().item()
    nats, total = rt.sum(nats, total)
    if not total:
        raise RequestError("the held-out text does not fill one batch", "use a smaller --device-batch-size")
    return nats / math.log(2) / total


def unigram_bits_per_byte(tokenizer: Tokenizer, train: list[Path], held_out: list[Path]) -> float:
    """What a model reaches that knows only how frequent each token is: counts of the training shards, plus one."""
    counts = torch.ones(tokenizer.vocab_size, dtype=torch.float64)
    for text in texts(train):
        counts += torch.bincount(torch.tensor(tokenizer.encode(text)), minlength=tokenizer.vocab_size)
    bits = -(counts / counts.sum()).log2()
    lengths = torch.tensor(tokenizer.token_lengths())
    tokens = torch.tensor([token for text in texts(held_out) for token in tokenizer.encode(text)])
    return (bits[tokens].sum() / lengths[tokens].sum()).item()


def task_accuracy(rt: Runtime, model: GPT, tokenizer: Tokenizer, task: str, problems: int) -> tuple[int, int]:
    """(right, asked) over the first `problems` held-out prompts of a task: greedy answers that match to the letter."""
    mine = list(itertools.islice(examples(task, "test"), problems))[rt.rank :: rt.world]
    prompts = [tokenizer.render_for_completion(as_conversation(example)) for example in mine]
    stop = {tokenizer.special("<|assistant_end|>"), tokenizer.bos}
    with rt.autocast():
        answers = generate(model, prompts, max_tokens=32, stop=stop)
    right = sum(tokenizer.decode(a).strip() == e.answer for a, e in zip(answers, mine, strict=True))
    right_all, asked = rt.sum(right, len(mine))
    return int(right_all), int(asked)
