"""Seconds of preflight, check by check: stage A on a folder bucket and a real S3 server, stage B as a CPU can.

    python -m benchmarks.bench_preflight [ROUNDS]

HOMERUN_UPSTREAM_SRC=<clone of nanochat> checks upstream's speedrun, else the toy recipe. All checks of a stage start at
once, so each time is from the start of the stage to that answer; `all` is the command from start to exit.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from homerun.upstream.flags import module_flags
from homerun.upstream.stage_b import run_gates, trial_argv, try_steps
from tests.s3 import serve

ROUNDS = 5
ROOT = Path(__file__).parent.parent
TOY = "--depth=4 --aspect-ratio=32 --head-dim=32 --max-seq-len=128 --total-batch-size=2048"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder, "weed")) as server:
        columns = {"folder": stage_a(Path(folder), {}, rounds), "S3": stage_a(Path(folder), server.environ(), rounds)}
    print(f"{'stage A':<16}" + "".join(f"{name:>10}" for name in columns))
    for check in sorted({check for column in columns.values() for check in column}):
        cells = (f"{column[check]:.3f}" if check in column else "-" for column in columns.values())
        print(f"{check:<16}" + "".join(f"{cell:>10}" for cell in cells))
    print(f"\n{'stage B':<16}{'CPU':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for check, seconds in stage_b(Path(folder)):
            print(f"{check:<16}{seconds:>10.3f}")


def stage_a(folder: Path, bucket: dict[str, str], rounds: int) -> dict[str, float]:
    """{check: median seconds} of some runs of the command."""
    source = os.environ.get("HOMERUN_UPSTREAM_SRC")
    what = ["--upstream", source] if source else ["--script", str(ROOT / "recipes" / "toy.sh")]
    env = {**os.environ, **bucket, "HOMERUN_DIR": str(folder / "dir"), "HOMERUN_PORT": "0"}
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "homerun", "preflight", *what, "--json"]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        found.setdefault("all", []).append(time.perf_counter() - begun)
        for result in json.loads(done.stdout):
            found.setdefault(result["name"], []).append(result["seconds"])
    return {check: median(seconds) for check, seconds in found.items()}


def stage_b(folder: Path) -> list[tuple[str, float]]:
    """The gates that apply without a GPU, and twenty real steps of the toy's base training."""
    begun = time.perf_counter()
    gates = run_gates(Path(sys.executable), ROOT, os.environ, 0, folder / "gates.log")
    found = [(gate["name"], gate["seconds"]) for gate in gates] + [("all gates", time.perf_counter() - begun)]
    base = folder / "base"
    base.mkdir()
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    for module in (["dataset", "-n", "4"], ["tok_train", "--vocab-size=2048", "--max-chars=900000"]):
        command = [sys.executable, "-m", f"homerun.trainer.{module[0]}", *module[1:]]
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    flags = module_flags(ROOT, "homerun.trainer.base_train")
    assert flags
    argv = trial_argv([sys.executable, "-m", "homerun.trainer.base_train", *TOY.split()], flags)
    trial = try_steps(argv, env, ROOT, base, folder / "steps.log")
    assert trial.rate, trial
    return [*found, ("training-speed", trial.seconds)]


if __name__ == "__main__":
    main()
