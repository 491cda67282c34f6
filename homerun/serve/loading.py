"""Opening a folder's models: which engine serves which checkpoint, on which device.

Ours serves the October 2025 architecture, which our trainer makes too. Where upstream's code is at hand, it has the
last word: its child tells its logits, and only a model that agrees with them is served by our faster engine.
"""

import functools
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from homerun.errors import RequestError
from homerun.serve.checkpoints import Checkpoint
from homerun.serve.generation import Engine
from homerun.serve.models import Models
from homerun.serve.upstream_engine import UpstreamEngine

if TYPE_CHECKING:
    from homerun.serve.engine import BatchEngine

log = logging.getLogger(__name__)

AGREE = 0.05  # relative RMS of the difference: October 2025's bfloat16 rotary tables make 0.001 to 0.002 (measured)


def open_models(folder: Path, device: str = "", checkout: Path | None = None) -> Models:
    """The models of `folder` (a tree, or a run's folder). device: cuda, cpu, or "": the GPU if there is one.

    checkout: upstream's working tree at the run's commit; by default the run's own, where it has one.
    """
    if checkout is None and is_upstream(folder / "src"):
        checkout = folder / "src"
    return Models(folder, functools.partial(load, device=device, checkout=checkout))


def is_upstream(folder: Path) -> bool:
    return (folder / "nanochat/checkpoint_manager.py").is_file()


def load(checkpoint: Checkpoint, device: str = "", checkout: Path | None = None) -> Engine:
    """An engine for `checkpoint`. RequestError where there is none."""
    ours = _load_ours(checkpoint, device)
    if checkout is None:
        if ours is None:
            if importlib.util.find_spec("torch") is None:
                raise RequestError("there is no torch to serve a model with", "pip install 'homerun[serve,train]'")
            raise RequestError(
                f"{checkpoint.id} is of a newer architecture than October 2025's",
                "Name upstream's checkout at the run's commit: --upstream DIR",
            )
        return ours
    upstream = UpstreamEngine(checkpoint, checkout)
    if ours is None:
        return upstream
    try:
        from homerun.serve.ours import disagreement

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


def _load_ours(checkpoint: Checkpoint, device: str) -> "BatchEngine | None":
    try:
        from homerun.serve.ours import load_ours

        return load_ours(checkpoint, device)
    except ImportError:  # no torch here; upstream's environment has its own
        return None
    except (TypeError, RuntimeError):  # fields or weights of another architecture
        return None
