"""A journal of a million events: seconds and memory to write it, fold it, draw it, and report it.

    python -m benchmarks.bench_journal [EVENTS]

Each part runs in a process of its own; memory is its peak resident set beyond that of the imports.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from homerun.console.live import Live
from homerun.console.plain import Plain
from homerun.console.view import view
from homerun.journal import Journal, replay
from homerun.report.write import write_report
from homerun.state import RunState, fold

EVENTS = 1_000_000
PARTS = ("write", "fold", "plain", "live", "view", "report")


def main() -> None:
    events = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder, "journal.jsonl")
        print(f"{'part':<10}{'events':>10}{'seconds':>10}{'µs/event':>10}{'MiB':>8}")
        for count in (events // 10, events):
            journal.unlink(missing_ok=True)
            for part in PARTS:
                command = [sys.executable, "-m", "benchmarks.bench_journal", part, str(journal), str(count)]
                found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
                each = found["seconds"] / count * 1e6
                print(f"{part:<10}{count:>10,}{found['seconds']:>10.2f}{each:>10.2f}{found['mib']:>8.1f}", flush=True)


def one(part: str, journal: Path, count: int) -> None:
    state = fold(replay(journal)) if part in ("view", "report") else RunState()
    before, begun = _peak(), time.perf_counter()
    if part == "write":
        _write(Journal(journal, 1), count)
    elif part == "fold":
        fold(replay(journal))
    elif part in ("plain", "live"):
        with open(os.devnull, "w", encoding="utf-8") as out:
            console = Plain(out) if part == "plain" else Live(out)
            for event in replay(journal):
                console.event(event)
            console.close()
    elif part == "view":
        with open(os.devnull, "w", encoding="utf-8") as out:
            Console(file=out, width=120, force_terminal=True).print(view(state, state.updated, 120))
    else:
        write_report(journal.parent / "report", state)
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "mib": (_peak() - before) / 1024}))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _write(journal: Journal, count: int) -> None:
    """What a long run writes: mostly steps, now and then an evaluation, a machine sample, a gauge, a sample of text."""
    journal.emit("run.begin", run="bench", recipe="speedrun", script={"path": "runs/speedrun.sh"}, version="0")
    gpus = [{"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 << 30}] * 8
    journal.emit("attempt.begin", machine={"host": "h", "gpus": gpus}, nproc=8, price_usd_per_hour=24.0)
    journal.emit("phase.begin", phase="base_train", name="base_train", argv=["torchrun"], line=1)
    use = [{"util": 99, "memory_bytes": 70 << 30, "power_w": 690, "temperature_c": 66}] * 8
    for step in range(count - 3):
        match step % 100:
            case 10:
                journal.emit("machine", cpu=12.5, memory_bytes=90 << 30, gpus=use)
            case 20:
                journal.emit("gauge", lost_minutes=1.0, lost_usd=0.4, secured_step=step, pending_bytes=0)
            case 30:
                journal.emit("eval", phase="base_train", metric="val_bpb", value=1.0 + 1 / (step + 1), step=step)
            case 40:
                journal.emit("sample", phase="base_train", text=f"The capital of France is {step}")
            case _:
                journal.emit(
                    "step", phase="base_train", step=step, total=count, loss=2.5 + 8 / (step + 1), lrm=1.0, dt_ms=480.2,
                    tok_per_sec=1_090_000, mfu=47.5, tokens=step * 524_288,
                )  # fmt: skip
    journal.close()


if __name__ == "__main__":
    if len(sys.argv) == 4:
        one(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
