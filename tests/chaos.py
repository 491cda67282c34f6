"""Chaos: kill -9 at random moments, empty the disk, go on; nothing that was secured is lost, nothing is torn.

    python tests/chaos.py --fake 50 --real 10 --outages 3 30 300 --slow-down 60      (`make chaos`)

A case is made by its seed: one to three kills, each of a victim at a moment of the run. After a kill that ends the job
the disk is emptied (the folder `runs` goes; only the bucket stays) and the run is started again, until it is good. Then
`problems` judges the whole story by the dead machines' own journals, which are kept aside as evidence.
"""

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from fake_upstream import command, environment, make
from offline import GENERATIONS, PHASE_ARGS, build_kit
from offline import environment as offline
from s3 import FaultProxy, Seen, serve

from homerun.bucket.restore import read_manifest
from homerun.bucket.store import open_store
from homerun.journal import Event, Follower, replay
from homerun.settings import Settings

VICTIMS = ("job", "machine", "uploader", "phase")  # machine: everything at once, as when a spot machine is taken away
# Phases whose repetition is lost work; set-up and downloads are what any new machine costs.
WORK = re.compile(r"tok_train|base_train|base_eval|chat_sft|chat_eval")
# Between a step and its event in the journal, and what the gauge rounds away (0.001 minutes).
SLACK_SECONDS = 0.5
_PHASE = re.compile(r"-m (scripts|nanochat)\.\w")


@dataclass(frozen=True)
class Kill:
    """Whom, and when: `delay` seconds after `phase` began and has made `step`; phase None: after the start."""

    victim: str
    phase: str | None
    step: int
    delay: float

    def __str__(self) -> str:
        return f"{self.victim} at {self.phase or 'start'}{f' {self.step}' if self.step else ''}+{self.delay:.1f}s"


def kills_of(seed: int, total: int) -> list[Kill]:
    """The kills of a case: half of them in base training, the others at a phase's begin or before the first."""
    rng = random.Random(seed)
    found = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        phase = rng.choice((*["base_train"] * 5, None, "tok_train", "base_eval", "chat_sft", "chat_eval-sft"))
        step = rng.randrange(total) if phase == "base_train" else 0
        found.append(Kill(rng.choice(VICTIMS), phase, step, rng.uniform(0.0, 1.0 if phase else 3.0)))
    return found


@dataclass
class Death:
    """An attempt that was killed: when (Unix seconds), and what it had written to its own journal.

    What `problems` finds out: seconds of work lost, seconds that the gauge showed, {phase: steps made again}.
    """

    at: float
    events: list[Event]
    lost: float = 0.0
    shown: float = 0.0
    redone: dict[str, int] = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        return self.events[0]["attempt"] if self.events else 0


@dataclass
class Case:
    """One run under HOMERUN_DIR `dir`, of `total` steps of base training, and what became of it."""

    dir: Path
    total: int
    env: dict[str, str]
    arguments: tuple[str, ...]
    run: str = "run"
    deaths: list[Death] = field(default_factory=list)
    code: int | None = None

    @property
    def journal(self) -> Path:
        return self.dir / "runs" / self.run / "journal.jsonl"

    @property
    def said(self) -> str:
        return (self.dir / "said.txt").read_text()

    def start(self) -> subprocess.Popen[bytes]:
        self.dir.mkdir(parents=True, exist_ok=True)
        with open(self.dir / "said.txt", "wb") as file:
            return subprocess.Popen(command("train", *self.arguments), env=self.env, stdout=file, stderr=file)

    def homerun(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), env=self.env, capture_output=True, text=True, check=False)

    def play(self, kills: list[Kill]) -> None:
        """Start, kill, empty the disk, start again …, to the end that nobody disturbs."""
        job = self.start()
        try:
            for kill in kills:
                if not self._comes(kill, job):
                    break
                at = time.time()
                strike(job.pid, kill.victim)
                if kill.victim == "uploader":
                    continue  # the job goes on
                if kill.victim == "machine":
                    wait_for(self._is_off, 60)
                if job.wait() == 0:
                    break  # the phase was a harmless one, or was over
                self._bury(at)
                job = self.start()
            self.code = job.wait()
        finally:
            job.kill()  # where we were interrupted; the guard ends the rest
            job.wait()

    def _comes(self, kill: Kill, job: subprocess.Popen[bytes]) -> bool:
        """Wait for the moment of a kill in this attempt; False when the attempt is over before."""
        follower = Follower(self.journal)
        dead = max((death.attempt for death in self.deaths), default=0)
        came = kill.phase is None
        while not came and job.poll() is None:
            time.sleep(0.05)
            for event in follower.poll():
                if event["attempt"] > dead and event.get("phase") == kill.phase:
                    began = event["type"] == "phase.begin" and not kill.step
                    came = came or began or (event["type"] == "step" and event["step"] >= kill.step)
        time.sleep(kill.delay if came else 0)
        return job.poll() is None

    def _bury(self, at: float) -> None:
        """The disk is lost: only what is in the bucket stays. Its journal is kept as evidence."""
        wait_for(lambda: not self.alive(), 60)
        grave = self.dir / f"lost-{len(self.deaths)}"
        if (self.dir / "runs").exists():
            (self.dir / "runs").rename(grave)
        known = {death.attempt for death in self.deaths}
        events = [event for event in replay(grave / self.run / "journal.jsonl") if event["attempt"] not in known]
        newest = max((event["attempt"] for event in events), default=0)
        self.deaths.append(Death(at, [event for event in events if event["attempt"] == newest]))

    def _is_off(self) -> bool:
        """A machine takes with it what was born while it died, which no list of its processes had."""
        left = self.alive()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return not left

    def alive(self) -> list[psutil.Process]:
        """Processes that work in this case's folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and str(self.dir) in f"{process.cwd()} {_words(process)}":
                    found.append(process)
        return found

    def events(self) -> list[Event]:
        """Everything that any attempt wrote, the dead ones' last words included, in order."""
        found = {(event["attempt"], event["seq"]): event for event in replay(self.journal)}
        found |= {(event["attempt"], event["seq"]): event for death in self.deaths for event in death.events}
        return [found[key] for key in sorted(found)]


def strike(job: int, victim: str) -> None:
    """kill -9 of the job, its uploader, the processes of the running phase, or all of them."""
    below = psutil.Process(job).children(recursive=True)
    uploaders = [process for process in below if "homerun.bucket.uploader" in _words(process)]
    phases = [process for process in below if _PHASE.search(_words(process)) and "shim.py" not in _words(process)]
    chosen = {
        "job": [psutil.Process(job)],
        "uploader": uploaders,
        "phase": phases,
        "machine": [*uploaders, psutil.Process(job), *below],  # in this order: the uploader must not see the job go
    }[victim]
    for process in chosen:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("it did not come about in time")
        time.sleep(0.05)


# -- the verdict -------------------------------------------------------------------------------------------------------


def problems(case: Case) -> list[str]:
    """What is wrong with a case that was played to its end; [] when it is as promised."""
    if case.code != 0:
        return [f"it ended {case.code}: {case.said[-3000:]}"]
    found = []
    verified = case.homerun("verify", case.run)
    if verified.returncode or "a finished run" not in verified.stderr:
        found.append(f"verify ended {verified.returncode}: {verified.stdout[-2000:]}{verified.stderr[-500:]}")
    keys = read_manifest(open_store(Settings.load(case.env)), case.run).entries
    found += [f"{pattern} is not in the bucket" for pattern in _final(case.total) if not any(map(pattern.match, keys))]
    curve = {event["step"] for event in replay(case.journal) if _is(event, "step", "base_train")}
    if holes := set(range(case.total)) - curve:
        found.append(f"the loss curve lacks steps {sorted(holes)[:10]}")
    if left := case.alive():
        found.append(f"still running: {left}")
    told = {(event["attempt"], event["seq"]) for event in replay(case.journal)}
    return found + [problem for death in case.deaths for problem in _lost_too_much(case.events(), death, told)]


def _final(total: int) -> list[re.Pattern[str]]:
    """What is in the bucket of every good run, however often it died."""
    base = rf"base_checkpoints/d\d+/{{}}_{total:06d}"
    names = [base.format("model"), base.format("meta"), base.format("optim"), rf"base_eval/base_model_{total:06d}.csv"]
    return list(map(re.compile, [*names, "tokenizer/tokenizer.pkl", "tokenizer/token_bytes.pt", r"chatsft_.*/model_"]))


def _is(event: Event, type: str, phase: str) -> bool:
    return event["type"] == type and event.get("phase") == phase


def _lost_too_much(events: list[Event], death: Death, told: set[tuple[int, int]]) -> list[str]:
    """Work that a death cost, against what was secured when it came, and against what the gauge had shown.

    told: (attempt, seq) of the events that were in the bucket.
    """
    if not death.events:
        return []
    found, lost, attempt = [], 0.0, death.attempt
    before = [event for event in events if event["attempt"] <= attempt and event["t"] <= death.at]
    for begin in death.events:
        if begin["type"] != "phase.begin" or not WORK.match(begin["phase"]) or begin["t"] > death.at:
            continue
        phase = begin["phase"]
        again = next((e for e in events if e["attempt"] > attempt and _is_fate(e, phase)), None)
        if again is None or again["type"] == "phase.skip":
            continue
        resumed = resumed_step(again)
        ends = [e for e in death.events if _is(e, "phase.end", phase) and e["t"] <= death.at]
        kept = [e["t"] for e in death.events if _is(e, "step", phase) and e["step"] == resumed - 1]
        lost += max(0.0, (ends[0]["t"] if ends else death.at) - (kept or [begin["t"]])[-1])
        made = {e["group"] for e in death.events if _is(e, "group", phase) and e["kind"] in ("checkpoint", "tokenizer")}
        known = ends and (attempt, ends[0]["seq"]) in told
        if known and made and made <= {e["group"] for e in before if e["type"] == "secured"}:
            found.append(f"attempt {attempt}: {phase} had ended and was secured, and was run again")
        secured = newest_secured(before, phase)
        death.redone[phase] = 1 + max((e["step"] for e in before if _is(e, "step", phase)), default=-1) - resumed
        if phase == "base_train" and resumed < secured:
            found.append(f"attempt {attempt}: {phase} went on from {resumed}, but {secured} was secured")
    gauges = [event for event in death.events if event["type"] == "gauge" and event["t"] <= death.at]
    shown = gauges[-1]["lost_minutes"] * 60 + death.at - gauges[-1]["t"] if gauges else 0.0
    death.lost, death.shown = lost, shown
    if lost > shown + SLACK_SECONDS:
        found.append(f"attempt {attempt}: {lost:.1f} s of work were lost, the gauge had shown {shown:.1f} s")
    return found


def _is_fate(event: Event, phase: str) -> bool:
    return event["type"] in ("phase.begin", "phase.skip") and event["phase"] == phase


def resumed_step(begin: Event) -> int:
    """The step that a phase was begun at."""
    words = [word.partition("=")[2] for word in begin["argv"] if word.startswith("--resume-from-step=")]
    return int(words[-1]) if words else 0


def newest_secured(events: list[Event], phase: str) -> int:
    """The newest checkpoint of a phase whose two halves are in the bucket, by the journals; 0 when there is none."""
    made = {event["group"]: event.get("step", 0) for event in events if _is(event, "group", phase)}
    secured = {event["group"] for event in events if event["type"] == "secured"}
    return max((step for group, step in made.items() if {group, f"{group}.optim"} <= secured), default=0)


# -- the cases ---------------------------------------------------------------------------------------------------------


def fake_case(dir: Path, run: str = "run", total: int = 60, sleep: float = 0.1, **env: str) -> Case:
    """A run of the stand-in upstream that saves every ten steps; in a folder, unless `env` names a bucket."""
    words = f"base_train=--num-iterations={total} --save-every=10 --sleep={sleep}"
    more = environment(HOMERUN_DIR=str(dir / "dir"), HOMERUN_RUN_ID=run, HOMERUN_MAX_ATTEMPTS="99", **env)
    upstream = make(dir / "upstream")
    return Case(dir / "dir", total, more, ("--upstream", str(upstream), "--phase-args", words), run)


def real_case(dir: Path, source: str, kit: Path, run: str = "run", total: int = 120, **env: str) -> Case:
    """A run of the real upstream at its newest generation, offline, on the CPU; it saves every twenty steps."""
    args = dict(PHASE_ARGS["G3"])
    args["base_train"] += f" --num-iterations={total} --save-every=20 --eval-every={total}"
    more = environment(HOMERUN_DIR=str(dir), HOMERUN_RUN_ID=run, HOMERUN_MAX_ATTEMPTS="99", **env) | offline(kit)
    more["HOMERUN_PHASE_ARGS"] = json.dumps(args)
    return Case(dir, total, more, ("--upstream", source, "--ref", GENERATIONS["G3"]), run)


def disturbed(case: Case, begin: Callable[[], object], end: Callable[[], object], seconds: float) -> list[str]:
    """Play a run during which something is wrong for `seconds`, from its first steps on; what is wrong with its end.

    Training must not notice: one attempt, every phase begun once.
    """
    job = case.start()
    try:
        wait_for(lambda: job.poll() is not None or any(_is(e, "step", "base_train") for e in replay(case.journal)), 120)
        begin()
        try:
            time.sleep(seconds)
        finally:
            end()
        case.code = job.wait()
    finally:
        job.kill()
        job.wait()
    begun = [event["phase"] for event in replay(case.journal) if event["type"] == "phase.begin"]
    return problems(case) + [f"{phase} began twice" for phase in set(begun) if begun.count(phase) > 1]


def slow_down(request: Seen) -> tuple:
    return "status", 503, "SlowDown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", type=int, default=0, help="cases on the stand-in upstream, every other one over S3")
    parser.add_argument("--real", type=int, default=0, help="cases on the clone that HOMERUN_UPSTREAM_SRC names")
    parser.add_argument("--outages", type=float, nargs="*", default=[], help="seconds for which the server is dead")
    parser.add_argument("--slow-down", type=float, nargs="*", default=[], help="seconds for which it says SlowDown")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.fake)
    bad = 0

    def tell(name: str, case: Case, found: list[str]) -> None:
        nonlocal bad
        bad += bool(found)
        costs = [f"redone {d.redone or 0}, lost {d.lost:.1f} s of {d.shown:.1f} s shown" for d in case.deaths]
        print("\n    ".join(["bad " if found else "good", name, *costs, *found]), flush=True)

    with (
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as place,
        serve(Path(place) / "weed") as server,
    ):
        folder = Path(place)
        for seed in seeds:
            env = server.environ() if seed % 2 else {}
            case, kills = fake_case(folder / f"fake-{seed}", f"fake-{seed}", **env), kills_of(seed, 60)
            case.play(kills)
            tell(f"fake {seed}{' on S3' if env else ''}: {', '.join(map(str, kills))}", case, problems(case))
        source = os.environ.get("HOMERUN_UPSTREAM_SRC")
        if options.real and not source:
            print("the real upstream is left out: HOMERUN_UPSTREAM_SRC names no clone of it", flush=True)
        for seed in range(options.seed, options.seed + options.real) if source else ():
            case, kills = real_case(folder / f"real-{seed}", source, build_kit(folder / "kit")), kills_of(seed, 120)
            case.play(kills)
            tell(f"real {seed}: {', '.join(map(str, kills))}", case, problems(case))
        for number, seconds in enumerate(options.outages):
            case = fake_case(folder / f"outage-{number}", f"outage-{number}", 200, **server.environ())
            tell(f"server dead for {seconds:.0f} s", case, disturbed(case, server.kill, server.start, seconds))
        for number, seconds in enumerate(options.slow_down):
            with FaultProxy(server.endpoint) as proxy:
                case = fake_case(folder / f"slow-{number}", f"slow-{number}", 200, **server.environ(proxy.endpoint))
                begin, end = (lambda: setattr(proxy, "fault", slow_down)), (lambda: setattr(proxy, "fault", None))
                tell(f"SlowDown for {seconds:.0f} s", case, disturbed(case, begin, end, seconds))
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
