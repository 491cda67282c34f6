"""The keys and values of all running answers: one row an answer, rows 0 to n-1 always in use.

Rows are kept side by side (the last one moves into a gap), so that a decoding step reads a plain slice of the cache.
"""

import math
import mmap

import torch
from torch import Tensor

from homerun.trainer.model import GPT


class SlotCache:
    """Keys and values (n_layer, slots, H_kv, context + 1, D); the last position takes what must not be kept."""

    def __init__(self, model: GPT, slots: int, context: int):
        c = model.config
        shape = (c.n_layer, slots, c.n_kv_head, context + 1, c.n_embd // c.n_head)
        self.k, self.v = (_zeros(shape, model.lm_head.weight) for _ in "kv")
        self.scrap = context

    @property
    def bytes_per_token(self) -> int:
        layers, _, heads, _, width = self.k.shape
        return 2 * layers * heads * width * self.k.element_size()

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source`'s first `length` positions become row `target`'s."""
        self.k[:, target, :, :length] = self.k[:, source, :, :length]
        self.v[:, target, :, :length] = self.v[:, source, :, :length]


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros, not just memory: a masked key has weight 0, and 0 * NaN is NaN. On a CPU as pages of the system's, which
    take memory once they are used; torch would write its zeros, and numpy asks for pages of 2 MB."""
    if like.device.type == "cpu":
        pages = mmap.mmap(-1, math.prod(shape) * like.element_size())
        return torch.frombuffer(pages, dtype=like.dtype).view(shape)
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


class Pass:
    """The cache as one forward pass sees it (`homerun.trainer.model.Cache`).

    rows: the cache's rows, as many as the batch (None: rows 0 to B-1). positions (B, T): where each token goes; a
    token with real False goes to scrap. A token sees all keys of its row up to its own position.
    """

    def __init__(self, cache: SlotCache, rows: list[int] | None, positions: Tensor, real: Tensor, longest: int):
        device = positions.device
        B = positions.size(0)
        self._cache, self._span = cache, longest
        self._gather = None if rows is None else torch.tensor(rows, device=device)
        self._rows = (torch.arange(B, device=device) if self._gather is None else self._gather)[:, None]
        self._where = positions.masked_fill(~real, cache.scrap)
        self._mask = torch.arange(longest, device=device) <= positions[:, None, :, None]  # (B, 1, T, S)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self._cache.k[layer], self._cache.v[layer]
        keys[self._rows, :, self._where] = k.transpose(1, 2)
        values[self._rows, :, self._where] = v.transpose(1, 2)
        if self._gather is None:
            B = self._where.size(0)
            return keys[:B, :, : self._span], values[:B, :, : self._span], self._mask
        return keys[self._gather, :, : self._span], values[self._gather, :, : self._span], self._mask
