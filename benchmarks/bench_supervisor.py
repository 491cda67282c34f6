"""What supervision costs: `python -m benchmarks supervisor`.

1. A recipe under homerun against plain `bash recipe | tee log`, interleaved, from the first phase's begin to the last
   one's end: wall and CPU seconds. Each phase of the recipe burns a fixed amount of CPU and notes its begin and end.
2. The supervisor's share of one core while a phase prints 10 lines a second.
3. Lines a second that the log path takes from a phase that prints as fast as it can, against `tee`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

WORK = """\
import sys, time
note = open(sys.argv[1], "a"); note.write(f"{time.time()}\\n"); note.flush()
total = 0
for number in range(int(sys.argv[2])):
    total += number * number
    if number % 400_000 == 0: print(f"step {number:05d}", total, flush=True)
note.write(f"{time.time()}\\n")
"""
TALK = """\
import sys, time
for number in range(int(sys.argv[1])):
    rest = "loss: 3.141593 | lrm: 1.00 | dt: 100.00ms | tok/sec: 5,242 | mfu: 1.00"
    print(f"step {number:05d}/01000 (1.00%) | {rest}", flush=True)
    time.sleep(0.1)
"""
FLOOD = """\
import sys, time
begun, line = time.time(), b"a line of text as long as most lines of a training log are, and then a bit\\n" * 100
for _ in range(int(sys.argv[1]) // 100): sys.stdout.buffer.write(line)
sys.stdout.flush(); open(sys.argv[2], "w").write(str(time.time() - begun))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--phases", type=int, default=6)
    parser.add_argument("--work", type=int, default=40_000_000, help="loop rounds a phase (about 1.5 s)")
    parser.add_argument("--talk", type=int, default=300, help="lines at 10 a second")
    parser.add_argument("--lines", type=int, default=3_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        place = Path(folder)
        for name, text in (("work", WORK), ("talk", TALK), ("flood", FLOOD)):
            (place / f"{name}.py").write_text(text)
        overhead(place, options.pairs, options.phases, options.work)
        share(place, options.talk)
        flood(place, options.lines)


def _run(place: Path, script: Path, under: bool) -> tuple[float, float]:
    """(wall, CPU of all children) of one run of the script, under homerun or plain."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.time()
    env = {"PATH": os.environ["PATH"], "HOME": str(place), "HOMERUN_DIR": str(place / "homerun"), "NPROC_PER_NODE": "0"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    if under:
        command = [sys.executable, "-m", "homerun", "train", "--script", str(script)]
    else:
        command = ["bash", "-c", f"bash {script} 2>&1 | tee {place}/log"]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.time() - begun, cpu


def overhead(place: Path, pairs: int, phases: int, work: int) -> None:
    script, notes = place / "recipe.sh", place / "notes"
    script.write_text("".join(f"python {place}/work.py {notes} {work}\n" for _ in range(phases)))
    rows: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for pair in range(pairs):
        for under in (False, True) if pair % 2 else (True, False):
            notes.unlink(missing_ok=True)
            _, cpu = _run(place, script, under)
            times = [float(line) for line in notes.read_text().split()]
            rows[under].append((times[-1] - times[0], cpu))
        print(f"pair {pair + 1}: plain {rows[False][-1][0]:.2f} s, homerun {rows[True][-1][0]:.2f} s", file=sys.stderr)
    wall = statistics.median(a[0] / b[0] for a, b in zip(rows[True], rows[False], strict=True))
    cpu = statistics.median(a[1] - b[1] for a, b in zip(rows[True], rows[False], strict=True))
    plain = statistics.median(row[0] for row in rows[False])
    print(
        f"{phases} phases, {plain:.2f} s plain: under homerun {wall:.4f}x wall (median of {pairs} pairs; goal 1.01x), "
    )
    print(f"  {cpu:+.2f} CPU s for the whole run, start and landing included")


def share(place: Path, lines: int) -> None:
    script = place / "talk.sh"
    script.write_text(f"python {place}/talk.py {lines}\n")
    env = {**os.environ, "HOMERUN_DIR": str(place / "talking"), "NPROC_PER_NODE": "0"}
    job = subprocess.Popen(
        [sys.executable, "-m", "homerun", "train", "--script", str(script)], env=env, stdout=subprocess.DEVNULL
    )
    time.sleep(8)
    process, begun = psutil.Process(job.pid), time.time()
    children = process.children(recursive=True)
    ours = [process, *(child for child in children if "talk.py" not in " ".join(child.cmdline()))]
    before = [sum(one.cpu_times()[:2]) for one in ours]
    time.sleep(max(1.0, lines / 10 - 12))
    seconds = time.time() - begun
    for one, cpu in zip(ours, before, strict=True):
        used = (sum(one.cpu_times()[:2]) - cpu) / seconds
        print(f"  {' '.join(one.cmdline()[1:4]):60.60} {used:.2%} of one core, {one.memory_info().rss / 1e6:.0f} MB")
    total = sum(sum(one.cpu_times()[:2]) for one in ours) - sum(before)
    print(f"at 10 lines a second the supervisor uses {total / seconds:.2%} of one core (goal: under 1%)")
    job.wait()


def flood(place: Path, lines: int) -> None:
    rates: dict[bool, list[float]] = {False: [], True: []}
    script, took = place / "flood.sh", place / "took"
    script.write_text(f"python {place}/flood.py {lines} {took}\n")
    for under in (False, True) * 5:
        _run(place, script, under)
        rates[under].append(lines / float(took.read_text()))
    plain, ours = statistics.median(rates[False]), statistics.median(rates[True])
    print(f"a phase prints {ours:,.0f} lines/s under homerun, {plain:,.0f} through tee: {ours / plain:.2f}x (medians)")
    print(json.dumps({"lines_per_second": {"homerun": round(ours), "tee": round(plain)}}))


if __name__ == "__main__":
    main()
