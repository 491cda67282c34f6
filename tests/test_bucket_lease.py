"""Of all runners one holds a run, and a dead one's lease is taken over."""

import os
import subprocess
from dataclasses import replace

import pytest

from homerun.bucket import lease
from homerun.bucket.folder import FolderStore
from homerun.errors import LeaseError


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path)


class Clock:
    """Time that passes when it is waited for; `beats` is called at each wait."""

    def __init__(self, beats=lambda: None):
        self.now, self.beats = 0.0, beats

    def wait(self, seconds):
        self.now += seconds
        self.beats()

    def __call__(self):
        return self.now


def take(store, owner, clock=None):
    clock = clock or Clock()
    return lease.acquire(store, "run", owner, wait=clock.wait, clock=clock)


def elsewhere(held):
    """As another machine would hold it."""
    return replace(held, process="")


def test_attempts_are_numbered_from_one(store):
    first = take(store, "a")
    assert first.attempt == 1
    lease.release(store, first)
    assert take(store, "b").attempt == 2
    assert take(store, "b").attempt == 2  # its own


def test_a_live_runners_lease_is_refused_as_soon_as_it_beats(store):
    held = lease._write(store, elsewhere(take(store, "a")), if_match=take(store, "a").etag)

    def beat():
        nonlocal held
        if clock.now >= 20:
            held = lease.heartbeat(store, held)

    clock = Clock(beat)
    with pytest.raises(LeaseError, match="is being run by"):
        take(store, "b", clock)
    assert clock.now < 30


def test_a_lease_that_does_not_change_for_the_whole_watch_is_taken_over_and_the_old_holder_learns_it(store):
    mine = take(store, "a")
    old = lease._write(store, elsewhere(mine), if_match=mine.etag)
    clock = Clock()
    new = take(store, "b", clock)
    assert (new.attempt, new.owner) == (2, "b")
    assert clock.now >= lease.DEAD_SECONDS
    with pytest.raises(LeaseError, match="attempt 2"):
        lease.heartbeat(store, old)
    with pytest.raises(LeaseError):
        lease.current(store, "run", "a")


def test_of_two_that_take_over_at_once_one_wins(store):
    mine = take(store, "a")
    lease._write(store, elsewhere(mine), if_match=mine.etag)

    def rival():
        if clock.now >= lease.DEAD_SECONDS:
            take(store, "c", Clock())

    clock = Clock(rival)
    with pytest.raises(LeaseError, match="attempt 2"):
        take(store, "b", clock)
    assert lease.read(store, "run").owner == "c"


def test_a_lease_that_is_released_while_it_is_watched_is_taken_at_once(store):
    mine = take(store, "a")
    held = lease._write(store, elsewhere(mine), if_match=mine.etag)
    clock = Clock(lambda: lease.release(store, held))
    assert take(store, "b", clock).attempt == 2
    assert clock.now < 10


def test_a_holder_that_was_a_process_of_this_machine_and_is_gone_is_not_watched(store):
    child = subprocess.Popen(["sleep", "60"])
    process = lease.this_process(child.pid)
    mine = take(store, "a")
    lease._write(store, replace(mine, process=process), if_match=mine.etag)
    with pytest.raises(LeaseError):
        clock = Clock(lambda: lease._write(store, lease.read(store, "run"), if_match=lease.read(store, "run").etag))
        take(store, "b", clock)
    child.kill()
    child.wait()
    clock = Clock()
    assert take(store, "b", clock).attempt == 2
    assert clock.now == 0


def test_a_process_is_not_mistaken_for_a_later_one_with_its_number(store):
    boot, namespace, pid, started = lease.this_process().split()
    held = replace(take(store, "a"), process=f"{boot} {namespace} {pid} {int(started) + 1}")
    assert lease._gone(held)
    assert not lease._gone(replace(held, process=lease.this_process(os.getpid())))
    assert not lease._gone(replace(held, process=f"other-boot {namespace} {pid} {started}"))


def test_releasing_a_lost_lease_changes_nothing(store):
    old = take(store, "a")
    lease.release(store, old)
    take(store, "b")
    lease.release(store, old)
    assert lease.read(store, "run").owner == "b"
