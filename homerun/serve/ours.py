"""Our engine for a checkpoint: the weights from its file into our model. Needs torch."""

import torch

from homerun.serve.checkpoints import Checkpoint, load_tokenizer
from homerun.serve.engine import BatchEngine
from homerun.serve.packed import pack
from homerun.serve.upstream_engine import UpstreamEngine
from homerun.trainer.model import GPT, GPTConfig

PROBE = list(range(1, 33))  # tokens whose logits are compared


def load_ours(checkpoint: Checkpoint, device: str = "") -> BatchEngine:
    """Our engine for a checkpoint of the October 2025 architecture: float32 on a CPU, bfloat16 on a GPU.

    device: cuda, cpu, or "": the GPU if there is one. TypeError or RuntimeError where the architecture is another.
    """
    config = GPTConfig(**checkpoint.meta()["model_config"])
    state = torch.load(checkpoint.model_path, map_location="cpu", weights_only=True, mmap=True)
    with torch.device("meta"):
        model = GPT(config)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model.to_empty(device=device).to(dtype)
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in state.items()})
    if device == "cpu":
        pack(model)
    return BatchEngine(model.eval(), load_tokenizer(checkpoint.tree))


def disagreement(ours: BatchEngine, upstream: UpstreamEngine) -> float:
    """The RMS of the difference of both models' logits, relative to their own."""
    tokens = [ours.tokenizer.bos, *PROBE]
    with torch.inference_mode():
        a = ours.model(torch.tensor([tokens], device=ours.model.device))[0, -1].cpu()
    b = torch.tensor(upstream.logits(tokens))[: len(a)]  # upstream may pad its vocabulary
    return float((a - b).norm() / b.norm().clamp(min=1e-6))
