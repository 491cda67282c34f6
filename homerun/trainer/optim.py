"""The two optimizers: Muon for the matrices inside the blocks, AdamW for the embedding and the unembedding.

Muon (kellerjordan.github.io/posts/muon): momentum, then the update is replaced by the nearest orthogonal matrix, found
by a Newton-Schulz iteration. Under DDP gradients arrive already averaged; each rank orthogonalises every world-th
matrix and sends the result to the others, so that the work, and Muon's state, is divided. AdamW's is the same on all.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from homerun.trainer.model import GPT

TUNED_AT = 768  # the model width at which AdamW's learning rates were tuned; they scale as 1/√width
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steepest at zero: singular values end in 0.7 … 1.2 after 5 steps


def orthogonalized(updates: Tensor, steps: int = 5) -> Tensor:
    """(N, m, n) matrices with their singular values driven to about 1."""
    a, b, c = NEWTON_SCHULZ
    x = updates.bfloat16() if updates.is_cuda else updates  # stable in bfloat16, and twice as fast on a GPU
    wide = x.size(-2) <= x.size(-1)
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).type_as(updates)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised. For 2D weights only; one parameter group a shape, updated as a stack."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, rank: int = 0, world: int = 1):
        shapes: dict[torch.Size, list[Tensor]] = {}
        for p in params:
            shapes.setdefault(p.shape, []).append(p)
        super().__init__([{"params": same} for same in shapes.values()], {"lr": lr, "momentum": momentum})
        self.rank, self.world = rank, world

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params, momentum = group["params"], group["momentum"]
            mine = params[self.rank :: self.world]
            if mine:
                updates = []
                for p in mine:
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - momentum)
                    updates.append(p.grad.lerp(buffer, momentum))
                rows, columns = mine[0].shape
                step_size = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, update in zip(mine, orthogonalized(torch.stack(updates)), strict=True):
                    p.sub_(update, alpha=step_size)
            if self.world > 1:
                sent = [dist.broadcast(p, src=i % self.world, async_op=True) for i, p in enumerate(params)]
                for work in sent:
                    work.wait()


def make_optimizers(
    model: GPT, embedding_lr: float, unembedding_lr: float, matrix_lr: float, rank: int = 0, world: int = 1
) -> list[torch.optim.Optimizer]:
    """[AdamW, Muon]; every group remembers its `initial_lr`, which the schedule multiplies."""
    scale = (model.config.n_embd / TUNED_AT) ** -0.5
    groups: list[dict[str, Any]] = [
        {"params": [model.lm_head.weight], "lr": unembedding_lr * scale},
        {"params": [model.transformer.wte.weight], "lr": embedding_lr * scale},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    muon = Muon(list(model.transformer.h.parameters()), lr=matrix_lr, rank=rank, world=world)
    optimizers: list[torch.optim.Optimizer] = [adamw, muon]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def set_schedule(optimizers: list[torch.optim.Optimizer], lr_multiplier: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_multiplier


def lr_multiplier(step: int, total: int, warmup: int, warmdown_ratio: float, final: float = 0.0) -> float:
    """Rises over `warmup` steps, stays at 1, falls in a line to `final` over the last warmdown_ratio of the steps."""
    warmdown = round(warmdown_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if step <= total - warmdown:
        return 1.0
    progress = (total - step) / warmdown
    return progress + (1 - progress) * final
