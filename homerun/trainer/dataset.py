"""Write the toy corpus as parquet shards, in nanochat's form:

    python -m homerun.trainer.dataset -n 4

writes shards 0 to 3 of the training text and the held-out shard (the last one) to base_data/ of the base directory.
Shards have one column, `text`, in row groups; shards that are there are kept, so a second call with a larger -n adds.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from homerun.errors import RequestError
from homerun.trainer.corpus import corpus
from homerun.trainer.phase import base_dir, run

TRAIN_SHARDS = 8  # the held-out shard is the ninth
ROW_GROUP = 32  # documents; a resumed run reads at most one row group again


def shards(base: Path, split: str) -> list[Path]:
    """The shard files of a split, "train" or "val": the last file is the held-out one."""
    files = sorted((base / "base_data").glob("shard_*.parquet"))
    if len(files) < 2:
        raise RequestError(f"{len(files)} shards in {base / 'base_data'}", "python -m homerun.trainer.dataset -n 8")
    return files[:-1] if split == "train" else files[-1:]


def row_group(file: pq.ParquetFile, index: int) -> list[str]:
    return file.read_row_group(index, columns=["text"]).column("text").to_pylist()


def texts(files: list[Path]) -> Iterator[str]:
    for path in files:
        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                yield from row_group(file, index)


def write_shard(path: Path, documents: list[str]) -> None:
    """All of it or nothing: a reader, and a second writer, only ever see whole shards."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(pa.table({"text": documents}), temporary, row_group_size=ROW_GROUP)
    temporary.rename(path)


def main(args: argparse.Namespace) -> None:
    n = min(max(1, args.num_files), TRAIN_SHARDS)
    folder = base_dir() / "base_data"
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = corpus()
    contents = {TRAIN_SHARDS: held_out} | {i: train[i::TRAIN_SHARDS] for i in range(n)}
    for i, documents in contents.items():  # the held-out shard first: the last file there is always the held-out one
        path = folder / f"shard_{i:05d}.parquet"
        if not path.exists():
            write_shard(path, [d.text for d in documents])
            print(f"{path.name}: {len(documents)} documents, {sum(len(d.text) for d in documents):,} characters")
    print(f"Done! Downloaded: {len(contents)}/{len(contents)} shards to {folder}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Write the toy corpus as parquet shards")
    p.add_argument("-n", "--num-files", type=int, default=TRAIN_SHARDS, help=f"training shards, 1 to {TRAIN_SHARDS}")
    return p


if __name__ == "__main__":
    run(main, parser())
