"""What a person sees while a run goes on: plain lines, the live view in a real terminal, and the commands that read."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from homerun.bucket.folder import FolderStore
from homerun.commands._runs import BucketJournal
from homerun.console import open_console
from homerun.console.live import Live
from homerun.console.plain import CROWD, LONGEST, Lines, Plain, clean
from homerun.console.view import view
from homerun.console.words import last_words, size, words
from homerun.state import fold
from tests.story import Story, attempt, begin, end, speedrun, train

# -- upstream's output --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (b"plain\n", ["plain"]),
        (b"10%\r50%\r100%\n", ["100%"]),
        (b"windows\r\n", ["windows"]),
        (b"\r\x1b[KRank 0 | 4/4 (100.00%)\nFinal: 1/4\n", ["Rank 0 | 4/4 (100.00%)", "Final: 1/4"]),
        (b"\x1b[32m\x1b[1mINFO\x1b[0m saved\n", ["INFO saved"]),
        (b"\x1b]0;a window's title\x07text\x1b[2J\x1b[H\n", ["text"]),
        (b"bell\x07 null\x00 tab\tend\n", ["bell null tab\tend"]),
        (b"\xff\xfe not UTF-8\n", ["\ufffd\ufffd not UTF-8"]),
        (b"no end", []),
    ],
)
def test_output_is_shown_as_a_terminal_would_have_left_it(printed, shown):
    assert Lines().feed(printed) == shown


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\x1b[1m", b"bc\r\n", "é".encode()]), max_size=60), st.data())
def test_lines_do_not_depend_on_how_the_output_was_cut(pieces, data):
    whole = b"".join(pieces)
    cut = data.draw(st.integers(0, len(whole)))
    at_once, in_two = Lines(), Lines()
    expected = at_once.feed(whole) + at_once.flush()
    assert in_two.feed(whole[:cut]) + in_two.feed(whole[cut:]) + in_two.flush() == expected


def test_a_line_of_10_mb_costs_no_memory_and_is_cut():
    lines = Lines()
    for _ in range(160):
        assert lines.feed(b"x" * 65536) == []
        assert len(lines._rest) <= LONGEST
    assert len(lines.feed(b"\n")[0]) <= LONGEST


def test_a_flood_is_cut_and_says_how_much_was_left_out():
    lines = Lines().feed(b"".join(b"%d\n" % number for number in range(10 * CROWD)))
    assert len(lines) < CROWD
    assert "lines left out" in lines[0]
    assert lines[-1] == str(10 * CROWD - 1)


def test_control_characters_never_reach_the_terminal():
    raw = bytes(range(1, 10)) + bytes(range(11, 32)) + b"\x1b[31mred\x1b]2;x\x1b\\"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", clean(raw))


# -- plain --------------------------------------------------------------------------------------------------------


def plain(events, texts=()):
    out = io.StringIO()
    console = Plain(out)
    for number, event in enumerate(events):
        console.event(event)
        for phase, data in [text for at, *text in texts if at == number]:
            console.text(phase, data)
    return console, out


def test_plain_tells_phases_failures_and_warnings_and_leaves_steps_to_upstream():
    console, out = plain((story := speedrun(fails="base_train")).events)
    console.end(story.state())
    text = out.getvalue()
    for expected in ("> base_train:", "< base_train: FAILED", "ran out of memory", "warning: CUDA", "secured base_"):
        assert expected in text
    assert "loss" not in text
    assert all(re.match(r"\[\d\d:\d\d:\d\d\] ", line) for line in text.splitlines())
    last = text.splitlines()[-1]
    assert "base_train failed" in last
    assert "Safe: 2 groups" in last
    assert "Next: homerun train --resume" in last


def test_output_of_phases_side_by_side_is_told_apart_and_flushed_at_their_end():
    story = Story()
    begin(story)
    story("phase.begin", phase="dataset-2", background=True)
    story("phase.begin", phase="tok_train")
    at = len(story.events) - 1
    end(story, "tok_train", 1)
    texts = [(at, "dataset-2", b"shard 7\nsha"), (at, "tok_train", b"merging\nlast words without an end")]
    console, out = plain(story.events, texts)
    console.close()
    lines = out.getvalue().splitlines()
    assert "dataset-2| shard 7" in lines
    assert "tok_train| last words without an end" in lines
    done = next(number for number, line in enumerate(lines) if "< tok_train" in line)
    assert lines.index("tok_train| last words without an end") < done


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_a_closed_output_never_ends_the_run(error):
    class Closed(io.StringIO):
        def write(self, _):
            raise error

    console = Plain(Closed())
    for event in speedrun(steps=60).events:
        console.event(event)
    console.text("base_train", b"x\n")
    console.end(Story().state())


def test_a_pipe_that_nobody_reads_never_holds_up_the_job(monkeypatch):
    monkeypatch.setattr("homerun.console.writer.PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("homerun.console.writer.WAITING", 100_000)
    reader, writer = os.pipe()
    console = Plain(os.fdopen(writer, "w", encoding="utf-8"))
    for _ in range(200):  # a pipe holds 64 KiB
        console.text("base_train", b"z" * 10_000 + b"\n")
    data = bytearray()
    os.set_blocking(reader, False)
    until = time.monotonic() + 10
    while b"at last" not in data and time.monotonic() < until:  # somebody scrolls on
        try:
            data += os.read(reader, 65536)
        except BlockingIOError:
            console.text("base_train", b"at last\n")
            time.sleep(0.01)
    console.close()
    os.close(reader)
    assert b"lines left out" in data
    assert b"at last" in data


def test_a_terminal_without_utf8_is_served_what_it_can_show():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    console = Plain(out)
    console.text("p", "naïve 8 × H100\n".encode())
    console.close()
    assert raw.getvalue() == b"na?ve 8 ? H100\n"


@pytest.mark.parametrize(
    ("isatty", "environ", "kind"),
    [
        (True, {"TERM": "xterm"}, "Live"),
        (True, {"TERM": "xterm", "CI": "true"}, "Plain"),
        (True, {"TERM": "dumb"}, "Plain"),
        (True, {}, "Plain"),
        (False, {"TERM": "xterm"}, "Plain"),
    ],
)
def test_the_live_view_is_only_for_a_terminal_with_a_person(isatty, environ, kind):
    out = io.StringIO()
    out.isatty = lambda: isatty
    console = open_console(out, environ)
    console.close()
    assert type(console).__name__ == kind


def test_every_event_has_words_or_none_and_meagre_ones_do_not_break_it():
    for event in speedrun().events:
        told = words(event)
        assert told is None or told.strip()
    for type in ("run.begin", "attempt.begin", "plan", "stop", "attempt.end", "run.end", "gauge", "machine"):
        words({"type": type, "t": 0.0, "attempt": 1, "seq": 0})


def test_sizes_are_for_people():
    assert [size(n) for n in (0, 999, 3_400_000, 2_100_000_000, 7e13)] == [
        "0 B",
        "999 B",
        "3.4 MB",
        "2.1 GB",
        "70.0 TB",
    ]


# -- the view -----------------------------------------------------------------------------------------------------


def drawn(state, width, now=None, height=50):
    out = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    out.print(view(state, now or state.updated, width, ["the last line " + "x" * 300], height))
    return out.file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 71, 72, 100, 250])
def test_the_view_fits_every_width_at_every_moment(width):
    events = speedrun(steps=400).events
    for number in range(0, len(events), 61):
        for line in drawn(fold(events[:number]), width).splitlines():
            assert len(line.rstrip()) <= width


def test_the_view_says_what_a_person_asks_first():
    events = speedrun().events
    half = fold(events[: len(events) * 6 // 10])
    text = drawn(half, 110)
    for expected in ("base_train", "step 1", "loss 2.", "bpb 0.8", "tok/s", "MFU", "GPU memory 75.2 GB"):
        assert expected in text
    for expected in (
        "so far",
        "phase ends in",
        "projected at least $",
        "secured 2 groups",
        "if it died now you would lose",
    ):
        assert expected in text
    assert "chat_sft" in text  # what is still to come


def test_a_run_of_many_phases_stays_on_the_screen():
    story = Story()
    begin(story)
    for number in range(200):
        story("phase.begin", phase=f"base_train.{number}", name="base_train")
        story("phase.end", 1, phase=f"base_train.{number}", verdict="ok", status=0, seconds=1)
    assert len(drawn(story.state(), 100, height=24).splitlines()) <= 24


def test_the_last_words_name_what_happened_what_is_safe_and_what_to_type():
    good, failed = last_words(speedrun().state()), last_words(speedrun(fails="base_train").state())
    assert "done" in good and "Safe:" in good and "homerun pull" in good
    assert "ended with 4: base_train failed" in failed and "--resume" in failed
    assert "\n" not in good + failed


# -- live, in a real terminal --------------------------------------------------------------------------------------


class Terminal:
    """The two ends of a pseudo-terminal; a thread reads what is written to it and keeps what a screen would show."""

    def __init__(self, columns=100, rows=30):
        self.leader, self.follower = pty.openpty()
        self.seen, self._screen = b"", pyte.Screen(columns, rows)
        self._stream, self._lock = pyte.ByteStream(self._screen), threading.Lock()
        self.resize(columns, rows)
        self.out = os.fdopen(self.follower, "w", encoding="utf-8")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns, rows):
        with self._lock:
            self._screen.resize(rows, columns)
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def start(self, *command, **environ):
        """A command whose controlling terminal this is, as a shell would start it."""
        ends = dict.fromkeys(("stdin", "stdout", "stderr"), self.follower)
        own = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # noqa: E731
        env = {**os.environ, "TERM": "xterm-256color", **environ}
        for name in ("CI", "NO_COLOR", "COLUMNS", "LINES"):
            env.pop(name, None)
        return subprocess.Popen(command, **ends, env=env, start_new_session=True, preexec_fn=own)

    def type(self, keys):
        os.write(self.leader, keys)

    def _read(self):
        try:
            while data := os.read(self.leader, 65536):
                with self._lock:
                    self._stream.feed(data)
                    self.seen += data
        except OSError:
            pass

    def rows(self):
        """What is on the screen now."""
        with self._lock:
            return [row.rstrip() for row in self._screen.display]

    def text(self):
        return re.sub(rb"\x1b\[[0-?]*[ -/]*[@-~]", b"", self.seen).decode("utf-8", "replace")

    def wait_for(self, words):
        self.wait_until(lambda: words in self.text())

    def wait_until(self, condition):
        until = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < until, "\n".join([*self.rows(), self.text()[-2000:]])
            time.sleep(0.02)


def test_live_draws_the_run_through_resizes_and_ends_with_the_last_words(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, story = Terminal(), speedrun()
    console = Live(terminal.out)
    for number, event in enumerate(story.events):
        console.event(event)
        if number == 400:
            console.text("base_train", b"\x1b[1mstep 00300\x1b[0m loss: 2.9\n")
            terminal.wait_for("step 00300 loss: 2.9")
            terminal.resize(45, 12)
        if number == 1500:
            terminal.resize(140, 40)
    console.say("a word of the job")
    console.end(story.state())
    terminal.wait_for("Next: homerun pull")
    assert "a word of the job" in terminal.text()
    assert terminal.seen.count(b"\x1b[?25l") == terminal.seen.count(b"\x1b[?25h")  # the cursor is given back
    console.close()


GLANCE = ("loss 2.", "step 1381/2000", "phase ends in", "so far", "projected", "secured 2 groups, 4.2 GB")
GLANCE += ("if it died now you", "is secured)")  # at the very end


def _half(**more):
    """A run's events in two parts; the first one has just been written."""
    events = speedrun(**more).events
    at = len(events) * 6 // 10
    late = time.time() - events[at]["t"]
    events = [{**event, "t": event["t"] + late} for event in events]
    return events[:at], events[at:]


def test_a_run_is_watched_in_a_real_terminal_at_every_size_until_ctrl_c(tmp_path):
    story, half = Story(), _half()[0]
    story.events = half
    story.write(tmp_path / "runs" / "nanochat-d20-1f3a")
    terminal = Terminal(120, 40)
    command = [sys.executable, "-m", "homerun", "watch", "latest"]
    watching = terminal.start(*command, HOMERUN_DIR=str(tmp_path))
    for times, (columns, rows) in enumerate([(120, 40), (80, 24), (50, 24), (100, 30)]):
        terminal.resize(columns, rows)
        terminal.wait_until(lambda times=times: terminal.seen.count(b"\x1b[2J") == times)  # drawn anew
        terminal.wait_until(lambda: all(words in " ".join(terminal.rows()) for words in GLANCE))
        assert terminal.rows().count("─" * columns) == 1  # and nothing is left of the picture before
        picture = "".join(terminal.seen.decode("utf-8", "replace").rpartition("─" * columns)[1:])
        lines = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", picture).replace("\r", "").split("\n")
        assert max(map(len, lines)) <= columns  # no line that the terminal had to wrap
    terminal.type(b"\x03")
    assert watching.wait(30) == 0
    terminal.wait_for("goes on; `homerun watch")


def test_live_has_no_colour_where_none_is_wanted(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, story = Terminal(), speedrun(steps=100)
    console = Live(terminal.out)
    for event in story.events:
        console.event(event)
    console.end(story.state())
    terminal.wait_for("Next: homerun pull")
    assert not re.search(rb"\x1b\[(?:3[0-7]|9[0-7]|38|48)", terminal.seen)


def test_a_terminal_that_goes_away_or_stands_still_never_holds_up_the_job(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    leader, follower = pty.openpty()  # nobody reads: its buffer fills
    console = Live(os.fdopen(follower, "w", encoding="utf-8"))
    for event in speedrun().events:
        console.event(event)
        console.text("base_train", b"y" * 500 + b"\n")
    os.close(leader)  # gone
    for event in speedrun(steps=50).events:
        console.event(event)
    console.end(Story().state())


# -- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def homerun(tmp_path):
    """Runs a command with its own HOMERUN_DIR; `homerun.dir` is that folder."""

    def run(*arguments, code=0):
        environ = {**os.environ, "HOMERUN_DIR": str(tmp_path), "COLUMNS": "100"}
        done = subprocess.run(
            [sys.executable, "-m", "homerun", *arguments], env=environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    run.dir = tmp_path
    return run


GOOD, BAD = "nanochat-d20-20251121T023100Z-1f3a", "toy-20251120T000000Z-dead"


def _write_runs(folder):
    speedrun(steps=300, fails="base_train", run=BAD).write(folder / "runs" / BAD)
    speedrun(steps=300, run=GOOD).write(folder / "runs" / GOOD)
    logs = folder / "runs" / GOOD / "logs" / "a01"
    logs.mkdir(parents=True)
    (logs / "0000-script.log").write_bytes(b"from the script\n")
    (logs / "0001-base_train.log").write_bytes(b"step 1\nstep 2")
    (logs / "raw").mkdir()
    (logs / "raw" / "0001-base_train.log").write_bytes(b"a secret\n")


def test_runs_and_status_read_what_is_here(homerun):
    _write_runs(homerun.dir)
    rows = json.loads(homerun("runs", "--json"))
    assert [(row["run"], row["status"], row["where"]) for row in rows] == [
        (BAD, "failed", "here"),
        (GOOD, "good", "here"),
    ]
    assert GOOD in homerun("runs")
    assert json.loads(homerun("status", "nano", "--json"))["best"]["core"] == 0.2219
    shown = homerun("status", "toy")
    assert "Next: homerun train --resume" in shown
    assert "no run 'nope'" in homerun("status", "nope", code=2)


def test_logs_come_in_order_by_phase_and_never_raw(homerun):
    _write_runs(homerun.dir)
    everything = homerun("logs", GOOD)
    assert everything.index("from the script") < everything.index("==> base_train") < everything.index("step 2")
    assert "secret" not in everything
    assert homerun("logs", GOOD, "base_train") == "step 1\nstep 2"
    lines = [json.loads(line) for line in homerun("logs", "-f", GOOD, "base_train", "--json").splitlines()]
    assert [line["text"] for line in lines] == ["step 1", "step 2"]
    assert "there are: base_train, script" in homerun("logs", GOOD, "nope", code=2)


def test_watch_tells_a_run_to_its_end(homerun):
    _write_runs(homerun.dir)
    told = homerun("watch", GOOD)
    assert "> base_train" in told
    assert told.splitlines()[-1].endswith(f"Next: homerun pull {GOOD} DIR")


def _to_bucket(store, run, events, at=1):
    """A journal as the uploader leaves it: segments of some events each."""
    for number in range(0, len(events), 100):
        lines = "".join(json.dumps(event) + "\n" for event in events[number : number + 100])
        store.put(f"{run}/journal/a{at:02d}-{number // 100 + 1:06d}.jsonl", lines.encode())


def test_a_run_elsewhere_is_read_from_the_bucket(homerun):
    run, story = "far-20251122T000000Z-beef", speedrun(steps=300, run="far-20251122T000000Z-beef")
    store = FolderStore(homerun.dir / "bucket")
    _to_bucket(store, run, story.events)
    store.put(f"{run}/metadata.json", b"{}")
    store.put(
        f"{run}/lease.json", json.dumps({"run": run, "attempt": 1, "owner": "x", "host": "h", "beat": 1}).encode()
    )
    store.put(f"{run}/logs/a01/0001-base_train.log", b"closed\n")
    store.put(f"{run}/logs/a01/0002-chat_sft.log.000001", b"open, ")
    store.put(f"{run}/logs/a01/0002-chat_sft.log.000002", b"in parts\n")
    assert json.loads(homerun("status", run, "--json"))["status"] == "good"
    assert homerun("logs", run, "base_train") == "closed\n"
    assert homerun("logs", run, "chat_sft") == "open, in parts\n"
    assert "> base_train" in homerun("watch", run)


@pytest.mark.s3
def test_a_run_elsewhere_is_watched_in_a_terminal_from_a_real_s3_bucket_to_its_end(s3_server, tmp_path):
    run, store = "far-20261122T000000Z-beef", s3_server.store()
    half, rest = _half(run=run)
    _to_bucket(store, run, half)
    lease = {"run": run, "attempt": 1, "owner": "x", "host": "h", "beat": 1}
    store.put(f"{run}/lease.json", json.dumps(lease).encode())
    terminal = Terminal(110, 32)
    environ = s3_server.environ() | {"HOMERUN_DIR": str(tmp_path)}
    watching = terminal.start(sys.executable, "-m", "homerun", "watch", run, **environ)
    terminal.wait_until(lambda: all(words in " ".join(terminal.rows()) for words in GLANCE))
    _to_bucket(store, run, half + rest)
    assert watching.wait(60) == 0
    terminal.wait_for(f"{run}: done (")
    assert "CORE 0.2219" in terminal.text()


def test_a_journal_in_the_bucket_gives_each_event_once_while_its_last_segment_grows(tmp_path):
    events = speedrun(steps=200).events
    store, seen = FolderStore(tmp_path / "bucket"), []
    journal = BucketJournal(store, "r")
    assert journal.poll() == []
    for upto in range(0, len(events), 37):
        _to_bucket(store, "r", events[:upto])
        seen += journal.poll()
    _to_bucket(store, "r", events)
    seen += journal.poll()
    assert [event["seq"] for event in seen] == [event["seq"] for event in events]


def test_a_second_attempt_is_watched_as_one_run():
    story = Story()
    begin(story)
    story("phase.begin", phase="base_train", name="base_train", argv=[])
    train(story, last=300, total=600)
    attempt(story, resumed_from={"step": 200, "group": "base_checkpoints/d20/000200"})
    console, out = plain(story.events)
    console.close()
    assert "goes on from step 200" in out.getvalue()
    assert ", attempt 2" in drawn(story.state(), 100)
