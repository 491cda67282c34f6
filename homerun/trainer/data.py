"""Training batches from parquet shards: one endless stream of tokens, cut into rows, resumable to the token.

Rank 0 alone reads and tokenizes; the other ranks are sent their rows. So the order of the data does not depend on the
number of processes, and one position in the meta file is the whole state. (Tokenizing runs at millions of tokens a
second; a batch is a few MB.)
"""

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from homerun.trainer.dataset import row_group
from homerun.trainer.runtime import Runtime
from homerun.trainer.tokenizer import Tokenizer

State = dict[
    str, int
]  # nanochat's pq_idx, rg_idx, epoch (from 1), and ours: offset, the tokens of that row group used up


def segments(
    files: list[Path], tokenizer: Tokenizer, start: State, epochs: int | None
) -> Iterator[tuple[State, npt.NDArray[np.int64]]]:
    """The tokens of each row group with the position of the first of them."""
    pq_start, rg_start, offset, epoch = start["pq_idx"], start["rg_idx"], start["offset"], start["epoch"]
    while epochs is None or epoch <= epochs:
        for pq_idx in range(pq_start, len(files)):
            with pq.ParquetFile(files[pq_idx]) as file:
                for rg_idx in range(rg_start, file.num_row_groups):
                    tokens = np.array(tokenizer.encode_documents(row_group(file, rg_idx)), dtype=np.int64)
                    yield {"pq_idx": pq_idx, "rg_idx": rg_idx, "epoch": epoch, "offset": offset}, tokens[offset:]
                    offset = 0
            rg_start = 0
        pq_start, epoch = 0, epoch + 1


START: State = {"pq_idx": 0, "rg_idx": 0, "epoch": 1, "offset": 0}


def windows(
    files: list[Path], tokenizer: Tokenizer, length: int, state: State = START, epochs: int | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], State]]:
    """length + 1 tokens, the last of which is the next window's first, and the state that continues after them."""
    source = segments(files, tokenizer, state, epochs)
    held: deque[tuple[State, npt.NDArray[np.int64]]] = deque()
    while True:
        while sum(len(tokens) for _, tokens in held) <= length:
            try:
                held.append(next(source))
            except StopIteration:
                return
        window = np.concatenate([tokens for _, tokens in held])[: length + 1]
        used = length
        while used >= len(held[0][1]):
            used -= len(held.popleft()[1])
        position, tokens = held.popleft()
        held.appendleft(({**position, "offset": position["offset"] + used}, tokens[used:]))
        yield window, held[0][0]


def batches(
    rt: Runtime,
    files: list[Path],
    tokenizer: Tokenizer,
    rows: int,
    length: int,
    state: State = START,
    epochs: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, State]]:
    """inputs and targets (rows, length), this rank's own, and the state after them (true on rank 0 only).

    The world's batch is rows * world rows; rank r has rows r * rows to (r + 1) * rows. Ends, on all ranks at once,
    before the first batch that would need more than `epochs` passes over the files.
    """
    total = rt.world * rows * length
    source = windows(files, tokenizer, total, state, epochs) if rt.master else None
    while True:
        window, state = next(source, (None, state)) if source else (None, state)
        buffer = torch.full((total + 1,), -1) if window is None else torch.from_numpy(window)
        buffer = buffer.to(rt.device)
        if rt.world > 1:
            dist.broadcast(buffer, src=0)
        if buffer[0] < 0:  # rank 0 has come to the end
            return
        mine = buffer[rt.rank * rows * length :][: rows * length + 1]
        yield mine[:-1].view(rows, length), mine[1:].view(rows, length), state
