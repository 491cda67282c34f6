"""Generation for evaluation and samples: batched, with a key/value cache. (The server's engine is in homerun/serve.)"""

from collections import defaultdict
from collections.abc import Collection

import torch
from torch import Tensor

from homerun.trainer.model import GPT


class KVCache:
    """Keys and values of B sequences that are all equally long: (n_layer, B, H_kv, capacity, D)."""

    def __init__(self, model: GPT, batch: int, capacity: int):
        c = model.config
        shape = (c.n_layer, batch, c.n_kv_head, capacity, c.n_embd // c.n_head)
        self.k = torch.empty(shape, dtype=model.lm_head.weight.dtype, device=model.device)
        self.v = torch.empty_like(self.k)
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, None]:
        end = self.length + k.size(2)
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        if layer == len(self.k) - 1:
            self.length = end
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end], None


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: list[list[int]],
    max_tokens: int,
    stop: Collection[int] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """The tokens that follow each prompt, without the stop token: the likeliest at temperature 0, else sampled."""
    rng = torch.Generator(model.device).manual_seed(seed)
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        by_length[len(prompt)].append(i)
    answers: list[list[int]] = [[] for _ in prompts]
    for length, indices in sorted(by_length.items()):  # equally long prompts make a batch that needs no padding
        cache = KVCache(model, len(indices), length + max_tokens)
        idx = torch.tensor([prompts[i] for i in indices], device=model.device)
        open_ones = set(range(len(indices)))
        for _ in range(max_tokens):
            positions = torch.arange(cache.length, cache.length + idx.size(1), device=model.device).expand(idx.shape)
            logits = model(idx, cache=cache, positions=positions)[:, -1]
            if temperature > 0:
                idx = torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)
            else:
                idx = logits.argmax(-1, keepdim=True)
            for row, token in enumerate(idx.flatten().tolist()):
                if row in open_ones and token in stop:
                    open_ones.remove(row)
                elif row in open_ones:
                    answers[indices[row]].append(token)
            if not open_ones:
                break
    return answers
