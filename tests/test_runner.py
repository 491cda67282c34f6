"""The runner stops at the first failure, judges the whole itself, and never lets output hurt anything."""

import errno
import hashlib
import socket
import stat
import subprocess
import threading
import time

import pytest

from homerun.upstream.runner import Decision
from homerun.upstream.tracer import Shim
from tests.running import Marked, prepare, run_script, wait_until

FAILURES = {
    "foreground": "sh -c 'exit 3'",
    "background": "sh -c 'exit 3' &\nsleep 30",
    "background and waited for": "sh -c 'exit 3' &\nwait $!",
    "first in a pipeline": "sh -c 'exit 3' | cat",
    "last in a pipeline": "echo | sh -c 'exit 3'",
    "in a substitution": "x=$(sh -c 'exit 3')",
    "in a substitution in words": "echo $(sh -c 'exit 3')",
    "in a function, and not its last": "f() { sh -c 'exit 3'; echo NEVER; }\nf",
    "in a loop": "for i in 1 2; do sh -c 'exit 3'; done",
    "in a subshell": "(sh -c 'exit 3'; true)",
    "in a branch": "if true; then sh -c 'exit 3'; fi",
    "in process substitution": "cat <(sh -c 'exit 3'; sleep 1)\nsleep 30",
    "under set -e": "set -e\nsh -c 'exit 3'",
    "by a signal": "sh -c 'kill -9 $$'",
    "not there": "nosuchcommand --x",
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_phase_that_fails_is_followed_by_nothing(tmp_path, how):
    ran = run_script(tmp_path, f"echo begun\n{FAILURES[how]}\necho NEVER\nsh -c 'touch ../NEVER'\n")
    assert (ran.outcome.ok, ran.outcome.why) == (False, "phase")
    assert ran.outcome.failed is ran.runner.phases[0] and ran.outcome.failed.status in (3, -9, 127)
    assert "NEVER" not in ran.said and not (tmp_path / "NEVER").exists()
    assert len(ran.runner.phases) == 1 and ran.of("phase.end")[0]["verdict"] == "failed"


def test_the_same_failures_are_the_scripts_own_where_it_tests_for_them(tmp_path):
    script = """\
sh -c 'exit 3' || echo "or $?"
if sh -c 'exit 4'; then echo yes; else echo "else $?"; fi
! sh -c 'exit 5'; echo "not $?"
while sh -c 'exit 6'; do :; done
sh -c 'exit 7' && echo yes; echo "and $?"
"""
    ran = run_script(tmp_path, script)
    assert ran.outcome.ok, ran.outcome
    assert ran.said == "or 3\nelse 4\nnot 0\nand 7\n"
    assert set(ran.verdicts().values()) == {"tolerated"}


@pytest.mark.parametrize(
    "command",
    ["cp nothing here", "cd nowhere", "source ./nowhere", "mkdir -p script.sh/x", "nothere", "(cp a b; true)"],
)
def test_another_command_that_fails_ends_the_run_too(tmp_path, command):
    ran = run_script(tmp_path, f"{command}\nsh -c 'echo NEVER'\n")
    assert not ran.outcome.ok and ran.outcome.why == "phase"
    assert command.split()[0].strip("(") in ran.outcome.text and "NEVER" not in ran.said
    assert all(phase.verdict == "failed" for phase in ran.runner.phases)


@pytest.mark.parametrize(
    "command",
    [
        "[ -d nowhere ] && echo yes",
        "x=$(false)",
        "x=$(cat nowhere | sort; ls nowhere)",
        "f() { ls nowhere; }; x=`f`",
        "echo $(cp nowhere there; cat nowhere)",
        "grep -q nothing script.shh 2>/dev/null",
        "((n++))",
        "let n=0",
        "[[ a == b ]]",
        "f() { [ -d nowhere ] && echo yes; }; f",
        'export A="$(false)"',
        "false | true",
        "[ -d nowhere ] || sh -c 'exit 0'",
        "(exit 0)",
    ],
)
def test_a_status_that_is_an_answer_ends_nothing(tmp_path, command):
    ran = run_script(tmp_path, f"{command}\necho went on\n")
    assert ran.outcome.ok, ran.outcome
    assert "went on" in ran.said


def test_a_failed_assignment_is_said(tmp_path):
    ran = run_script(tmp_path, "x=$(cat nowhere)\n:\n")
    assert ran.outcome.ok, ran.outcome
    assert "line 1: `cat nowhere` ended with status 1" in ran.of("warning")[0]["text"]


def test_a_reader_that_has_enough_is_no_failure(tmp_path):
    ran = run_script(tmp_path, "set -o pipefail\nsh -c 'yes' | head -1\n:\n")
    assert ran.outcome.ok, ran.outcome
    assert list(ran.verdicts().values()) == ["tolerated"]


@pytest.mark.parametrize("status", [1, 3, 255])
def test_bashs_own_failure_counts_when_nothing_else_failed(tmp_path, status):
    ran = run_script(tmp_path, f"sh -c :\nexit {status}\n")
    assert (ran.outcome.ok, ran.outcome.why, ran.outcome.status) == (False, "phase", status)
    assert str(status) in ran.outcome.text


def test_bashs_own_success_never_hides_a_failure(tmp_path):
    ran = run_script(tmp_path, "trap 'exit 0' EXIT TERM\nsh -c 'exit 3'\nexit 0\n")
    assert not ran.outcome.ok and ran.outcome.failed.status == 3


def test_what_nobody_waited_for_is_ended_and_said(tmp_path):
    mark = Marked()
    ran = run_script(tmp_path, "sh -c 'sleep 600' &\nsleep 0.3\n", env=mark.env)
    assert ran.outcome.ok, ran.outcome
    assert ran.runner.phases[0].verdict == "tolerated" and "did not wait" in ran.of("warning")[0]["text"]
    assert mark.gone(0.1)


def test_output_that_is_still_on_its_way_when_the_script_ends_is_kept(tmp_path):
    ran = run_script(tmp_path, "exec > >(sleep 0.3; cat) 2>&1\necho the last words\n")
    assert ran.outcome.ok and ran.said == "the last words\n"


def test_stop_ends_a_phase_and_says_why(tmp_path):
    ran = prepare(tmp_path, "python -c 'import time; time.sleep(600)'\necho NEVER\n")

    def tick():
        if ran.runner.phases:
            ran.runner.stop("budget", "the money is spent")

    ran.run(tick)
    assert (ran.outcome.ok, ran.outcome.why, ran.outcome.text) == (False, "budget", "the money is spent")
    end = ran.of("phase.end")[0]
    assert end["verdict"] == "failed" and "the money is spent" in end["reason"] and "NEVER" not in ran.said


def test_a_phase_that_ends_well_while_the_run_is_stopped_is_not_called_done(tmp_path):
    ran = prepare(tmp_path, "python phase.py\n")
    phase = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(0))\nprint(1, flush=True)\nsignal.pause()\n"
    (tmp_path / "src" / "phase.py").write_text(phase)

    def tick():
        if ran.runner.phases and ran.runner.phases[0].log.stat().st_size:
            ran.runner.stop("signal", "TERM")

    ran.run(tick)
    assert ran.runner.phases[0].status == 0 and ran.runner.phases[0].verdict == "failed"


def test_an_exception_in_the_tick_ends_everything_first(tmp_path):
    mark = Marked()
    ran = prepare(tmp_path, "sh -c 'sleep 600'\n", env=mark.env)

    def tick():
        if mark.pids():
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        ran.run(tick)
    assert mark.gone(0.1)


def test_a_full_disk_ends_the_run(tmp_path):
    ran = prepare(tmp_path, "sh -c 'echo one'\nsh -c 'echo NEVER'\n")
    emit = ran.runner._emit_event

    def full(type, /, **data):
        if type == "phase.end":
            raise OSError(errno.ENOSPC, "No space left on device")
        return emit(type, **data)

    ran.runner._emit_event = full
    ran.run()
    assert (ran.outcome.ok, ran.outcome.why) == (False, "disk") and len(ran.runner.phases) == 1


def test_failures_race_begins_and_always_win(tmp_path):
    """Whatever else is under way, once a phase is known to have failed none begins."""
    loop = "for i in $(seq 60); do sh -c : & sh -c :; done\n"
    ran = run_script(tmp_path, f"(sleep 0.5; sh -c 'exit 9') &\n{loop}wait\n")
    failed = next(i for i, event in enumerate(ran.events) if event.get("verdict") == "failed")
    assert not ran.outcome.ok and ran.outcome.failed.status == 9
    assert all(event["type"] != "phase.begin" for event in ran.events[failed:])


@pytest.mark.slow
def test_two_hundred_fast_phases_are_all_seen_in_order(tmp_path):
    ran = run_script(tmp_path, 'for i in $(seq 200); do sh -c "echo $i"; done\nsh -c "exit 3"\nsh -c NEVER\n')
    assert [phase.log.read_bytes() for phase in ran.runner.phases[:200]] == [b"%d\n" % (i + 1) for i in range(200)]
    assert len(ran.runner.phases) == 201 and ran.outcome.failed is ran.runner.phases[-1]
    assert [event["type"] for event in ran.events] == ["phase.begin", "phase.end"] * 201


OUTPUT = {
    "ten megabytes in one line": "head -c 10000000 /dev/zero | tr '\\0' x",
    "no newline at the end": "printf abc",
    "no valid utf-8": "printf '\\377\\376\\n'",
    "a hundred thousand lines": "seq 100000; seq 200000 >&2",
    "carriage returns": "printf 'a\\rb\\r\\033[Kc'",
}


@pytest.mark.parametrize("what", OUTPUT)
def test_output_is_kept_byte_for_byte(tmp_path, what):
    expected = subprocess.run(["sh", "-c", f"{{ {OUTPUT[what]}; }} 2>&1"], stdout=subprocess.PIPE).stdout
    ran = prepare(tmp_path, "sh ./out.sh\n")
    (tmp_path / "src" / "out.sh").write_text(OUTPUT[what])
    ran.run()
    assert ran.outcome.ok
    got = ran.runner.phases[0].log.read_bytes()
    assert len(got) == len(expected) and sorted(got.split(b"\n")) == sorted(expected.split(b"\n"))


def test_a_job_that_stands_still_never_blocks_a_phase(tmp_path):
    ran = prepare(tmp_path, "sh -c 'seq 300000; touch ../done'\n")
    waited = []

    def tick():
        if ran.runner.phases and not waited:
            waited.append(wait_until(lambda: (tmp_path / "done").exists()))  # in here nothing is read

    ran.run(tick)
    assert waited == [True] and ran.outcome.ok


def test_raw_logs_are_for_this_user_only(tmp_path):
    ran = run_script(tmp_path, "echo a\nsh -c 'echo b'\n")
    for path in ran.runner.raw.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in ran.runner.raw.iterdir()) == ["0000-script.log", "0001-sh-c.log"]
    assert ran.of("phase.begin")[0]["log"] == "logs/a01/raw/0001-sh-c.log"


def test_the_script_is_the_same_before_and_after(tmp_path):
    script = b"sh -c 'echo a'\nsh -c 'exit 1' || true\n"
    run_script(tmp_path, script)
    assert hashlib.sha256((tmp_path / "src" / "script.sh").read_bytes()).digest() == hashlib.sha256(script).digest()


def test_ticks_come_while_nothing_happens_and_at_every_border(tmp_path):
    ran = prepare(tmp_path, "sh -c 'sleep 0.5'\n")
    seen = []
    ran.run(lambda: seen.append(len(ran.events)))
    assert len(seen) > 5 and {1, 2} <= set(seen)


def test_decide_is_asked_before_a_phase_exists(tmp_path):
    asked = []

    def decide(phase):
        asked.append((phase.name, phase.line, phase.index, phase.occurrence, phase.original))
        return Decision(phase.original if phase.line == 1 else None, "no")

    ran = run_script(tmp_path, "sh -c 'echo a'\nsh -c 'exit 1'\n", decide=decide)
    assert ran.outcome.ok and asked == [
        ("sh-c", 1, 0, 1, ["sh", "-c", "echo a"]),
        ("sh-c-2", 2, 0, 1, ["sh", "-c", "exit 1"]),
    ]


def test_a_phase_that_sleeps_is_idle_and_one_that_works_is_not(tmp_path):
    busy = {}
    for name, code in {"asleep": "time.sleep(600)", "works": 'exec("while 1: 1")'}.items():
        ran = prepare(tmp_path / name, f"python -c 'import time; print(1, flush=True); {code}'\n", grace=0.0)

        def tick(ran=ran, name=name):
            if name in busy or not ran.runner.phases or not ran.runner.phases[0].log.stat().st_size:
                return
            first = ran.runner.idle_seconds()
            time.sleep(1.0)
            busy[name] = ran.runner.idle_seconds() <= first
            assert ran.runner.idle_seconds(gpu_busy=True) == 0.0
            ran.runner.stop("signal", "seen")

        ran.run(tick)
    assert busy == {"asleep": False, "works": True}


def test_stop_from_a_thread_or_a_handler_is_heard(tmp_path):
    ran = prepare(tmp_path, "sh -c 'sleep 600'\n")
    threading.Timer(0.5, lambda: ran.runner.stop("deadline", "time is up")).start()
    ran.run()
    assert ran.outcome.why == "deadline"


def test_two_runs_side_by_side_do_not_meet(tmp_path):
    runs = [prepare(tmp_path / str(i), f"for i in 1 2 3; do sh -c 'echo {i}'; done\n") for i in range(3)]
    threads = [threading.Thread(target=ran.run) for ran in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, ran in enumerate(runs):
        assert ran.outcome.ok and [phase.log.read_text() for phase in ran.runner.phases] == [f"{i}\n"] * 3


def test_of_an_end_and_a_begin_that_arrive_at_once_the_end_is_heard_first(tmp_path):
    ran = prepare(tmp_path, "sh -c one &\nsh -c two\n")
    runner = ran.runner
    runner.raw.mkdir(parents=True)
    runner.script_log.touch()
    ends = [socket.socketpair() for _ in range(2)]
    ending, beginning = (Shim(ours) for ours, _ in ends)
    runner._shims = {beginning: None, ending: None}
    runner._begin(ending, 1, 1, b"/", ["sh", "-c", "one"])
    for (_, theirs), words in zip(
        ends, (b"end\x003\x000.1\x000", b"begin\x002\x002\x00/\x00sh\x00-c\x00two"), strict=True
    ):
        theirs.sendall(len(words).to_bytes(4, "big") + words)
    runner._handle([beginning, ending], None)
    assert [event["type"] for event in ran.events] == ["phase.begin", "phase.end"]
    for pair in ends:
        for end in pair:
            end.close()
