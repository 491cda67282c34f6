"""What the bucket costs a run: `python -m benchmarks landing`.

1. Seconds from the end of the last phase to `_SUCCESS`, against the upload of that last checkpoint alone (a process of
   its own, the same engine, server and low priority), interleaved. Goal: at most 2 s more.
2. Training steps a second with checkpoints going to the bucket all the while, against the same process with the
   uploader stopped, in turns of 40 steps. Training has one core for itself; job, uploader and server share another.
   Goal: 0.99×. By the clock, and by training's own CPU time, which what else runs on its core does not touch.

The server (`weed mini`) runs on this machine and takes more CPU than the uploader.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from homerun.bucket.s3 import S3Store
from homerun.bucket.uploader import low_priority
from homerun.bucket.wire import Endpoint
from homerun.journal import replay
from tests.s3 import Server, serve

SAVE = """\
import json, os, sys, zipfile
from pathlib import Path
def save(step, mib):
    place = Path(os.environ["NANOCHAT_BASE_DIR"], "base_checkpoints/d4")
    place.mkdir(parents=True, exist_ok=True)
    block = os.urandom(1 << 20)
    for name in (f"model_{step:06d}.pt", f"optim_{step:06d}_rank0.pt"):
        with zipfile.ZipFile(place / name, "w") as archive, archive.open("archive/data", "w", force_zip64=True) as file:
            for number in range(mib): file.write(number.to_bytes(4, "big") + block[4:])
    (place / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "val_bpb": 1.0}))
"""
WINDOW, SKIPPED = 40, 4  # steps a turn, and how many of its first are left out: the signal comes a little later
LAST = "from save import save; import sys; save(10, int(sys.argv[1]))\n"
TRAIN = """\
import sys, time
from save import save
steps, every, mib = map(int, sys.argv[1:4])
notes = open(sys.argv[4], "w", buffering=1)
for step in range(steps):
    begun, cpu, total = time.perf_counter(), time.process_time(), 0
    for number in range(400_000): total += number * number
    dt = time.perf_counter() - begun
    notes.write(f"{dt} {time.process_time() - cpu}\\n")
    print(f"step {step:05d}/{steps:05d} (1.00%) | loss: 1.0 | lrm: 1.00 | dt: {dt * 1000:.3f}ms", flush=True)
    if step % every == every - 1: save(step, mib)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=128, help="of the last checkpoint's model, and of its optimizer")
    parser.add_argument("--pairs", type=int, default=40, help="turns of 40 steps with the uploader, and without")
    parser.add_argument("--only", default="landing,throughput")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, serve(Path(folder, "weed")) as server:
        place = Path(folder)
        for name, text in (("save", SAVE), ("last", LAST), ("train", TRAIN)):
            (place / f"{name}.py").write_text(text)
        if "landing" in options.only:
            landing(place, server, options.rounds, options.mib)
        if "throughput" in options.only:
            throughput(place, server, options.pairs)


def _start(place: Path, server: Server, run: str, line: str) -> subprocess.Popen[bytes]:
    """A run of a recipe of one phase."""
    (place / f"{run}.sh").write_text(
        f'export NANOCHAT_BASE_DIR="$HOME/.cache/nanochat"\nmkdir -p $NANOCHAT_BASE_DIR\n{line}\n'
    )
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(place), "NPROC_PER_NODE": "0"}
    env |= {"HOMERUN_DIR": str(place / "dir"), "HOMERUN_RUN_ID": run, "PYTHONPATH": str(place)} | server.environ()
    env["HOMERUN_PASS_ENV"] = "PYTHONPATH"
    command = [sys.executable, "-m", "homerun", "train", "--script", str(place / f"{run}.sh")]
    return subprocess.Popen(command, env=env, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL)


def landing(place: Path, server: Server, rounds: int, mib: int) -> None:
    more, whole, alone = [], [], []
    for number in range(rounds):
        run = f"last-{number}"
        assert _start(place, server, run, f"python {place}/last.py {mib}").wait() == 0
        ended = [
            event["t"] for event in replay(place / "dir/runs" / run / "journal.jsonl") if event["type"] == "phase.end"
        ]
        success = json.loads(server.store().get(f"{run}/_SUCCESS")[0])
        whole.append(success["at"] - ended[-1])
        files = sorted((place / "dir/runs" / run).rglob("*.pt"))
        command = [sys.executable, "-m", "benchmarks.bench_landing", "--alone", server.endpoint, server.bucket]
        keys = [server.access_key, server.secret_key]
        result = subprocess.run([*command, *keys, *map(str, files)], capture_output=True, check=True, text=True)
        alone.append(float(result.stdout))
        more.append(whole[-1] - alone[-1])
        print(f"round {number + 1}: {whole[-1]:.2f} s to _SUCCESS, {alone[-1]:.2f} s alone", file=sys.stderr)
    print(
        f"last phase's end to _SUCCESS: {statistics.median(whole):.2f} s, the last checkpoint ({2 * mib} MiB) alone "
        f"{statistics.median(alone):.2f} s: {statistics.median(more):+.2f} s (median of {rounds}; goal +2 s)"
    )


def alone(endpoint: str, bucket: str, access: str, secret: str, *files: str) -> None:
    """Seconds to upload the files with nothing else going on."""
    low_priority()
    store, begun = S3Store(Endpoint(endpoint, bucket, access, secret)), time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: store.upload(Path(path), f"alone/{path}"), files))
    print(time.perf_counter() - begun)


def throughput(place: Path, server: Server, pairs: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    others = set(cores[1:]) or set(cores)
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, others)
    steps, notes = (2 * pairs + 1) * WINDOW, place / "notes"
    line = f"taskset -c {cores[0]} python {place}/train.py {steps} {WINDOW} 32 {notes}"
    job = _start(place, server, "train", line)
    journal = place / "dir/runs/train/journal.jsonl"
    while not any(event["type"] == "step" for event in replay(journal)):
        assert job.poll() is None
        time.sleep(0.1)
    (uploader,) = [p for p in psutil.Process(job.pid).children() if "homerun.bucket.uploader" in p.cmdline()]
    window = 0
    while window <= 2 * pairs:
        now = notes.read_bytes().count(b"\n") // WINDOW
        if now != window:
            window = now
            uploader.send_signal(signal.SIGSTOP if window % 2 else signal.SIGCONT)
        time.sleep(0.02)
    uploader.send_signal(signal.SIGCONT)
    assert job.wait() == 0
    landed = sum(event["bytes"] for event in replay(journal) if event["type"] == "secured")
    times = [list(map(float, line.split())) for line in notes.read_text().splitlines()]
    means = [
        [statistics.fmean(column) for column in zip(*times[start + SKIPPED : start + WINDOW], strict=True)]
        for start in range(WINDOW, len(times), WINDOW)  # off, on, off, on, ...
    ]
    ratios = [[off / on for off, on in zip(*pair, strict=True)] for pair in zip(means[::2], means[1::2], strict=True)]
    print(f"{landed / 1e6:.0f} MB landed in {len(times)} steps", file=sys.stderr)
    for name, column in zip(("the clock", "its own CPU time"), zip(*ratios, strict=True), strict=True):
        low, middle, high = statistics.quantiles(column, n=4)
        print(
            f"training with sync on makes {middle:.4f}x the steps of sync off by {name} "
            f"(median of {len(ratios)} pairs, quartiles {low:.3f} to {high:.3f}; goal 0.99x)"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        alone(*sys.argv[2:])
    else:
        main()
