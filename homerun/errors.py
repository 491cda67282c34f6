"""Exit codes, and the one kind of exception that a person is meant to read.

Every `HomerunError` is printed as one line, `error: WHAT. NEXT`, and ends the process with its code; any other
exception that reaches the top is a bug of ours (exit 1).
"""

from enum import IntEnum


class Exit(IntEnum):
    """What the exit status of `homerun` and of a run says (docs/design.md, "Exit codes")."""

    GOOD = 0  # proven in the bucket
    BUG = 1  # a bug of ours
    REQUEST = 2  # the request is wrong: settings, arguments, an unreadable script
    PREFLIGHT = 3  # a check failed (bad keys included); no training was spent
    PHASE = 4  # a phase failed, a full disk included
    UNPROVEN = 5  # artifacts not proven in the bucket, or not what the manifest says
    BUDGET = 6  # stopped by the budget
    LEASE = 7  # another runner holds the run
    STUCK = 8  # stopped by the watchdog or the deadline
    ATTEMPTS = 9  # attempts exhausted
    INTERRUPT = 130  # Ctrl-C
    TERM = 143  # TERM, after a flush


class HomerunError(Exception):
    """A failure that a person can act on.

    what: what is wrong, with the value. next: the exact thing to type or change. code: the exit status.
    """

    code = Exit.BUG

    def __init__(self, what: str, next: str = "", code: Exit | None = None):
        self.what, self.next = what, next
        if code is not None:
            self.code = code
        super().__init__(f"{what.rstrip('.')}. {next}" if next else what)


class RequestError(HomerunError):
    """The request is wrong (exit 2): a setting, an argument, an unreadable script, a run that is not there."""

    code = Exit.REQUEST


class PreflightError(HomerunError):
    """A check before the run failed (exit 3): no training was spent."""

    code = Exit.PREFLIGHT


class UnprovenError(HomerunError):
    """Bytes in the bucket are missing, or are not what the manifest says (exit 5)."""

    code = Exit.UNPROVEN


class LeaseError(HomerunError):
    """Another runner holds the run's lease, or took it over (exit 7)."""

    code = Exit.LEASE
