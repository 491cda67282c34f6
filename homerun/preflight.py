"""Runs checks side by side, each with a time limit, and shows verdicts. What a check does is its room's business.

A check is data: a name, a function that answers (verdict, seen, hint), a limit. `pass`, `warn` and `fail` are the
verdicts; one `fail` means that no training may begin (exit 3).
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from queue import Empty, Queue
from typing import Any

from rich.table import Table
from rich.text import Text

from homerun.errors import HomerunError

Finding = tuple[str, str, str]  # verdict, what was seen, what to do
STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}
LIMIT_SECONDS = 20.0


@dataclass(frozen=True)
class Check:
    """run() → (verdict, seen, hint); None where it does not apply here. late: the verdict when it takes too long."""

    name: str
    run: Callable[[], Finding | None]
    stage: str = "A"
    limit: float = LIMIT_SECONDS
    late: str = "fail"
    hint: str = "Try again; if it stays so slow, take another machine"


@dataclass(frozen=True)
class Result:
    """One check's answer; the data of a `check` event."""

    name: str
    verdict: str
    seen: str
    hint: str
    seconds: float
    stage: str

    def data(self) -> dict[str, Any]:
        return asdict(self)


def run_checks(checks: Iterable[Check]) -> Iterator[Result]:
    """The results as they come; all within the longest limit. A check that raises has failed with what it raised."""
    answers: Queue[tuple[int, Finding | None, float]] = Queue()
    waiting = dict(enumerate(checks))
    begun = time.monotonic()

    def work(number: int, check: Check) -> None:
        try:
            found = check.run()
        except HomerunError as error:
            found = ("fail", error.what, error.next)
        except Exception as error:
            found = ("fail", f"the check itself failed: {type(error).__name__}: {error}", "Please report this")
        answers.put((number, found, time.monotonic() - begun))

    for number, check in waiting.items():  # daemons: a check that hangs must not keep the process from ending
        threading.Thread(target=work, args=(number, check), name=f"check {check.name}", daemon=True).start()
    while waiting:
        soonest = min(check.limit for check in waiting.values())
        try:
            number, found, seconds = answers.get(timeout=max(0.0, begun + soonest - time.monotonic()))
        except Empty:
            for number in [number for number, check in waiting.items() if check.limit <= soonest]:
                check = waiting.pop(number)
                yield Result(
                    check.name, check.late, f"no answer in {check.limit:g} s", check.hint, check.limit, check.stage
                )
            continue
        if number in waiting:
            check = waiting.pop(number)
            if found is not None:
                yield Result(check.name, *found, seconds=round(seconds, 3), stage=check.stage)


def failed(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if result.verdict == "fail"]


def table(results: Iterable[Result]) -> Table:
    """Check, verdict, what was seen and, below it, what to do; failures last, where the eye is."""
    order = {"pass": 0, "warn": 1, "fail": 2}
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("CHECK", "VERDICT", "SEEN, AND WHAT TO DO"):
        found.add_column(name, overflow="fold", no_wrap=name in ("CHECK", "VERDICT"))
    for result in sorted(results, key=lambda result: (order[result.verdict], result.name)):
        style = STYLES[result.verdict]
        said = Text(result.seen)
        if result.verdict != "pass" and result.hint:
            said.append(f"\n→ {result.hint}", style)
        found.add_row(result.name, Text(result.verdict, style), said)
    return found
