"""Drawing the next token: every row of a batch by its own settings and its own generator.

A draw turns one uniform number of the answer's own generator into a token, along the probabilities in a fixed order.
So the same seed gives the same text alone and in a full batch, as far as the logits agree.
"""

import random

import torch
from torch import Tensor

from homerun.serve.sampling import Sampling


def draw(logits: Tensor, settings: list[Sampling], generators: list[random.Random]) -> list[int]:
    """One token for each row of logits (B, V), float32."""
    tokens: list[int] = [0] * len(settings)
    greedy = [i for i, s in enumerate(settings) if s.temperature == 0]
    cut = [i for i, s in enumerate(settings) if s.temperature > 0 and (s.top_k or s.top_p < 1)]
    plain = [i for i, s in enumerate(settings) if s.temperature > 0 and not (s.top_k or s.top_p < 1)]
    if greedy:
        _fill(tokens, greedy, _rows(logits, greedy).argmax(-1))
    if cut:
        scores, order = _keep(_rows(logits, cut), [settings[i] for i in cut])
        place = _invert(scores, [settings[i] for i in cut], [generators[i] for i in cut])
        _fill(tokens, cut, order.gather(1, place).squeeze(1))
    if plain:
        place = _invert(_rows(logits, plain), [settings[i] for i in plain], [generators[i] for i in plain])
        _fill(tokens, plain, place.squeeze(1))
    return tokens


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[rows]


def _fill(tokens: list[int], rows: list[int], drawn: Tensor) -> None:
    for row, token in zip(rows, drawn.tolist(), strict=True):
        tokens[row] = token


def _keep(logits: Tensor, settings: list[Sampling]) -> tuple[Tensor, Tensor]:
    """(logits, token ids) in falling order, with those that top_k and top_p leave out at -inf."""
    V = logits.size(1)
    ks = [min(s.top_k or V, V) for s in settings]
    scores, order = logits.topk(max(ks), sorted=True)
    place = torch.arange(scores.size(1), device=logits.device)
    scores = scores.masked_fill(place >= torch.tensor(ks, device=logits.device)[:, None], -torch.inf)
    if any(s.top_p < 1 for s in settings):
        temperature = torch.tensor([s.temperature for s in settings], device=logits.device)[:, None]
        p = torch.tensor([s.top_p for s in settings], device=logits.device, dtype=torch.float64)[:, None]
        probs = (scores / temperature).softmax(-1).double()
        scores = scores.masked_fill((probs.cumsum(-1) - probs >= p) & (p < 1), -torch.inf)
    return scores, order


def _invert(scores: Tensor, settings: list[Sampling], generators: list[random.Random]) -> Tensor:
    """The column (B, 1) at which each row's cumulated probability first exceeds its uniform number."""
    temperature = torch.tensor([s.temperature for s in settings], device=scores.device)[:, None]
    total = (scores / temperature).softmax(-1).double().cumsum(-1)
    uniform = torch.tensor([g.random() for g in generators], dtype=torch.float64, device=scores.device)[:, None]
    place = torch.searchsorted(total, uniform * total[:, -1:], right=True)
    last = scores.isfinite().sum(-1, keepdim=True) - 1 if scores.isneginf().any() else scores.size(1) - 1
    return place.minimum(torch.as_tensor(last, device=scores.device))
