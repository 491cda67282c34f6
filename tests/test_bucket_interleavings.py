"""Hypothesis over interleavings of writing, offering, landing, crashing and restarting, with a reader at every turn.

Crashes are exceptions raised from inside the store, at any of its writes, after or before it took effect; the landing
is then thrown away and a new one is opened over what was left.
"""

import tempfile
import threading
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from homerun.bucket.folder import FolderStore
from homerun.bucket.landing import Landing
from homerun.bucket.outbox import NAMED, Outbox, describe
from homerun.bucket.restore import read_manifest, restore, verify


class Crash(BaseException):
    """The machine dies here."""


class FragileStore(FolderStore):
    """A folder bucket whose machine dies at the `fuse`-th write, before or after it takes effect."""

    fuse, after = -1, False

    def _burn(self):
        self.fuse -= 1
        if self.fuse == 0:
            raise Crash

    def _around(self, write):
        if not self.after:
            self._burn()
        result = write()
        if self.after:
            self._burn()
        return result

    def put(self, key, data, **condition):
        return self._around(lambda: super(FragileStore, self).put(key, data, **condition))

    def delete(self, keys):
        for key in keys:
            self._around(lambda key=key: super(FragileStore, self).delete([key]))

    def upload(self, path, key, **about):
        return self._around(lambda: super(FragileStore, self).upload(path, key, **about))


GROUPS = st.sampled_from(["c/000001", "c/000002", "c/000003", "tokenizer"])


class Interleavings(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.dir, self.bucket, self.home = root / "runs" / "run", root / "bucket", root / "pulled"
        (self.dir / "home").mkdir(parents=True)
        self.outbox = Outbox(self.dir / "outbox")
        self.written: dict[str, set[tuple[bytes, bytes]]] = {}  # every whole pair that a group ever was
        self.landing, self.attempt, self.version = None, 0, 0

    def teardown(self):
        self.folder.cleanup()

    def pair(self, group):
        return [f"{group}.model", f"{group}.meta"]

    @rule(group=GROUPS)
    def write_and_offer(self, group):
        """A whole new state of a group: both files belong together."""
        self.version += 1
        content = tuple(f"{group} {name} {self.version}".encode() for name in ("model", "meta"))
        for key, data in zip(self.pair(group), content, strict=True):
            path = self.dir / "home" / key
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".new").write_bytes(data)
            path.with_suffix(".new").replace(path)
        self.written.setdefault(group, set()).add(content)
        step = int(group[2:]) if group.startswith("c/") else None
        files = [describe(self.dir, f"home/{key}", key) for key in self.pair(group)]
        self.outbox.offer("artifact", group, files, keep="checkpoint" if step else "always", step=step, score=step)

    @rule(group=GROUPS)
    def tear(self, group):
        """Overwrite one file of a group in place, as a writer does that is not done yet; nothing is offered."""
        path = self.dir / "home" / self.pair(group)[0]
        if path.exists():
            path.write_bytes(b"torn")

    def start(self):
        self.attempt += 1
        self.store = FragileStore(self.bucket)
        self.landing = Landing(self.store, "run", self.dir, self.attempt, keep_last=2, spacing=0)
        self.landing.open()
        self.inbox = Outbox(self.dir / "outbox")
        self.waiting = self.inbox.pending()

    @rule(fuse=st.integers(0, 8), after=st.booleans())
    def send(self, fuse, after):
        """Send a batch of what waits, on a new machine if the last one died; at the `fuse`-th write (0: never) this one
        dies too."""
        if self.landing is None:
            self.start()
        self.store.fuse, self.store.after = fuse, after
        self.waiting += self.inbox.requests()
        batch = self.landing.batch(request for request in self.waiting if request.kind in NAMED)
        try:
            if batch:
                self.landing.send(batch)
        except Crash:
            self.landing = None
        else:
            self.waiting = [request for request in self.waiting if request not in batch]

    @rule(fuse=st.integers(0, 8), after=st.booleans())
    def name(self, fuse, after):
        """Name what has been sent."""
        if self.landing:
            self.store.fuse, self.store.after = fuse, after
            try:
                self.landing.name(lambda request, receipt: self.inbox.answer(receipt))
            except Crash:
                self.landing = None

    @rule(fuse=st.integers(0, 8), after=st.booleans())
    def land(self, fuse, after):
        """Send and name all that waits, unless it dies before."""
        self.send(fuse, after)
        while self.landing and (self.landing.sent or self.waiting):
            self.name(self.store.fuse, after)
            if self.landing:
                self.send(self.store.fuse, after)

    @invariant()
    def a_reader_sees_only_whole_right_groups(self):
        store = FolderStore(self.bucket)
        manifest = read_manifest(store, "run")
        assert all(verdict.verdict == "ok" for verdict in verify(store, "run"))
        restore(store, "run", self.home, lambda entry: True, manifest=manifest)
        for group, entries in manifest.groups().items():
            assert {entry.key for entry in entries} == set(self.pair(group))
            content = tuple((self.home / key).read_bytes() for key in self.pair(group))
            assert content in self.written[group]

    @invariant()
    def what_has_a_receipt_and_was_not_touched_since_is_named_or_superseded(self):
        named = read_manifest(FolderStore(self.bucket), "run").groups()
        last = {request.group: request for request in self.outbox.all()}
        for group, request in last.items():
            receipt = self.outbox.answered(request.seq)
            if receipt and receipt.ok and group == "tokenizer":
                assert group in named


Interleavings.TestCase.settings = settings(
    max_examples=60, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestInterleavings = Interleavings.TestCase


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_of_any_landing_leaves_only_whole_right_groups(after):
    """Every write of four rounds in turn, exhaustively: overwriting, retention and restart included."""
    rounds = [["tokenizer", "c/000001"], ["c/000001", "c/000002"], ["c/000003", "tokenizer"], ["c/000003"]]
    for number in range(len(rounds)):
        fuse, crashed = 0, True
        while crashed:
            fuse += 1
            machine = Interleavings()
            for index, groups in enumerate(rounds):
                for group in groups:
                    machine.write_and_offer(group)
                machine.land(fuse if index == number else 0, after)
                if index == number:
                    crashed = machine.landing is None
                    machine.a_reader_sees_only_whole_right_groups()
                    machine.land(0, False)
                machine.a_reader_sees_only_whole_right_groups()
            named = read_manifest(FolderStore(machine.bucket), "run").groups()
            assert set(named) == {"tokenizer", "c/000001", "c/000002", "c/000003"}  # the last two, and the best
            machine.teardown()
        assert fuse > 3  # there were writes to crash at


def test_a_file_that_is_rewritten_between_the_offer_and_its_upload_is_not_landed():
    machine = Interleavings()
    machine.write_and_offer("tokenizer")
    machine.start()
    upload = machine.store.upload

    def tear_first(path, key, **about):
        path.write_bytes(b"torn meanwhile")
        return upload(path, key, **about)

    machine.store.upload = tear_first
    machine.land(0, False)
    assert machine.outbox.answered(1).why == "changed"
    machine.a_reader_sees_only_whole_right_groups()
    machine.teardown()


def test_what_was_sent_waits_for_what_comes_after_it_and_no_longer_than_the_spacing(monkeypatch):
    machine = Interleavings()
    machine.start()
    machine.landing.spacing = 2.0
    assert not machine.landing.due(more=False)  # nothing was sent
    machine.write_and_offer("tokenizer")
    machine.send(0, False)
    now = time.monotonic()
    for seconds, more, due in ((0, False, False), (0, True, False), (1, True, False), (2.1, False, True)):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        assert machine.landing.due(more) is due, (seconds, more)
    machine.landing._written = now - 10
    monkeypatch.setattr(time, "monotonic", lambda: now + 1)
    assert machine.landing.due(more=False)  # it is the last, and the manifest may be written
    assert not machine.landing.due(more=True)
    monkeypatch.setattr(time, "monotonic", lambda: now + 2.1)
    assert machine.landing.due(more=True)
    machine.landing._written = now  # once the script is over the pause is shorter, but not the wait for more
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.5)
    assert not machine.landing.due(more=False)
    machine.landing.hurry()
    assert machine.landing.due(more=False) and not machine.landing.due(more=True)
    machine.teardown()


def test_what_retention_gives_up_is_not_deleted_while_it_is_being_sent_again():
    machine = Interleavings()
    for group in ("c/000001", "c/000002", "c/000003"):
        machine.write_and_offer(group)
    machine.land(0, False)
    machine.write_and_offer("c/000004")
    machine.send(0, False)
    for key in machine.pair("c/000002"):  # the same bytes once more, as the best checkpoint now
        path = machine.dir / "home" / key
        path.with_suffix(".new").write_bytes(path.read_bytes())
        path.with_suffix(".new").replace(path)
    files = [describe(machine.dir, f"home/{key}", key) for key in machine.pair("c/000002")]
    machine.outbox.offer("artifact", "c/000002", files, keep="checkpoint", step=2, score=0)
    head = machine.store.head

    def name_meanwhile(key):
        found = head(key)
        machine.name(0, False)  # the fourth; the second is not kept any more
        return found

    machine.store.head = name_meanwhile
    machine.send(0, False)
    assert "c/000002" not in read_manifest(FolderStore(machine.bucket), "run").groups()
    machine.name(0, False)
    assert "c/000002" in read_manifest(FolderStore(machine.bucket), "run").groups()
    machine.a_reader_sees_only_whole_right_groups()
    machine.teardown()


def test_a_reader_sees_only_whole_right_groups_while_one_thread_sends_and_another_names():
    """Groups are overwritten, superseded and offered again all the while; what is being sent is never deleted."""
    machine = Interleavings()
    machine.start()
    machine.store.fuse = 0
    over, failures = threading.Event(), []

    def keep(work):
        def loop():
            try:
                while not over.is_set():
                    work()
            except BaseException as error:
                failures.append(error)
                over.set()

        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    def send():
        machine.send(0, False)

    threads = [keep(send), keep(lambda: machine.name(0, False)), keep(machine.a_reader_sees_only_whole_right_groups)]
    random = Random(7)
    for _ in range(100):
        machine.write_and_offer(random.choice(["c/000001", "c/000002", "c/000003", "c/000004", "tokenizer"]))
        time.sleep(random.choice([0, 0, 0.003]))
    deadline = time.monotonic() + 60
    while not over.is_set() and any(machine.outbox.answered(one.seq) is None for one in machine.outbox.all()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    machine.a_reader_sees_only_whole_right_groups()
    last = {request.group: machine.outbox.answered(request.seq) for request in machine.outbox.all()}
    named = read_manifest(FolderStore(machine.bucket), "run").groups()
    assert {group for group, receipt in last.items() if receipt.ok} >= set(named) >= {"tokenizer", "c/000004"}
    assert machine.outbox.answered(1).ok or machine.outbox.answered(1).why in ("changed", "gone")
    machine.teardown()
