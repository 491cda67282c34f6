"""The state of a run, folded from its journal: what console, page, metadata, report and budget read.

`RunState.apply(event)` takes one event; `fold(events)` all of them. Memory stays flat whatever the journal's length.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from homerun.curve import Curve, Point
from homerun.journal import Event

WARNINGS, SAMPLES, CHECKS = 200, 60, 500  # the newest are kept
PACE = 256  # the newest step times, for projections
STEP_METRICS = ("loss", "lrm", "dt_ms", "tok_per_sec", "mfu")  # what becomes a curve
LOWER_IS_BETTER = ("bpb", "loss")  # all other metrics of evaluations are better when higher


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether `value` of an evaluation's metric is better than the other."""
    return value < than if any(part in metric for part in LOWER_IS_BETTER) else value > than


@dataclass
class Phase:
    """One execution of one phase in one attempt; `verdict` is None while it runs, "skipped" when it was."""

    phase: str
    name: str
    attempt: int
    began: float
    line: int | None = None
    background: bool = False
    argv: list[str] = field(default_factory=list)
    original: list[str] = field(default_factory=list)
    log: str | None = None
    ended: float | None = None
    seconds: float | None = None
    status: int | None = None
    verdict: str | None = None
    reason: str | None = None
    step: int | None = None
    total: int | None = None
    first_step: tuple[int, float] | None = None  # step, Unix seconds: of this execution
    last_step: tuple[int, float] | None = None
    busy: float = 0.0  # seconds that its steps say they took, the first one (it compiles) left out
    pace: deque[float] = field(default_factory=lambda: deque(maxlen=PACE))  # seconds of the newest of them
    pause: float = 0.0  # the longest time between two steps, beyond the step's own: a save with its evaluation

    def option(self, flag: str) -> str | None:
        """The value of `--flag=V` or `--flag V` as run, dashes or underscores; the last one wins."""
        found = None
        for position, word in enumerate(self.argv):
            name, equals, value = word.partition("=")
            if name.lstrip("-").replace("_", "-") == flag and name.startswith("--"):
                found = value if equals else next(iter(self.argv[position + 1 :]), None)
        return found


@dataclass
class Attempt:
    """One start of the job."""

    number: int
    began: float
    machine: dict[str, Any] = field(default_factory=dict)
    nproc: int | None = None
    price: float | None = None  # USD per hour for the whole machine
    price_source: str | None = None  # where that was learnt
    wrapper: dict[str, Any] | None = None
    resumed_from: dict[str, Any] | None = None
    argv: list[str] = field(default_factory=list)  # how the job was called
    updated: float = 0.0  # the newest event's time
    ended: float | None = None
    code: int | None = None
    reason: str | None = None
    safe: str | None = None
    next: str | None = None
    first_step: float | None = None

    @property
    def end(self) -> float:
        """When it ended, or when it was last heard of."""
        return self.ended if self.ended is not None else self.updated


@dataclass
class Eval:
    """The newest and the best value of one metric of one phase."""

    value: float
    step: int | None
    t: float
    best: float
    best_step: int | None


@dataclass
class Group:
    """Files that belong together; in the bucket once `secured_at` is set."""

    group: str
    kind: str
    phase: str
    bytes: int
    files: int
    step: int | None = None
    score: float | None = None
    offered_at: float = 0.0
    secured_at: float | None = None
    seconds: float | None = None  # that its upload took


@dataclass
class Notice:
    """A warning, and how often it was given."""

    text: str
    hint: str
    t: float
    count: int = 1


class RunState:
    """See the module's docstring. Attributes are plain data; nothing here computes money (homerun/cost.py does)."""

    def __init__(self) -> None:
        self.run: str = ""
        self.recipe: str = ""
        self.script: dict[str, Any] = {}
        self.upstream: dict[str, Any] | None = None
        self.fingerprint: str | None = None
        self.bucket: str | None = None
        self.version: str | None = None
        self.began: float | None = None
        self.updated: float = 0.0
        self.seq = -1
        self.attempts: list[Attempt] = []
        self.phases: list[Phase] = []
        self.plan: list[dict[str, Any]] = []
        self.drift: list[str] = []
        self.adapted: list[dict[str, Any]] = []
        self.checks: deque[dict[str, Any]] = deque(maxlen=CHECKS)
        self.warnings: deque[Notice] = deque(maxlen=WARNINGS)
        self.warned = 0  # all warnings, those no longer kept included
        self.curves: dict[tuple[str, str], Curve] = {}
        self.tokens_per_step: dict[str, float] = {}  # phase → tokens that one step trains on
        self.evals: dict[tuple[str, str], Eval] = {}
        self.facts: dict[tuple[str, str], Any] = {}
        self.samples: deque[dict[str, Any]] = deque(maxlen=SAMPLES)
        self.groups: dict[str, Group] = {}
        self.gauge: dict[str, Any] = {}
        self.machine: dict[str, Any] = {}
        self.last: dict[str, Any] = {}  # the newest step's data, with its phase
        self.stop: dict[str, Any] | None = None
        self.code: int | None = None
        self.verdict: str | None = None
        self._open: dict[str, Phase] = {}

    # -- what readers ask ----------------------------------------------------------------------------------------

    @property
    def attempt(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def status(self) -> str:
        """good, failed, stopped; running; or interrupted: the newest attempt ended and the run may go on."""
        if self.verdict:
            return self.verdict
        return "interrupted" if self.attempt and self.attempt.ended is not None else "running"

    @property
    def running(self) -> list[Phase]:
        return list(self._open.values())

    @property
    def current(self) -> Phase | None:
        """The phase in the foreground, else one in the background."""
        return next((phase for phase in reversed(self.running) if not phase.background), None) or next(
            iter(self.running), None
        )

    @property
    def secured(self) -> list[Group]:
        return [group for group in self.groups.values() if group.secured_at is not None]

    def curve(self, phase: str, metric: str) -> list[Point]:
        found = self.curves.get((phase, metric))
        return found.points() if found else []

    def metric(self, metric: str) -> Iterator[tuple[str, Eval]]:
        """(phase, eval) of each phase that measured `metric`, in the order in which they first did."""
        return ((phase, found) for (phase, name), found in self.evals.items() if name == metric)

    def fact(self, name: str, phase: str | None = None) -> Any:
        """The fact called `name`, of `phase` or of the first phase that states it; None if there is none."""
        return next((v for (p, n), v in self.facts.items() if n == name and phase in (None, p)), None)

    # -- the fold ------------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Take one event. Unknown types and missing data are let pass: an older reader outlives a newer journal."""
        self.seq, self.updated = event["seq"], event["t"]
        if self.attempts and self.attempts[-1].number == event["attempt"]:
            self.attempts[-1].updated = event["t"]
        handler = getattr(self, "_on_" + event["type"].replace(".", "_"), None)
        if handler is not None:
            handler(event)

    def _on_run_begin(self, event: Event) -> None:
        self.began = self.began or event["t"]
        for name in ("run", "recipe", "script", "upstream", "fingerprint", "bucket", "version"):
            if event.get(name) is not None:
                setattr(self, name, event[name])

    def _on_attempt_begin(self, event: Event) -> None:
        for phase in self._open.values():  # the earlier attempt died without a word
            phase.ended, phase.verdict, phase.reason = self.attempts[-1].updated, "failed", "the attempt ended here"
            phase.seconds = phase.ended - phase.began
        self._open.clear()
        self.code = self.verdict = self.stop = None
        self.attempts.append(
            Attempt(
                number=event["attempt"],
                began=event.get("started") or event["t"],
                machine=event.get("machine") or {},
                nproc=event.get("nproc"),
                price=event.get("price_usd_per_hour"),
                price_source=event.get("price_source"),
                wrapper=event.get("wrapper"),
                resumed_from=event.get("resumed_from"),
                argv=event.get("argv") or [],
                updated=event["t"],
            )
        )

    def _on_plan(self, event: Event) -> None:
        self.plan, self.drift = event.get("phases") or [], event.get("drift") or []
        self.adapted = event.get("adapted") or []

    def _on_check(self, event: Event) -> None:
        self.checks.append({key: event.get(key) for key in ("name", "verdict", "seen", "hint", "seconds", "stage")})

    def _on_phase_begin(self, event: Event) -> None:
        phase = Phase(
            phase=event["phase"],
            name=event.get("name") or event["phase"],
            attempt=event["attempt"],
            began=event["t"],
            line=event.get("line"),
            background=bool(event.get("background")),
            argv=event.get("argv") or [],
            original=event.get("original") or [],
            log=event.get("log"),
        )
        self.phases.append(phase)
        self._open[phase.phase] = phase

    def _on_phase_end(self, event: Event) -> None:
        phase = self._open.pop(event["phase"], None)
        if phase is None:
            return
        phase.ended, phase.status = event["t"], event.get("status")
        phase.verdict, phase.reason = event.get("verdict") or "ok", event.get("reason")
        phase.seconds = event.get("seconds", phase.ended - phase.began)

    def _on_phase_skip(self, event: Event) -> None:
        self.phases.append(
            Phase(
                phase=event["phase"],
                name=event.get("name") or event["phase"],
                attempt=event["attempt"],
                began=event["t"],
                line=event.get("line"),
                ended=event["t"],
                seconds=0.0,
                verdict="skipped",
                reason=event.get("reason"),
            )
        )

    def _on_step(self, event: Event) -> None:
        name, step, t = event["phase"], event.get("step"), event["t"]
        if step is None:
            return
        phase = self._open.get(name)
        if phase is not None:
            phase.step, phase.total = step, event.get("total", phase.total)
            if phase.first_step is None:
                phase.first_step = (step, t)
            elif (dt := event.get("dt_ms")) is not None:
                phase.pace.append(dt / 1000)
                phase.busy += dt / 1000
                if phase.last_step is not None:
                    phase.pause = max(phase.pause, t - phase.last_step[1] - dt / 1000)
            phase.last_step = (step, t)
        if self.attempts and self.attempts[-1].first_step is None:
            self.attempts[-1].first_step = t
        for metric in STEP_METRICS:
            value = event.get(metric)
            if value is not None:
                self._curve(name, metric).add(step, t, value)
        if event.get("tokens"):
            self.tokens_per_step[name] = event["tokens"] / (step + 1)
        self.last = event

    def _on_eval(self, event: Event) -> None:
        value, metric, step = event.get("value"), event["metric"], event.get("step")
        if value is None:
            return
        if step is not None:
            self._curve(event["phase"], metric).add(step, event["t"], value)
        before = self.evals.get((event["phase"], metric))
        best, best_step = value, step
        if before is not None and not is_better(metric, value, before.best):
            best, best_step = before.best, before.best_step
        self.evals[event["phase"], metric] = Eval(value, step, event["t"], best, best_step)

    def _on_fact(self, event: Event) -> None:
        self.facts[event["phase"], event["name"]] = event.get("value")

    def _on_sample(self, event: Event) -> None:
        step = self.last.get("step") if self.last.get("phase") == event["phase"] else None
        self.samples.append({"phase": event["phase"], "text": event["text"], "t": event["t"], "step": step})

    def _on_group(self, event: Event) -> None:
        self.groups.pop(event["group"], None)  # written again: to the end, and not secured
        self.groups[event["group"]] = Group(
            group=event["group"],
            kind=event.get("kind") or "other",
            phase=event.get("phase") or "",
            bytes=event.get("bytes") or 0,
            files=event.get("files") or 0,
            step=event.get("step"),
            score=event.get("score"),
            offered_at=event["t"],
        )

    def _on_secured(self, event: Event) -> None:
        group = self.groups.get(event["group"])
        if group is not None:
            group.secured_at, group.seconds = event["t"], event.get("seconds")

    def _on_gauge(self, event: Event) -> None:
        self.gauge = event

    def _on_machine(self, event: Event) -> None:
        self.machine = event
        x, t = int(event["t"]), event["t"]
        gpus = event.get("gpus") or []
        readings = {"cpu": event.get("cpu"), "memory_bytes": event.get("memory_bytes")}
        if gpus:
            readings["gpu_util"] = sum(gpu.get("util") or 0 for gpu in gpus) / len(gpus)
            readings["gpu_memory_bytes"] = max(gpu.get("memory_bytes") or 0 for gpu in gpus)
            readings["gpu_power_w"] = sum(gpu.get("power_w") or 0 for gpu in gpus)
        for metric, value in readings.items():
            if value is not None:
                self._curve("machine", metric).add(x, t, value)

    def _on_warning(self, event: Event) -> None:
        self.warned += 1
        for known in self.warnings:
            if known.text == event["text"]:
                known.count, known.t = known.count + 1, event["t"]
                return
        self.warnings.append(Notice(event["text"], event.get("hint") or "", event["t"]))

    def _on_stop(self, event: Event) -> None:
        self.stop = {"why": event.get("why"), "text": event.get("text"), "t": event["t"]}

    def _on_attempt_end(self, event: Event) -> None:
        if self.attempts:
            attempt = self.attempts[-1]
            if not event.get("pushed"):  # by then the machine had cost nothing for a while
                attempt.ended = event["t"]
            attempt.code = event.get("code")
            attempt.reason, attempt.safe, attempt.next = event.get("reason"), event.get("safe"), event.get("next")
            self.code = attempt.code

    def _on_run_end(self, event: Event) -> None:
        self.code, self.verdict = event.get("code"), event.get("verdict")

    def _curve(self, phase: str, metric: str) -> Curve:
        found = self.curves.get((phase, metric))
        if found is None:
            found = self.curves[phase, metric] = Curve()
        return found


def fold(events: Iterable[Event]) -> RunState:
    """The state after `events`."""
    state = RunState()
    for event in events:
        state.apply(event)
    return state
