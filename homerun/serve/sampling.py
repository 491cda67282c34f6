"""How one answer is sampled. (`homerun/serve/draw.py` does it; this is what those without torch need of it.)"""

import random
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sampling:
    """One answer's settings. temperature 0 takes the likeliest token; top_k None and top_p 1 leave all tokens in."""

    max_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = field(default_factory=lambda: random.SystemRandom().getrandbits(63))
    stop_tokens: frozenset[int] = frozenset()  # the answer ends before any of them
