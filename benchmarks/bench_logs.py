"""What reading logs and scanning artifacts costs the job: CPU seconds, of one process on one core.

python -m benchmarks.bench_logs
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from homerun.redact import Redactor
from homerun.upstream.artifacts import Saver, Watch, scan
from homerun.upstream.metrics import LogReader
from homerun.upstream.tail import Tail

STEP = (
    b"step 00011/00020 (55.00%) | loss: 6.924673 | lrm: 0.30 | dt: 16.23ms | tok/sec: 31,537 | bf16_mfu: 0.00 | "
    b"epoch: 1 pq: 1 rg: 0 | total time: 0.00m | eta: 0.0m\n"
)


def main() -> None:
    for length in (25, 50, 80, 250):
        text = prose(40_000_000, length)
        rate = len(text) / 1e6 / seconds(lambda text=text: [LogReader().feed(piece) for piece in pieces(text)])
        print(f"LogReader, lines of {length} bytes without an event: {rate:,.0f} MB/s")
    print(f"LogReader, steps: {50_000 / seconds(lambda: LogReader().feed(STEP * 50_000)):,.0f} lines/s")
    with tempfile.TemporaryDirectory() as folder:
        tail_a_flood(Path(folder))
        scan_many(Path(folder, "tree"))


def tail_a_flood(folder: Path) -> None:
    raw = folder / "raw.log"
    lines = 1_000_000
    raw.write_bytes(prose(lines * 80, 80))
    redactor = Redactor({f"KEY_{number}": f"sEcret+/={number}-abcdefghijk" for number in range(5)})
    tail = Tail(raw, folder / "shown.log", redactor, LogReader())
    print(f"Tail, five secrets, lines of 80 bytes: {lines / seconds(tail.finish):,.0f} lines/s")


def scan_many(base: Path) -> None:
    for number in (2_000, 10_000):
        for index in range(number):
            path = base / f"{index // 100}" / f"{index}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        watch = Watch(base, 1, Saver())
        watch.poll(())
        watch.poll(())
        print(f"scan of {number:,} files: {1000 * seconds(lambda: scan(base)):.1f} ms", end="; ")
        print(f"poll without a change: {1000 * seconds(lambda watch=watch: watch.poll(())):.1f} ms")


def prose(size: int, length: int) -> bytes:
    """About `size` bytes of random words in lines of `length` bytes."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyzCEST", k=rng.randint(2, 9))) for _ in range(500)]
    page = [" ".join(rng.choices(words, k=length // 3))[: length - 1] for _ in range(5_000)]
    return ("\n".join(page) + "\n").encode() * (size // (5_000 * length))


def pieces(text: bytes) -> Iterator[bytes]:
    return (text[start : start + (1 << 20)] for start in range(0, len(text), 1 << 20))


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
