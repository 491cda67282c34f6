"""How a nanochat model fits on GPUs: processes, device batch size, FP8, as one explained line. Pure.

The memory model is rough and says so: it was set by what upstream itself chose to run (device batch 32 at depth 20 and
16 at depth 24 on 80 GB), and leaves a margin. An out-of-memory error still names the flag to lower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from homerun.upstream.flags import Flags

GB = 1e9
USABLE = 0.92  # of a GPU's memory: the rest is context, fragmentation, NCCL
PARAMS_AT_D24 = 1.384e9
BYTES_PER_PARAM = 14  # weights, gradients and optimizer state of Muon and AdamW, before sharding
LAYERS_AT_D20, LOGITS = 1.1 * GB, 1.0 * GB  # of one sequence of 2,048 tokens: activations, logits
DEVICE_BATCHES = (32, 16, 8, 4, 2, 1)
FP8_SINCE = (9, 0)  # Hopper


@dataclass(frozen=True)
class Fit:
    """nproc: processes (0: plain python on the CPU). device_batch: sequences a GPU and step; None on the CPU, 0 where
    not even one fits. fp8: whether the GPUs can. why: the line for a person."""

    nproc: int
    device_batch: int | None
    fp8: bool
    why: str


@dataclass(frozen=True)
class Asked:
    """What base training is asked for: depth, tokens of a sequence, device batch (None: unknown), FP8."""

    depth: int
    sequence: int = 2048
    device_batch: int | None = None
    fp8: bool = False


def read_asked(words: Sequence[str], flags: Flags | None) -> Asked | None:
    """From base training's arguments and its module's defaults at that commit; None where no depth can be told."""
    if flags is None:
        return None
    depth, sequence, batch = (_whole(flags.value(words, name)) for name in ("depth", "max-seq-len", BATCH))
    return Asked(depth, sequence or 2048, batch, flags.spell("fp8") in words) if depth else None


def apply_fit(
    argv: list[str], own: Sequence[str], flags: Flags, found: Fit
) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """A phase's argv with what does not fit taken back, and the words added and removed.

    The device batch is only ever lowered; FP8 follows the GPUs. own: the user's own words for this phase, which win.
    """
    added: list[str] = []
    removed: list[str] = []
    batch, asked = flags.spell(BATCH), _whole(flags.value(argv, BATCH))
    if batch and found.device_batch and asked and asked > found.device_batch and not _has(own, batch):
        added.append(f"{batch}={found.device_batch}")
    fp8 = flags.spell("fp8")
    if fp8 and fp8 not in own and found.device_batch is not None and found.fp8 != (fp8 in argv):
        (added if found.fp8 else removed).append(fp8)
    return [word for word in argv if word not in removed] + added, tuple(added), tuple(removed)


BATCH = "device-batch-size"


def _has(words: Sequence[str], flag: str) -> bool:
    return any(word.partition("=")[0] == flag for word in words)


def _whole(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isdigit() else None


def fit(gpus: Sequence[dict[str, Any]], depth: int, sequence: int = 2048, device_batch: int | None = None) -> Fit:
    """gpus: [{name, memory_bytes, capability or None}]. device_batch: the script's own, never exceeded."""
    if not gpus:
        return Fit(0, None, False, "no GPU: plain python on the CPU")
    nproc = 1 << (len(gpus).bit_length() - 1)  # upstream's total batch is a power of two: it must divide
    memory = min(gpu["memory_bytes"] for gpu in gpus)
    most = device_batch or DEVICE_BATCHES[0]
    chosen = next(
        (batch for batch in DEVICE_BATCHES if batch <= most and needed(depth, batch, sequence) <= USABLE * memory), 0
    )
    fp8 = all((gpu.get("capability") or (0, 0)) >= FP8_SINCE for gpu in gpus)
    left = f", {len(gpus) - nproc} left idle (a power of two must divide the batch)" if nproc < len(gpus) else ""
    room, need = f"{memory / GB:.0f} GB", f"{needed(depth, max(1, chosen), sequence) / GB:.0f}"
    if chosen:
        can = "is possible" if fp8 else "is not (it needs Hopper or newer)"
        why = f"{nproc} of {len(gpus)} GPUs{left}; device batch {chosen} (about {need} of {room}); FP8 {can}"
    else:
        why = f"depth {depth} needs about {need} GB for one sequence, {room} are there: choose a lower --depth"
    return Fit(nproc, chosen, fp8, why)


def needed(depth: int, device_batch: int, sequence: int = 2048) -> float:
    """Bytes of one GPU's memory, about."""
    params = PARAMS_AT_D24 * (depth / 24) ** 3
    one = (LAYERS_AT_D20 * (depth / 20) ** 2 + LOGITS) * sequence / 2048
    return params * BYTES_PER_PARAM + device_batch * one
