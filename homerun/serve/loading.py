"""Opening a folder's models: which engine serves which checkpoint, on which device."""

import functools
from pathlib import Path

import torch

from homerun.serve.checkpoints import Checkpoint
from homerun.serve.generation import Engine
from homerun.serve.models import Models, load_ours


def open_models(folder: Path, device: str = "") -> Models:
    """The models of `folder` (a tree, or a run's folder). device: cuda, cpu, or "": the GPU if there is one."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Models(folder, functools.partial(load, device=torch.device(kind)))


def load(checkpoint: Checkpoint, device: torch.device) -> Engine:
    return load_ours(checkpoint, device)
