"""How a run ends in the bucket: its papers, then `_SUCCESS` for a good one. The job does so, or a push after it."""

from collections.abc import Callable

from homerun.bucket import lease
from homerun.bucket.outbox import Outbox, Receipt, Request, describe
from homerun.bucket.push import Pushed, push
from homerun.bucket.store import open_store
from homerun.errors import Exit
from homerun.job.run import Run
from homerun.journal import Journal, replay
from homerun.report.metadata import write_metadata
from homerun.report.write import write_report
from homerun.settings import Settings
from homerun.state import RunState


def hand_over_papers(run: Run, outbox: Outbox, state: RunState, good: bool) -> None:
    """Report and metadata as of now, and the wish for `_SUCCESS`."""
    write_report(run.report, state)
    files = [path for path in sorted(run.report.rglob("*")) if path.is_file()]
    names = [str(path.relative_to(run.dir)) for path in files]
    outbox.offer("report", "report", [describe(run.dir, name, name) for name in names])
    hand_over_metadata(run, outbox, state)
    if good:
        outbox.offer("finish", "_SUCCESS")


def hand_over_metadata(run: Run, outbox: Outbox, state: RunState) -> None:
    write_metadata(run.metadata, state)
    outbox.offer("metadata", "metadata", [describe(run.dir, "metadata.json", "metadata.json")])


def leave_to_push(outbox: Outbox) -> None:
    """Note that the run lacked nothing but its proof. For when its uploader has ended: it would try at once."""
    number = outbox.offer("finish", "_SUCCESS")
    outbox.answer(Receipt(number, False, why="unproven", text="not everything is in the bucket"))


def what_is_safe(state: RunState, url: str) -> str:
    """One sentence: what is secured where."""
    secured = state.secured
    size = sum(group.bytes for group in secured)
    steps = [group for group in secured if group.kind == "checkpoint" and not group.group.endswith(".optim")]
    newest = f", newest checkpoint {steps[-1].group}" if steps else ""
    return f"{len(secured)} groups, {size / 1e6:,.1f} MB in {url}{newest}"


def push_run(
    settings: Settings, run: Run, watching: Callable[[lease.Lease], None], said: Callable[[str], None]
) -> Pushed:
    """Land what a run on this machine has not landed; one that lacked nothing else ends good, as the job would have
    ended it. Raises LeaseError when another runner holds the run."""
    state, attempt = RunState(), 0
    for event in replay(run.journal):
        state.apply(event)
        attempt = event["attempt"]
    journal: Journal | None = None

    def emit(type: str, **data: object) -> None:
        nonlocal journal
        journal = journal or Journal(run.journal, attempt, settings.redactor().value)  # the lease is ours by now
        state.apply(journal.emit(type, **data))

    def landed(request: Request, receipt: Receipt) -> None:
        if request.kind == "artifact":
            emit("secured", group=request.group, bytes=receipt.bytes, seconds=receipt.seconds, at=receipt.at)

    def finish(outbox: Outbox) -> None:
        safe = what_is_safe(state, open_store(settings).url)
        emit("attempt.end", code=int(Exit.GOOD), safe=safe, next=f"homerun pull {run.id} DIR", pushed=True)
        emit("run.end", code=int(Exit.GOOD), verdict="good")
        hand_over_papers(run, outbox, state, good=True)

    try:
        return push(settings, run.dir, watching, said, landed, finish)
    finally:
        if journal:
            journal.close()
