"""The model: the October 2025 nanochat transformer, in one file.

A decoder with rotary positions, RMS normalisation without weights, normalised queries and keys, squared ReLU, grouped
key/value heads, untied embeddings, no biases, and logits soft-capped at ±15. Parameters bear nanochat's own names
(`transformer.wte`, `transformer.h.N.attn.c_q` …, `lm_head`), so checkpoints go both ways.

Shapes: B sequences, T tokens, C = n_embd, H = n_head, H_kv = n_kv_head, D = C / H, V = vocab_size.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 10_000
SOFTCAP = 15.0
IGNORE = -1  # a target of -1 is not learnt from


@dataclass
class GPTConfig:
    """The `model_config` of a checkpoint's meta file, field by field."""

    sequence_len: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768


class Cache(Protocol):
    """What attention asks of a key/value cache, so that a server can bring its own."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store this pass's k, v (B, H_kv, T, D); return all k, v (B, H_kv, S, D) that layer's queries may see.

        The mask is scaled_dot_product_attention's, broadcastable to (B, H, T, S); None is causal, the last query
        being level with the last key.
        """
        ...


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotary(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos, sin of the angles of positions (B, T): each (B, 1, T, D/2), float32 at any length."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions[:, None, :, None].float() * ROTARY_BASE ** (-channels / head_dim)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, H, T, D) clockwise, channel i paired with channel i + D/2."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).type_as(x)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        if config.n_embd % config.n_head or config.n_head % config.n_kv_head:
            raise ValueError(f"n_head must divide n_embd, and n_kv_head must divide n_head: {config}")
        self.layer, self.head_dim = layer, config.n_embd // config.n_head
        self.gqa = config.n_kv_head != config.n_head
        self.c_q = nn.Linear(config.n_embd, config.n_head * self.head_dim, bias=False)
        self.c_k = nn.Linear(config.n_embd, config.n_kv_head * self.head_dim, bias=False)
        self.c_v = nn.Linear(config.n_embd, config.n_kv_head * self.head_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, -1, self.head_dim).transpose(1, 2) for f in (self.c_q, self.c_k, self.c_v))
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        mask: Tensor | None = None
        if cache is not None:
            k, v, mask = cache.update(self.layer, k.type_as(v), v)
            q = q.type_as(k)
        S = k.size(2)
        if mask is None and 1 < T < S:  # SDPA's own causal mask is level at the first key, ours at the last
            mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        causal = mask is None and T == S
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.gqa)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attn, self.mlp = Attention(config, layer), MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None) -> Tensor:
        x = x + self.attn(norm(x), cos, sin, cache)
        return x + self.mlp(norm(x))


class Trunk(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))

    def forward(self, idx: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None) -> Tensor:
        x = norm(self.wte(idx))
        for block in self.h:
            x = block(x, cos, sin, cache)
        return norm(x)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.transformer = Trunk(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def init_weights(self) -> None:
        """Draw the starting weights (after `to_empty` too): every block starts as the identity, all logits as zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0)
            elif isinstance(module, nn.Linear):
                if name == "lm_head" or name.endswith("c_proj"):
                    nn.init.zeros_(module.weight)
                else:  # spectral condition, arXiv:2310.17813
                    fan_out, fan_in = module.weight.shape
                    nn.init.normal_(module.weight, std=min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in))

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def estimate_flops(self) -> int:
        """Floating point operations a token takes to train at the full sequence length (arXiv:2204.02311)."""
        c = self.config
        matmuls = self.num_params() - self.transformer.wte.weight.numel()  # looking up an embedding costs nothing
        return 6 * matmuls + 12 * c.n_layer * c.n_embd * c.sequence_len

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        loss_reduction: str = "mean",
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) in float32 for token ids `idx` (B, T), or, given `targets` (B, T), their cross entropy.

        Targets of -1 are left out. `loss_reduction` is cross_entropy's; "none" gives (B * T,). `positions` (B, T) are
        the tokens' places in their sequences, 0 to T - 1 by default: with a cache that is not empty, say them.
        """
        if positions is None:
            positions = torch.arange(idx.size(1), device=idx.device)[None]
        cos, sin = rotary(positions, self.config.n_embd // self.config.n_head)
        logits = self.lm_head(self.transformer(idx, cos, sin, cache)).float()
        logits = SOFTCAP * torch.tanh(logits / SOFTCAP)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction=loss_reduction)
