"""Stage B of preflight: as soon as upstream's own environment is there, and just before base training begins."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from homerun import cost
from homerun.job.saving import table_tokens_per_second
from homerun.journal import Emit
from homerun.settings import Settings
from homerun.upstream.flags import Flags
from homerun.upstream.plan import Step
from homerun.upstream.runner import Phase
from homerun.upstream.stage_b import STEPS, STOPPED, judge_trial, run_gates, trial_argv, try_steps

TRAINING_SPEED = "training-speed"
# Base training's own speed is in the table; with any of these it is another model's.
OTHER_MODEL = ("aspect-ratio", "head-dim", "max-seq-len", "window-pattern")
TABLE_DEPTHS = range(12, 41)  # below, launching kernels takes longer than what they compute


class Gates:
    """Asked before each phase begins: `before(phase, argv)` says why nothing more may begin, or nothing.

    nproc: GPUs of the run, 0 for the CPU. gpus: those, [{name, …}]. price: USD an hour of the machine, or None.
    env: the script's. raw: the folder of this attempt's raw logs. tick() is called meanwhile; false: stop.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        root: Path,
        base: Path,
        raw: Path,
        env: Mapping[str, str],
        nproc: int,
        gpus: Sequence[Mapping[str, Any]],
        price: float | None,
        flags: Callable[[Step], Flags | None],
        emit: Emit,
        say: Callable[[str], None],
        tick: Callable[[], bool],
    ):
        self.settings, self.root, self.base, self.raw, self.env = settings, root, base, raw, env
        self.nproc, self.gpus, self.price = nproc, gpus, price
        self.flags, self.emit, self.say, self.tick = flags, emit, say, tick
        self._gates = nproc > 0
        self._speed = settings.homerun_check_steps and TRAINING_SPEED not in settings.homerun_skip_checks

    def before(self, phase: Phase, argv: list[str]) -> str:
        module = (phase.step.module if phase.step else None) or ""
        results = []
        python = self.root / ".venv" / "bin" / "python"
        if self._gates and module and python.exists():
            self._gates = False
            results += self._run_gates(python)
        flags = self.flags(phase.step) if phase.step else None
        if self._speed and flags and module.rpartition(".")[2] == "base_train" and not phase.background:
            self._speed = False
            results += self._try_steps(phase, argv, flags)
        for result in results:
            event = self.emit("check", **result)  # redacted: what is seen may be upstream's own words
            if event["name"] == TRAINING_SPEED and event["verdict"] == "pass":
                self.say(f"{TRAINING_SPEED}: {event['seen']}")
        skipped = self.settings.homerun_skip_checks
        bad = [one for one in results if one["verdict"] == "fail" and one["name"] not in skipped]
        return "; ".join(f"{one['name']}: {one['seen']} ({one['hint']})" for one in bad)

    def _run_gates(self, python: Path) -> list[dict[str, Any]]:
        results = run_gates(python, self.root, self.env, self.nproc, self.raw / "gates.log", self.tick)
        self.say(f"stage B: {len(results)} checks in {self._cost(sum(one['seconds'] for one in results))}")
        return results

    def _try_steps(self, phase: Phase, argv: list[str], flags: Flags) -> list[dict[str, Any]]:
        depth = str(flags.value(argv, "depth"))
        box = f"{len(self.gpus)} × {self.gpus[0].get('name')} at depth {depth}" if self.gpus else "this CPU"
        expected = None
        if depth.isdigit() and int(depth) in TABLE_DEPTHS and not any(_says(argv, flags, name) for name in OTHER_MODEL):
            expected = table_tokens_per_second(int(depth), self.gpus)
        log, env = self.raw / f"{TRAINING_SPEED}.log", environment(phase.pid)
        if not env:
            return []
        self.say(f"{TRAINING_SPEED}: {STEPS} real steps of {phase.name} that nobody keeps, a minute or two")
        trial = try_steps(trial_argv(argv, flags), env, phase.cwd, self.base, log, self.tick)
        if trial.status == STOPPED and trial.rate is None:
            return []  # the run ends for another reason
        verdict, seen, hint = judge_trial(trial, expected, box)
        seen = f"{seen}; this took {self._cost(trial.seconds)}"
        seconds = round(trial.seconds, 3)
        return [
            {"name": TRAINING_SPEED, "verdict": verdict, "seen": seen, "hint": hint, "seconds": seconds, "stage": "B"}
        ]

    def _cost(self, seconds: float) -> str:
        usd = cost.dollars(seconds, self.price)
        return cost.minutes(seconds) + (f" ({cost.money(usd)})" if usd is not None else "")


def _says(argv: list[str], flags: Flags, flag: str) -> bool:
    name = flags.spell(flag)
    return any(word.partition("=")[0] == name for word in argv)


def environment(pid: int) -> dict[str, str]:
    """The environment of a phase that waits to begin, as its shim has it from the script: its exports included.

    Nothing where the shim is gone meanwhile.
    """
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "surrogateescape").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
