"""Whatever dies, and however, nothing that the script started is left running."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from homerun.upstream.guard import descendants, processes
from tests.running import PATH, Marked, plain_bash, prepare, run_script, wait_until

ROOT = Path(__file__).parent.parent

# Ways to outlive what started you.
HIDING = {
    "plain": "sleep 600",
    "own session": "setsid sleep 600",
    "double fork": "(setsid sleep 600 &)",
    "ignores TERM": "trap '' TERM HUP INT; sleep 600; sleep 600",
    "ignores TERM in its own session": "setsid sh -c \"trap '' TERM; sleep 600; sleep 600\" & wait",
    "stopped": "kill -STOP $$; sleep 600",
    "restarts its child": "while :; do sleep 600; done",
    "forks on TERM": "trap 'setsid sleep 600 & sleep 600' TERM; sleep 600 & wait; wait",
    "closed all files": "exec sleep 600 <&- >&- 2>&-",
}


def hide(folder: Path, how: str) -> str:
    """A script with one phase that hides, and writes `started` first."""
    (folder / "src").mkdir(parents=True, exist_ok=True)
    (folder / "src" / "hide.sh").write_text(f"touch ../started\n{HIDING[how]}\nsleep 600\n")
    return "sh ./hide.sh\necho NEVER\n"


@pytest.mark.parametrize("how", HIDING)
def test_stop_ends_whatever_hides(tmp_path, how):
    mark = Marked()
    ran = prepare(tmp_path, hide(tmp_path, how), env=mark.env, grace=0.3)

    def tick():
        if (tmp_path / "started").exists():
            ran.runner.stop("signal", "TERM")

    ran.run(tick)
    assert ran.outcome.why == "signal" and "NEVER" not in ran.said
    assert mark.gone(0.1), mark.command_lines()


@pytest.mark.parametrize("how", ["own session", "double fork", "ignores TERM"])
def test_a_failed_phase_takes_everything_with_it(tmp_path, how):
    mark = Marked()
    script = hide(tmp_path, how).replace("sh ./hide.sh\n", "sh ./hide.sh &\nsleep 0.3\nsh -c 'exit 3'\n")
    ran = run_script(tmp_path, script, env=mark.env, grace=0.3)
    assert ran.outcome.failed.status == 3 and mark.gone(0.1), mark.command_lines()


def test_a_daemon_does_not_outlive_the_script(tmp_path):
    mark = Marked()
    ran = run_script(tmp_path, "sh -c '(setsid sleep 600 &)'\n", env=mark.env)
    assert ran.outcome.ok and mark.gone(0.1), mark.command_lines()


JOB = """
import sys
from pathlib import Path
from tests.running import prepare
folder, mark, script = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
ran = prepare(folder, script, env={"TEST_MARK": mark}, grace=float(sys.argv[4]))
ran.run()
"""


def start_job(folder: Path, mark: Marked, script: str, grace: float = 0.3) -> subprocess.Popen[bytes]:
    """A process of its own that runs the script; it does not carry the mark, everything below it does."""
    environ = {"PATH": PATH, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    return subprocess.Popen([sys.executable, "-c", JOB, str(folder), mark.value, script, str(grace)], env=environ)


def end_job(job: subprocess.Popen[bytes]) -> None:
    job.kill()
    job.wait()


@pytest.mark.parametrize("how", HIDING)
def test_kill_9_of_the_job_leaves_nothing_running(tmp_path, how):
    mark = Marked()
    job = start_job(tmp_path, mark, hide(tmp_path, how))
    try:
        assert wait_until(lambda: (tmp_path / "started").exists())
    finally:
        end_job(job)
    assert mark.gone(), mark.command_lines()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_kill_9_of_the_job_at_any_moment_leaves_nothing_running(tmp_path, seed):
    mark = Marked()
    script = "for i in $(seq 1000); do sh -c : ; sh -c 'sleep 0.05' & sh -c 'setsid sleep 600 &' | cat; done\n"
    job = start_job(tmp_path, mark, script)
    assert wait_until(lambda: bool(mark.pids()) or seed % 2 == 0)
    time.sleep(random.Random(seed).uniform(0, 1.5))
    end_job(job)
    assert mark.gone(), mark.command_lines()


def guards(mark: Marked) -> list[int]:
    """The outer guard and the inner one."""
    living = processes()  # one look: any of them may end at any moment
    found = [pid for pid in mark.pids() if pid in living and b"guard.py" in command_line(pid)]
    return sorted(found, key=lambda pid: living[pid].parent in found)


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("how", HIDING)
@pytest.mark.parametrize("which", [0, 1], ids=["outer", "inner"])
def test_kill_9_of_a_guard_leaves_nothing_running(tmp_path, how, which):
    mark = Marked()
    ran = prepare(tmp_path, hide(tmp_path, how), env=mark.env, grace=0.3)
    killed = []

    def tick():
        if (tmp_path / "started").exists() and not killed:
            killed.append(guards(mark)[which])
            os.kill(killed[0], signal.SIGKILL)

    ran.run(tick)
    assert killed and not ran.outcome.ok and "NEVER" not in ran.said
    assert mark.gone(), mark.command_lines()


@pytest.mark.parametrize("which", [0, 1], ids=["outer", "inner"])
def test_term_of_a_guard_ends_the_run(tmp_path, which):
    mark = Marked()
    ran = prepare(tmp_path, hide(tmp_path, "plain"), env=mark.env)

    def tick():
        if (tmp_path / "started").exists():
            for pid in guards(mark)[which : which + 1]:
                os.kill(pid, signal.SIGTERM)

    ran.run(tick)
    assert not ran.outcome.ok and mark.gone(0.1)


def test_kill_9_of_a_shim_is_a_failure_of_its_phase(tmp_path):
    mark = Marked()
    ran = prepare(tmp_path, hide(tmp_path, "plain"), env=mark.env)

    def tick():
        if (tmp_path / "started").exists() and ran.runner.phases[0].status is None:
            os.kill(ran.runner.phases[0].pid, signal.SIGKILL)

    ran.run(tick)
    assert ran.outcome.why == "phase" and ran.outcome.failed.status == -9 and "NEVER" not in ran.said
    assert mark.gone(0.1), mark.command_lines()


def test_kill_9_of_bash_is_a_failure_of_the_script(tmp_path):
    mark = Marked()
    ran = run_script(tmp_path, "sh -c 'echo a'\nkill -9 $$\n", env=mark.env)
    assert not ran.outcome.ok and ran.outcome.status == -9 and mark.gone(0.1)


def test_a_script_with_a_trap_on_term_cannot_go_on(tmp_path):
    script = "trap 'echo trapped' TERM\nsh -c 'touch ../started; sleep 600'\necho NEVER\nsh -c 'touch ../NEVER'\n"
    ran = prepare(tmp_path, script)

    def tick():
        if (tmp_path / "started").exists():
            ran.runner.stop("signal", "TERM")

    ran.run(tick)
    assert "NEVER" not in ran.said and not (tmp_path / "NEVER").exists()


def test_a_phase_has_its_grace_to_save(tmp_path):
    phase = "import signal, sys, time\n"
    phase += "def save(*_): time.sleep(0.7); open('../saved', 'w').write('all'); sys.exit(3)\n"
    phase += "signal.signal(signal.SIGTERM, save)\nopen('../started', 'w')\nsignal.pause()\n"
    ran = prepare(tmp_path, "python phase.py\n", grace=10.0)
    (tmp_path / "src" / "phase.py").write_text(phase)

    def tick():
        if (tmp_path / "started").exists():
            ran.runner.stop("signal", "TERM")

    began = time.monotonic()
    ran.run(tick)
    assert (tmp_path / "saved").read_text() == "all" and ran.runner.phases[0].status == 3
    assert time.monotonic() - began < 9.0, "the end does not wait for the grace to pass"


def test_how_a_phase_ended_is_told_however_late_its_shim_comes_to_it(tmp_path):
    phase = "import os, signal, sys\n"
    phase += "def save(*_):\n os.kill(os.getppid(), signal.SIGSTOP)\n"
    phase += " open('../late', 'w').write(str(os.getppid()))\n sys.exit(3)\n"
    phase += "signal.signal(signal.SIGTERM, save)\nopen('../started', 'w')\nsignal.pause()\n"
    ran = prepare(tmp_path, "python phase.py\n", grace=20.0)
    (tmp_path / "src" / "phase.py").write_text(phase)

    def go_on_late():
        assert wait_until(lambda: (tmp_path / "late").exists() and (tmp_path / "late").read_text())
        time.sleep(0.5)
        os.kill(int((tmp_path / "late").read_text()), signal.SIGCONT)

    def tick():
        if (tmp_path / "started").exists():
            ran.runner.stop("signal", "TERM")

    late = threading.Thread(target=go_on_late)
    late.start()
    ran.run(tick)
    late.join()
    assert ran.runner.phases[0].status == 3


def test_orphans_are_reaped_while_the_script_runs(tmp_path):
    script = "sh -c 'for i in $(seq 50); do (setsid true &) ; done'\nsh -c 'sleep 0.5; touch ../look; sleep 0.5'\n"
    ran = prepare(tmp_path, script)
    zombies = []

    def tick():
        if (tmp_path / "look").exists() and not zombies:
            below = descendants(ran.runner._guard.pid)
            zombies.append([one for one in below.values() if one.state == "Z"])

    ran.run(tick)
    assert ran.outcome.ok and zombies == [[]]


def test_the_guards_own_environment_is_the_scripts(tmp_path):
    ran = run_script(tmp_path, "env | sort\n", env={"LANG": "C"})
    plain = plain_bash(tmp_path, "env | sort\n", env={"LANG": "C"}).stdout.decode()

    def lines(text: str) -> set[str]:
        return {line for line in text.splitlines() if not line.startswith(("PWD=", "_="))}

    assert lines(ran.said) == lines(plain)
