"""Opening a folder's models: which engine serves which checkpoint, on which device.

Ours serves the October 2025 architecture, which our trainer makes too. Where upstream's code is at hand, it has the
last word: its child tells its logits, and only a model that agrees with them is served by our faster engine.
"""

import functools
import logging
from pathlib import Path

import torch

from homerun.errors import RequestError
from homerun.serve.checkpoints import Checkpoint
from homerun.serve.engine import BatchEngine
from homerun.serve.generation import Engine
from homerun.serve.models import Models, load_ours
from homerun.serve.upstream_engine import UpstreamEngine

log = logging.getLogger(__name__)

PROBE = list(range(1, 33))  # tokens whose logits are compared
AGREE = 0.05  # relative RMS of the difference; bfloat16 rotary tables alone make under 0.02, other code over 0.5


def open_models(folder: Path, device: str = "", checkout: Path | None = None) -> Models:
    """The models of `folder` (a tree, or a run's folder). device: cuda, cpu, or "": the GPU if there is one.

    checkout: upstream's working tree at the run's commit; by default the run's own, where it has one.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if checkout is None and is_upstream(folder / "src"):
        checkout = folder / "src"
    return Models(folder, functools.partial(load, device=torch.device(kind), checkout=checkout))


def is_upstream(folder: Path) -> bool:
    return (folder / "nanochat/checkpoint_manager.py").is_file()


def load(checkpoint: Checkpoint, device: torch.device, checkout: Path | None = None) -> Engine:
    """An engine for `checkpoint`. RequestError where there is none."""
    ours = _load_ours(checkpoint, device)
    if checkout is None:
        if ours is None:
            raise RequestError(
                f"{checkpoint.id} is of a newer architecture than October 2025's",
                "Name upstream's checkout at the run's commit: --upstream DIR",
            )
        return ours
    upstream = UpstreamEngine(checkpoint, checkout)
    if ours is None:
        return upstream
    try:
        difference = disagreement(ours, upstream)
    except BaseException:
        ours.close()
        upstream.close()
        raise
    if difference < AGREE:
        upstream.close()
        return ours
    log.warning("%s: our logits differ from upstream's by %.0f %%; upstream serves it", checkpoint.id, 100 * difference)
    ours.close()
    return upstream


def disagreement(ours: BatchEngine, upstream: UpstreamEngine) -> float:
    """The RMS of the difference of both models' logits, relative to their own."""
    tokens = [ours.tokenizer.bos, *PROBE]
    with torch.inference_mode():
        a = ours.model(torch.tensor([tokens], device=ours.model.device))[0, -1].cpu()
    b = torch.tensor(upstream.logits(tokens))[: len(a)]  # upstream may pad its vocabulary
    return float((a - b).norm() / b.norm().clamp(min=1e-6))


def _load_ours(checkpoint: Checkpoint, device: torch.device) -> BatchEngine | None:
    try:
        return load_ours(checkpoint, device)
    except (TypeError, RuntimeError):  # fields or weights of another architecture
        return None
