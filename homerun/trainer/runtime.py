"""What every phase of the trainer shares: device and ranks, printing, W&B, timing.

A phase runs as one process (`python -m homerun.trainer.base_train`) or under torchrun, where RANK, LOCAL_RANK and
WORLD_SIZE say who it is; gloo joins the processes on CPUs, NCCL on GPUs.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from homerun.errors import RequestError

# dense bf16 peak, FLOP/s, by a word of the GPU's name (NVIDIA's data sheets)
PEAK_FLOPS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


@dataclass(frozen=True)
class Runtime:
    """This process's place in the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def master(self) -> bool:
        return self.rank == 0

    def print(self, *words: Any) -> None:
        """Print from rank 0 alone, at once: a log that is followed must not sit in a buffer."""
        if self.master:
            print(*words, flush=True)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 matmuls on a GPU; float32 on a CPU, where it is exact and as fast at toy size."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks (float64, exact for counts)."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()

    def average_gradients(self, model: torch.nn.Module) -> None:
        if self.world > 1:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            for work in [dist.all_reduce(g, async_op=True) for g in grads]:
                work.wait()
            torch._foreach_div_(grads, self.world)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def peak_memory_mib(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else 0.0

    def peak_flops(self) -> float:
        """The whole world's peak, or infinity where it is not known (utilisation then reads 0)."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return self.world * next((f for word, f in PEAK_FLOPS.items() if word in name), float("inf"))


@contextlib.contextmanager
def runtime(seed: int, device_type: str = "") -> Iterator[Runtime]:
    """Join the other ranks if there are any, seed, and leave again. device_type: cuda, cpu, or "" for what there is."""
    rank, local, world = (
        int(os.environ.get(name, d)) for name, d in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    kind = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise RequestError(
                f"rank {local} has no GPU: this machine has {torch.cuda.device_count()}",
                f"start torchrun with --nproc_per_node={torch.cuda.device_count() or 1}, or pass --device-type=cpu",
            )
        torch.cuda.set_device(local)
        torch.set_float32_matmul_precision("high")
    device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if world > 1:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", device_id=device if kind == "cuda" else None)
    torch.manual_seed(seed)
    try:
        yield Runtime(device, rank, world)
    finally:
        if world > 1:
            dist.destroy_process_group()


def wandb_log(
    rt: Runtime, run: str, config: dict[str, Any], project: str = "nanochat"
) -> Callable[[dict[str, Any]], None]:
    """A function that logs a dict to W&B; it does nothing for the run name "dummy", and on ranks other than 0."""
    if run in ("", "dummy") or not rt.master:
        return lambda figures: None
    try:
        import wandb
    except ImportError as e:
        raise RequestError(
            f"--run={run} asks for W&B, which is not installed", "pip install wandb, or --run=dummy"
        ) from e
    return wandb.init(project=os.environ.get("WANDB_PROJECT", project), name=run, config=config).log


class Clock:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds
