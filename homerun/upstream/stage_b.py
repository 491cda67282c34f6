"""Stage B of preflight, run by the job in upstream's own environment while the script waits for its next phase.

`run_gates` asks gates.py; `try_steps` trains some real steps, to tell a slow box before hours of it are paid for. Both
run under a guard of their own, as the script does: a job that dies leaves nothing behind, and meanwhile it goes on with
its other duties (`tick`).
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from statistics import median
from typing import Any

from homerun.upstream.flags import Flags
from homerun.upstream.gates import BEGUN
from homerun.upstream.metrics import LogReader
from homerun.upstream.runner import GUARD

Finding = tuple[str, str, str]
Tick = Callable[[], bool]  # called a few times a second; false: stop

GATES_SECONDS = 300.0
STEPS, STEPS_SECONDS = 20, 600.0
FEWEST_STEPS = 4  # that tell anything: half of them compile and fill caches
GRACE_SECONDS, POLL_SECONDS = 3.0, 0.25

# Against the table (homerun/job/saving.py), which is some 20 % below what upstream published for depth 24. What slows
# a box without breaking it (SDPA in place of flash attention, a shared or throttled GPU, a slow disk: 13 % MFU where
# others have 50 %) costs a factor of two to five; a table that is off by a third must not stop a good one.
SLOW, BROKEN = 0.7, 0.4

# Appended to base training's own arguments, the last value wins: no sample or checkpoint ever comes, many more steps
# than are wanted, for it is ended before the last one, which would save (a toy's steps take 10 ms, and the log is read
# four times a second), and of evaluations only that before the first step (-1 means "never" to some commits and "at
# every step" to others), cut from 10 million tokens to one batch of eight GPUs.
NEVER, EVAL_TOKENS = 10**6, 2**19
TRIAL = {
    "num-iterations": 50 * STEPS,
    "eval-every": NEVER,
    "core-metric-every": NEVER,
    "sample-every": NEVER,
    "save-every": NEVER,
    "resume-from-step": -1,
    "run": "dummy",
}


def run_gates(
    python: Path, root: Path, env: Mapping[str, str], nproc: int, log: Path, tick: Tick = lambda: True
) -> list[dict[str, Any]]:
    """[{name, verdict, seen, hint, seconds, stage}], as `check` events have them. About a minute on 8 GPUs.

    python: of upstream's environment (`root/.venv/bin/python`). log: of their output. Empty where `tick` ended it.
    """
    command = [str(python), str(Path(__file__).with_name("gates.py")), "--nproc", str(nproc)]
    status = run_aside(command, root, env, log, GATES_SECONDS, tick)
    if status == STOPPED:
        return []
    found, running, words = [], "gates", ""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(BEGUN):
            running = line.removeprefix(BEGUN)
        elif line.startswith('{"name": '):
            found.append(json.loads(line) | {"stage": "B"})
        else:  # a library's own words
            words = line.strip() or words
    if status != 0:
        seen = f"no answer in {GATES_SECONDS:.0f} s" if status == LATE else f"died with status {status}: {words[-200:]}"
        hint = f"Upstream's environment or a GPU is not whole: see {log}, and the log of `uv sync`"
        found.append({"name": running, "verdict": "fail", "seen": seen, "hint": hint, "seconds": 0.0, "stage": "B"})
    return found


@dataclass
class Trial:
    """What some steps of base training told. rates: tokens a second of each; words: its first error or last line."""

    rates: list[float] = field(default_factory=list)
    words: tuple[str, str] = ("", "")  # what it said, what to do about it
    status: int | str = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float | None:
        """Tokens a second once it is warm; None where too few steps were made."""
        return median(self.rates[len(self.rates) // 2 :]) if len(self.rates) >= FEWEST_STEPS else None


def trial_argv(argv: Sequence[str], flags: Flags) -> list[str]:
    """Base training as the run would start it, but for `STEPS` steps; flags as that commit spells them."""
    wanted = dict(TRIAL)
    asked = flags.value(argv, "eval-tokens")
    if str(asked).isdigit() and int(str(asked)) > EVAL_TOKENS:
        wanted["eval-tokens"] = EVAL_TOKENS
    return [*argv, *(f"{flag}={value}" for name, value in wanted.items() if (flag := flags.spell(name)))]


def try_steps(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, base: Path, log: Path, tick: Tick = lambda: True
) -> Trial:
    """Run `argv` (`trial_argv`) on the data and the tokenizer of the base dir `base`, until `STEPS` steps were made.

    In a base dir of its own that only links to them: nothing of it can be taken for a checkpoint of the run.
    """
    trial, begun = Trial(), time.monotonic()
    reader = LogReader()
    with tempfile.TemporaryDirectory(prefix=".steps-", dir=base.parent) as folder:
        for entry in base.iterdir():
            if not entry.name.endswith("_checkpoints") and entry.name not in ("base_eval", "report"):
                Path(folder, entry.name).symlink_to(entry)
        log.touch(mode=0o600)
        with open(log, "rb") as printed:

            def goes_on() -> bool:
                for kind, data in reader.feed(printed.read()):
                    if kind == "step" and data.get("tok_per_sec"):
                        trial.rates.append(data["tok_per_sec"])
                    elif kind == "warning" and "rror" in data["text"] and not trial.words[0]:
                        trial.words = (data["text"], data["hint"])
                return len(trial.rates) < STEPS and tick()

            trial.status = run_aside(argv, cwd, {**env, "NANOCHAT_BASE_DIR": folder}, log, STEPS_SECONDS, goes_on)
            goes_on()
    del trial.rates[STEPS:]
    trial.seconds = time.monotonic() - begun
    if not trial.words[0]:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        trial.words = (next((line.strip()[-200:] for line in reversed(lines) if line.strip()), "nothing printed"), "")
    return trial


def judge_trial(trial: Trial, expected: float | None, box: str) -> Finding:
    """expected: tokens a second of this box by the table, None where it has none. box: "8 × H100 at depth 24"."""
    rate, skip = trial.rate, "HOMERUN_SKIP_CHECKS=training-speed"
    if rate is None:
        if trial.status == LATE:
            seen = f"{len(trial.rates)} steps in {STEPS_SECONDS:.0f} s: too few to tell"
            return "warn", seen, "So slow a machine may never finish: choose a lower --depth, or another one"
        what, to_do = trial.words
        seen = f"base training ended with status {trial.status} after {len(trial.rates)} steps: {what}"
        return "fail", seen, to_do or "It would fail in the run as well: the line above says why"
    seen = f"{rate:,.0f} tokens/s over {len(trial.rates)} steps"
    if expected is None:
        return "pass", f"{seen}; {box} is in no table to compare with", ""
    seen = f"{seen}, {rate / expected:.0%} of what is expected of {box}"
    hint = "Flash attention, power caps, other users of the GPUs, a slow disk? Take another machine"
    if rate < BROKEN * expected:
        return "fail", seen, f"{hint}, or {skip}"
    return ("warn", seen, hint) if rate < SLOW * expected else ("pass", seen, "")


LATE, STOPPED = "late", "stopped"


def run_aside(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path, seconds: float, goes_on: Tick
) -> int | str:
    """Run a command to its end, or end it: its exit status (negative for a signal), `LATE`, or `STOPPED` by goes_on().

    Whatever happens, nothing that it started is running when this returns. Its output is appended to `log`.
    """
    ours, theirs = socket.socketpair()
    guard = [sys.executable, "-I", "-S", str(GUARD), str(theirs.fileno()), str(GRACE_SECONDS), *command]
    with ours, open(log, "ab") as output:
        process = subprocess.Popen(
            guard,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        until, words, status = time.monotonic() + seconds, b"", None
        try:
            while status is None:
                if not goes_on():
                    return STOPPED
                if time.monotonic() > until:
                    return LATE
                if select([ours], [], [], POLL_SECONDS)[0]:
                    said = ours.recv(1 << 16)
                    if not said:
                        return -9  # the guard was killed
                    *lines, words = (words + said).split(b"\n")
                    status = next((word["status"] for word in map(json.loads, lines) if "status" in word), None)
            return status
        finally:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)  # the lifeline: whatever is left is ended
            process.wait()
